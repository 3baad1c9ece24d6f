/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hairpin: a pod that gets itself as the backend. Its kernel would drop a packet with its own source address, so the
 * source is rewritten to the service address too, and the packet is sent back through the interface that it came from.
 * Policy says nothing of it unless the pod's table has entries for that (PG_CLASS_SELF4, PG_CLASS_SELF6).
 * (pod:p to service:v) becomes (service:q to pod:e), with q = p unless that tuple is in use; the answer, (pod:e to
 * service:q), becomes (service:v to pod:p). Both directions have a DNAT entry, each the other of the pair: what leaves
 * one has the key of the other, by which to_pod allows it.
 */
#pragma once

#include "revalidate.h"
#include "verdict.h"
#include "nat_entries.h"

/* What the pod's table says of the pod reaching itself, after the packet in `slot` was found to do that. `port`: after
 * translation, network order; it is what egress and ingress are judged by. `flags`: enum pg_eval_flag. */
PG_GLOBAL_FN enum pg_reason pg_self_verdict(struct __sk_buff *skb, __u32 slot, __u32 port,
					    __u32 flags)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_policy_key key = { .prefixlen = PG_POLICY_PREFIX_PORT };
	enum pg_reason out = PG_ALLOW_OWN_ADDRESS, in = PG_ALLOW_OWN_ADDRESS;
	struct pg_policy_value *entry;
	__u32 ifindex = skb->ifindex, rule = 0;
	__u8 logged = 0;
	void *table;

	if (!packet)
		return PG_DENY_MALFORMED;
	table = bpf_map_lookup_elem(&policies, &ifindex);
	if (!table || packet->learning)
		return PG_ALLOW_OWN_ADDRESS;
	key.owner = packet->owner;
	key.class = packet->family == 4 ? PG_CLASS_SELF4 : PG_CLASS_SELF6;
	key.protocol = pg_protocol(packet);
	key.port = port;
	key.direction = PG_EGRESS;
	entry = bpf_map_lookup_elem(table, &key);
	if (entry) {
		out = pg_decide(packet, entry, flags);
		if (out >= PG_DENY_FIRST)
			return out;
		rule = packet->rule;
		logged = packet->logged;
	}
	key.direction = PG_INGRESS;
	entry = bpf_map_lookup_elem(table, &key);
	if (entry) {
		in = pg_decide(packet, entry, flags);
		if (in >= PG_DENY_FIRST)
			return in;
	}
	if (out == PG_ALLOW_AUDIT)
		packet->rule = rule;
	packet->logged |= logged;
	return out == PG_ALLOW_AUDIT || in == PG_ALLOW_AUDIT ? PG_ALLOW_AUDIT : PG_ALLOW_OWN_ADDRESS;
}

/* Brings the entry of a hairpin flow that has the key of the packet in hand, and whose NAT data is in the scratch space,
 * up to the current epoch. Returns 0 if there is no such entry that is valid. */
PG_GLOBAL_FN int pg_hairpin_revalidate(struct __sk_buff *skb)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *xlated = pg_packet_in(PG_SLOT_XLATED);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_control *ctl = pg_control();
	__u32 epoch = ctl ? ctl->epoch : 0;
	struct pg_flow *entry;
	__be16 port;
	int reason;

	if (!packet || !xlated || !scratch)
		return 0;
	entry = pg_flow_find(packet);
	if (!entry || !(entry->flags & PG_FLOW_HAIRPIN))
		return 0;
	if (entry->epoch == epoch)
		return 1;
	/* In either direction this is a pod that reaches itself: evaluate that. */
	pg_xlate_key(xlated, packet, &scratch->nat);
	reason = pg_policy_verdict(skb, PG_SLOT_XLATED, PG_EGRESS, PG_EVAL_REVALIDATE);
	if (xlated->owner != entry->owner || reason != PG_ALLOW_OWN_ADDRESS)
		return 0;
	port = entry->direction == PG_EGRESS ? entry->other_port : pg_pod_port(packet);
	reason = pg_self_verdict(skb, PG_SLOT_XLATED, port, PG_EVAL_REVALIDATE);
	pg_stat_inc(PG_STAT_REVALIDATED);
	if (entry->flags & PG_FLOW_NO_SLOT)
		pg_assign_slot(PG_SLOT_PACKET, entry);
	pg_flow_reconsider(entry, xlated, reason, epoch, pg_now());
	if (scratch->metered.on && pg_classify(PG_SLOT_XLATED, PG_EGRESS))
		pg_reclassified(entry, pg_protocol(packet));
	return 1;
}

/* A packet with the key of an entry of a hairpin flow. Only packets from the pod are rewritten. Returns
 * PG_NEXT_RESELECT if the entry is not valid any more, PG_NEXT_TRANSLATE, or the verdict. */
PG_GLOBAL_FN enum pg_action pg_hairpin_known_flow(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	struct pg_packet *xlated;
	struct pg_flow *entry;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	xlated = &scratch->packets[PG_SLOT_XLATED];
	entry = pg_flow_find(packet);
	if (!entry || pg_flow_expired(entry, now) || !(entry->flags & PG_FLOW_HAIRPIN))
		return PG_NEXT_RESELECT;
	pg_nat_of(&scratch->nat, entry);
	if (direction == PG_EGRESS) {
		if (pg_is_opening(packet) && entry->direction != PG_EGRESS)
			return PG_NEXT_RESELECT;
		if (entry->direction == PG_EGRESS &&
		    !pg_may_keep_backend(packet, entry, entry, epoch))
			return PG_NEXT_RESELECT;
	}
	if (entry->epoch != epoch && !pg_hairpin_revalidate(skb))
		return PG_NEXT_RESELECT;
	if (entry->state == PG_FLOW_REVOKED) {
		enum pg_action action;

		/* As in pg_flow_verdict. */
		if (pg_protocol(packet) == PG_IPPROTO_TCP || pg_mode() != PG_MODE_ENFORCE)
			pg_flow_extend(entry, pg_protocol(packet), now);
		pg_xlate_key(xlated, packet, &scratch->nat);
		xlated->owner = entry->owner;
		action = pg_deny(scratch, xlated, PG_DENY_POLICY);
		return action == PG_TC_NEXT && direction == PG_EGRESS ? PG_NEXT_TRANSLATE : action;
	}
	if (direction == PG_EGRESS) {
		struct pg_flow *counterpart;

		pg_xlate_key(xlated, packet, &scratch->nat);
		pg_to_hairpin_pair(xlated);
		counterpart = pg_flow_find(xlated);
		if (!counterpart || !pg_is_hairpin_pair(counterpart, packet))
			return PG_NEXT_RESELECT;
	}
	pg_flow_track(scratch, entry, pg_protocol(packet), packet->tcp_flags, direction, now);
	pg_allow(scratch, PG_ALLOW_FLOW);
	return direction == PG_INGRESS ? PG_TC_NEXT : PG_NEXT_TRANSLATE;
}
