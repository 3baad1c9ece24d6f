#!/usr/bin/env bash
# cargo, wherever it is. Under `sudo make` it runs as the user who called sudo: root has no toolchain then,
# and a target/ owned by root would break that user's next build.
set -euo pipefail

if [[ $(id -u) -eq 0 && -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
    home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    if [[ -x $home/.cargo/bin/cargo ]]; then
        # shellcheck disable=SC2046 # each NAME=VALUE is one word: none of these holds blanks we need
        mapfile -d '' -t keep < <(env -0 | grep -zE '^(TMPDIR|NO_COLOR|CI|CARGO_TERM|CARGO_TARGET|CARGO_BUILD|CARGO_PROFILE|PODGATE_|RUST_BACKTRACE|RUST_LOG|RUSTFLAGS|RUSTDOCFLAGS|LIBBPF_SYS|PROPTEST)[A-Z0-9_]*=')
        exec sudo -u "$SUDO_USER" -H env "PATH=$home/.cargo/bin:$PATH" "${keep[@]}" cargo "$@"
    fi
fi

PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
export PATH
exec cargo "$@"
