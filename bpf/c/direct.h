/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a pod sends to a backend directly, from a port from which it talks to that backend through a service too. The
 * backend could not tell the two flows apart, so what is sent directly leaves from another port, as with netfilter. The
 * entry of (pod:p, backend), which is the service flow's reverse-NAT entry, has that port in `direct_port` (q). The
 * entry of (pod:q, backend) is a reverse-NAT entry too, whose "service" is the backend itself: replies are translated
 * to (pod:p).
 *
 * The opposite order is handled in lb.h: a service flow that finds its tuple in use gets another port.
 */
#pragma once

#include "revalidate.h"
#include "service.h"
#include "verdict.h"
#include "nat_entries.h"

/* Whether `flow` is the reverse-NAT entry of what the pod sends directly with the key of `packet`. */
static __always_inline int pg_is_direct_flow(const struct pg_flow *flow,
					     const struct pg_packet *packet)
{
	struct pg_addr peer;

	pg_peer(packet, &peer);
	return (flow->flags & PG_FLOW_REVNAT) && flow->own_port == pg_pod_port(packet) &&
	       flow->other_port == pg_peer_port(packet) && !pg_addr_differs(&flow->other, &peer);
}

/* Selects a source port for a direct flow; `port` is tried first. Returns it in network order, 0 if there is none. */
PG_GLOBAL_FN int pg_direct_port(__u32 port)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *xlated = pg_packet_in(PG_SLOT_XLATED);
	__u32 attempt, now = pg_now();

	if (!packet || !xlated)
		return 0;
#pragma clang loop unroll(disable)
	for (attempt = 0; attempt < PG_LB_ATTEMPTS; attempt++) {
		struct pg_flow *flow;

		if (attempt || !port)
			port = pg_random_port();
		pg_set_ports(xlated, port, pg_peer_port(packet));
		flow = pg_flow_find(xlated);
		if (!flow || pg_flow_expired(flow, now) || flow->owner != packet->owner ||
		    pg_is_direct_flow(flow, packet) ||
		    (pg_is_opening(packet) && pg_flow_ended(flow)))
			return port & 0xffff;
	}
	return 0;
}

/* A packet from the pod with the key of a reverse-NAT entry. Returns PG_NEXT_FLOW if that flow has ended and the
 * packet opens one in its place, PG_NEXT_TRANSLATE, or the verdict. */
PG_GLOBAL_FN enum pg_action pg_direct(struct __sk_buff *skb)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0, port;
	enum pg_action action = PG_TC_NEXT;
	int reason, revoked;
	struct pg_flow *revnat, *flow;
	struct pg_packet *xlated;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	xlated = &scratch->packets[PG_SLOT_XLATED];
	revnat = pg_flow_find(packet);
	if (!revnat || pg_flow_expired(revnat, now))
		return PG_NEXT_FLOW;
	pg_copy_to_xlated(xlated, packet);
	port = revnat->direct_port;
	pg_peer(packet, &scratch->nat.other);
	scratch->nat.other_port = pg_peer_port(packet);
	scratch->nat.own_port = port;
	scratch->nat.flags = 0;
	pg_set_ports(xlated, port, pg_peer_port(packet));
	flow = port ? pg_flow_find(xlated) : NULL;
	if (flow && !pg_flow_expired(flow, now) && pg_is_direct_flow(flow, packet) &&
	    !(pg_is_opening(packet) && flow->state >= PG_FLOW_CLOSED) &&
	    pg_flow_revalidate(skb, xlated, flow, epoch, now)) {
		if (flow->state == PG_FLOW_REVOKED) {
			if (pg_protocol(packet) == PG_IPPROTO_TCP || pg_mode() != PG_MODE_ENFORCE)
				pg_flow_extend(flow, pg_protocol(packet), now);
			packet->rule = 0;
			packet->owner = flow->owner;
			action = pg_deny(scratch, packet, PG_DENY_POLICY);
		} else {
			pg_flow_track(scratch, flow, pg_protocol(packet), packet->tcp_flags,
				      PG_EGRESS, now);
			pg_allow(scratch, PG_ALLOW_FLOW);
		}
		pg_flow_expires(revnat, flow->expires);
		return action == PG_TC_NEXT ? PG_NEXT_TRANSLATE : action;
	}
	if (pg_is_opening(packet) && revnat->state >= PG_FLOW_CLOSED)
		return PG_NEXT_FLOW;
	revoked = pg_is_midstream(packet) && pg_may_be_revoked(skb, PG_EGRESS);
	reason = pg_policy_verdict(skb, packet->slot, PG_EGRESS, 0);
	if (revnat->owner != packet->owner)
		return PG_NEXT_FLOW;
	if (revoked && reason < PG_DENY_FIRST)
		reason = PG_DENY_POLICY;
	if (reason >= PG_DENY_FIRST && (packet->handover || pg_mode() == PG_MODE_ENFORCE))
		return pg_deny(scratch, packet, reason);
	pg_copy_to_xlated(xlated, packet);
	/* A RST without a flow must not end the service's flow at the backend. */
	port = packet->tcp_flags & PG_TCP_RST ? 0 : pg_direct_port(port);
	if (!port)
		return pg_deny(scratch, packet, PG_DENY_PORT_TAKEN);
	pg_set_ports(xlated, port, pg_peer_port(packet));
	if (scratch->metered.on && reason < PG_DENY_FIRST) {
		int refused = pg_connection_open(PG_SLOT_XLATED, PG_EGRESS, 0);

		if (refused)
			return pg_refuse(scratch, xlated, refused);
	}
	pg_nat_entry_init(&scratch->flow, xlated, epoch, pg_initial_state(packet, reason));
	scratch->flow.direction = PG_EGRESS;
	scratch->flow.flags |= PG_FLOW_REVNAT;
	scratch->flow.other = scratch->nat.other;
	scratch->flow.other_port = scratch->nat.other_port;
	scratch->flow.own_port = pg_pod_port(packet);
	pg_flow_store(PG_SLOT_XLATED, 0);
	scratch->nat.own_port = port;
	revnat = pg_flow_find(packet);
	if (revnat) {
		revnat->direct_port = port;
		pg_flow_expires(revnat, scratch->flow.expires);
	}
	if (reason < PG_DENY_FIRST)
		pg_expect_fragments(packet);
	if (reason >= PG_DENY_FIRST)
		pg_deny(scratch, packet, reason);
	else
		pg_allow_new(scratch, packet, reason);
	return PG_NEXT_TRANSLATE;
}
