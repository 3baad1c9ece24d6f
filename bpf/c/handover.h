/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Taking a pod over from the programs of another layout, under traffic. These programs replace the others at the
 * interface and call them by a tail call for every packet that is still theirs: each packet gets its verdict, and its
 * translation, from exactly one of the two, so that there is never a moment without a gate or with two.
 *
 * A flow belongs to these programs once it is in their maps: as the first packet of a TCP connection (from
 * PG_STARTUP_OPENING on), or copied from the other layout's maps by user space (bpf/src/handover.rs). From then on no
 * TCP connection begins at the other programs, so that one pass over their flows finds all of them. UDP flows, whose
 * begin is not marked, go on beginning there until PG_STARTUP_REMAINDER, and a second pass finds them.
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "packet.h"
#include "verdict.h"

/* 0 where the kernel has no tail call from programs with functions (arm64 before 6.0). Set by the loader. */
const volatile __u32 pg_can_hand_over SEC(".rodata.handover") = 1;

static __always_inline int pg_in_handover(const struct pg_endpoint *endpoint)
{
	return endpoint->startup >= PG_STARTUP_PREVIOUS && endpoint->startup <= PG_STARTUP_REMAINDER;
}

/* Whether a packet without a known flow goes to the previous programs before policy is evaluated. */
static __always_inline int pg_belongs_to_previous(const struct pg_endpoint *endpoint,
						  const struct pg_packet *packet)
{
	return endpoint->startup == PG_STARTUP_PREVIOUS ||
	       (endpoint->startup == PG_STARTUP_OPENING && !pg_is_opening(packet));
}

/* Gives the packet to the previous layout's program and does not return, if there is such a program. */
static __always_inline enum pg_action pg_call_previous(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch;

	if (pg_can_hand_over)
		bpf_tail_call(skb, &previous, direction);
	scratch = pg_scratch();
	return scratch ? pg_drop(scratch, PG_SLOT_PACKET, PG_DENY_STARTUP) : PG_DROP_UNREACHABLE;
}
