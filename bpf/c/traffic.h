/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Of which traffic rule a flow of a metered pod is, and where its peer is: found when the flow is remembered or revalidated,
 * and kept in it. */
#pragma once

#include "open_count.h"
#include "policy.h"

static __always_inline __u32 pg_scope_of(const struct pg_packet *packet)
{
	struct pg_node_key key = { .prefixlen = 128 };
	struct pg_scope *scope;

	pg_peer(packet, &key.addr);
	scope = bpf_map_lookup_elem(&scopes, &key);
	return scope && scope->kind < PG_SCOPE_COUNT ? scope->kind : PG_SCOPE_EXTERNAL;
}

/* The number of the traffic rule of a flow whose first packet, in `direction`, is in `slot`; 0: none. Keys as in policy.h. */
PG_GLOBAL_FN __u32 pg_traffic_rule_of(__u32 slot, __u32 direction)
{
	struct pg_policy_key key = { .prefixlen = PG_POLICY_PREFIX_PORT };
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_policy_value *entry = NULL;
	__u32 ifindex;
	void *table;

	if (!packet)
		return 0;
	/* The interface's number is the first field of either key. */
	ifindex = packet->key.v4.ifindex;
	table = bpf_map_lookup_elem(&traffic, &ifindex);
	if (!table)
		return 0;
	key.owner = packet->owner;
	key.direction = direction;
	key.protocol = pg_protocol(packet);
	key.port = direction == PG_INGRESS ? pg_pod_port(packet) : pg_peer_port(packet);
	/* Not every evaluation of policy gets as far as looking it up. */
	key.class = packet->class != PG_CLASS_ANY ? packet->class : pg_peer_class(packet);
	if (key.class != PG_CLASS_ANY)
		entry = bpf_map_lookup_elem(table, &key);
	if (!entry) {
		key.class = PG_CLASS_ANY;
		entry = bpf_map_lookup_elem(table, &key);
	}
	return entry ? (__u8)entry->rule : 0;
}

/* Finds both for the meter (pg_metered), after policy was evaluated for the packet in `slot`. Returns 0 if the pod has no
 * limits. */
PG_GLOBAL_FN int pg_classify(__u32 slot, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_limits_key key = {};
	struct pg_limits *of;

	if (!packet || !scratch)
		return 0;
	key.owner = packet->owner;
	scratch->metered.owner = packet->owner;
	scratch->metered.traffic_rule = 0;
	scratch->metered.scope = PG_SCOPE_EXTERNAL;
	of = bpf_map_lookup_elem(&limits, &key);
	if (!of)
		return 0;
	if (of->flags & PG_LIMITS_ACCOUNT)
		scratch->metered.scope = pg_scope_of(packet);
	if (of->flags & PG_LIMITS_RULES)
		scratch->metered.traffic_rule = pg_traffic_rule_of(slot, direction);
	return 1;
}

/* Gives a flow that was revalidated what pg_classify has found. */
static __attribute__((noinline)) int pg_reclassified(struct pg_flow *flow, __u32 protocol)
{
	struct pg_scratch *scratch = pg_scratch();

	if (!flow || !scratch)
		return 0;
	if (flow->traffic_rule != scratch->metered.traffic_rule) {
		pg_uncount(flow);
		flow->traffic_rule = scratch->metered.traffic_rule;
	}
	if (flow->scope != scratch->metered.scope)
		flow->scope = scratch->metered.scope;
	pg_count_known(flow, protocol);
	return 0;
}
