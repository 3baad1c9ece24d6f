/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whether the node itself made a packet that goes to a pod. The source address does not prove it, as the node
 * masquerades what it forwards. Three conditions together do:
 *
 * - No interface received it (ingress_ifindex 0). That alone is not enough: the number is lost when connection tracking
 *   reassembles and refragments IPv6 packets, when Open vSwitch sends a packet to user space and back, and on the outer
 *   packet of a tunnel.
 * - It has a socket. Packets of the node's processes and of its stack have one (for resets, acknowledgements of closed
 *   connections and ICMP errors the stack's own), and received packets lose theirs before they are routed.
 * - That socket is in the node's network namespace. A bridge forwards a pod's packet without receiving it in this
 *   sense, so the pod's own socket is still on it; and where the bridge's connection tracking refragments an IPv6
 *   datagram, the first two conditions hold for it as well.
 */
#pragma once

#include <bpf/bpf_core_read.h>

#include "packet.h"
#include "scratch.h"

/* Set by the loader if this kernel lets programs of this type read kernel memory. */
const volatile __u32 pg_reads_kernel SEC(".rodata.kernel") = 0;

/* Only the fields that are read here; libbpf relocates their offsets to the running kernel. */
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

/* States (linux/tcp.h) of a TCP socket with an established handshake. */
#define PG_TCP_CONNECTED ((1 << 1) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 11))

/* The first two of the three conditions, in few instructions. Enough for TCP that is not fragmented: only IPv6
 * fragments and outer packets of tunnels can have lost the number and kept a pod's socket. */
static __always_inline int pg_maybe_from_node(struct __sk_buff *skb)
{
	return skb->ingress_ifindex == 0 && skb->sk != NULL;
}

/* Returns 1 if the packet's socket is in the network namespace of the interface, which is the node's, 0 if not, and
 * -1 if this kernel does not let the program see. */
static __always_inline int pg_socket_in_node_netns(struct __sk_buff *skb)
{
	struct sk_buff *packet = (void *)skb;
	struct net *of_socket, *of_device;

	if (!pg_reads_kernel)
		return -1;
	of_socket = BPF_CORE_READ(packet, sk, __sk_common.skc_net.net);
	of_device = BPF_CORE_READ(packet, dev, nd_net.net);
	return of_socket && of_socket == of_device;
}

/* Sets the origin of the packet in hand, which goes to the pod. Where the kernel does not tell a socket's namespace,
 * the node's own IPv6 fragments count as external: denying them is the safe side. */
PG_GLOBAL_FN int pg_set_origin(struct __sk_buff *skb)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct bpf_sock *sk;
	int of_node;

	if (!packet || skb->ingress_ifindex != 0)
		return 0;
	sk = skb->sk;
	if (!sk)
		return 0;
	of_node = pg_socket_in_node_netns(skb);
	if (of_node == 0 ||
	    (of_node < 0 && packet->family == 6 && packet->fragment != PG_NOT_FRAGMENTED))
		return 0;
	if (pg_protocol(packet) == PG_IPPROTO_TCP && sk->state < 32 &&
	    (PG_TCP_CONNECTED & (1U << sk->state)))
		packet->origin = PG_ORIGIN_NODE_CONNECTED;
	else
		packet->origin = PG_ORIGIN_NODE;
	return 0;
}

/*
 * Whether a packet of the own node may use its exemption from policy: if it begins an exchange, not if it is an answer
 * that the pod has not asked for. An outsider can have the node send an answer to the pod by asking with the pod's
 * source address: an echo reply would carry the outsider's bytes, and after a SYN-ACK the pod could go on to talk to
 * the node although policy denies that. An answer that the pod has asked for belongs to a known flow and is not
 * evaluated here.
 */
static __always_inline int pg_opens_exchange(const struct pg_packet *packet)
{
	switch (pg_protocol(packet)) {
	case PG_IPPROTO_ICMP:
	case PG_IPPROTO_ICMPV6:
		return (packet->family == 4 ? packet->key.v4.kind : packet->key.v6.kind) ==
		       PG_FLOW_ECHO_BY_PEER;
	case PG_IPPROTO_TCP:
		/* A FIN opens nothing; other segments belong to a connection whose flow was evicted. */
		return packet->fragment == PG_LATER_FRAGMENT || pg_is_opening(packet) ||
		       (packet->tcp_flags & PG_TCP_RST) ||
		       packet->origin == PG_ORIGIN_NODE_CONNECTED;
	default:
		return 1;
	}
}
