#!/bin/bash
# Example worlds in a guest, as `make demo` builds them. Usage: worlds.sh SECONDS [WORLD...]
mount -t bpf bpf /sys/fs/bpf
cd /payload/repo || exit 2
seconds=$1
shift
worlds=("$@")
[[ ${#worlds[@]} -gt 0 ]] || worlds=(conf/worlds/*)
status=0
for world in "${worlds[@]}"; do
    name=$(basename "$world")
    started=$SECONDS code=0
    timeout "$seconds" /payload/bin/podgatectl lab --manifests "conf/worlds/$name/manifests" --probes "conf/worlds/$name/probes.json" \
        --plugin /payload/bin/podgate --policyd /payload/bin/policyd </dev/null >"/out/world-$name.txt" 2>&1 || code=$?
    [[ $code -eq 0 ]] || status=1
    echo "world $name: exit $code in $((SECONDS - started)) s: $(grep -hE 'probes, |disagree|^podgatectl:' "/out/world-$name.txt" | tr '\n' ';')"
    sync
done
exit $status
