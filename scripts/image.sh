#!/usr/bin/env bash
# The container image as an OCI archive, without a container tool: three static binaries on nothing.
# Usage: scripts/image.sh BIN_DIR NAME[:TAG] ARCHIVE
# In it, and beside ARCHIVE as .spdx.json: what the binaries are made of (scripts/licences.sh).
# The same binaries and SOURCE_DATE_EPOCH (default: the last commit's time) give the same bytes.
# Import: ctr -n k8s.io images import ARCHIVE, podman load -i ARCHIVE, skopeo copy oci-archive:ARCHIVE docker://...
set -euo pipefail

[[ $# -eq 3 ]] || {
    sed -n '2,6s/^# //p' "$0" >&2
    exit 2
}
binaries=(policyd podgatectl podgate)
bin=$1 name=$2 archive=$3
# a port of a registry is no tag
[[ ${name##*/} == *:* ]] || name+=:latest
tag=${name##*:}
top=$(cd "$(dirname "$0")/.." && pwd)
# an export of the sources has no commit
commit=$(git -C "$top" rev-parse HEAD 2>/dev/null || echo unknown)
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || echo 0)}
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)

for binary in "${binaries[@]}"; do
    [[ -x $bin/$binary ]] || {
        echo "image: no $bin/$binary: run make build" >&2
        exit 1
    }
    # in the image there is no interpreter and no library
    if readelf -lW "$bin/$binary" | grep -q INTERP; then
        echo "image: $bin/$binary is not static: run make build" >&2
        exit 1
    fi
done
case $(readelf -h "$bin/policyd" | awk -F: '/Machine/ { print $2 }') in
*X86-64*) architecture=amd64 triple=x86_64-unknown-linux-gnu ;;
*AArch64*) architecture=arm64 triple=aarch64-unknown-linux-gnu ;;
*)
    echo "image: $bin/policyd is for a machine that no image is made for" >&2
    exit 1
    ;;
esac

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
blobs=$work/oci/blobs/sha256
mkdir -p "$blobs" "$work/root/usr/bin" "$work/root/usr/share/doc/podgate"

# Files of a directory as an archive that does not depend on who makes it, when and where.
pack() {
    tar -C "$1" --format=ustar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -cf - .
}
digest() { sha256sum "$1" | cut -d' ' -f1; }
# Moves a file among the blobs and prints its descriptor's fields.
blob() { # file, media type
    local sum size
    sum=$(digest "$1")
    size=$(stat -c %s "$1")
    mv "$1" "$blobs/$sum"
    printf '"mediaType":"%s","digest":"sha256:%s","size":%s' "$2" "$sum" "$size"
}

for binary in "${binaries[@]}"; do
    install -m 0755 "$bin/$binary" "$work/root/usr/bin/$binary"
done
# as kubectl's plugin too
ln -s podgatectl "$work/root/usr/bin/kubectl-podgate"
# pods' namespaces are named by either path
mkdir -p "$work/root/run" "$work/root/var"
ln -s ../run "$work/root/var/run"
install -m 0644 "$top/LICENSE" "$work/root/usr/share/doc/podgate/LICENSE"
SOURCE_DATE_EPOCH=$epoch "$top/scripts/licences.sh" "$triple" "$work/root/usr/share/doc/podgate"
pack "$work/root" >"$work/layer.tar"
diff=$(digest "$work/layer.tar")
gzip -n -6 "$work/layer.tar"
layer=$(blob "$work/layer.tar.gz" application/vnd.oci.image.layer.v1.tar+gzip)

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/Cargo.toml" | head -n 1)
cat >"$work/config.json" <<JSON
{"created":"$created","architecture":"$architecture","os":"linux","config":{"Env":["PATH=/usr/bin"],"Entrypoint":["/usr/bin/policyd"],"Labels":{"org.opencontainers.image.title":"podgate","org.opencontainers.image.description":"NetworkPolicy enforcement for any CNI plugin that makes veths","org.opencontainers.image.licenses":"Apache-2.0","org.opencontainers.image.version":"$version","org.opencontainers.image.revision":"$commit"}},"rootfs":{"type":"layers","diff_ids":["sha256:$diff"]},"history":[{"created":"$created","created_by":"scripts/image.sh"}]}
JSON
config=$(blob "$work/config.json" application/vnd.oci.image.config.v1+json)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{%s},"layers":[{%s}]}\n' \
    "$config" "$layer" >"$work/manifest.json"
manifest=$(blob "$work/manifest.json" application/vnd.oci.image.manifest.v1+json)
# the first annotation is the standard's, the second what containerd names the image by
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"%s","io.containerd.image.name":"%s"}}]}\n' \
    "$manifest" "$architecture" "$tag" "$name" >"$work/oci/index.json"
printf '{"imageLayoutVersion":"1.0.0"}\n' >"$work/oci/oci-layout"

mkdir -p "$(dirname "$archive")"
install -m 0644 "$work/root/usr/share/doc/podgate/podgate.spdx.json" "${archive%.tar}.spdx.json"
pack "$work/oci" >"$archive.new"
mv "$archive.new" "$archive"
echo "image: $name ($architecture) in $archive, $(($(stat -c %s "$archive") / 1048576)) MiB, sha256:$(digest "$archive")"
