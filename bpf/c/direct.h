/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a pod sends to an endpoint itself, from a port from which it talks to that endpoint through a service too. Both
 * would look the same to the endpoint, and its answers could not be told apart; so what is sent directly leaves from
 * another port, as netfilter has it. The entry of (pod:p, endpoint), which is the service's endpoint view, says from which
 * (`direct_port`, q). The entry of (pod:q, endpoint) is an endpoint view as well, whose service is the endpoint itself: what
 * comes back is translated like every answer, to (pod:p).
 *
 * The reverse order is pick.h's: a service's flow that finds the port taken gets another.
 */
#pragma once

#include "again.h"
#include "service.h"
#include "verdict.h"
#include "views.h"

/* Whether the flow is what the pod sends directly with the key of `packet`. */
static __always_inline int pg_is_direct(const struct pg_flow *flow, const struct pg_packet *packet)
{
	struct pg_addr peer;

	pg_peer(packet, &peer);
	return (flow->flags & PG_FLOW_ENDPOINT) && flow->own_port == pg_pod_port(packet) &&
	       flow->other_port == pg_peer_port(packet) && !pg_addr_differs(&flow->other, &peer);
}

/* Finds a port for a new direct flow, the one that it had first. 0: there is none. */
PG_VERIFIED_ALONE int pg_direct_port(__u32 port)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *behind = pg_packet_in(PG_SLOT_BEHIND);
	__u32 attempt, now = pg_now();

	if (!packet || !behind)
		return 0;
#pragma clang loop unroll(disable)
	for (attempt = 0; attempt < PG_ATTEMPTS; attempt++) {
		struct pg_flow *flow;

		if (attempt || !port)
			port = pg_any_port();
		pg_set_ports(behind, port, pg_peer_port(packet));
		flow = pg_flow_find(behind);
		if (!flow || pg_flow_expired(flow, now) || flow->owner != packet->owner ||
		    pg_is_direct(flow, packet) || (pg_is_opening(packet) && pg_has_ended(flow)))
			return port & 0xffff;
	}
	return 0;
}

/* A packet from the pod with the key of an endpoint view. PG_PLAIN: that has ended, and the packet opens a flow of its
 * own in its place. */
PG_VERIFIED_ALONE int pg_direct(struct __sk_buff *skb)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0, port;
	struct pg_scratch *own = pg_scratch();
	int reason, revoked, action = PG_TC_NEXT;
	struct pg_flow *view, *flow;
	struct pg_packet *behind;

	if (!packet || !own)
		return PG_TC_DROP;
	behind = &own->packets[PG_SLOT_BEHIND];
	view = pg_flow_find(packet);
	if (!view || pg_flow_expired(view, now))
		return PG_PLAIN;
	pg_copy_to_behind(behind, packet);
	port = view->direct_port;
	pg_peer(packet, &own->view.other);
	own->view.other_port = pg_peer_port(packet);
	own->view.own_port = port;
	own->view.flags = 0;
	pg_set_ports(behind, port, pg_peer_port(packet));
	flow = port ? pg_flow_find(behind) : NULL;
	if (flow && !pg_flow_expired(flow, now) && pg_is_direct(flow, packet) &&
	    !(pg_is_opening(packet) && flow->state >= PG_FLOW_CLOSED) &&
	    pg_refresh(skb, behind, flow, epoch, now)) {
		if (flow->state == PG_FLOW_CUT) {
			if (pg_protocol(packet) == PG_IPPROTO_TCP || pg_mode() != PG_MODE_ENFORCE)
				pg_flow_extend(flow, pg_protocol(packet), now);
			packet->rule = 0;
			packet->owner = flow->owner;
			action = pg_deny(skb, packet, PG_EGRESS, PG_DENY_POLICY);
		} else {
			pg_flow_track(flow, pg_protocol(packet), packet->tcp_flags, PG_EGRESS, now);
			pg_count(skb, PG_EGRESS, PG_ALLOW_FLOW);
		}
		pg_flow_expires(view, flow->expires);
		return action == PG_TC_NEXT ? PG_SEND : action;
	}
	if (pg_is_opening(packet) && view->state >= PG_FLOW_CLOSED)
		return PG_PLAIN;
	revoked = pg_is_under_way(packet) && pg_is_revoked(skb, PG_EGRESS);
	reason = pg_judge(skb, packet->slot, PG_EGRESS, 0);
	if (view->owner != packet->owner)
		return PG_PLAIN;
	if (revoked && reason < PG_DENY_FIRST)
		reason = PG_DENY_POLICY;
	if (reason >= PG_DENY_FIRST && (packet->handover || pg_mode() == PG_MODE_ENFORCE))
		return pg_deny(skb, packet, PG_EGRESS, reason);
	pg_copy_to_behind(behind, packet);
	/* The end of a connection that is forgotten already must not end the service's. */
	port = packet->tcp_flags & PG_TCP_RST ? 0 : pg_direct_port(port);
	if (!port)
		return pg_deny(skb, packet, PG_EGRESS, PG_DENY_PORT_TAKEN);
	pg_set_ports(behind, port, pg_peer_port(packet));
	pg_new_view(&own->flow, behind, epoch, pg_service_state(packet, reason));
	own->flow.direction = PG_EGRESS;
	own->flow.flags |= PG_FLOW_ENDPOINT;
	own->flow.other = own->view.other;
	own->flow.other_port = own->view.other_port;
	own->flow.own_port = pg_pod_port(packet);
	pg_flow_store(PG_SLOT_BEHIND, 0);
	own->view.own_port = port;
	view = pg_flow_find(packet);
	if (view) {
		view->direct_port = port;
		pg_flow_expires(view, own->flow.expires);
	}
	if (reason < PG_DENY_FIRST)
		pg_expect_fragments(packet);
	if (reason >= PG_DENY_FIRST)
		pg_deny(skb, packet, PG_EGRESS, reason);
	else
		pg_allow_new(skb, packet, PG_EGRESS, reason);
	return PG_SEND;
}
