#!/usr/bin/env bash
# What a chained plugin adds to a pod's ADD, without policyd: podgate beside Debian's `tuning` (a Go plugin that is
# asked to do nothing), one after the other behind the same bridge, in namespaces that end with this script.
# Usage: scripts/bench.sh BIN_DIR [PODS]
set -euo pipefail

if [[ $(id -u) -ne 0 ]]; then
    exec sudo env "PATH=$PATH" "$0" "$@"
fi
bin=$1
pods=${2:-50}
cni=/usr/lib/cni
export PATH="$PATH:/usr/sbin:/sbin"
if [[ ${PODGATE_BENCH_INSIDE:-} != yes ]]; then
    PODGATE_BENCH_INSIDE=yes exec unshare --mount --net --propagation private "$0" "$bin" "$pods"
fi
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
ip link set lo up

call() { # plugin, verb, pod, configuration
    CNI_COMMAND=$2 CNI_CONTAINERID=$3 CNI_NETNS=/run/netns/$3 CNI_IFNAME=eth0 CNI_PATH=$cni \
        CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=$3" "$1" <<<"$4"
}
head='"cniVersion":"1.0.0","name":"bench"'
ipam='"ipam":{"type":"host-local","dataDir":"/run/ipam","subnet":"10.99.0.0/16"}'
declare -A results
for ((i = 0; i < pods; i++)); do
    ip netns add "pod$i"
    results[pod$i]=$(call $cni/bridge ADD "pod$i" "{$head,\"type\":\"bridge\",\"bridge\":\"pgbench0\",$ipam}") || {
        echo "bench: bridge ADD failed: ${results[pod$i]}" >&2
        exit 1
    }
done

measure() { # name, plugin, its configuration, verb
    local i wall user system
    local log="/run/bench.$1.$4"
    TIMEFORMAT='%R %U %S'
    {
        time for ((i = 0; i < pods; i++)); do
            call "$2" "$4" "pod$i" "{$head,$3,\"prevResult\":${results[pod$i]}}" >"$log" 2>&1
        done
    } 2>/run/time || {
        echo "bench: $1 $4 failed: $(cat "$log")" >&2
        exit 1
    }
    read -r wall user system </run/time
    awk -v n="$1 $4" -v r="$wall" -v u="$user" -v s="$system" -v k="$pods" \
        'BEGIN { printf "%-18s wall %6.2f ms   CPU %6.2f ms\n", n, r * 1000 / k, (u + s) * 1000 / k }'
}
echo "one chained call, mean of $pods pods, no policyd (kernel $(uname -r), $(nproc) CPUs):"
# the first podgate call of a boot loads the programs: told apart, not averaged in
podgate='"type":"podgate","logLevel":"error"'
all=$pods
pods=1
measure first-podgate "$bin/podgate" "$podgate" ADD
measure first-podgate "$bin/podgate" "$podgate" DEL
pods=$all
for round in 1 2 3; do
    echo "round $round"
    measure nothing /bin/true '"type":"true"' ADD # what starting any process from this script costs
    measure tuning $cni/tuning '"type":"tuning"' ADD
    measure tuning $cni/tuning '"type":"tuning"' DEL
    measure podgate "$bin/podgate" "$podgate" ADD
    measure podgate "$bin/podgate" "$podgate" DEL
done
