/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How many connections a metered pod has open: flows of TCP, UDP and SCTP that policy allows, each counted at the pod's meter
 * and at that of its traffic rule, by the direction of its first packet.
 *
 * pg_flow.counted says of each flow whether it is in the count. It changes with the count, under the lock of the pod's meter,
 * so that of two CPUs that find the same flow closed one takes it out. What is lost all the same (a flow that user space
 * removes, a flow's entry that is used for another flow at this moment) user space finds (bpf/src/open_count.rs).
 */
#pragma once

#include "maps.h"
#include "packet.h"
#include "scratch.h"

static __always_inline struct pg_meter *pg_meter_of(__u32 owner, __u32 rule)
{
	struct pg_limits_key key = { .owner = owner, .rule = rule };

	return bpf_map_lookup_elem(&meters, &key);
}

/* Whether an entry is one that is counted. The node's own probes are not, so that they always pass. Of a translated flow one
 * of the two entries is. */
static __always_inline int pg_is_countable(const struct pg_flow *flow)
{
	if (flow->flags & PG_FLOW_BY_OWN_NODE)
		return 0;
	if (flow->flags & PG_FLOW_DNAT)
		return (flow->flags & PG_FLOW_HAIRPIN) && flow->direction == PG_EGRESS;
	return 1;
}

/* Adds to the open connections of a traffic rule. */
static __always_inline void pg_rule_open_add(__u32 owner, __u32 rule, __u32 direction, int more)
{
	struct pg_meter *meter = rule ? pg_meter_of(owner, rule) : NULL;

	if (!meter)
		return;
	bpf_spin_lock(&meter->lock);
	if (more > 0 || meter->open[direction])
		meter->open[direction] += more;
	bpf_spin_unlock(&meter->lock);
}

/* Takes a flow into the count, or out of it; it may be there already. Not a global function: those take no pointers
 * (packet.h). Returns 0. */
static __attribute__((noinline)) int pg_set_counted(struct pg_flow *flow, __u32 counted)
{
	struct pg_meter *meter;
	__u32 owner, direction, rule, before;

	if (!flow)
		return 0;
	owner = flow->owner;
	direction = flow->direction & 1;
	meter = pg_meter_of(owner, 0);
	if (!meter) {
		flow->counted = 0;
		return 0;
	}
	bpf_spin_lock(&meter->lock);
	before = flow->counted;
	rule = flow->traffic_rule;
	flow->counted = counted;
	if (counted && !before)
		meter->open[direction]++;
	else if (!counted && before && meter->open[direction])
		meter->open[direction]--;
	bpf_spin_unlock(&meter->lock);
	if (!counted == !before)
		return 0;
	pg_rule_open_add(owner, rule, direction, counted ? 1 : -1);
	return 0;
}

/* A flow that ends. */
static __always_inline void pg_uncount(struct pg_flow *flow)
{
	if (flow->counted)
		pg_set_counted(flow, 0);
}

/* A known flow of a metered pod, after its state may have changed: one that has closed or is revoked is counted no more, one
 * that lives again, or that is older than its pod's limits, is counted from now on, whatever the limit. */
static __always_inline void pg_count_known(struct pg_flow *flow, __u8 protocol)
{
	__u32 counted = flow->state < PG_FLOW_CLOSED && pg_has_ports(protocol) &&
			pg_is_countable(flow);

	if (flow->counted != counted)
		pg_set_counted(flow, counted);
}
