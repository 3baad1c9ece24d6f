#!/usr/bin/env bash
# Can this machine run podgate's programs? Tries, in throw-away namespaces, what the demo and the root tiers
# need, and says all that is missing at once. Changes nothing. Exit 1 if something is missing.
# Usage: scripts/preflight.sh [runtime]           `runtime` also checks what containerd needs
#        scripts/preflight.sh programs POLICYD    loads, runs and attaches the real programs, with the built policyd
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

if [[ $(id -u) -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
        echo "preflight: not root, and there is no sudo: programs can be loaded into the kernel by root only" >&2
        exit 1
    fi
    exec sudo env "PATH=$PATH" "$0" "$@"
fi

if [[ ${1:-} == programs ]]; then
    # the verifier of this kernel has the last word, which no version number does
    exec "${2:?path of policyd}" check
fi

problems=()
problem() { problems+=("$1"); }

kernel=$(uname -r)
older_than() { [[ $(printf '%s\n%s\n' "$1" "${kernel%%-*}" | sort -V | head -n 1) != "$1" ]]; }

# global functions came with 5.6, the ring buffer with 5.8; 5.10 is the oldest that is tested (make test-vm)
older_than 5.10 && problem "kernel $kernel: podgate needs 5.10 or newer"
[[ -e /proc/sys/kernel/unprivileged_bpf_disabled ]] ||
    problem "this kernel has no bpf() system call (CONFIG_BPF_SYSCALL)"
if [[ -r /sys/kernel/security/lockdown ]] && grep -q '\[confidentiality\]' /sys/kernel/security/lockdown; then
    problem "kernel lockdown is in confidentiality mode, which forbids BPF programs to read packets (boot with lockdown=integrity or none)"
fi

# CAP_NET_ADMIN 12, CAP_SYS_ADMIN 21: a container's root often lacks them
capabilities=$((16#$(awk '/^CapEff:/ { print $2 }' /proc/self/status)))
((capabilities >> 21 & 1)) || problem "root here lacks CAP_SYS_ADMIN (in a container? run on the machine itself, or in a privileged one)"
((capabilities >> 12 & 1)) || problem "root here lacks CAP_NET_ADMIN (in a container? run on the machine itself, or in a privileged one)"

attempt() { # what it proves, commands: in a mount and a network namespace of its own
    local output
    output=$(unshare --mount --net --propagation private bash -euc "$2" 2>&1) ||
        problem "$1: ${output##*$'\n'}"
}
# without those capabilities every attempt would only say so again
if [[ ${#problems[@]} -eq 0 ]]; then
    attempt "mount a BPF file system" 'mount -t bpf bpf /sys/fs/bpf'
    attempt "make a veth pair (CONFIG_VETH)" 'ip link add pg0 type veth peer name pg1'
    attempt "make a bridge (CONFIG_BRIDGE)" 'ip link add pg0 type bridge'
    attempt "attach to TC (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)" \
        'ip link add pg0 type veth peer name pg1
         tc qdisc add dev pg0 clsact
         tc filter add dev pg0 ingress bpf bytecode "1,6 0 0 0"'
fi

if [[ ${1:-} == runtime ]]; then
    [[ -d /sys/fs/cgroup && -n $(ls -A /sys/fs/cgroup) ]] ||
        problem "no cgroups are mounted on /sys/fs/cgroup: containerd cannot start containers"
    grep -qw overlay /proc/filesystems || modprobe -q overlay 2>/dev/null ||
        problem "no overlay file system (CONFIG_OVERLAY_FS): containerd cannot unpack images"
    for program in containerd runc; do
        command -v "$program" >/dev/null || problem "no $program (make setup installs it)"
    done
fi

if [[ ${#problems[@]} -gt 0 ]]; then
    echo "preflight: this machine cannot run podgate's programs:" >&2
    printf '  - %s\n' "${problems[@]}" >&2
    exit 1
fi
attach="TCX or clsact"
older_than 6.6 && attach="clsact (TCX needs 6.6)"
echo "preflight: kernel $kernel, gates by $attach: all that is needed is here"
