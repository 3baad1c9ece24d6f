#!/usr/bin/env bash
# Unpacks Debian's kernels below DIR/kernels/VERSION; nothing is installed. Usage: tests/vm/kernels.sh DIR VERSION...
# VERSION is 5.10, 6.1, 6.12, 6.18 or newest. apt works on lists of its own below DIR: the machine's stay as they are.
set -euo pipefail
dir=$(realpath -m "$1")
shift

apt=$dir/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs" "$dir/kernels"
: >"$apt/status"
mirror=$(awk '$1 == "URIs:" { print $2; exit } $1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^http/) { print $i; exit } }' \
    /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true)
[[ -n $mirror ]] || {
    echo "vm: no Debian archive in /etc/apt to take kernels from" >&2
    exit 1
}
mirror=${mirror%/}
signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
{
    for suite in bullseye bookworm trixie trixie-backports sid; do echo "deb $signed $mirror $suite main"; done
    for suite in bullseye bookworm trixie; do echo "deb $signed $mirror-security $suite-security main"; done
} >"$apt/sources.list"

own_apt() {
    "$1" -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$apt/lists" \
        -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o Dir::Etc::preferences=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o APT::Sandbox::User=root "${@:2}"
}

# the newest package whose whole name matches
newest() {
    own_apt apt-cache search --names-only "^$1\$" | awk '{ print $1 }' | sort -V | tail -n 1
}

packages_of() {
    case $1 in
    5.10) newest 'linux-image-5\.10\.0-[0-9]+-cloud-amd64' ;;
    6.1) newest 'linux-image-6\.1\.0-[0-9]+-cloud-amd64' ;;
    6.12) newest 'linux-image-6\.12\.[0-9]+\+deb[0-9]+-cloud-amd64' ;;
    6.18) newest 'linux-image-6\.18\.[0-9]+\+deb[0-9]+-cloud-amd64' ;;
    newest)
        # image and modules are packages of their own there
        local binary
        binary=$(newest 'linux-binary-[7-9]\.[0-9.]+\+deb[0-9]+-cloud-amd64')
        [[ -z $binary ]] || printf '%s\nlinux-modules-%s\n' "$binary" "${binary#linux-binary-}"
        ;;
    esac
}

[[ $(uname -m) == x86_64 ]] || {
    echo "vm: only x86_64 kernels are known here, this is $(uname -m)" >&2
    exit 1
}
for version in "$@"; do
    [[ ! -e $dir/kernels/$version/.done ]] || continue
    [[ -e $apt/updated ]] || {
        own_apt apt-get -q update >"$apt/update.log" 2>&1 || {
            echo "vm: cannot read the archive's lists: $(tail -n 1 "$apt/update.log")" >&2
            exit 1
        }
        touch "$apt/updated"
    }
    mapfile -t packages < <(packages_of "$version")
    [[ ${#packages[@]} -gt 0 && -n ${packages[0]} ]] || {
        echo "vm: the archive has no kernel $version" >&2
        exit 1
    }
    echo "vm: kernel $version: ${packages[*]}"
    for package in "${packages[@]}"; do
        (cd "$apt/debs" && own_apt apt-get -q download "$package" >/dev/null)
        dpkg -x "$apt/debs/$package"_*.deb "$dir/kernels/$version"
        rm -f "$apt/debs/$package"_*.deb
    done
    touch "$dir/kernels/$version/.done"
done
