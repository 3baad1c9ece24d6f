#!/usr/bin/env bash
# Boots DIR/kernels/VERSION with the folder PAYLOAD at /payload, runs COMMAND there, and leaves in OUT what it wrote below
# /out. Software emulation: the same everywhere, and no right is needed. Exit status: the command's, 124 if it took longer
# than SECONDS, 125 if the guest did not come that far.
# Usage: tests/vm/boot.sh DIR VERSION PAYLOAD OUT SECONDS COMMAND
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
dir=$1 version=$2 payload=$3 out=$4 seconds=$5 command=$6

work=$(mktemp -d "$dir/boot.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
rm -rf -- "$out"
mkdir -p "$out" "$work/payload"
cp -a "$payload/." "$work/payload/"
printf '%s\n' "$command" >"$work/payload/command"
size=$(($(du -sm "$work/payload" | cut -f1) * 12 / 10 + 24))
mke2fs -q -t ext4 -O ^has_journal -d "$work/payload" "$work/payload.img" "${size}M" >/dev/null
rm -rf -- "$work/payload"
mke2fs -q -t ext4 -O ^has_journal "$work/out.img" 256M >/dev/null
vmlinuz=$(find "$dir/kernels/$version" -name 'vmlinuz*' -type f | head -n 1)
status=0
timeout -k 5 "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 3072 -smp 2 -nodefaults -no-reboot \
    -display none -serial stdio -kernel "$vmlinuz" -initrd "$dir/kernels/$version/initrd" \
    -append 'console=ttyS0 panic=-1 quiet' \
    -drive "file=$dir/root.img,format=raw,if=virtio,snapshot=on" \
    -drive "file=$work/payload.img,format=raw,if=virtio,snapshot=on" \
    -drive "file=$work/out.img,format=raw,if=virtio" </dev/null >"$out/console.log" 2>&1 || status=$?
# read without a mount
debugfs -R "rdump / $out" "$work/out.img" >/dev/null 2>&1 || true
rmdir "$out/lost+found" 2>/dev/null || true
[[ $status -ne 124 ]] || exit 124
[[ -s $out/status ]] || exit 125
exit "$(cat "$out/status")"
