/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services: a pod's packet to a service address goes to one of the service's backends, and policy is evaluated for that
 * backend.
 *
 * A flow through a service is a pair of entries (abi.h, PG_FLOW_DNAT). The DNAT entry says where packets go, and is
 * valid only while the reverse-NAT entry, on which policy is evaluated and state tracked, refers back to it. The
 * backend is selected once, for a new flow, and kept as long as the flow lives. If the backend goes away, UDP and SCTP
 * get another one with their next packet; a TCP connection stays until its ends close it, and a new SYN on it selects
 * again. That is what kube-proxy does, which deletes the conntrack state of the first two.
 *
 * A TCP segment in mid-stream without a flow entry is not translated: kube-proxy's conntrack goes on handling it.
 */
#pragma once

#include "connections.h"
#include "revalidate.h"
#include "hairpin.h"
#include "verdict.h"
#include "nat_entries.h"

/* The state of a new flow. In audit mode a denied flow is translated too, and remembered as revoked (conntrack.h). */
static __always_inline __u32 pg_initial_state(const struct pg_packet *packet, int reason)
{
	if (reason >= PG_DENY_FIRST)
		return PG_FLOW_REVOKED;
	return pg_is_midstream(packet) ? PG_FLOW_ESTABLISHED : PG_FLOW_NEW;
}

/* The packet in hand gets another backend than its flow had, if it had one: the entry of that one is counted no more, so that
 * the flow takes its own place. Returns 0. */
PG_GLOBAL_FN int pg_uncount_replaced(void)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *before = pg_packet_in(PG_SLOT_QUOTED);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_flow *flow;

	if (!packet || !before || !scratch)
		return 0;
	flow = pg_flow_find(packet);
	if (!flow || (flow->flags & (PG_FLOW_DNAT | PG_FLOW_HAIRPIN)) != PG_FLOW_DNAT)
		return 0;
	pg_nat_of(&scratch->nat, flow);
	pg_xlate_key(before, packet, &scratch->nat);
	before->slot = PG_SLOT_QUOTED;
	flow = pg_flow_find(before);
	if (flow && pg_nat_pair_matches(flow, packet))
		pg_uncount(flow);
	return 0;
}

/* A packet from the pod that opens a flow to a service: select a backend, evaluate policy for it, remember both
 * entries. A backend that policy denies is not replaced by another one, as kube-proxy would not either. Returns
 * PG_NEXT_FLOW if there is no such service, PG_NEXT_TRANSLATE, or the verdict. */
PG_GLOBAL_FN enum pg_action pg_service_new_flow(struct __sk_buff *skb)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_control *ctl = pg_control();
	__u32 epoch = ctl ? ctl->epoch : 0, attempt, state, hairpin = 0;
	int reason = PG_DENY_PORT_TAKEN;
	struct pg_packet *xlated;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	xlated = &scratch->packets[PG_SLOT_XLATED];
	for (attempt = 0; attempt < PG_LB_ATTEMPTS; attempt++) {
		if (!pg_select_backend(attempt))
			return PG_NEXT_FLOW;
		reason = pg_policy_verdict(skb, xlated->slot, PG_EGRESS, 0);
		/* The packet may belong to a flow from before the pod was adopted, which kube-proxy translates,
		 * perhaps to another backend. */
		if (xlated->learning && !pg_is_opening(packet))
			return PG_NEXT_FLOW;
		hairpin = reason == PG_ALLOW_OWN_ADDRESS;
		if (hairpin)
			reason = pg_self_verdict(skb, PG_SLOT_XLATED, pg_peer_port(xlated), 0);
		/* Not enforcing is no reason to take the tuple of another live flow. */
		if ((reason >= PG_DENY_FIRST && pg_mode() == PG_MODE_ENFORCE) ||
		    !pg_tuple_in_use(hairpin))
			break;
		reason = PG_DENY_PORT_TAKEN;
	}
	if (reason == PG_DENY_PORT_TAKEN ||
	    (reason >= PG_DENY_FIRST && (xlated->handover || pg_mode() == PG_MODE_ENFORCE)))
		return pg_deny(scratch, xlated, reason);
	if (scratch->metered.on && reason < PG_DENY_FIRST) {
		int refused;

		pg_uncount_replaced();
		refused = pg_connection_open(PG_SLOT_XLATED, PG_EGRESS,
					     hairpin ? PG_OPEN_HAIRPIN : 0);

		if (refused)
			return pg_refuse(scratch, xlated, refused);
	}
	state = pg_initial_state(packet, reason);
	pg_revnat_insert(epoch, state, hairpin);
	pg_dnat_insert(epoch, state, hairpin);
	pg_peer(xlated, &scratch->nat.other);
	scratch->nat.other_port = pg_peer_port(xlated);
	scratch->nat.own_port = pg_pod_port(xlated);
	scratch->nat.flags = hairpin ? PG_FLOW_HAIRPIN : 0;
	if (reason >= PG_DENY_FIRST)
		pg_deny(scratch, xlated, reason);
	else
		pg_allow_new(scratch, xlated, reason);
	return PG_NEXT_TRANSLATE;
}

/* A packet with the key of a DNAT entry. From the pod it is translated as the entry says. To the pod it can only
 * belong to a flow that kube-proxy has translated since before the entry. Returns PG_NEXT_RESELECT if the entry is
 * not valid any more, PG_NEXT_HAIRPIN if it is one of a pod to itself, PG_NEXT_TRANSLATE, or the verdict. */
PG_GLOBAL_FN enum pg_action pg_service_known_flow(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	struct pg_flow *dnat, *flow;
	struct pg_packet *xlated;
	enum pg_action action;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	xlated = &scratch->packets[PG_SLOT_XLATED];
	dnat = pg_flow_find(packet);
	if (!dnat || pg_flow_expired(dnat, now) || !(dnat->flags & PG_FLOW_DNAT))
		return PG_NEXT_RESELECT;
	if (dnat->flags & PG_FLOW_HAIRPIN)
		return PG_NEXT_HAIRPIN;
	pg_nat_of(&scratch->nat, dnat);
	pg_xlate_key(xlated, packet, &scratch->nat);
	flow = pg_flow_find(xlated);
	if ((!flow || pg_flow_expired(flow, now)) && direction == PG_EGRESS &&
	    !pg_is_opening(packet) &&
	    (pg_is_midstream(packet) || pg_nat_backend_state(packet->slot))) {
		/* Only the reverse-NAT entry was evicted: restore it, with the same backend. */
		__u32 reason = pg_policy_verdict(skb, xlated->slot, PG_EGRESS, PG_EVAL_REVALIDATE);

		if (reason >= PG_DENY_FIRST && pg_mode() == PG_MODE_ENFORCE)
			return pg_deny(scratch, xlated, reason);
		if (scratch->metered.on && reason < PG_DENY_FIRST)
			pg_connection_open(PG_SLOT_XLATED, PG_EGRESS, PG_OPEN_ANYWAY);
		pg_revnat_insert(epoch, pg_initial_state(packet, reason), 0);
		flow = pg_flow_find(xlated);
	}
	if (!flow || pg_flow_expired(flow, now) || !pg_nat_pair_matches(flow, packet))
		return PG_NEXT_RESELECT;
	if (direction == PG_EGRESS && !pg_may_keep_backend(packet, dnat, flow, epoch))
		return PG_NEXT_RESELECT;
	if (!pg_flow_revalidate(skb, xlated, flow, epoch, now))
		return PG_NEXT_RESELECT;
	if (dnat->flags & PG_FLOW_NO_SLOT)
		pg_assign_slot(packet->slot, dnat);
	if (direction == PG_EGRESS)
		dnat->epoch = epoch;
	if (scratch->metered.on) {
		dnat->traffic_rule = flow->traffic_rule;
		dnat->scope = flow->scope;
	}
	if (flow->state == PG_FLOW_REVOKED) {
		if (pg_protocol(packet) == PG_IPPROTO_TCP || pg_mode() != PG_MODE_ENFORCE)
			pg_flow_extend(flow, pg_protocol(packet), now);
		xlated->rule = 0;
		xlated->owner = flow->owner;
		action = pg_deny(scratch, xlated, PG_DENY_POLICY);
		if (action != PG_TC_NEXT || direction == PG_INGRESS)
			return action;
	} else {
		if (direction == PG_INGRESS)
			return pg_allow(scratch, PG_ALLOW_FLOW);
		pg_flow_track(scratch, flow, pg_protocol(packet), packet->tcp_flags, direction, now);
		pg_allow(scratch, PG_ALLOW_FLOW);
	}
	if (dnat->expires != flow->expires)
		dnat->expires = flow->expires;
	return PG_NEXT_TRANSLATE;
}
