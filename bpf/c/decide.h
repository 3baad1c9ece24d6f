/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Deciding about a packet with a flow's key. */
#pragma once

#include "again.h"
#include "parse.h"
#include "service.h"
#include "verdict.h"

/* Pass or drop a packet that belongs to no flow and opens none. */
static __always_inline int pg_settle(struct __sk_buff *skb, struct pg_packet *packet,
				     __u32 direction, int reason)
{
	if (reason >= PG_DENY_FIRST)
		return pg_deny(skb, packet, direction, reason);
	return pg_allow_new(skb, packet, direction, reason);
}

/* Whether a flow that went past every service so far is to look for one: it begins anew, or, of datagrams, something
 * has changed since, perhaps the service's having endpoints at all: judged by the service's address for ever, it might
 * go on to an endpoint that policy forbids. Not if it is known who translates it, and to whom. */
static __always_inline int pg_looks_again(const struct pg_packet *packet,
					  const struct pg_flow *flow, __u32 epoch)
{
	return flow->direction == PG_EGRESS && !(flow->flags & PG_FLOW_ENDPOINT) &&
	       (pg_is_opening(packet) ||
		(pg_protocol(packet) == PG_IPPROTO_UDP && flow->epoch != epoch &&
		 (flow->state == PG_FLOW_NEW || !(flow->flags & PG_FLOW_FOREIGN))));
}

/* Whether the packet is one for pg_new_service. The end of a connection that is forgotten already opens nothing. */
static __always_inline int pg_asks_service(const struct pg_packet *packet, __u32 direction)
{
	return direction == PG_EGRESS && !packet->asked && !(packet->tcp_flags & PG_TCP_RST) &&
	       pg_has_ports(pg_protocol(packet)) && pg_service_find(packet);
}

/*
 * Whether the flow is the node's own and the packet one that the node forwards under its address, or the reverse: one
 * tuple may be of both in turn, and neither is to be taken for the other. What is forwarded never rides on the node's
 * own flow. The node's own packet rides on a flow that policy allows to all, but not into the end of one that was cut.
 */
static __always_inline int pg_is_anothers(const struct pg_packet *packet,
					  const struct pg_flow *flow, __u32 direction)
{
	int by_own_node = !!(flow->flags & PG_FLOW_BY_OWN_NODE);

	if (direction != PG_INGRESS || by_own_node == (packet->origin != PG_FROM_ELSEWHERE))
		return 0;
	return by_own_node || pg_is_opening(packet) ||
	       (flow->state == PG_FLOW_CUT && flow->direction == PG_INGRESS);
}

/* The packet in hand, which has a flow's key: of a known flow, or the first of one. PG_ASK: of a service, unless
 * `asked`. PG_SEND: translate it. PG_DIRECT: of the pod's own, beside a service's flow. */
PG_VERIFIED_ALONE int pg_decide(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	__u8 state = PG_FLOW_NEW, protocol;
	struct pg_scratch *own = pg_scratch();
	struct pg_flow *flow;
	int opening, reason, revoked;

	if (!packet)
		return PG_TC_DROP;
	protocol = pg_protocol(packet);
	opening = pg_is_opening(packet);
	flow = pg_flow_find(packet);
	if (flow && pg_flow_expired(flow, now))
		flow = NULL;
	if (flow && (flow->flags & PG_FLOW_SERVICE)) {
		if (!packet->asked)
			return PG_ASK;
		flow = NULL;
	}
	/* What the pod sends through the service looks the same to the endpoint. */
	if (flow && (flow->flags & PG_FLOW_ENDPOINT) && direction == PG_EGRESS) {
		if (!packet->not_direct)
			return PG_DIRECT;
		flow = NULL;
	}
	if (flow && pg_looks_again(packet, flow, epoch) && pg_asks_service(packet, direction))
		return PG_ASK;

	if (flow && pg_is_anothers(packet, flow, direction)) {
		/* Judged as itself. It takes the flow's place only if it opens a connection. */
		if ((flow->flags & PG_FLOW_BY_OWN_NODE) && !opening)
			packet->forgettable = 1;
		flow = NULL;
	}
	/* A SYN against the flow's direction, or on a flow that was cut, asks for a connection of its own. */
	if (flow && !(opening && (flow->direction != direction || flow->state == PG_FLOW_CUT)) &&
	    pg_refresh(skb, packet, flow, epoch, now)) {
		int translated = flow->flags & PG_FLOW_ENDPOINT, action;

		if (translated) {
			if (!own)
				return PG_TC_DROP;
			pg_view_of(&own->view, flow);
			packet->service = flow->other;
			packet->service_port = flow->other_port;
		}
		if (flow->state == PG_FLOW_CUT) {
			/* A cut datagram flow ends after a while, so that the other side may open one of its
			 * own. Not while its packets pass: an answer would take its place. */
			if (protocol == PG_IPPROTO_TCP || pg_mode() != PG_MODE_ENFORCE)
				pg_flow_extend(flow, protocol, now);
			packet->rule = 0;
			packet->owner = flow->owner;
			action = pg_deny(skb, packet, direction, PG_DENY_POLICY);
		} else {
			__u32 expired = flow->expires;

			pg_flow_track(flow, protocol, packet->tcp_flags, direction, now);
			if (translated && own && flow->expires != expired)
				pg_extend_service(flow->expires);
			action = pg_allow(skb, direction, PG_ALLOW_FLOW);
		}
		return translated && action == PG_TC_NEXT ? PG_SEND : action;
	}
	if (pg_asks_service(packet, direction))
		return PG_ASK;

	if (packet->tcp_flags & PG_TCP_RST)
		packet->forgettable = 1; /* the end of a connection that is forgotten already */
	revoked = pg_is_under_way(packet) && pg_is_revoked(skb, direction);
	reason = pg_judge(skb, packet->slot, direction, 0);
	if (revoked && reason < PG_DENY_FIRST)
		reason = PG_DENY_POLICY;
	if (reason >= PG_DENY_FIRST) {
		/* Where denials pass, the answer must not become the flow's first packet: see conntrack.h. */
		if (pg_mode() != PG_MODE_ENFORCE && !packet->forgettable && !packet->flowless &&
		    !packet->handover)
			pg_flow_remember(direction, epoch, PG_FLOW_CUT);
		return pg_deny(skb, packet, direction, reason);
	}
	if (!packet->forgettable && !packet->flowless) {
		if (protocol == PG_IPPROTO_TCP &&
		    !(packet->tcp_flags & PG_TCP_SYN)) /* picked up on its way */
			state = packet->tcp_flags & PG_TCP_FIN ? PG_FLOW_CLOSING
							       : PG_FLOW_ESTABLISHED;
		pg_flow_remember(direction, epoch, state);
	}
	return pg_allow_new(skb, packet, direction, reason);
}
