/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The meter: what a pod's limits (abi_limits.h) do to a packet that its gate allows. Only in the programs for metered pods.
 *
 * A rate is a virtual clock (bucket.h). A packet is charged to its traffic rule, if it has one, and to the pod as a whole; if
 * either has no room it is dropped and charged to neither.
 */
#pragma once

#include "accounting.h"
#include "bucket.h"
#include "ecn.h"
#include "marks.h"
#include "maps.h"
#include "meter_flow.h"
#include "verdict.h"

/* The slow path need not have met a flow. */
static __always_inline __u32 pg_metered_owner(struct __sk_buff *skb,
					      const struct pg_scratch *scratch)
{
	__u32 ifindex = skb->ifindex;
	struct pg_endpoint *endpoint;

	if (scratch->metered.owner)
		return scratch->metered.owner;
	endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
	return endpoint ? endpoint->owner : 0;
}

/* Drops the packet for a limit of `of`. */
static __always_inline enum pg_action pg_meter_refuse(struct pg_scratch *scratch,
						      const struct pg_limits *of, __u32 direction,
						      const struct pg_charge *charge)
{
	scratch->packets[PG_SLOT_PACKET].rule = of->origins[direction][charge->limit & 1];
	return pg_drop(scratch, PG_SLOT_PACKET, charge->reason);
}

/* What the pod's limits do to an allowed packet. Returns PG_TC_DROP, with the outcome set, or PG_TC_NEXT. */
PG_GLOBAL_FN enum pg_action pg_meter(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_limits *of, *of_rule = NULL;
	struct pg_meter *meter, *meter_of_rule = NULL;
	struct pg_charge charge = {}, of_pod = {};
	struct pg_limits_key key = {};
	struct pg_wire wire;
	int queue = -1;
	__u64 now;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	direction &= 1;
	key.owner = pg_metered_owner(skb, scratch);
	of = bpf_map_lookup_elem(&limits, &key);
	meter = bpf_map_lookup_elem(&meters, &key);
	if (!of || !meter)
		return PG_TC_NEXT;
	pg_wire_of(skb, &wire);
	now = bpf_ktime_get_ns();
	key.rule = scratch->metered.traffic_rule;
	if (key.rule) {
		of_rule = bpf_map_lookup_elem(&limits, &key);
		meter_of_rule = bpf_map_lookup_elem(&meters, &key);
	}
	if (of_rule && meter_of_rule) {
		pg_bucket_charge(of_rule, meter_of_rule, direction, &wire, now, -1, &charge);
		if (charge.reason)
			return pg_meter_refuse(scratch, of_rule, direction, &charge);
	}
	if (direction == PG_INGRESS && (of->flags & PG_LIMITS_SHAPE) &&
	    of->rates[PG_INGRESS][PG_LIMIT_BANDWIDTH].cost)
		queue = bpf_get_hash_recalc(skb) & (PG_METER_QUEUES - 1);
	pg_bucket_charge(of, meter, direction, &wire, now, queue, &of_pod);
	if (of_pod.reason) {
		if (of_rule && meter_of_rule)
			pg_bucket_refund(of_rule, meter_of_rule, direction, &wire);
		return pg_meter_refuse(scratch, of, direction, &of_pod);
	}
	pg_account(scratch, key.owner, direction, of, wire.bytes, wire.packets);
	pg_mark(skb, scratch, key.owner, direction, of);
	/* fq, the qdisc behind this program, keeps the packet until then; what TCP's own pacing asks for holds if it is later */
	if (of_pod.wait && skb->tstamp < now + of_pod.wait)
		skb->tstamp = now + of_pod.wait;
	if ((of_pod.mark || charge.mark) && pg_set_ce(skb))
		__sync_fetch_and_add(&meter->marked[direction], wire.packets);
	return PG_TC_NEXT;
}
