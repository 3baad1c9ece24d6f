/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The short way (short.h) of a flow through a service: one look-up more on the way out, and as few calls as
 * will rewrite a plain header. Whatever is not as it was when the flow was last judged takes the long way.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "clock.h"
#include "conntrack.h"
#include "rewrite.h"
#include "verdict.h"

enum pg_shortly {
	PG_SHORT_NOT = 0, /* take the long way */
	PG_SHORT_PASS,
	PG_SHORT_BROKEN, /* half rewritten: the kernel had no memory for the rest */
};

static __always_inline int pg_is_live(const struct pg_flow *flow, __u32 epoch, __u32 now, __u32 flag)
{
	return flow && flow->epoch == epoch && flow->state < PG_FLOW_CLOSED &&
	       !pg_flow_expired(flow, now) && (flow->flags & (flag | PG_FLOW_HAIRPIN)) == flag;
}

/* One more packet of the flow with this endpoint view. True if its end of life has moved. */
static __always_inline int pg_moves_on(struct pg_flow *flow, __u8 protocol, __u32 direction,
				       __u32 now)
{
	__u32 before = flow->expires;

	if (flow->state == PG_FLOW_NEW && direction != flow->direction)
		flow->state = PG_FLOW_ESTABLISHED;
	pg_flow_extend(flow, protocol, now);
	return flow->expires != before;
}

static __always_inline void pg_live_as_long(struct pg_flow *view, const struct pg_flow *flow)
{
	if (view && view->expires != flow->expires)
		pg_flow_expires(view, flow->expires);
}

/* The transport's checksum and ports, behind a header whose addresses have changed by `diff`. */
static __always_inline int pg_short_transport(struct __sk_buff *skb, __u32 at, __u8 protocol,
					      __u32 diff, __u32 old_ports, __u32 new_ports)
{
	__u32 offset = pg_checksum_offset(protocol);
	__u32 moved = pg_sum_fold((__u64)new_ports + (__u32)~old_ports);

	if (old_ports == new_ports)
		moved = 0;
	else if (bpf_skb_store_bytes(skb, at, &new_ports, sizeof(new_ports), 0))
		return PG_SHORT_BROKEN;
	if (offset && pg_write_checksum(skb, at + offset, protocol, diff, moved))
		return PG_SHORT_BROKEN;
	return PG_SHORT_PASS;
}

static __always_inline __u32 pg_two_ports(__be16 source, __be16 destination)
{
	__be16 ports[2] = { source, destination };

	return *(__u32 *)ports;
}

/* `flow` has the key, and flag SERVICE or ENDPOINT. No global function, as those are given no pointers (packet.h). */
static __attribute__((noinline)) int pg_short_service4(struct __sk_buff *skb,
						       struct pg_flow4_key *key,
						       struct pg_flow *flow, __u32 direction)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + PG_ETH_HLEN;
	struct pg_control *ctl = pg_control();
	struct pg_flow4_key other;
	struct pg_flow *view;
	__u32 now, epoch, old_ports, new_ports, diff;
	/* As it stands in the header: checksum, source, destination. */
	struct {
		__u16 zero;
		__u16 checksum;
		__be32 source;
		__be32 destination;
	} fresh;
	__u64 sum;

	if (!key || !flow || !ctl || (void *)(ip + 1) + 4 > end)
		return PG_SHORT_NOT;
	now = pg_now();
	epoch = ctl->epoch;
	other = *key;
	other.peer = pg_unmap_addr4(&flow->other);
	other.pod_port = flow->own_port;
	other.peer_port = flow->other_port;
	fresh.source = ip->saddr;
	fresh.destination = ip->daddr;
	if (direction == PG_EGRESS) {
		if (!pg_is_live(flow, epoch, now, PG_FLOW_SERVICE))
			return PG_SHORT_NOT;
		view = flow;
		flow = bpf_map_lookup_elem(&flows4, &other);
		if (!pg_is_live(flow, epoch, now, PG_FLOW_ENDPOINT) ||
		    pg_unmap_addr4(&flow->other) != key->peer ||
		    flow->other_port != key->peer_port || flow->own_port != key->pod_port)
			return PG_SHORT_NOT;
		pg_moves_on(flow, key->protocol, direction, now);
		pg_live_as_long(view, flow);
		fresh.destination = other.peer;
		old_ports = pg_two_ports(key->pod_port, key->peer_port);
		new_ports = pg_two_ports(other.pod_port, other.peer_port);
	} else {
		if (!pg_is_live(flow, epoch, now, PG_FLOW_ENDPOINT))
			return PG_SHORT_NOT;
		if (pg_moves_on(flow, key->protocol, direction, now))
			pg_live_as_long(bpf_map_lookup_elem(&flows4, &other), flow);
		fresh.source = other.peer;
		old_ports = pg_two_ports(key->peer_port, key->pod_port);
		new_ports = pg_two_ports(other.peer_port, other.pod_port);
	}
	/* SCTP's checksum covers the ports in a way that takes longer. */
	if (key->protocol == PG_IPPROTO_SCTP && old_ports != new_ports)
		return PG_SHORT_NOT;
	diff = pg_sum_fold((__u64)fresh.source + fresh.destination + (__u32)~ip->saddr +
			   (__u32)~ip->daddr);
	sum = pg_sum_fold((__u64)(__u16)~ip->check + diff);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	fresh.checksum = ~(__u16)sum;
	if (bpf_skb_store_bytes(skb, PG_IP4_CHECKSUM, &fresh.checksum, 10, 0))
		return PG_SHORT_BROKEN;
	return pg_short_transport(skb, PG_ETH_HLEN + sizeof(*ip), key->protocol, diff, old_ports,
				  new_ports);
}

static __attribute__((noinline)) int pg_short_service6(struct __sk_buff *skb,
						       struct pg_flow6_key *key,
						       struct pg_flow *flow, __u32 direction)
{
	struct pg_control *ctl = pg_control();
	__u32 now, epoch, old_ports, new_ports, diff, at;
	struct pg_flow6_key other;
	struct pg_flow *view;

	if (!key || !flow || !ctl)
		return PG_SHORT_NOT;
	now = pg_now();
	epoch = ctl->epoch;
	other = *key;
	other.peer = flow->other;
	other.pod_port = flow->own_port;
	other.peer_port = flow->other_port;
	if (direction == PG_EGRESS) {
		if (!pg_is_live(flow, epoch, now, PG_FLOW_SERVICE))
			return PG_SHORT_NOT;
		view = flow;
		flow = bpf_map_lookup_elem(&flows6, &other);
		if (!pg_is_live(flow, epoch, now, PG_FLOW_ENDPOINT) ||
		    pg_addr_differs(&flow->other, &key->peer) ||
		    flow->other_port != key->peer_port || flow->own_port != key->pod_port)
			return PG_SHORT_NOT;
		pg_moves_on(flow, key->protocol, direction, now);
		pg_live_as_long(view, flow);
		at = PG_IP6_SOURCE + 16;
		old_ports = pg_two_ports(key->pod_port, key->peer_port);
		new_ports = pg_two_ports(other.pod_port, other.peer_port);
	} else {
		if (!pg_is_live(flow, epoch, now, PG_FLOW_ENDPOINT))
			return PG_SHORT_NOT;
		if (pg_moves_on(flow, key->protocol, direction, now))
			pg_live_as_long(bpf_map_lookup_elem(&flows6, &other), flow);
		at = PG_IP6_SOURCE;
		old_ports = pg_two_ports(key->peer_port, key->pod_port);
		new_ports = pg_two_ports(other.peer_port, other.pod_port);
	}
	if (key->protocol == PG_IPPROTO_SCTP && old_ports != new_ports)
		return PG_SHORT_NOT;
	diff = pg_sum_fold(pg_addr_sum(&key->peer, &other.peer));
	/* As in pg_write_addresses6. */
	if (bpf_skb_store_bytes(skb, at, &other.peer, 16, BPF_F_RECOMPUTE_CSUM))
		return PG_SHORT_BROKEN;
	return pg_short_transport(skb, PG_ETH_HLEN + sizeof(struct ipv6hdr), key->protocol, diff,
				  old_ports, new_ports);
}
