#!/usr/bin/env bash
# Cargo's runner for test binaries of the root tiers: root, in a mount namespace with a bpffs of its own.
# The machine's /sys/fs/bpf is left alone, mounted or not, and the pins vanish with the process, however it ends.
set -euo pipefail

if [[ $(id -u) -ne 0 ]]; then
    # sudo drops the environment; cargo's, ours and what tests read goes over by name
    mapfile -d '' -t keep < <(env -0 | grep -zE '^(PATH|HOME|TMPDIR|CI|TERM|NO_COLOR|(CARGO|RUST|PODGATE|INSTA|PROPTEST|LD_LIBRARY)[A-Z0-9_a-z]*)=')
    exec sudo env "${keep[@]}" "$0" "$@"
fi

# shellcheck disable=SC2016 # expanded by the inner shell
exec unshare --mount --propagation private bash -c 'mount -t bpf bpf /sys/fs/bpf && exec "$@"' run-as-root "$@"
