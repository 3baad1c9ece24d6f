#!/usr/bin/env bash
# cargo deny (deny.toml), built from source once, about two minutes on two cores, into the user's cache.
# Bans, licences and sources are checked always. Advisories need the RustSec database, which lives in a git
# repository: where that is out of reach they are NOT checked, and the last line says so.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $(id -u) -eq 0 && -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
    exec sudo -u "$SUDO_USER" -H "$PWD/scripts/deny.sh" # see scripts/cargo.sh
fi

version=0.20.2
home=${XDG_CACHE_HOME:-$HOME/.cache}/podgate/cargo-deny-$version
if [[ ! -x $home/bin/cargo-deny ]]; then
    echo "deny: building cargo-deny $version once, into $home"
    # a checker need not be fast: the quicker build wins
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_TARGET_DIR="$home/build" \
        scripts/cargo.sh install -q --locked --no-default-features --version "$version" --root "$home" cargo-deny
    rm -rf "$home/build"
fi
PATH="$home/bin:$PATH"

scripts/cargo.sh deny --log-level warn check bans licenses sources
if timeout 60 scripts/cargo.sh deny --log-level off fetch db >/dev/null 2>&1; then
    scripts/cargo.sh deny --log-level warn check --disable-fetch advisories
else
    echo "deny: advisories were NOT checked: the RustSec database is out of reach from here"
fi
