/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way that nearly every packet takes: TCP, UDP or SCTP behind a plain IP header, of a flow that was judged
 * in this epoch. One look-up, nothing written but a counter and, once a second, the flow's end of life. Flows through
 * services go on in short_service.h. Whatever is any different takes the long way (gate.h), which decides anew.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "clock.h"
#include "conntrack.h"
#include "origin.h"
#include "short_service.h"
#include "verdict.h"

/* Offset of the flags in a TCP header. */
#define PG_TCP_FLAGS 13

/* Whether the transport header at `l4` may be taken at its word: all there, and no TCP packet that opens or
 * closes. `room` is what the IP header says there is of it. */
static __always_inline int pg_is_plain(__u8 protocol, const __u8 *l4, const void *end, __u32 room)
{
	if (protocol == PG_IPPROTO_TCP)
		return (const void *)(l4 + PG_TCP_FLAGS + 1) <= end && room >= 20 &&
		       !(l4[PG_TCP_FLAGS] & (PG_TCP_SYN | PG_TCP_FIN | PG_TCP_RST));
	return (protocol == PG_IPPROTO_UDP && room >= 8) ||
	       (protocol == PG_IPPROTO_SCTP && room >= 12);
}

static __always_inline int pg_is_translated(const struct pg_flow *flow)
{
	return flow && (flow->flags & (PG_FLOW_SERVICE | PG_FLOW_ENDPOINT));
}

static __always_inline int pg_is_current(struct __sk_buff *skb, struct pg_flow *flow,
					 __u32 direction, __u8 protocol)
{
	struct pg_control *ctl = pg_control();
	__u32 now;

	if (!flow || !ctl || flow->epoch != ctl->epoch || flow->state >= PG_FLOW_CLOSED)
		return PG_SHORT_NOT;
	/* The node's own flow carries no packet of another origin. */
	if (direction == PG_INGRESS && (flow->flags & PG_FLOW_BY_OWN_NODE) &&
	    (protocol != PG_IPPROTO_TCP || !pg_seems_nodes(skb)))
		return PG_SHORT_NOT;
	now = pg_now();
	if (pg_flow_expired(flow, now))
		return PG_SHORT_NOT;
	if (flow->state == PG_FLOW_NEW && direction != flow->direction)
		flow->state = PG_FLOW_ESTABLISHED;
	pg_flow_extend(flow, protocol, now);
	return PG_SHORT_PASS;
}

static __always_inline int pg_short4(struct __sk_buff *skb, __u32 direction)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + PG_ETH_HLEN;
	const __be16 *ports = (void *)(ip + 1);
	struct pg_flow4_key key;
	struct pg_flow *flow;
	__u32 room;

	if ((void *)(ports + 4) > end)
		return PG_SHORT_NOT;
	/* Version 4, no options; a whole datagram. A length of 0 is a BIG TCP packet's. */
	if (*(__u8 *)ip != 0x45 || (ip->frag_off & bpf_htons(0x3fff)))
		return PG_SHORT_NOT;
	room = bpf_ntohs(ip->tot_len) - sizeof(*ip);
	if (room > 0xffff || !pg_is_plain(ip->protocol, (void *)ports, end, room))
		return PG_SHORT_NOT;
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
	if (pg_is_translated(flow))
		return pg_short_service4(skb, &key, flow, direction);
	return pg_is_current(skb, flow, direction, key.protocol);
}

static __always_inline int pg_short6(struct __sk_buff *skb, __u32 direction)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + PG_ETH_HLEN;
	const __be16 *ports = (void *)(ip + 1);
	struct pg_flow6_key key;
	struct pg_flow *flow;

	if ((void *)(ports + 4) > end || (*(__u8 *)ip & 0xf0) != 0x60)
		return PG_SHORT_NOT;
	if (!pg_is_plain(ip->nexthdr, (void *)ports, end, bpf_ntohs(ip->payload_len)))
		return PG_SHORT_NOT;
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
	if (pg_is_translated(flow))
		return pg_short_service6(skb, &key, flow, direction);
	return pg_is_current(skb, flow, direction, key.protocol);
}

static __always_inline int pg_short(struct __sk_buff *skb, __u32 direction)
{
	if (skb->vlan_present)
		return PG_SHORT_NOT;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return pg_short4(skb, direction);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return pg_short6(skb, direction);
	return PG_SHORT_NOT;
}
