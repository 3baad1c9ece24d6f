/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The verdict of a packet with a flow's key. */
#pragma once

#include "connections.h"
#include "revalidate.h"
#include "parse.h"
#include "service.h"
#include "verdict.h"

/* The verdict of a packet that belongs to no flow and opens none. */
static __always_inline enum pg_action pg_verdict_no_flow(struct pg_scratch *scratch,
							 struct pg_packet *packet, int reason)
{
	if (reason >= PG_DENY_FIRST)
		return pg_deny(scratch, packet, reason);
	return pg_allow_new(scratch, packet, reason);
}

/* Whether the service map is looked up again for a flow that was not translated so far: for a new TCP SYN, and for
 * UDP once per epoch, as the service may have gained backends since; without that, a flow once allowed to the
 * service address could go on to a backend that policy denies. Not for a flow that kube-proxy is known to translate. */
static __always_inline int pg_should_recheck_service(const struct pg_packet *packet,
						     const struct pg_flow *flow, __u32 epoch)
{
	return flow->direction == PG_EGRESS && !(flow->flags & PG_FLOW_REVNAT) &&
	       (pg_is_opening(packet) ||
		(pg_protocol(packet) == PG_IPPROTO_UDP && flow->epoch != epoch &&
		 (flow->state == PG_FLOW_NEW || !(flow->flags & PG_FLOW_EXTERNAL_NAT))));
}

/* Whether the packet is one for pg_service_new_flow. A RST opens nothing. */
static __always_inline int pg_targets_service(const struct pg_packet *packet, __u32 direction)
{
	return direction == PG_EGRESS && !packet->svc_checked && !(packet->tcp_flags & PG_TCP_RST) &&
	       pg_has_ports(pg_protocol(packet)) && pg_service_find(packet);
}

/* Whether the flow is the node's own and the packet one that the node forwards under its address, or the reverse:
 * both may have the same tuple at different times. A forwarded packet never uses the node's own flow. The node's own
 * packet may use a flow that policy allows to anyone, but not a revoked one of which it looks like the end. */
static __always_inline int pg_is_other_origin(const struct pg_packet *packet,
					      const struct pg_flow *flow, __u32 direction)
{
	int by_own_node = !!(flow->flags & PG_FLOW_BY_OWN_NODE);

	if (direction != PG_INGRESS || by_own_node == (packet->origin != PG_ORIGIN_EXTERNAL))
		return 0;
	return by_own_node || pg_is_opening(packet) ||
	       (flow->state == PG_FLOW_REVOKED && flow->direction == PG_INGRESS);
}

/* The verdict of the packet in hand, which has a flow's key: of a known flow, or the first of a new one. Returns
 * PG_NEXT_LB if a service may apply and that has not been checked, PG_NEXT_DIRECT if a packet from the pod has the
 * key of a reverse-NAT entry, PG_NEXT_TRANSLATE, or the verdict. */
PG_GLOBAL_FN enum pg_action pg_flow_verdict(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	__u8 state = PG_FLOW_NEW, protocol;
	struct pg_flow *flow;
	int opening, reason, revoked;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	protocol = pg_protocol(packet);
	opening = pg_is_opening(packet);
	flow = pg_flow_find(packet);
	if (flow && pg_flow_expired(flow, now)) {
		pg_uncount(flow);
		flow = NULL;
	}
	if (flow && (flow->flags & PG_FLOW_DNAT)) {
		if (!packet->svc_checked)
			return PG_NEXT_LB;
		flow = NULL;
	}
	/* To the backend this looks the same as what the pod sends through the service (direct.h). */
	if (flow && (flow->flags & PG_FLOW_REVNAT) && direction == PG_EGRESS) {
		if (!packet->direct_checked)
			return PG_NEXT_DIRECT;
		flow = NULL;
	}
	if (flow && pg_should_recheck_service(packet, flow, epoch) &&
	    pg_targets_service(packet, direction))
		return PG_NEXT_LB;

	if (flow && pg_is_other_origin(packet, flow, direction)) {
		/* It gets a verdict of its own. It replaces the flow only if it opens a connection. */
		if ((flow->flags & PG_FLOW_BY_OWN_NODE) && !opening)
			packet->no_track = 1;
		flow = NULL;
	}
	/* A SYN against the flow's direction, or on a revoked flow, opens a connection of its own. */
	if (flow && !(opening && (flow->direction != direction || flow->state == PG_FLOW_REVOKED)) &&
	    pg_flow_revalidate(skb, packet, flow, epoch, now)) {
		int translated = flow->flags & PG_FLOW_REVNAT;
		enum pg_action action;

		if (translated) {
			pg_nat_of(&scratch->nat, flow);
			packet->service = flow->other;
			packet->service_port = flow->other_port;
		}
		if (flow->state == PG_FLOW_REVOKED) {
			/* A revoked datagram flow expires after a while, so that the other side may open a flow of
			 * its own. Not while its packets pass (audit mode): an answer would replace it. */
			if (protocol == PG_IPPROTO_TCP || pg_mode() != PG_MODE_ENFORCE)
				pg_flow_extend(flow, protocol, now);
			packet->rule = 0;
			packet->owner = flow->owner;
			action = pg_deny(scratch, packet, PG_DENY_POLICY);
		} else {
			__u32 expired = flow->expires;

			/* The same ports again, for a new connection. */
			if (scratch->metered.on && opening && flow->state == PG_FLOW_CLOSED) {
				packet->owner = flow->owner;
				packet->by_own_node = !!(flow->flags & PG_FLOW_BY_OWN_NODE);
				reason = pg_connection_open(packet->slot, direction, PG_OPEN_AGAIN);
				if (reason)
					return pg_refuse(scratch, packet, reason);
			}
			pg_flow_track(scratch, flow, protocol, packet->tcp_flags, direction, now);
			if (translated && flow->expires != expired)
				pg_nat_extend_other(flow->expires);
			action = pg_allow(scratch, PG_ALLOW_FLOW);
		}
		return translated && action == PG_TC_NEXT ? PG_NEXT_TRANSLATE : action;
	}
	if (pg_targets_service(packet, direction))
		return PG_NEXT_LB;

	if (packet->tcp_flags & PG_TCP_RST)
		packet->no_track = 1; /* the end of a connection without a flow */
	revoked = pg_is_midstream(packet) && pg_may_be_revoked(skb, direction);
	reason = pg_policy_verdict(skb, packet->slot, direction, 0);
	if (revoked && reason < PG_DENY_FIRST)
		reason = PG_DENY_POLICY;
	if (reason >= PG_DENY_FIRST) {
		/* Where denials pass, the answer must not become the first packet of a flow of its own
		 * (conntrack.h). */
		if (pg_mode() != PG_MODE_ENFORCE && !packet->no_track &&
		    !packet->no_track_verdict && !packet->handover)
			pg_flow_remember(direction, epoch, PG_FLOW_REVOKED);
		return pg_deny(scratch, packet, reason);
	}
	if (!packet->no_track && !packet->no_track_verdict) {
		if (protocol == PG_IPPROTO_TCP &&
		    !(packet->tcp_flags & PG_TCP_SYN)) /* picked up in mid-stream */
			state = packet->tcp_flags & PG_TCP_FIN ? PG_FLOW_CLOSING
							       : PG_FLOW_ESTABLISHED;
		if (scratch->metered.on) {
			int refused = pg_connection_open(packet->slot, direction, 0);

			if (refused)
				return pg_refuse(scratch, packet, refused);
		}
		pg_flow_remember(direction, epoch, state);
	}
	return pg_allow_new(scratch, packet, reason);
}
