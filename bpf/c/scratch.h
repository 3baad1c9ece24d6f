/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What does not fit on the stack, of which a whole chain of calls has 512 bytes. One per CPU: a program runs to
 * its end before another one starts there. Never left for the next packet; each user writes before it reads.
 */
#pragma once

#include "packet.h"

/* One packet's ends; IPv4 is mapped. */
struct pg_ends {
	struct pg_addr source;
	struct pg_addr destination;
	__be16 ports[2]; /* source, destination */
};

/* The half of a flow's view that translation needs (struct pg_flow). */
struct pg_view {
	struct pg_addr other;
	__be16 other_port;
	__be16 own_port;
	__u32 flags;
};

/* Where the transport header is and how many bytes of it the packet holds. */
struct pg_place {
	__u32 offset;
	__u32 room;
	__u8 protocol;
};

struct pg_scratch {
	struct pg_packet behind; /* the flow behind a service view */
	struct pg_packet quoted; /* the flow that an ICMP error quotes */
	struct pg_place inner;	 /* of the quoted transport header */
	struct pg_view view;	 /* of the flow in hand */
	struct pg_ends from;
	struct pg_ends to;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pg_scratch);
} scratch SEC(".maps");

static __always_inline struct pg_scratch *pg_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}
