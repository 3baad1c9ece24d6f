#!/usr/bin/env bash
# Builds the world of each example (conf/worlds/*) in network namespaces of its own, with the real CNI chain and
# the real datapath, sends real packets between all its pods and prints who reaches whom.
# Usage: scripts/demo.sh BIN_DIR [WORLD...]
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$1
shift
worlds=("$@")
[[ ${#worlds[@]} -gt 0 ]] || mapfile -t worlds < <(find conf/worlds -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | sort)
[[ ${#worlds[@]} -gt 0 ]] || {
    echo "demo: there are no worlds in conf/worlds" >&2
    exit 1
}
as_root=()
[[ $(id -u) -eq 0 ]] || as_root=(sudo)

failed=()
for world in "${worlds[@]}"; do
    folder=conf/worlds/$world
    [[ -d $folder ]] || {
        echo "demo: no world '$world' in conf/worlds" >&2
        exit 2
    }
    "${as_root[@]}" "$bin/podgatectl" lab --manifests "$folder/manifests" --probes "$folder/probes.json" \
        --plugin "$bin/podgate" </dev/null || failed+=("$world")
    echo
done
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "demo: not as expected in: ${failed[*]}" >&2
    exit 1
fi
echo "demo: every packet in ${#worlds[@]} worlds went the way its policies say"
