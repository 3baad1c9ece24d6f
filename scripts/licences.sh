#!/usr/bin/env bash
# What the static binaries are made of: DIR/licences/ gets the licence texts of everything that is linked into them,
# DIR/podgate.spdx.json says what that is (SPDX 2.3).
# Usage: scripts/licences.sh TRIPLE DIR
# The same sources, packages of the machine and SOURCE_DATE_EPOCH (default: 0) give the same bytes.
set -euo pipefail

[[ $# -eq 2 ]] || {
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
}
triple=$1
mkdir -p "$2/licences"
dir=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."
created=$(date -u -d "@${SOURCE_DATE_EPOCH:-0}" +%Y-%m-%dT%H:%M:%SZ)
fail() {
    printf 'licences: %s\n' "$*" >&2
    exit 1
}

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

# The crates that are linked in, not what runs at build time only; the features are those of `make build`.
scripts/cargo.sh tree --locked --offline --target "$triple" -e normal,no-proc-macro --prefix none --format '{p}' \
    -p policyd -p podgate-cni --features policyd/static |
    awk 'NF { print $1 "\t" substr($2, 2) }' | LC_ALL=C sort -u >"$work/linked"
scripts/cargo.sh metadata --locked --offline --filter-platform "$triple" --format-version 1 >"$work/metadata"
awk -F '"' '/^name = /{n=$2} /^version = /{v=$2} /^checksum = /{print n "\t" v "\t" $2}' Cargo.lock >"$work/checksums"

# name, version, licence, directory, checksum of each
jq -r --rawfile linked "$work/linked" --rawfile checksums "$work/checksums" '
    def table: split("\n") | map(select(. != "") | split("\t"));
    ($linked | table | map({key: join("@"), value: true}) | from_entries) as $linked
    | ($checksums | table | map({key: "\(.[0])@\(.[1])", value: .[2]}) | from_entries) as $sums
    | .packages[] | select($linked["\(.name)@\(.version)"])
    # libyaml-safer says it by its file LICENSE-MIT only
    | (.license // {"libyaml-safer": "MIT"}[.name] // error("crate \(.name) names no licence")) as $licence
    # "/" is the older way to write it
    | [.name, .version, ($licence | gsub("/"; " OR ")), (.manifest_path | rtrimstr("/Cargo.toml")),
       $sums["\(.name)@\(.version)"] // ""] | @tsv' "$work/metadata" >"$work/crates"
[[ $(wc -l <"$work/crates") -eq $(wc -l <"$work/linked") ]] || fail "cargo tree and cargo metadata differ"

copy() { # component, file...
    install -d "$dir/licences/$1"
    install -m 0644 -- "${@:2}" "$dir/licences/$1/"
}

while IFS=$'\t' read -r name version licence source _; do
    mapfile -t texts < <(find "$source" -maxdepth 1 -type f -regextype posix-extended \
        -iregex '.*/(licen[cs]e|copying|copyright|notice|unlicense)[^/]*' ! -name '*.rs' | LC_ALL=C sort)
    case $name in
    podgate-* | policyd) texts+=(LICENSE) ;;
    libbpf-sys) copy "libbpf-${version#*+v}" "$source"/libbpf/LICENSE* ;;
    esac
    # a crate that leaves its text out and says which it is: that one has no blanks to fill in
    [[ ${#texts[@]} -gt 0 || $licence != Apache-2.0 ]] || texts=(LICENSE)
    [[ ${#texts[@]} -gt 0 ]] || fail "crate $name $version ($licence) has no licence text in $source"
    copy "$name-$version" "${texts[@]}"
    [[ $name != libbpf-sys ]] ||
        printf 'libbpf\t%s\tLGPL-2.1-only OR BSD-2-Clause\tgeneric\n' "${version#*+v}" >>"$work/others"
done <"$work/crates"

# the programs for the kernel, which the binaries carry
copy podgate-programs bpf/c/LICENSE*

# Static libraries of the machine: with the text of Debian's package and those that it refers to.
of_package() { # component, licence, package
    local version copyright=/usr/share/doc/$3/copyright common
    # shellcheck disable=SC2016 # dpkg-query's own
    version=$(dpkg-query -W -f '${source:Upstream-Version}' "$3") || fail "no package $3"
    [[ -r $copyright ]] || fail "no $copyright"
    mapfile -t common < <(grep -o '/usr/share/common-licenses/[A-Za-z0-9.-]*[A-Za-z0-9]' "$copyright" | LC_ALL=C sort -u)
    copy "$1-$version" "$copyright" "${common[@]}"
    printf '%s\t%s\t%s\tdeb\n' "$1" "$version" "$2" >>"$work/others"
}
of_package elfutils 'LGPL-3.0-or-later OR GPL-2.0-or-later' libelf-dev
of_package zlib Zlib zlib1g-dev
of_package glibc LGPL-2.1-or-later libc6-dev
libgcc=$(dpkg-query -S "$(realpath "$(gcc -print-libgcc-file-name)")" | cut -d: -f1)
of_package libgcc 'GPL-3.0-or-later WITH GCC-exception-3.1' "$libgcc"

# Rust's own library, which every Rust program has in it
rust=$(scripts/cargo.sh --version | awk '{ print $2 }')
compiler=(rustc)
if [[ $(id -u) -eq 0 && -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
    # see scripts/cargo.sh
    compiler=(sudo -u "$SUDO_USER" -H "$(getent passwd "$SUDO_USER" | cut -d: -f6)/.cargo/bin/rustc")
fi
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
doc=$("${compiler[@]}" --print sysroot)/share/doc/rust
[[ -d $doc/licenses ]] || fail "Rust's licences are not in $doc"
copy "rust-$rust" "$doc"/COPYRIGHT-library.html "$doc"/licenses/*
printf 'rust\t%s\tMIT OR Apache-2.0\tgeneric\n' "$rust" >>"$work/others"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
jq -n --rawfile crates "$work/crates" --rawfile others "$work/others" --arg version "$version" \
    --arg created "$created" --arg triple "$triple" '
    def table: split("\n") | map(select(. != "") | split("\t"));
    def package($name; $version; $licence; $purl): {
        SPDXID: ("SPDXRef-" + ("\($name)-\($version)" | gsub("[^A-Za-z0-9.-]"; "-"))),
        name: $name, versionInfo: $version, downloadLocation: "NOASSERTION", filesAnalyzed: false,
        licenseConcluded: "NOASSERTION", licenseDeclared: $licence, copyrightText: "NOASSERTION",
        externalRefs: [{referenceCategory: "PACKAGE-MANAGER", referenceType: "purl", referenceLocator: $purl}]
    };
    # a + in a version is none in a URL
    def crate: package(.[0]; .[1]; .[2]; "pkg:cargo/\(.[0])@\(.[1] | gsub("\\+"; "%2B"))")
        + if .[4] == "" then {} else {checksums: [{algorithm: "SHA256", checksumValue: .[4]}]} end;
    def other: package(.[0]; .[1]; .[2]; "pkg:generic/\(.[0])@\(.[1])");
    (($crates | table | map(crate)) + ($others | table | map(other)) | sort_by(.SPDXID)) as $parts
    | package("podgate"; $version; "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"; "pkg:generic/podgate@\($version)") as $whole
    | {
        spdxVersion: "SPDX-2.3", dataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT",
        name: "podgate-\($version)-\($triple)",
        documentNamespace: "urn:podgate:spdx:\($version):\($triple):\($created)",
        creationInfo: {created: $created, creators: ["Tool: podgate-scripts-licences.sh"]},
        packages: ([$whole] + $parts),
        relationships: (
            [{spdxElementId: "SPDXRef-DOCUMENT", relationshipType: "DESCRIBES", relatedSpdxElement: $whole.SPDXID}]
            + ($parts | map({spdxElementId: $whole.SPDXID, relationshipType: "STATIC_LINK", relatedSpdxElement: .SPDXID})))
    }' >"$dir/podgate.spdx.json"
