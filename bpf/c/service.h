/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services: a pod's packet to a service's address goes to one of its endpoints, and is judged as that.
 *
 * A flow through a service is two entries (abi.h, PG_FLOW_SERVICE): the service view says where the packets go and
 * is only good as long as the endpoint view, which is judged and tracked, points back at it. The choice is made once,
 * for a new flow; it is kept as long as the flow lives. What becomes of it when the endpoint goes away is up to the
 * protocol: UDP and SCTP move on with their next packet, a TCP connection ends when its ends end it, and a SYN on
 * it chooses anew: what kube-proxy does, which forgets the state of the first two. A connection of which nothing is
 * known is none of ours: whoever has translated it so far will go on to.
 */
#pragma once

#include "again.h"
#include "hairpin.h"
#include "verdict.h"
#include "views.h"

/* Where denials pass, they are translated all the same, and remembered as what they are: conntrack.h. */
static __always_inline __u32 pg_service_state(const struct pg_packet *packet, int reason)
{
	if (reason >= PG_DENY_FIRST)
		return PG_FLOW_CUT;
	return pg_is_under_way(packet) ? PG_FLOW_ESTABLISHED : PG_FLOW_NEW;
}

/* A packet from the pod that opens a flow to a service: choose, judge the choice, remember, rewrite. PG_PLAIN if
 * there is no such service. A choice that policy refuses is not made again: kube-proxy would not either. */
PG_VERIFIED_ALONE int pg_new_service(struct __sk_buff *skb)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_control *ctl = pg_control();
	__u32 epoch = ctl ? ctl->epoch : 0, attempt, state, hairpin = 0;
	struct pg_scratch *own = pg_scratch();
	int reason = PG_DENY_PORT_TAKEN;
	struct pg_packet *behind;

	if (!packet || !own)
		return PG_TC_DROP;
	behind = &own->packets[PG_SLOT_BEHIND];
	for (attempt = 0; attempt < PG_ATTEMPTS; attempt++) {
		if (!pg_pick(attempt))
			return PG_PLAIN;
		reason = pg_judge(skb, behind->slot, PG_EGRESS, 0);
		/* It may be of a conversation from before, which somebody else translates: to another endpoint. */
		if (behind->watched && !pg_is_opening(packet))
			return PG_PLAIN;
		hairpin = reason == PG_ALLOW_OWN_ADDRESS;
		/* Where denials pass, one must not take a live flow's place either. */
		if ((reason >= PG_DENY_FIRST && pg_mode() == PG_MODE_ENFORCE) ||
		    !pg_is_taken(hairpin))
			break;
		reason = PG_DENY_PORT_TAKEN;
	}
	if (reason == PG_DENY_PORT_TAKEN ||
	    (reason >= PG_DENY_FIRST && (behind->handover || pg_mode() == PG_MODE_ENFORCE)))
		return pg_deny(skb, behind, PG_EGRESS, reason);
	state = pg_service_state(packet, reason);
	pg_remember_endpoint(epoch, state, hairpin);
	pg_remember_service(epoch, state, hairpin);
	pg_peer(behind, &own->view.other);
	own->view.other_port = pg_peer_port(behind);
	own->view.own_port = pg_pod_port(behind);
	own->view.flags = hairpin ? PG_FLOW_HAIRPIN : 0;
	if (reason >= PG_DENY_FIRST)
		pg_deny(skb, behind, PG_EGRESS, reason);
	else
		pg_allow_new(skb, behind, PG_EGRESS, reason);
	return PG_SEND;
}

/* A packet with the key of a service view: from the pod it goes where the view says; PG_STALE if that is no good
 * any more, PG_HAIRPIN if the view is the other kind. To the pod it can only be somebody else's translation, under
 * way since before this one. */
PG_VERIFIED_ALONE int pg_known_service(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	struct pg_scratch *own = pg_scratch();
	struct pg_flow *view, *flow;
	struct pg_packet *behind;
	int action;

	if (!packet || !own)
		return PG_TC_DROP;
	behind = &own->packets[PG_SLOT_BEHIND];
	view = pg_flow_find(packet);
	if (!view || pg_flow_expired(view, now) || !(view->flags & PG_FLOW_SERVICE))
		return PG_STALE;
	if (view->flags & PG_FLOW_HAIRPIN)
		return PG_HAIRPIN;
	pg_view_of(&own->view, view);
	pg_behind(behind, packet, &own->view);
	flow = pg_flow_find(behind);
	if ((!flow || pg_flow_expired(flow, now)) && direction == PG_EGRESS &&
	    !pg_is_opening(packet) && (pg_is_under_way(packet) || pg_backend_of(packet->slot))) {
		/* The full map has forgotten the endpoint view alone: the choice was made. */
		__u32 reason = pg_judge(skb, behind->slot, PG_EGRESS, PG_JUDGE_AGAIN);

		if (reason >= PG_DENY_FIRST && pg_mode() == PG_MODE_ENFORCE)
			return pg_deny(skb, behind, PG_EGRESS, reason);
		pg_remember_endpoint(epoch, pg_service_state(packet, reason), 0);
		flow = pg_flow_find(behind);
	}
	if (!flow || pg_flow_expired(flow, now) || !pg_points_back(flow, packet))
		return PG_STALE;
	if (direction == PG_EGRESS && !pg_keeps_backend(packet, view, flow, epoch))
		return PG_STALE;
	if (!pg_refresh(skb, behind, flow, epoch, now))
		return PG_STALE;
	if (view->flags & PG_FLOW_UNPLACED)
		pg_give_slot(packet->slot, view);
	if (direction == PG_EGRESS)
		view->epoch = epoch;
	if (flow->state == PG_FLOW_CUT) {
		if (pg_protocol(packet) == PG_IPPROTO_TCP || pg_mode() != PG_MODE_ENFORCE)
			pg_flow_extend(flow, pg_protocol(packet), now);
		behind->rule = 0;
		behind->owner = flow->owner;
		action = pg_deny(skb, behind, direction, PG_DENY_POLICY);
		if (action != PG_TC_NEXT || direction == PG_INGRESS)
			return action;
	} else {
		if (direction == PG_INGRESS)
			return pg_allow(skb, direction, PG_ALLOW_FLOW);
		pg_flow_track(flow, pg_protocol(packet), packet->tcp_flags, direction, now);
		pg_count(skb, direction, PG_ALLOW_FLOW);
	}
	if (view->expires != flow->expires)
		view->expires = flow->expires;
	return PG_SEND;
}
