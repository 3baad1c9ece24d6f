/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The end of every packet's way: count the reason, tell if told to, return the TC action. */
#pragma once

#include "event.h"
#include "maps.h"
#include "packet.h"

/* Allow is "next" (TC_ACT_UNSPEC): other programs on the hook still run. */
#define PG_TC_NEXT (-1)
#define PG_TC_DROP 2
/* No TC action: pg_gate hands the packet to the previous layout's program. */
#define PG_TC_PREVIOUS 100

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

/* The only place where a packet is dropped. A denial that the mode turns into a pass is still counted and
 * told under its reason's number as "audit". */
static __always_inline int pg_deny(struct __sk_buff *skb, struct pg_packet *packet, __u32 direction,
				   __u32 reason)
{
	__u32 mode = pg_mode();

	if (packet->handover)
		return PG_TC_PREVIOUS;
	if (mode == PG_MODE_ENFORCE) {
		pg_tell(skb, packet->slot, direction, reason | PG_VERDICT_DENY << 8);
		pg_count(skb, direction, reason);
		return PG_TC_DROP;
	}
	packet->refused = 1;
	if (mode == PG_MODE_AUDIT)
		pg_tell(skb, packet->slot, direction, reason | PG_VERDICT_ALLOW << 8);
	pg_count(skb, direction, PG_ALLOW_AUDIT);
	return PG_TC_NEXT;
}

static __always_inline int pg_allow(struct __sk_buff *skb, __u32 direction, __u32 reason)
{
	pg_count(skb, direction, reason);
	return PG_TC_NEXT;
}

/* A new flow that passes: as above, and told where somebody listens. */
static __always_inline int pg_allow_new(struct __sk_buff *skb, struct pg_packet *packet,
					__u32 direction, __u32 reason)
{
	struct pg_control *ctl = pg_control();

	if (ctl && ctl->tell_allowed)
		pg_tell(skb, packet->slot, direction, reason | PG_VERDICT_ALLOW << 8);
	return pg_allow(skb, direction, reason);
}
