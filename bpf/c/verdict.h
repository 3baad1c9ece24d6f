/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Verdicts: the one place where packets are allowed, denied and dropped, counted and reported. */
#pragma once

#include "event.h"
#include "maps.h"
#include "packet.h"

/* What becomes of a packet. From the entry points the PG_TC_* return to the kernel; PG_TC_PREVIOUS and the PG_NEXT_* stay
 * inside the datapath and say which step has to decide. */
enum pg_action {
	PG_TC_NEXT = -1, /* allow: TC_ACT_UNSPEC, so that other programs on the hook still run */
	PG_TC_DROP = 2,	 /* TC_ACT_SHOT */
	PG_TC_REDIRECT = 7,
	PG_TC_PREVIOUS = 100, /* pg_handle gives the packet to the previous layout's program (handover.h) */

	PG_NEXT_FLOW = -2, /* no special case: the flow verdict decides, without another look at services */
	PG_NEXT_RESELECT = -3, /* the DNAT entry is not valid any more: select a backend again */
	PG_NEXT_LB = -4,       /* a service may apply: look it up */
	PG_NEXT_HAIRPIN = -5, /* a flow of a pod to itself through a service: pg_hairpin_known_flow */
	PG_NEXT_TRANSLATE = -6, /* allowed: rewrite it by the NAT data in the scratch space (pg_translate) */
	PG_NEXT_DIRECT = -7, /* from the pod to a backend of one of its translated flows: pg_direct */
};

/*
 * The scratch space is the only entry of an array, so that looking it up cannot fail; the verifier does not know and wants
 * the other branch. No packet takes it: the drop is not counted. Every other drop goes through pg_drop.
 */
#define PG_DROP_UNREACHABLE PG_TC_DROP

static __always_inline struct pg_control *pg_control(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&control, &zero);
}

/* A number that this build does not know enforces. */
static __always_inline __u32 pg_mode(void)
{
	struct pg_control *ctl = pg_control();

	if (ctl && (ctl->mode == PG_MODE_AUDIT || ctl->mode == PG_MODE_OFF))
		return ctl->mode;
	return PG_MODE_ENFORCE;
}

static __always_inline void pg_count(struct __sk_buff *skb, __u32 direction, __u32 reason)
{
	__u32 slot = direction * PG_REASON_COUNT + reason;
	struct pg_counter *counter = bpf_map_lookup_elem(&counters, &slot);

	if (counter) {
		counter->packets++;
		counter->bytes += skb->len;
	}
}

/*
 * The verdict on the packet in hand goes to the scratch space, where a later step may replace it: an allowed packet whose
 * translation fails is dropped. pg_finish counts and reports the last one, so that each packet is counted once.
 */
static __always_inline void pg_set_outcome(struct pg_scratch *scratch, __u32 reason, __u32 event,
					   __u32 slot)
{
	scratch->outcome.reason = reason;
	scratch->outcome.event = event;
	scratch->outcome.slot = slot;
	scratch->outcome.answer = 0;
}

/* Drops the packet whatever the mode. `slot`: the packet that the event describes. Returns PG_TC_DROP. */
static __always_inline enum pg_action pg_drop(struct pg_scratch *scratch, __u32 slot, __u32 reason)
{
	pg_set_outcome(scratch, reason, reason | PG_VERDICT_DENY << 8, slot);
	return PG_TC_DROP;
}

/* Denies the packet, if the mode is to enforce. Otherwise it passes: counted as "audit", and in audit mode, or where the
 * entry that decided is logged, reported under the reason of the denial. During a takeover the previous layout's program
 * decides instead. */
static __always_inline enum pg_action pg_deny(struct pg_scratch *scratch, struct pg_packet *packet,
					      __u32 reason)
{
	__u32 mode;

	if (packet->handover)
		return PG_TC_PREVIOUS;
	mode = pg_mode();
	if (mode == PG_MODE_ENFORCE) {
		pg_drop(scratch, packet->slot, reason);
		scratch->outcome.answer = packet->reject;
		return PG_TC_DROP;
	}
	packet->refused = 1;
	pg_set_outcome(scratch, PG_ALLOW_AUDIT,
		       mode == PG_MODE_AUDIT || packet->logged ? reason | PG_VERDICT_ALLOW << 8 : 0,
		       packet->slot);
	return PG_TC_NEXT;
}

static __always_inline enum pg_action pg_allow(struct pg_scratch *scratch, __u32 reason)
{
	pg_set_outcome(scratch, reason, 0, 0);
	return PG_TC_NEXT;
}

/* The event of a new flow that passes: under the reason of the denial where an entry is only audited, else where user
 * space or the entry wants it. Returns 0 for none. */
static __always_inline __u32 pg_event_of_allowed(const struct pg_packet *packet, __u32 reason)
{
	struct pg_control *ctl = pg_control();

	if (reason == PG_ALLOW_AUDIT)
		return packet->logged || pg_mode() != PG_MODE_OFF
			       ? PG_DENY_POLICY | PG_VERDICT_ALLOW << 8
			       : 0;
	return packet->logged || (ctl && ctl->tell_allowed) ? reason | PG_VERDICT_ALLOW << 8 : 0;
}

/* A new flow that passes. */
static __always_inline enum pg_action pg_allow_new(struct pg_scratch *scratch,
						   struct pg_packet *packet, __u32 reason)
{
	pg_set_outcome(scratch, reason, pg_event_of_allowed(packet, reason), packet->slot);
	return PG_TC_NEXT;
}
