/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet's way through the gate: the short one (short.h) where nothing is left to decide, else pg_long. */
#pragma once

#include "control.h"
#include "decide.h"
#include "direct.h"
#include "fragment.h"
#include "parse.h"
#include "policy.h"
#include "related.h"
#include "service.h"
#include "short.h"
#include "verdict.h"

/* A packet with a flow's key: where a service has to do with it, that comes first. Not from inside pg_decide: the
 * stack is 512 bytes for a whole chain of calls. */
static __always_inline int pg_flow(struct __sk_buff *skb, struct pg_packet *packet, __u32 direction)
{
	int action = pg_decide(skb, direction);

	if (action != PG_ASK)
		return action;
	action = pg_known_service(skb, direction);
	if (action == PG_HAIRPIN)
		action = pg_known_hairpin(skb, direction);
	if (action == PG_STALE)
		action = direction == PG_EGRESS ? pg_new_service(skb) : PG_PLAIN;
	if (action != PG_PLAIN)
		return action;
	packet->asked = 1;
	return pg_decide(skb, direction);
}

/* The long way: parse, and decide. */
PG_VERIFIED_ALONE int pg_long(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *own = pg_scratch();
	struct pg_packet *packet;
	int shape, action;

	if (!own)
		return PG_TC_DROP;
	packet = &own->packets[PG_SLOT_PACKET];
	__builtin_memset(packet, 0, sizeof(*packet));
	__builtin_memset(&own->place, 0, sizeof(own->place));
	/* Before any look at them: the number says which is which. */
	own->packets[PG_SLOT_BEHIND].slot = PG_SLOT_BEHIND;
	own->opened_count = 0;
	if (skb->vlan_present)
		return pg_tagged(skb, direction);
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		shape = pg_parse4(skb, packet, direction, &own->place);
		break;
	case bpf_htons(ETH_P_IPV6):
		shape = pg_parse6(skb, packet, direction, &own->place);
		break;
	case bpf_htons(ETH_P_ARP):
		return pg_arp(skb, direction);
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return pg_tagged(skb, direction);
	default:
		return pg_unjudgeable(skb, direction, PG_DENY_NOT_IP);
	}
	if (shape == PG_SHAPE_MALFORMED)
		return pg_unjudgeable(skb, direction, PG_DENY_MALFORMED);
	if (direction == PG_INGRESS)
		pg_find_origin(skb);
	action = PG_PLAIN;
	if (packet->control)
		action = pg_link_message(skb, direction);
	else if (packet->fragment == PG_WHOLE && pg_is_dhcp(packet, direction))
		action = pg_dhcp(skb, direction);
	if (action != PG_PLAIN)
		return action;
	if (packet->fragment == PG_LATER_FRAGMENT) {
		action = pg_later_fragment(skb, direction);
		if (action == PG_ASK)
			action = pg_fragment_of_service(skb, direction);
	} else if (packet->related && packet->fragment == PG_WHOLE) {
		action = pg_related(skb, direction);
	}
	if (action == PG_PLAIN)
		action = pg_flow(skb, packet, direction);
	if (action == PG_DIRECT) {
		action = pg_direct(skb);
		if (action == PG_PLAIN) {
			packet->asked = 1;
			packet->not_direct = 1;
			action = pg_decide(skb, direction);
		}
	}
	if (packet->fragment == PG_FIRST_FRAGMENT && action != PG_TC_PREVIOUS)
		pg_tell_fragments(skb, direction, action);
	if (action == PG_SEND)
		action = pg_translate(skb, direction);
	return action;
}

static __always_inline int pg_gate(struct __sk_buff *skb, __u32 direction)
{
	int action;

	switch (pg_short(skb, direction)) {
	case PG_SHORT_PASS:
		return pg_allow(skb, direction, PG_ALLOW_FLOW);
	case PG_SHORT_BROKEN:
		return PG_TC_DROP;
	default:
		action = pg_long(skb, direction);
		pg_place_flows();
		return action == PG_TC_PREVIOUS ? pg_previous(skb, direction) : action;
	}
}
