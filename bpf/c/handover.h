/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Taking a pod over from the programs of another layout, under traffic. These programs stand in the place of the others,
 * which are called by a tail call for every packet that is still theirs: each packet is judged, and translated, by
 * exactly one of the two, so there is neither a moment without a gate nor one with two.
 *
 * A flow belongs to these programs once it is in their maps. It gets there as the first packet of a TCP connection (from
 * PG_STARTUP_OPENING on), or by user space, which copies the other layout's flows (bpf/src/handover.rs). Since no TCP
 * connection begins at the others any more, one pass over their flows finds all of them; what begins without such a
 * mark (UDP) goes on beginning there until PG_STARTUP_REMAINDER, and a second pass finds it.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "packet.h"
#include "verdict.h"

/* 0 where the kernel cannot have a tail call in a program with functions (arm64 before 6.0): the loader knows. */
const volatile __u32 pg_can_hand_over SEC(".rodata.handover") = 1;

static __always_inline int pg_is_handed_over(const struct pg_endpoint *endpoint)
{
	return endpoint->startup >= PG_STARTUP_PREVIOUS && endpoint->startup <= PG_STARTUP_REMAINDER;
}

/* Whether a packet of no flow that is known here is for the previous programs without being judged here. */
static __always_inline int pg_is_of_previous(const struct pg_endpoint *endpoint,
					     const struct pg_packet *packet)
{
	return endpoint->startup == PG_STARTUP_PREVIOUS ||
	       (endpoint->startup == PG_STARTUP_OPENING && !pg_is_opening(packet));
}

/* Does not return if there is such a program. */
static __always_inline int pg_previous(struct __sk_buff *skb, __u32 direction)
{
	if (pg_can_hand_over)
		bpf_tail_call(skb, &previous, direction);
	pg_count(skb, direction, PG_DENY_STARTUP);
	return PG_TC_DROP;
}
