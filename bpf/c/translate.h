/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a flow's views to a packet's new ends: to the endpoint on the way out, from the service on the way back. */
#pragma once

#include "conntrack.h"
#include "rewrite.h"
#include "verdict.h"

#define PG_TC_REDIRECT 7

/* Not verdicts: what a packet's way leads to next. */
#define PG_PLAIN (-2)	/* no service has to do with it */
#define PG_STALE (-3)	/* its service view is no good any more: choose anew */
#define PG_ASK (-4)	/* a service has to do with it */
#define PG_HAIRPIN (-5) /* it is for pg_known_hairpin */
#define PG_DIRECT (-7)	/* it is for pg_direct */
#define PG_SEND (-6)	/* it passes, translated as the view in the scratch says */

static __always_inline void pg_view_of(struct pg_view *view, const struct pg_flow *flow)
{
	view->other = flow->other;
	view->other_port = flow->other_port;
	view->own_port = flow->own_port;
	view->flags = flow->flags;
}

/*
 * Back to the pod, through the interface that it came from: the Ethernet addresses change places. Not by way of
 * the host, which would have to route a packet that comes from an address of a service (reverse path filters,
 * IPVS, which has those addresses itself) out of the port that it came in by (bridges do not, unless told to).
 */
static __always_inline int pg_send_back(struct __sk_buff *skb)
{
	__u8 addresses[12], swapped[12];

	if (bpf_skb_load_bytes(skb, 0, addresses, sizeof(addresses)))
		return PG_TC_DROP;
	__builtin_memcpy(swapped, addresses + 6, 6);
	__builtin_memcpy(swapped + 6, addresses, 6);
	if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0))
		return PG_TC_DROP;
	return bpf_redirect(skb->ifindex, 0);
}

/* Rewrites the packet in hand, of the flow whose view is in the scratch, and says which way it goes on; PG_TC_DROP if the
 * kernel could not: half a translation must not leave, whatever the mode. */
PG_VERIFIED_ALONE int pg_translate(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_scratch *own = pg_scratch();
	struct pg_ends *from, *to;
	struct pg_view *view;

	if (!packet || !own)
		return PG_TC_DROP;
	view = &own->view;
	from = &own->from;
	to = &own->to;
	if (direction == PG_EGRESS) {
		pg_pod(packet, &from->source);
		pg_peer(packet, &from->destination);
		from->ports[0] = pg_pod_port(packet);
		from->ports[1] = pg_peer_port(packet);
		if (view->flags & PG_FLOW_HAIRPIN)
			to->source = from->destination;
		else
			to->source = from->source;
		to->destination = view->other;
		to->ports[0] = view->own_port;
		to->ports[1] = view->other_port;
	} else {
		pg_peer(packet, &from->source);
		pg_pod(packet, &from->destination);
		from->ports[0] = pg_peer_port(packet);
		from->ports[1] = pg_pod_port(packet);
		to->source = view->other;
		to->destination = from->destination;
		to->ports[0] = view->other_port;
		to->ports[1] = view->own_port;
	}
	if (pg_rewrite(skb)) {
		pg_count(skb, direction, PG_DENY_MALFORMED);
		return PG_TC_DROP;
	}
	if (direction == PG_EGRESS && (view->flags & PG_FLOW_HAIRPIN))
		return pg_send_back(skb);
	return PG_TC_NEXT;
}
