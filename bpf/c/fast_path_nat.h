/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The fast path (fast_path.h) of a flow with a NAT entry: one more look-up in the direction from the pod, and as few
 * helper calls as rewrite a plain header. If anything has changed since the flow's last verdict, the packet is a miss.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "clock.h"
#include "conntrack.h"
#include "rewrite.h"
#include "verdict.h"

enum pg_fast_result {
	PG_FAST_MISS = 0, /* no verdict and the packet unchanged: take the slow path */
	PG_FAST_PASS,	  /* allowed, and translated where the flow has a NAT entry */
	PG_FAST_ERROR,	  /* partly rewritten: a helper failed, so the packet must not leave */
};

static __always_inline int pg_fast_path_live(const struct pg_flow *flow, __u32 epoch, __u32 now,
					     __u32 flag)
{
	return flow && flow->epoch == epoch && flow->state < PG_FLOW_CLOSED &&
	       !pg_flow_expired(flow, now) && (flow->flags & (flag | PG_FLOW_HAIRPIN)) == flag;
}

/* Updates state and expiry for one more packet of the flow. Returns whether the expiry has changed. */
static __always_inline int pg_flow_touch(struct pg_flow *flow, __u8 protocol, __u32 direction,
					 __u32 now)
{
	__u32 before = flow->expires;

	if (flow->state == PG_FLOW_NEW && direction != flow->direction)
		flow->state = PG_FLOW_ESTABLISHED;
	pg_flow_extend(flow, protocol, now);
	return flow->expires != before;
}

/* Gives the other entry of a translated flow the expiry of the tracked one. */
static __always_inline void pg_sync_expiry(struct pg_flow *other, const struct pg_flow *flow)
{
	if (other && other->expires != flow->expires)
		pg_flow_expires(other, flow->expires);
}

/* Rewrites ports and transport checksum after the addresses have changed by the checksum difference `diff`. */
static __always_inline enum pg_fast_result pg_fast_path_l4(struct __sk_buff *skb, __u32 at,
							   __u8 protocol, __u32 diff,
							   __u32 old_ports, __u32 new_ports)
{
	__u32 offset = pg_checksum_offset(protocol);
	__u32 moved = pg_sum_fold((__u64)new_ports + (__u32)~old_ports);

	if (old_ports == new_ports)
		moved = 0;
	else if (bpf_skb_store_bytes(skb, at, &new_ports, sizeof(new_ports), 0))
		return PG_FAST_ERROR;
	if (offset && pg_write_checksum(skb, at + offset, protocol, diff, moved))
		return PG_FAST_ERROR;
	return PG_FAST_PASS;
}

static __always_inline __u32 pg_port_pair(__be16 source, __be16 destination)
{
	__be16 ports[2] = { source, destination };

	return *(__u32 *)ports;
}

/* `flow` is the entry with `key` and has a NAT flag. Not a global function: those take no pointers (packet.h). */
static __attribute__((noinline)) enum pg_fast_result pg_fast_path_nat4(struct __sk_buff *skb,
								       struct pg_flow4_key *key,
								       struct pg_flow *flow,
								       __u32 direction)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + PG_ETH_HLEN;
	struct pg_control *ctl = pg_control();
	struct pg_flow4_key other;
	struct pg_flow *dnat;
	__u32 now, epoch, old_ports, new_ports, diff;
	/* The same layout as in the header: checksum, source, destination. */
	struct {
		__u16 zero;
		__u16 checksum;
		__be32 source;
		__be32 destination;
	} fresh;
	__u64 sum;

	if (!key || !flow || !ctl || (void *)(ip + 1) + 4 > end)
		return PG_FAST_MISS;
	now = pg_now();
	epoch = ctl->epoch;
	other = *key;
	other.peer = pg_unmap_addr4(&flow->other);
	other.pod_port = flow->own_port;
	other.peer_port = flow->other_port;
	fresh.source = ip->saddr;
	fresh.destination = ip->daddr;
	if (direction == PG_EGRESS) {
		if (!pg_fast_path_live(flow, epoch, now, PG_FLOW_DNAT))
			return PG_FAST_MISS;
		dnat = flow;
		flow = bpf_map_lookup_elem(&flows4, &other);
		if (!pg_fast_path_live(flow, epoch, now, PG_FLOW_REVNAT) ||
		    pg_unmap_addr4(&flow->other) != key->peer ||
		    flow->other_port != key->peer_port || flow->own_port != key->pod_port)
			return PG_FAST_MISS;
		pg_flow_touch(flow, key->protocol, direction, now);
		pg_sync_expiry(dnat, flow);
		fresh.destination = other.peer;
		old_ports = pg_port_pair(key->pod_port, key->peer_port);
		new_ports = pg_port_pair(other.pod_port, other.peer_port);
	} else {
		if (!pg_fast_path_live(flow, epoch, now, PG_FLOW_REVNAT))
			return PG_FAST_MISS;
		if (pg_flow_touch(flow, key->protocol, direction, now))
			pg_sync_expiry(bpf_map_lookup_elem(&flows4, &other), flow);
		fresh.source = other.peer;
		old_ports = pg_port_pair(key->peer_port, key->pod_port);
		new_ports = pg_port_pair(other.peer_port, other.pod_port);
	}
	/* SCTP's checksum covers the ports in a way that takes longer. */
	if (key->protocol == PG_IPPROTO_SCTP && old_ports != new_ports)
		return PG_FAST_MISS;
	diff = pg_sum_fold((__u64)fresh.source + fresh.destination + (__u32)~ip->saddr +
			   (__u32)~ip->daddr);
	sum = pg_sum_fold((__u64)(__u16)~ip->check + diff);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	fresh.checksum = ~(__u16)sum;
	if (bpf_skb_store_bytes(skb, PG_IP4_CHECKSUM, &fresh.checksum, 10, 0))
		return PG_FAST_ERROR;
	return pg_fast_path_l4(skb, PG_ETH_HLEN + sizeof(*ip), key->protocol, diff, old_ports,
			       new_ports);
}

static __attribute__((noinline)) enum pg_fast_result pg_fast_path_nat6(struct __sk_buff *skb,
								       struct pg_flow6_key *key,
								       struct pg_flow *flow,
								       __u32 direction)
{
	struct pg_control *ctl = pg_control();
	__u32 now, epoch, old_ports, new_ports, diff, at;
	struct pg_flow6_key other;
	struct pg_flow *dnat;

	if (!key || !flow || !ctl)
		return PG_FAST_MISS;
	now = pg_now();
	epoch = ctl->epoch;
	other = *key;
	other.peer = flow->other;
	other.pod_port = flow->own_port;
	other.peer_port = flow->other_port;
	if (direction == PG_EGRESS) {
		if (!pg_fast_path_live(flow, epoch, now, PG_FLOW_DNAT))
			return PG_FAST_MISS;
		dnat = flow;
		flow = bpf_map_lookup_elem(&flows6, &other);
		if (!pg_fast_path_live(flow, epoch, now, PG_FLOW_REVNAT) ||
		    pg_addr_differs(&flow->other, &key->peer) ||
		    flow->other_port != key->peer_port || flow->own_port != key->pod_port)
			return PG_FAST_MISS;
		pg_flow_touch(flow, key->protocol, direction, now);
		pg_sync_expiry(dnat, flow);
		at = PG_IP6_SOURCE + 16;
		old_ports = pg_port_pair(key->pod_port, key->peer_port);
		new_ports = pg_port_pair(other.pod_port, other.peer_port);
	} else {
		if (!pg_fast_path_live(flow, epoch, now, PG_FLOW_REVNAT))
			return PG_FAST_MISS;
		if (pg_flow_touch(flow, key->protocol, direction, now))
			pg_sync_expiry(bpf_map_lookup_elem(&flows6, &other), flow);
		at = PG_IP6_SOURCE;
		old_ports = pg_port_pair(key->peer_port, key->pod_port);
		new_ports = pg_port_pair(other.peer_port, other.pod_port);
	}
	if (key->protocol == PG_IPPROTO_SCTP && old_ports != new_ports)
		return PG_FAST_MISS;
	diff = pg_sum_fold(pg_addr_sum(&key->peer, &other.peer));
	/* As in pg_write_addresses6. */
	if (bpf_skb_store_bytes(skb, at, &other.peer, 16, BPF_F_RECOMPUTE_CSUM))
		return PG_FAST_ERROR;
	return pg_fast_path_l4(skb, PG_ETH_HLEN + sizeof(struct ipv6hdr), key->protocol, diff,
			       old_ports, new_ports);
}
