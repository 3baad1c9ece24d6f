#!/usr/bin/env bash
# Makes what a machine boots: DIR/root.img (the programs of this machine that the guests use, and the modules of every
# kernel in DIR/kernels) and DIR/kernels/VERSION/initrd. No mount, no root needed. Usage: tests/vm/image.sh DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(realpath "$1")
PATH="$PATH:/usr/sbin:/sbin"

# whole packages, so that nothing a program loads at run time is forgotten
packages=(bash coreutils util-linux mount grep sed findutils diffutils procps kmod busybox-static iproute2 ethtool iputils-ping
    nftables iptables conntrack containernetworking-plugins jq
    libxtables12 libc-bin netbase libgcc-s1 libelf1 zlib1g)

root=$dir/root
rm -rf "$root"
mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,proc,sys,dev,run,tmp,etc,root,payload,out,var/lib/cni}
for link in bin sbin lib lib64; do ln -s "usr/$link" "$root/$link"; done
ln -s /run "$root/var/run"

for package in "${packages[@]}"; do
    dpkg -L "$package" 2>/dev/null || {
        echo "vm: package $package is not installed (make setup installs it)" >&2
        exit 1
    }
done | grep -vE '^/usr/share/(doc|man|locale|info|lintian|bash-completion|zsh|ca-certificates)|^/usr/include' | sort -u |
    while read -r path; do
        if [[ -f $path || -L $path ]]; then printf '%s\n' "${path#/}"; fi
    done >"$dir/files"
find /etc/alternatives /etc/protocols /etc/nsswitch.conf ! -type d 2>/dev/null | sed 's,^/,,' >>"$dir/files"
tar -C / --no-recursion -cf - -T "$dir/files" 2>/dev/null | tar -C "$root" -xf - --keep-directory-symlink
printf 'root:x:0:0:root:/root:/bin/bash\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"

# the libraries of all that
{ find "$root" -type f \( -perm /111 -o -name "*.so*" \) -print0 | xargs -0 -n 64 ldd 2>/dev/null || true; } |
    awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\/.*ld-linux/ { print $1 }' | sort -u |
    while read -r library; do
        target=$root/$(realpath -m "$library" | sed 's,^/lib,usr/lib,;s,^/,,')
        mkdir -p "$(dirname "$target")"
        cp -L "$library" "$target"
        # by the name that programs ask for
        asked=$root/$(echo "$library" | sed 's,^/lib,usr/lib,;s,^/,,')
        [[ -e $asked ]] || { mkdir -p "$(dirname "$asked")" && cp -L "$library" "$asked"; }
    done
# the tests compile three foreign programs of one line each: made here, as the guests have no compiler
for action in 0 -1 2; do
    printf '__attribute__((section("tc"), used)) int foreign(void *skb) { return %s; }\nchar LICENSE[] __attribute__((section("license"), used)) = "GPL";\n' \
        "$action" >"$dir/foreign.c"
    "${CLANG:-clang}" -target bpf -O2 -g -c "$dir/foreign.c" -o "$root/usr/lib/foreign$action.o"
done
cp "$here/guest/init" "$root/init"
cp "$here/guest/foreign-clang" "$root/usr/bin/foreign-clang"

for kernel in "$dir"/kernels/*/; do
    modules=$(find "$kernel" -type d -path '*/lib/modules/*' -prune | head -n 1)
    release=$(basename "$modules")
    to=$root/usr/lib/modules/$release
    mkdir -p "$to/kernel/drivers/net"
    cp "$modules"/modules.builtin* "$modules"/modules.order "$to/" 2>/dev/null || true
    for part in net lib crypto fs/overlayfs arch/x86/crypto; do
        [[ ! -d $modules/kernel/$part ]] || { mkdir -p "$to/kernel/$part" && cp -r "$modules/kernel/$part/." "$to/kernel/$part/"; }
    done
    cp "$modules"/kernel/drivers/net/*.ko* "$to/kernel/drivers/net/" 2>/dev/null || true
    depmod -b "$root" "$release" 2>/dev/null

    # the first root: what it takes to find the disks
    initrd=$(mktemp -d)
    mkdir -p "$initrd"/{bin,modules,proc,sys,dev,root}
    cp "$(command -v busybox)" "$initrd/bin/busybox"
    cp "$here/guest/first-init" "$initrd/init"
    number=0
    for module in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
        file=$(find "$modules" -name "$module.ko*" | head -n 1)
        [[ -n $file ]] || continue # built in
        number=$((number + 1))
        case $file in
        *.xz) xz -dc "$file" ;;
        *.zst) zstd -dcq "$file" ;;
        *) cat "$file" ;;
        esac >"$initrd/modules/$number-$module.ko"
    done
    (cd "$initrd" && find . | busybox cpio -o -H newc 2>/dev/null) >"$kernel/initrd"
    rm -rf -- "$initrd"
done
size=$(($(du -sm "$root" | cut -f1) * 12 / 10 + 64))
rm -f "$dir/root.img"
mke2fs -q -t ext4 -O ^has_journal -d "$root" "$dir/root.img" "${size}M" >/dev/null
rm -rf -- "$root"
