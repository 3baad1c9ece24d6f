#!/usr/bin/env bash
# Installs what a set of targets needs and the machine lacks; says first what that will be.
# Usage: scripts/setup.sh build|demo|test|lint|vm ...     A second run finds everything and is quick.
set -euo pipefail

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# One line each: the group that needs it, what proves it is there, Debian's package. The proof is a command or a
# path, not the package: a machine may have it from elsewhere (containerd.io, say). `=` where only the package
# proves it: busybox is no proof of a static one.
needs='
build gcc gcc
build /usr/include/*/asm/types.h linux-libc-dev
build /usr/lib/*/libc.a libc6-dev
build pkg-config pkg-config
build clang clang
build /usr/include/libelf.h libelf-dev
build /usr/lib/*/libelf.a libelf-dev
build /usr/lib/*/libz.a zlib1g-dev
build /etc/ssl/certs/ca-certificates.crt ca-certificates
build jq jq
demo ip iproute2
demo unshare util-linux
demo /usr/lib/cni/bridge containernetworking-plugins
demo /usr/lib/cni/static containernetworking-plugins
test ip iproute2
test tc iproute2
test unshare util-linux
test /usr/lib/cni/bridge containernetworking-plugins
test /usr/lib/cni/static containernetworking-plugins
test ethtool ethtool
test jq jq
test protoc protobuf-compiler
lint protoc protobuf-compiler
test containerd containerd
test runc runc
test = busybox-static
test ps procps
test ping iputils-ping
test iptables-restore iptables
test nft nftables
test conntrack conntrack
vm qemu-system-x86_64 qemu-system-x86
vm mke2fs e2fsprogs
vm debugfs e2fsprogs
vm depmod kmod
vm xz xz-utils
vm zstd zstd
vm objcopy binutils
lint clang-format clang-format
lint shellcheck shellcheck
'

present() {
    case $1 in
    =) dpkg-query -W -f '${Status}' "$2" 2>/dev/null | grep -q 'ok installed' ;;
    /*) compgen -G "$1" >/dev/null ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
    esac
}

groups=" $* "
missing=()
while read -r group probe package; do
    [[ -n $group && $groups == *" $group "* ]] || continue
    present "$probe" "$package" && continue
    [[ " ${missing[*]:-} " == *" $package "* ]] || missing+=("$package")
done <<<"$needs"

as_root=()
if [[ $(id -u) -ne 0 ]]; then
    as_root=(sudo)
fi

apt_refreshed=no
apt_install() {
    command -v apt-get >/dev/null ||
        fail "this machine has no apt-get: install the equivalents of these Debian packages yourself: $*"
    [[ ${#as_root[@]} -eq 0 ]] || command -v sudo >/dev/null ||
        fail "not root, and there is no sudo: run as root, or install these packages yourself: $*"
    echo "setup: will install with apt-get: $*"
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600)
    if [[ $apt_refreshed == no ]]; then
        # one unreachable third-party repository must not stop us; a package it hides is reported below
        "${apt[@]}" -q update || echo "setup: apt-get update had errors, going on with what it got" >&2
        apt_refreshed=yes
    fi
    "${apt[@]}" install -q -y --no-install-recommends "$@" </dev/null ||
        fail "apt-get could not install: $* (its reason stands above)"
}

if [[ ${#missing[@]} -gt 0 ]]; then
    apt_install "${missing[@]}"
fi

# The first of two versions is not newer than the second.
not_newer() {
    [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]
}

# Go builds cnitool and libcni for the runtime tier, Kubernetes and a conformance suite for the cluster tier, and the suite
# wants the newest one. Debian 12's is too old. Their modules come through Go's own module cache when they are built.
if [[ $groups == *" test "* ]]; then
    wanted=$(awk '$1 == "go" { print $2 }' "$(dirname "$0")/../tests/conformance/go.mod")
    go=$(PATH="/usr/local/go/bin:$PATH" command -v go || true)
    if [[ -z $go ]]; then
        candidate=$(apt-cache policy golang-go 2>/dev/null | awk '$1 == "Candidate:" { sub(/^[0-9]*:/, "", $2); print $2 }')
        if [[ -n $candidate ]] && not_newer "$wanted" "$candidate"; then
            apt_install golang-go
            go=$(command -v go)
        fi
    fi
    found=$([[ -z $go ]] || "$go" env GOVERSION | sed 's/^go//')
    if [[ -z $found ]] || ! not_newer "$wanted" "$found"; then
        fail "the runtime and cluster tests need Go $wanted or newer, here is ${found:-none}, and this Debian offers ${candidate:-none}.
       Unpack a release of https://go.dev/dl into /usr/local/go, where it is found by itself"
    fi
fi

# Rust. Debian 12's rustc is years too old and has no rustup package; we run no installer from the web
# as root unasked, so that one step is told instead.
[[ $groups == *" build "* ]] || exit 0
cargo="$(dirname "$0")/cargo.sh"
if ! "$cargo" --version >/dev/null 2>&1; then
    if [[ -n $(apt-cache madison rustup 2>/dev/null) ]]; then
        apt_install rustup
        rustup toolchain install # the version and components of rust-toolchain.toml
    else
        fail "there is no cargo, and this Debian has no rustup package. Install Rust the way its
       makers describe (https://rustup.rs), for yourself or for root; with curl at hand that is:
           curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal
       then run the same make target again; it picks ~/.cargo/bin up by itself."
    fi
fi
found=$("$cargo" --version | awk '{ print $2 }')
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
not_newer "$wanted" "$found" ||
    fail "cargo is $found, podgate needs $wanted or newer: install rustup (https://rustup.rs); it will fetch
       the version that rust-toolchain.toml names"
