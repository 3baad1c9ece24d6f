/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A pod that picks itself: its kernel drops what comes back with its own source address, so the source becomes the
 * service's address too, and the packet is sent back through the interface that it came from. (pod:p to service:v)
 * becomes (service:q to pod:e) with q = p unless that is taken, and its answer, (pod:e to service:q), becomes
 * (service:v to pod:p). Both are service views of the same kind, each the other's counterpart, and what comes out is
 * the key of the counterpart: to_pod meets it and lets it pass.
 */
#pragma once

#include "again.h"
#include "verdict.h"
#include "views.h"

/* A packet with the key of a service view of a pod that picked itself. Both views pass what is theirs; only the
 * pod's own packets are rewritten. */
PG_VERIFIED_ALONE int pg_known_hairpin(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	struct pg_scratch *own = pg_scratch();
	struct pg_packet *behind;
	struct pg_flow *view;
	int reason;

	if (!packet || !own)
		return PG_TC_DROP;
	behind = &own->packets[PG_SLOT_BEHIND];
	view = pg_flow_find(packet);
	if (!view || pg_flow_expired(view, now) || !(view->flags & PG_FLOW_HAIRPIN))
		return PG_STALE;
	pg_view_of(&own->view, view);
	if (direction == PG_EGRESS) {
		if (pg_is_opening(packet) && view->direction != PG_EGRESS)
			return PG_STALE;
		if (view->direction == PG_EGRESS && !pg_keeps_backend(packet, view, view, epoch))
			return PG_STALE;
	}
	if (view->epoch != epoch) {
		/* Whoever opened it: a pod that reaches itself. */
		pg_behind(behind, packet, &own->view);
		reason = pg_judge(skb, behind->slot, PG_EGRESS, PG_JUDGE_AGAIN);
		if (behind->owner != view->owner || reason != PG_ALLOW_OWN_ADDRESS)
			return PG_STALE;
		pg_note(PG_NOTE_JUDGED_AGAIN);
		if (view->flags & PG_FLOW_UNPLACED)
			pg_give_slot(packet->slot, view);
		view->epoch = epoch;
	}
	if (direction == PG_EGRESS) {
		struct pg_flow *counterpart;

		pg_behind(behind, packet, &own->view);
		pg_to_counterpart(behind);
		counterpart = pg_flow_find(behind);
		if (!counterpart || !pg_is_counterpart(counterpart, packet))
			return PG_STALE;
	}
	pg_flow_track(view, pg_protocol(packet), packet->tcp_flags, direction, now);
	if (direction == PG_INGRESS)
		return pg_allow(skb, direction, PG_ALLOW_FLOW);
	pg_count(skb, direction, PG_ALLOW_FLOW);
	return PG_SEND;
}
