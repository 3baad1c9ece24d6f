#!/usr/bin/env bash
# Did something outlive the tests?
# Usage: scripts/leftovers.sh before FILE            notes what is there
#        scripts/leftovers.sh after FILE MARK TMP    fails, naming it, if there is more now
# MARK is the PODGATE_TEST_RUN that scripts/test.sh puts into the tests' environment; children inherit it, so
# a process is blamed only if a test started it. TMP was the tests' TMPDIR, and should be empty.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

if [[ $(id -u) -ne 0 ]]; then
    exec sudo env "PATH=$PATH" "$0" "$@"
fi

# One line per thing, its kind first, so that the report reads by itself.
inventory() {
    local mark=${1:-} tmp=${2:-} environ pid
    find /run/netns -mindepth 1 -printf 'network namespace %p\n' 2>/dev/null || true
    ip -o link show | awk -F': ' '{ sub(/@.*/, "", $2); print "interface " $2 }'
    find /sys/fs/bpf -mindepth 1 -path '*podgate*' -printf 'pin %p\n' 2>/dev/null || true
    awk '{ print "mount " $5 }' /proc/self/mountinfo
    find /sys/fs/cgroup -maxdepth 3 -type d \
        \( -name 'pg*' -o -name '*podgate*' -o -name 'k8s.io' -o -name 'libpod*' \) -printf 'cgroup %p\n' 2>/dev/null || true
    find /run/podgate /run/containerd /var/lib/cni /etc/cni -mindepth 1 -printf 'file %p\n' 2>/dev/null || true
    [[ -z $tmp ]] || find "$tmp" -mindepth 1 -maxdepth 1 -printf 'file %p\n'
    [[ -n $mark ]] || return 0
    # grep's own environment has no mark: it came as an argument
    while read -r environ; do
        pid=${environ#/proc/}
        pid=${pid%/environ}
        printf 'process %s %s\n' "$pid" "$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" || true)"
    done < <(grep -lszx "PODGATE_TEST_RUN=$mark" /proc/[0-9]*/environ || true)
}

case ${1:-} in
before)
    inventory | sort -u >"$2"
    ;;
after)
    # what was told to end may need a moment to do so
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        more=$(inventory "$3" "$4" | sort -u | comm -13 "$2" -)
        [[ -n $more ]] || break
        [[ $attempt -eq 10 ]] || sleep 1
    done
    rm -rf -- "$4"
    if [[ -n $more ]]; then
        echo "leftovers: something was left behind (anything else that works on this machine meanwhile shows up here too):" >&2
        while read -r line; do echo "  - $line" >&2; done <<<"$more"
        exit 1
    fi
    echo "leftovers: none"
    ;;
*)
    echo "usage: $0 before FILE | after FILE MARK TMP" >&2
    exit 2
    ;;
esac
