/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The steps of a packet: the fast path (fast_path.h) if its flow is known and current, else the slow path. */
#pragma once

#include "link_protocols.h"
#include "flow_verdict.h"
#include "direct.h"
#include "fragment.h"
#include "parse.h"
#include "policy.h"
#include "reject.h"
#include "related.h"
#include "service.h"
#include "fast_path.h"
#include "meter.h"
#include "verdict.h"

/* The verdict of a packet with a flow's key, of which a service is looked up first where one may apply. The calls are
 * made from here and not from inside pg_flow_verdict, because a whole chain of calls shares 512 bytes of stack. */
static __always_inline enum pg_action pg_flow_or_service(struct __sk_buff *skb,
							 struct pg_packet *packet, __u32 direction)
{
	enum pg_action action = pg_flow_verdict(skb, direction);

	if (action != PG_NEXT_LB)
		return action;
	action = pg_service_known_flow(skb, direction);
	if (action == PG_NEXT_HAIRPIN)
		action = pg_hairpin_known_flow(skb, direction);
	if (action == PG_NEXT_RESELECT)
		action = direction == PG_EGRESS ? pg_service_new_flow(skb) : PG_NEXT_FLOW;
	if (action != PG_NEXT_FLOW)
		return action;
	packet->svc_checked = 1;
	return pg_flow_verdict(skb, direction);
}

/* The slow path: parse the packet, then the verdict. */
PG_GLOBAL_FN enum pg_action pg_slow_path(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	enum pg_action action;
	enum pg_parse_result parsed;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	__builtin_memset(packet, 0, sizeof(*packet));
	__builtin_memset(&scratch->l4, 0, sizeof(scratch->l4));
	__builtin_memset(&scratch->outcome, 0, sizeof(scratch->outcome));
	/* Before any pg_packet_in: the number identifies the packet. */
	scratch->packets[PG_SLOT_XLATED].slot = PG_SLOT_XLATED;
	scratch->opened_count = 0;
	if (skb->vlan_present)
		return pg_vlan(skb, direction);
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		parsed = pg_parse4(skb, packet, direction, &scratch->l4);
		break;
	case bpf_htons(ETH_P_IPV6):
		parsed = pg_parse6(skb, packet, direction, &scratch->l4);
		break;
	case bpf_htons(ETH_P_ARP):
		return pg_arp(skb, direction);
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return pg_vlan(skb, direction);
	default:
		return pg_verdict_no_key(skb, direction, PG_DENY_NOT_IP);
	}
	if (parsed == PG_PARSE_MALFORMED)
		return pg_verdict_no_key(skb, direction, PG_DENY_MALFORMED);
	if (direction == PG_INGRESS)
		pg_set_origin(skb);
	action = PG_NEXT_FLOW;
	if (packet->icmp6_link_type)
		action = pg_icmp6_link(skb, direction);
	else if (packet->fragment == PG_NOT_FRAGMENTED && pg_is_dhcp(packet, direction))
		action = pg_dhcp(skb, direction);
	if (action != PG_NEXT_FLOW)
		return action;
	if (packet->fragment == PG_LATER_FRAGMENT) {
		action = pg_later_fragment(skb, direction);
		if (action == PG_NEXT_LB)
			action = pg_fragment_translated(skb, direction);
	} else if (packet->related && packet->fragment == PG_NOT_FRAGMENTED) {
		action = pg_related(skb, direction);
	}
	if (action == PG_NEXT_FLOW)
		action = pg_flow_or_service(skb, packet, direction);
	if (action == PG_NEXT_DIRECT) {
		action = pg_direct(skb);
		if (action == PG_NEXT_FLOW) {
			packet->svc_checked = 1;
			packet->direct_checked = 1;
			action = pg_flow_verdict(skb, direction);
		}
	}
	if (packet->fragment == PG_FIRST_FRAGMENT && action != PG_TC_PREVIOUS)
		pg_fragment_record(skb, direction, action);
	if (action == PG_NEXT_TRANSLATE)
		action = pg_translate(skb, direction);
	return action;
}

/* The end of every packet but those that the fast path allows: reports and counts its verdict. */
static __always_inline enum pg_action pg_finish(struct __sk_buff *skb, __u32 direction,
						enum pg_action action)
{
	struct pg_scratch *scratch = pg_scratch();

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	if (scratch->outcome.event)
		pg_event_emit(skb, scratch->outcome.slot, direction, scratch->outcome.event);
	pg_count(skb, direction, scratch->outcome.reason);
	/* Last, as it makes another packet of this one. */
	if (scratch->outcome.answer && action == PG_TC_DROP)
		return pg_reject(skb, direction);
	return action;
}

/* Whether limits apply to a packet of the slow path: it is allowed, and not what keeps the link working. */
static __always_inline int pg_is_charged(enum pg_action action)
{
	struct pg_scratch *scratch = pg_scratch();

	return (action == PG_TC_NEXT || action == PG_TC_REDIRECT) && scratch &&
	       scratch->outcome.reason != PG_ALLOW_CONTROL;
}

static __always_inline enum pg_action pg_handle(struct __sk_buff *skb, __u32 direction,
						enum pg_metering metering)
{
	enum pg_action action;

	switch (pg_fast_path(skb, direction, metering)) {
	case PG_FAST_PASS:
		if (metering == PG_METERED && pg_meter(skb, direction) == PG_TC_DROP) {
			action = PG_TC_DROP;
			break;
		}
		pg_count(skb, direction, PG_ALLOW_FLOW);
		return PG_TC_NEXT;
	case PG_FAST_ERROR:
		action = PG_TC_DROP;
		break;
	default:
		if (direction == PG_EGRESS && pg_is_own_answer(skb))
			return PG_TC_NEXT;
		pg_meter_begin(metering);
		action = pg_slow_path(skb, direction);
		pg_opened_slots();
		if (metering == PG_METERED && pg_is_charged(action) &&
		    pg_meter(skb, direction) == PG_TC_DROP)
			action = PG_TC_DROP;
		if (action == PG_TC_PREVIOUS)
			action = pg_call_previous(skb, direction);
	}
	return pg_finish(skb, direction, action);
}
