/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Limits of connections: whether a metered pod may have one more. Asked for the first packet of a flow that policy allows and
 * that is going to be remembered, before it is: the place that it gets is its own from then on (open_count.h), so that the
 * limit holds whatever other CPUs do.
 *
 * What may be part of a connection that is established, a TCP segment in mid-stream, is counted and never refused.
 */
#pragma once

#include "bucket.h"
#include "conntrack.h"
#include "traffic.h"
#include "verdict.h"

enum pg_opening {
	PG_OPEN_ANYWAY = 1, /* counted, never refused */
	PG_OPEN_AGAIN = 2, /* the known flow with this key, which has closed, begins again: its entry stays */
	PG_OPEN_HAIRPIN = 4, /* the entry that is counted has the key of PG_SLOT_PACKET */
};

/* How many slots are searched for flows that have expired, before a connection is refused. */
#define PG_EXPIRED_SCAN 8

/* Takes flows that have expired out of the count: each takes its place until its packets, its slot or this search find it.
 * A few slots anywhere in the ring; the next refused packet looks at others. Returns 0. */
PG_GLOBAL_FN int pg_uncount_expired(__u32 family, __u32 ifindex, __u32 owner)
{
	struct pg_share *share = pg_share_of(ifindex, owner);
	struct pg_flow_slot_key at = { .owner = owner };
	__u32 now = pg_now(), start = bpf_get_prandom_u32(), high, n;
	struct pg_scratch *scratch = pg_scratch();
	struct pg_flow *flow;

	if (!share || !scratch)
		return 0;
	high = pg_ring_of(share, family)->high;
#pragma clang loop unroll(disable)
	for (n = 0; n < PG_EXPIRED_SCAN; n++) {
		if (n >= high)
			break;
		at.index = (start + n) % high;
		if (!pg_slot_read(family, &at, &scratch->search.occupant))
			continue;
		flow = pg_entry_find(family, &scratch->search.occupant);
		if (flow && flow->owner == owner && pg_flow_expired(flow, now))
			pg_uncount(flow);
	}
	return 0;
}

/* Gives a connection a place at the pod's meter (`rule` 0), or at that of a traffic rule. The flow that it replaces, if there
 * is one, gives up its place. `flags`: enum pg_opening. Returns 0, or the reason why there is none. */
PG_GLOBAL_FN int pg_admit(__u32 slot, __u32 rule, __u32 direction, __u32 flags)
{
	struct pg_packet *packet = pg_packet_in(slot), *counted = packet;
	struct pg_limits_key key = { .rule = rule };
	__u32 most = PG_OPEN_UNLIMITED, before = 0, from = 0, of_rule = 0;
	__u64 cost, burst, now = bpf_ktime_get_ns(), next;
	struct pg_flow *known;
	struct pg_meter *meter;
	struct pg_limits *of;
	int reason = 0;

	if (flags & PG_OPEN_HAIRPIN)
		counted = pg_packet_in(PG_SLOT_PACKET);
	if (!packet || !counted)
		return 0;
	direction &= 1;
	key.owner = packet->owner;
	of = bpf_map_lookup_elem(&limits, &key);
	meter = bpf_map_lookup_elem(&meters, &key);
	if (!of || !meter)
		return 0;
	known = pg_flow_find(counted);
	if (known && known->owner != key.owner)
		known = NULL;
	cost = of->rates[direction][PG_LIMIT_NEW_CONNECTIONS].cost >> PG_RATE_SHIFT;
	burst = of->rates[direction][PG_LIMIT_NEW_CONNECTIONS].burst;
	if (flags & PG_OPEN_ANYWAY)
		cost = 0;
	else
		most = of->open_most[direction];

	bpf_spin_lock(&meter->lock);
	if (known) {
		before = known->counted;
		from = known->direction & 1;
		of_rule = known->traffic_rule;
	}
	next = pg_bucket_next(meter->next[direction][PG_LIMIT_NEW_CONNECTIONS], burst, now);
	if (cost && next > now) {
		reason = PG_DENY_CONNECTION_RATE;
	} else if (meter->open[direction] -
			   (before && from == direction && (!rule || of_rule == rule)) >=
		   most) {
		reason = PG_DENY_CONNECTION_LIMIT;
	} else {
		if (cost)
			meter->next[direction][PG_LIMIT_NEW_CONNECTIONS] = next + cost;
		if (!rule && known) {
			known->counted = !!(flags & PG_OPEN_AGAIN);
			if (before && meter->open[from])
				meter->open[from]--;
		}
		meter->open[direction]++;
	}
	bpf_spin_unlock(&meter->lock);

	if (!reason && !rule && before)
		pg_rule_open_add(key.owner, of_rule, from, -1);
	return reason;
}

/* The connection whose first packet is in `slot` is refused for limits of the pod or of a traffic rule: says which, and whether
 * the sender is told. Returns the reason. */
PG_GLOBAL_FN int pg_connection_refused(__u32 slot, __u32 rule, __u32 direction, int reason)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_limits_key key = { .rule = rule };
	struct pg_limits *of;
	struct pg_meter *meter;
	__u32 limit = reason == PG_DENY_CONNECTION_RATE ? PG_LIMIT_NEW_CONNECTIONS
							: PG_LIMIT_OPEN_CONNECTIONS;

	if (!packet)
		return reason;
	direction &= 1;
	key.owner = packet->owner;
	of = bpf_map_lookup_elem(&limits, &key);
	meter = bpf_map_lookup_elem(&meters, &key);
	if (!of || !meter)
		return reason;
	packet->rule = of->origins[direction][limit];
	packet->reject = !!(of->flags & (direction == PG_EGRESS ? PG_LIMITS_REJECT_EGRESS
								: PG_LIMITS_REJECT_INGRESS));
	bpf_spin_lock(&meter->lock);
	meter->refused[direction][limit]++;
	bpf_spin_unlock(&meter->lock);
	return reason;
}

/* Takes back what a traffic rule's meter has given to a connection that the pod's refuses. Returns 0. */
PG_GLOBAL_FN int pg_admit_undo(__u32 owner, __u32 rule, __u32 direction)
{
	struct pg_limits_key key = { .owner = owner, .rule = rule };
	struct pg_limits *of = bpf_map_lookup_elem(&limits, &key);
	struct pg_meter *meter = bpf_map_lookup_elem(&meters, &key);
	__u64 cost;

	if (!of || !meter)
		return 0;
	direction &= 1;
	cost = of->rates[direction][PG_LIMIT_NEW_CONNECTIONS].cost >> PG_RATE_SHIFT;
	bpf_spin_lock(&meter->lock);
	meter->next[direction][PG_LIMIT_NEW_CONNECTIONS] -= cost;
	if (meter->open[direction])
		meter->open[direction]--;
	bpf_spin_unlock(&meter->lock);
	return 0;
}

/* pg_admit, with a search for expired flows before a limit of open connections refuses. Returns the same. */
static __always_inline int pg_admit_or_search(const struct pg_packet *packet, __u32 slot,
					      __u32 rule, __u32 direction, __u32 flags)
{
	int reason = pg_admit(slot, rule, direction, flags);

	if (reason != PG_DENY_CONNECTION_LIMIT)
		return reason;
	pg_uncount_expired(4, packet->key.v4.ifindex, packet->owner);
	pg_uncount_expired(6, packet->key.v4.ifindex, packet->owner);
	return pg_admit(slot, rule, direction, flags);
}

/* The packet in `slot`, of a metered pod, opens a flow in `direction` that policy allows and that is going to be remembered.
 * Returns 0, or the reason why it is refused: then it must not be. */
PG_GLOBAL_FN int pg_connection_open(__u32 slot, __u32 direction, __u32 flags)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_scratch *scratch = pg_scratch();
	__u32 rule;
	int reason;

	if (!packet || !scratch || !pg_classify(slot, direction))
		return 0;
	if (!packet->by_own_node && pg_has_ports(pg_protocol(packet))) {
		if (pg_protocol(packet) == PG_IPPROTO_TCP && !pg_is_opening(packet))
			flags |= PG_OPEN_ANYWAY;
		rule = scratch->metered.traffic_rule;
		reason = rule ? pg_admit_or_search(packet, slot, rule, direction, flags) : 0;
		if (reason)
			return pg_connection_refused(slot, rule, direction, reason);
		reason = pg_admit_or_search(packet, slot, 0, direction, flags);
		if (reason) {
			if (rule)
				pg_admit_undo(packet->owner, rule, direction);
			return pg_connection_refused(slot, 0, direction, reason);
		}
		scratch->metered.admitted = 1;
	}
	scratch->metered.opens = 1;
	return 0;
}

/* Drops a connection that is refused. Returns PG_TC_DROP. */
static __always_inline enum pg_action pg_refuse(struct pg_scratch *scratch,
						struct pg_packet *packet, __u32 reason)
{
	pg_drop(scratch, packet->slot, reason);
	scratch->outcome.answer = packet->reject;
	return PG_TC_DROP;
}
