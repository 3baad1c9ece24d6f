/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whether the node itself made a packet that goes to a pod. Its source address does not prove that: the node
 * masquerades what it forwards. Three things together do.
 *
 * No interface received it (ingress_ifindex 0). Alone that is not enough: IPv6 packets that the kernel put together for
 * connection tracking lose the number when they are taken apart again, as do those that Open vSwitch sent to user space
 * and back, and what leaves a tunnel as the outer packet.
 *
 * A socket is on it. What the node's processes and its stack send has one (resets, acknowledgements of closed
 * connections and ICMP errors that of the stack), and what is received loses its socket before it is routed.
 *
 * That socket is of the node's network namespace. A bridge takes a pod's packet without receiving it in this sense, so
 * that the pod's own socket is still on it; where the bridge tracks connections and takes an IPv6 datagram apart again,
 * both of the above hold for it.
 */
#pragma once

#include <bpf/bpf_core_read.h>

#include "packet.h"
#include "scratch.h"

/* Set by the loader where the kernel lets programs of this type read its memory. */
const volatile __u32 pg_reads_kernel SEC(".rodata.kernel") = 0;

/* As little of the kernel's types as is read here; libbpf finds the offsets of the running kernel. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

struct net_device {
	possible_net_t nd_net;
};

struct sk_buff {
	struct sock *sk;
	struct net_device *dev;
};
#pragma clang attribute pop

/* The states (linux/tcp.h) of a TCP socket whose connection both ends have agreed to. */
#define PG_TCP_CONNECTED ((1 << 1) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 11))

/* The first two of three, in few instructions. Enough for a whole packet of TCP: what can have lost the number and kept a
 * pod's socket are IPv6 fragments and the outer packets of tunnels. */
static __always_inline int pg_seems_nodes(struct __sk_buff *skb)
{
	return skb->ingress_ifindex == 0 && skb->sk != NULL;
}

/* Whether the packet's socket is of the namespace of the interface, the node's. -1: the kernel does not tell. */
static __always_inline int pg_is_nodes_socket(struct __sk_buff *skb)
{
	struct sk_buff *packet = (void *)skb;
	struct net *of_socket, *of_device;

	if (!pg_reads_kernel)
		return -1;
	of_socket = BPF_CORE_READ(packet, sk, __sk_common.skc_net.net);
	of_device = BPF_CORE_READ(packet, dev, nd_net.net);
	return of_socket && of_socket == of_device;
}

/* Notes who made the packet in hand, which goes to the pod. Where the kernel does not tell the namespace of a socket, the
 * node's own IPv6 fragments are taken for another's: denying them is the safe side. */
PG_VERIFIED_ALONE int pg_find_origin(struct __sk_buff *skb)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct bpf_sock *sk;
	int of_node;

	if (!packet || skb->ingress_ifindex != 0)
		return 0;
	sk = skb->sk;
	if (!sk)
		return 0;
	of_node = pg_is_nodes_socket(skb);
	if (of_node == 0 || (of_node < 0 && packet->family == 6 && packet->fragment != PG_WHOLE))
		return 0;
	if (pg_protocol(packet) == PG_IPPROTO_TCP && sk->state < 32 &&
	    (PG_TCP_CONNECTED & (1U << sk->state)))
		packet->origin = PG_FROM_CONNECTION;
	else
		packet->origin = PG_FROM_NODE;
	return 0;
}

/*
 * Whether the exemption of the own node is for this packet of its: for what it begins, not for answers that the pod has
 * not asked for. A stranger gets any answer sent by asking in the pod's name: an echo reply carries the stranger's
 * bytes to the pod, and with a SYN-ACK let in the pod might go on to talk to the node, which policy forbids it.
 * An answer that was asked for is of a known flow, and never comes here.
 */
static __always_inline int pg_begins(const struct pg_packet *packet)
{
	switch (pg_protocol(packet)) {
	case PG_IPPROTO_ICMP:
	case PG_IPPROTO_ICMPV6:
		return (packet->family == 4 ? packet->key.v4.kind : packet->key.v6.kind) ==
		       PG_FLOW_ECHO_BY_PEER;
	case PG_IPPROTO_TCP:
		/* An end of a connection opens nothing; data is of one that the flow table has forgotten. */
		return packet->fragment == PG_LATER_FRAGMENT || pg_is_opening(packet) ||
		       (packet->tcp_flags & PG_TCP_RST) || packet->origin == PG_FROM_CONNECTION;
	default:
		return 1;
	}
}
