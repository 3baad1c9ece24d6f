/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The fast path: TCP, UDP or SCTP directly after a plain IP header, of a flow whose verdict is of the current epoch. It
 * costs one look-up and writes a counter and, about once a second, the flow's expiry. Flows with a NAT entry continue in
 * fast_path_nat.h. Every other packet is a miss and takes the slow path (datapath.h).
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "clock.h"
#include "conntrack.h"
#include "meter_flow.h"
#include "origin.h"
#include "fast_path_nat.h"
#include "verdict.h"

/* Offset of the flags in a TCP header. */
#define PG_TCP_FLAGS 13

/* Whether the transport header at `l4` is complete and, for TCP, has no SYN, FIN or RST. `l4_len` is its length in bytes
 * according to the IP header. */
static __always_inline int pg_fast_path_eligible(__u8 protocol, const __u8 *l4, const void *end,
						 __u32 l4_len)
{
	if (protocol == PG_IPPROTO_TCP)
		return (const void *)(l4 + PG_TCP_FLAGS + 1) <= end && l4_len >= 20 &&
		       !(l4[PG_TCP_FLAGS] & (PG_TCP_SYN | PG_TCP_FIN | PG_TCP_RST));
	return (protocol == PG_IPPROTO_UDP && l4_len >= 8) ||
	       (protocol == PG_IPPROTO_SCTP && l4_len >= 12);
}

static __always_inline int pg_has_nat(const struct pg_flow *flow)
{
	return flow && (flow->flags & (PG_FLOW_DNAT | PG_FLOW_REVNAT));
}

static __always_inline enum pg_fast_result pg_fast_path_flow(struct __sk_buff *skb,
							     struct pg_flow *flow, __u32 direction,
							     __u8 protocol)
{
	struct pg_control *ctl = pg_control();
	__u32 now;

	if (!flow || !ctl || flow->epoch != ctl->epoch || flow->state >= PG_FLOW_CLOSED)
		return PG_FAST_MISS;
	/* A flow allowed as the node's own carries only packets that the node itself made (origin.h). */
	if (direction == PG_INGRESS && (flow->flags & PG_FLOW_BY_OWN_NODE) &&
	    (protocol != PG_IPPROTO_TCP || !pg_maybe_from_node(skb)))
		return PG_FAST_MISS;
	now = pg_now();
	if (pg_flow_expired(flow, now))
		return PG_FAST_MISS;
	if (flow->state == PG_FLOW_NEW && direction != flow->direction)
		flow->state = PG_FLOW_ESTABLISHED;
	pg_flow_extend(flow, protocol, now);
	return PG_FAST_PASS;
}

/* Sets the outcome of a packet of `flow` that is partly rewritten: the slow path, which would have, does not run. Returns
 * the packet of which the event is, without its key; NULL cannot happen. */
static __always_inline struct pg_packet *pg_fast_path_drop(const struct pg_flow *flow, __u8 family)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;

	if (!scratch)
		return NULL;
	packet = &scratch->packets[PG_SLOT_PACKET];
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->family = family;
	packet->owner = flow->owner;
	packet->rule = flow->rule;
	pg_drop(scratch, PG_SLOT_PACKET, PG_DENY_REWRITE);
	return packet;
}

static __always_inline enum pg_fast_result pg_fast_path4(struct __sk_buff *skb, __u32 direction,
							 enum pg_metering metering)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + PG_ETH_HLEN;
	const __be16 *ports = (void *)(ip + 1);
	struct pg_flow4_key key;
	struct pg_flow *flow;
	__u32 l4_len;

	if ((void *)(ports + 4) > end)
		return PG_FAST_MISS;
	/* Version 4, no options, not fragmented. A length of 0 (BIG TCP) wraps and is a miss below. */
	if (*(__u8 *)ip != 0x45 || (ip->frag_off & bpf_htons(0x3fff)))
		return PG_FAST_MISS;
	l4_len = bpf_ntohs(ip->tot_len) - sizeof(*ip);
	if (l4_len > 0xffff || !pg_fast_path_eligible(ip->protocol, (void *)ports, end, l4_len))
		return PG_FAST_MISS;
	key.ifindex = skb->ifindex;
	if (direction == PG_EGRESS) {
		key.pod = ip->saddr;
		key.peer = ip->daddr;
		key.pod_port = ports[0];
		key.peer_port = ports[1];
	} else {
		key.pod = ip->daddr;
		key.peer = ip->saddr;
		key.pod_port = ports[1];
		key.peer_port = ports[0];
	}
	key.protocol = ip->protocol;
	key.kind = PG_FLOW_PLAIN;
	key.pad[0] = key.pad[1] = 0;
	flow = bpf_map_lookup_elem(&flows4, &key);
	if (metering == PG_METERED && flow) {
		struct pg_packet *packet = pg_meter_flow(flow, 4);

		if (packet)
			packet->key.v4 = key;
	}
	if (pg_has_nat(flow)) {
		enum pg_fast_result result = pg_fast_path_nat4(skb, &key, flow, direction);
		struct pg_packet *packet = result == PG_FAST_ERROR ? pg_fast_path_drop(flow, 4)
								   : NULL;

		if (packet)
			packet->key.v4 = key;
		return result;
	}
	return pg_fast_path_flow(skb, flow, direction, key.protocol);
}

static __always_inline enum pg_fast_result pg_fast_path6(struct __sk_buff *skb, __u32 direction,
							 enum pg_metering metering)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + PG_ETH_HLEN;
	const __be16 *ports = (void *)(ip + 1);
	struct pg_flow6_key key;
	struct pg_flow *flow;

	if ((void *)(ports + 4) > end || (*(__u8 *)ip & 0xf0) != 0x60)
		return PG_FAST_MISS;
	if (!pg_fast_path_eligible(ip->nexthdr, (void *)ports, end, bpf_ntohs(ip->payload_len)))
		return PG_FAST_MISS;
	key.ifindex = skb->ifindex;
	if (direction == PG_EGRESS) {
		__builtin_memcpy(&key.pod, &ip->saddr, 16);
		__builtin_memcpy(&key.peer, &ip->daddr, 16);
		key.pod_port = ports[0];
		key.peer_port = ports[1];
	} else {
		__builtin_memcpy(&key.pod, &ip->daddr, 16);
		__builtin_memcpy(&key.peer, &ip->saddr, 16);
		key.pod_port = ports[1];
		key.peer_port = ports[0];
	}
	key.protocol = ip->nexthdr;
	key.kind = PG_FLOW_PLAIN;
	key.pad[0] = key.pad[1] = 0;
	flow = bpf_map_lookup_elem(&flows6, &key);
	if (metering == PG_METERED && flow) {
		struct pg_packet *packet = pg_meter_flow(flow, 6);

		if (packet)
			packet->key.v6 = key;
	}
	if (pg_has_nat(flow)) {
		enum pg_fast_result result = pg_fast_path_nat6(skb, &key, flow, direction);
		struct pg_packet *packet = result == PG_FAST_ERROR ? pg_fast_path_drop(flow, 6)
								   : NULL;

		if (packet)
			packet->key.v6 = key;
		return result;
	}
	return pg_fast_path_flow(skb, flow, direction, key.protocol);
}

static __always_inline enum pg_fast_result pg_fast_path(struct __sk_buff *skb, __u32 direction,
							enum pg_metering metering)
{
	if (skb->vlan_present)
		return PG_FAST_MISS;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return pg_fast_path4(skb, direction, metering);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return pg_fast_path6(skb, direction, metering);
	return PG_FAST_MISS;
}
