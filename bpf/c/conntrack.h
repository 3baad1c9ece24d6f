/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connection tracking: an allowed flow is remembered, in one entry for both directions, from its first packet on.
 *
 * Every change of policy bumps the epoch; a flow of an older epoch is revalidated at its next packet, in the direction
 * of its first one. If policy no longer allows it, it stays as PG_FLOW_REVOKED. Without that entry, the next segment of
 * the answering side would look like a new flow of its own and, at a pod that is not isolated for egress, revive the
 * connection that policy has just denied.
 */
#pragma once

#include "clock.h"
#include "event.h"
#include "expect.h"
#include "flow_table.h"
#include "maps.h"
#include "meter_flow.h"
#include "open_count.h"
#include "packet.h"
#include "scratch.h"

static __always_inline struct pg_flow *pg_flow_find(struct pg_packet *packet)
{
	if (packet->family == 4)
		return bpf_map_lookup_elem(&flows4, &packet->key.v4);
	return bpf_map_lookup_elem(&flows6, &packet->key.v6);
}

/* How long a flow is remembered after its last packet, in coarse seconds: the timeouts of nf_conntrack, except that
 * a closed connection goes sooner. */
static __always_inline __u32 pg_flow_lifetime(__u8 protocol, __u8 state)
{
	if (protocol == PG_IPPROTO_TCP) {
		switch (state) {
		case PG_FLOW_NEW:
			return 120;
		case PG_FLOW_CLOSING:
			return 600;
		case PG_FLOW_CLOSED:
			return 10;
		default: /* established and revoked: as long as the connection may live at its ends */
			return 432000;
		}
	}
	if (state == PG_FLOW_REVOKED)
		return 30;
	if (protocol == PG_IPPROTO_SCTP)
		return state == PG_FLOW_NEW ? 60 : 432000;
	if (protocol == PG_IPPROTO_ICMP || protocol == PG_IPPROTO_ICMPV6)
		return 30;
	if (protocol == PG_IPPROTO_UDP)
		return state == PG_FLOW_NEW ? 60 : 180;
	return 600;
}

/* Sets the expiry. A flow that has the port of a direct flow (direct.h) lives at least as long as that. */
static __always_inline void pg_flow_expires(struct pg_flow *flow, __u32 expires)
{
	if (!flow->direct_port || (__s32)(expires - flow->expires) > 0)
		flow->expires = expires;
}

/* Moves the expiry on. Written only when it changes, about once a second: a store per packet would make the entry's
 * cache line bounce between CPUs. */
static __always_inline void pg_flow_extend(struct pg_flow *flow, __u8 protocol, __u32 now)
{
	__u32 expires = now + pg_flow_lifetime(protocol, flow->state);

	if (flow->expires != expires)
		pg_flow_expires(flow, expires);
}

static __always_inline __u8 pg_fin_of(__u32 direction)
{
	return direction == PG_EGRESS ? PG_FLOW_FIN_FROM_POD : PG_FLOW_FIN_TO_POD;
}

static __always_inline int pg_both_closed(const struct pg_flow *flow)
{
	return (flow->flags & PG_FLOW_FIN_FROM_POD) && (flow->flags & PG_FLOW_FIN_TO_POD);
}

/* The state machine. */
static __always_inline void pg_flow_advance(struct pg_flow *flow, __u8 protocol, __u8 tcp_flags,
					    __u32 direction, __u32 now)
{
	if ((tcp_flags & (PG_TCP_SYN | PG_TCP_ACK)) == PG_TCP_SYN) {
		/* A new connection on a tuple whose flow was closed, or which its other end has forgotten. */
		flow->state = PG_FLOW_NEW;
		flow->flags &= ~(PG_FLOW_FIN_FROM_POD | PG_FLOW_FIN_TO_POD);
	} else if (tcp_flags & PG_TCP_RST) {
		if (flow->state != PG_FLOW_CLOSED) {
			flow->state = PG_FLOW_CLOSED;
			pg_flow_expires(flow, now + pg_flow_lifetime(protocol, PG_FLOW_CLOSED));
		}
		return;
	} else if (flow->state == PG_FLOW_CLOSED) {
		if (pg_both_closed(flow))
			return; /* last acknowledgements do not extend it */
		/* The receiver ignored the RST (forged, or out of window): the connection goes on. */
		flow->state = PG_FLOW_CLOSING;
	} else if (flow->state == PG_FLOW_NEW && direction != flow->direction) {
		flow->state = PG_FLOW_ESTABLISHED;
	}
	if (tcp_flags & PG_TCP_FIN) {
		flow->flags |= pg_fin_of(direction);
		flow->state = pg_both_closed(flow) ? PG_FLOW_CLOSED : PG_FLOW_CLOSING;
	}
	pg_flow_extend(flow, protocol, now);
}

/* One more packet of an allowed flow. */
static __always_inline void pg_flow_track(struct pg_scratch *scratch, struct pg_flow *flow,
					  __u8 protocol, __u8 tcp_flags, __u32 direction, __u32 now)
{
	pg_flow_advance(flow, protocol, tcp_flags, direction, now);
	if (scratch->metered.on) {
		pg_meter_note(scratch, flow);
		pg_count_known(flow, protocol);
	}
}

/* Remembers the flow of the packet in hand. Returns 0. */
PG_GLOBAL_FN int pg_flow_remember(__u32 direction, __u32 epoch, __u32 state)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_flow *flow;

	if (!packet || !scratch)
		return -1;
	flow = &scratch->flow;
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->epoch = epoch;
	flow->expires = pg_now() + pg_flow_lifetime(pg_protocol(packet), state);
	flow->owner = packet->owner;
	flow->rule = packet->rule;
	flow->direction = direction;
	flow->state = state;
	flow->flags = (packet->by_own_node ? PG_FLOW_BY_OWN_NODE : 0) |
		      (packet->tcp_flags & PG_TCP_FIN ? pg_fin_of(direction) : 0);
	pg_flow_store(PG_SLOT_PACKET, 0);
	if (direction == PG_EGRESS && state != PG_FLOW_REVOKED)
		pg_expect_fragments(packet);
	return 0;
}
