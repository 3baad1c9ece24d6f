#!/usr/bin/env bash
# Programs are attached to interfaces that carry traffic: by every agent that is installed on a running node. On the clsact way that
# takes a qdisc first. clsact has no queue and stands beside the interface's own qdisc. Does a packet notice when it comes or goes?
# Expected: no. The interface's own qdisc (noqueue, of a veth) stays as it was; only a hook more is asked.
# Seen (Linux 6.18): both lose what the interface sends meanwhile, for the kernel deactivates the device's queues while it grafts
# the qdisc; they count as the interface's TX drops. Filters of a clsact that is there already come and go without loss.
# Runs without podgate: iproute2 and iputils alone, in namespaces that end with it (root). Exit status 1 if what is seen changes.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
if [[ ${1:-} != inside ]]; then
    for tool in ip tc ping unshare nsenter; do
        command -v "$tool" >/dev/null || { echo "needs $tool (Debian: iproute2, iputils-ping, util-linux)" >&2; exit 2; }
    done
    exec unshare --net --mount "$0" inside
fi

ip link set lo up
mount -t sysfs sysfs /sys # of this network namespace
unshare --net sleep 300 &
other=$!
trap 'kill "$other" 2>/dev/null' EXIT
until [[ $(readlink "/proc/$other/ns/net") != "$(readlink /proc/self/ns/net)" ]]; do sleep 0.05; done
ip link add here type veth peer name there netns "$other"
ip addr add 10.9.0.1/24 dev here
ip link set here up
nsenter --net="/proc/$other/ns/net" ip addr add 10.9.0.2/24 dev there
nsenter --net="/proc/$other/ns/net" ip link set there up
ping -q -c 3 -i 0.05 10.9.0.2 >/dev/null

drops() { cat /sys/class/net/here/statistics/tx_dropped; }
added=0 deleted=0 filtered=0
ping -q -w 60 -i 0.002 10.9.0.2 >/dev/null &
pinging=$!
sleep 1
still=$(drops)
for _ in {1..100}; do
    a=$(drops); tc qdisc add dev here clsact
    b=$(drops); sleep 0.02
    c=$(drops); tc qdisc del dev here clsact
    d=$(drops); sleep 0.02
    added=$((added + b - a)) deleted=$((deleted + d - c))
done
tc qdisc add dev here clsact
sleep 0.1
a=$(drops)
for _ in {1..100}; do
    # one instruction of classic BPF: matches nothing
    tc filter add dev here egress prio 1 handle 1 bpf bytecode '1,6 0 0 0,'
    sleep 0.02
    tc filter del dev here egress prio 1
    sleep 0.02
done
filtered=$(($(drops) - a))
kill "$pinging"
echo "Linux $(uname -r), $(tc -V)"
echo "packets that the interface dropped, with one sent each 2 ms: before any change $still, by adding clsact 100 times $added," \
    "by deleting it 100 times $deleted, by adding and deleting a filter 100 times $filtered"
[[ $still -eq 0 && $added -gt 10 && $deleted -gt 10 && $filtered -eq 0 ]] || { echo "changed; it was: 0, dozens, dozens, 0"; exit 1; }
