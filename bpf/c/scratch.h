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
	__u8 has_fragment_header; /* before it, also of a packet that is whole (RFC 6946) */
};

/* A flow that looks for a slot, and those that it meets there (flow_table.h). */
struct pg_placing {
	union pg_flow_key key;
	union pg_flow_key met;
	union pg_flow_key victim;
	__u32 worth;	 /* of `key`: see pg_worth */
	__u32 met_worth; /* of `met` */
	__u32 index;	 /* of its slot */
	__u32 high;	 /* of the ring, at that moment */
};

/* A flow that has been opened and has no slot yet. */
struct pg_opened {
	union pg_flow_key key;
	struct pg_flow flow; /* only if the table was full */
	__u32 owner;
	__u32 family;
	__u32 is_there; /* 0: the table was full */
};

/* A packet opens two at most, and gives slots to one or two that user space has written. A power of two: a number is
 * masked to stay inside. */
#define PG_OPENED_MOST 4

/*
 * The packets of the scratch space. A global function is given one's number (packet.h, `slot`) and no pointer to it:
 * kernels before 5.12 take no pointer to memory as an argument of such a function, and those before 6.2 take no map
 * key out of memory that was passed that way. A key inside a map's value is taken by all.
 */
enum pg_slot {
	PG_SLOT_PACKET = 0, /* the packet in hand */
	PG_SLOT_BEHIND = 1, /* the same with the key of the flow behind its service view */
	PG_SLOT_QUOTED = 2, /* the one that an ICMP error quotes */
	PG_SLOT_COUNT = 4,  /* a power of two: a number is masked to stay inside */
};

struct pg_scratch {
	struct pg_packet packets[PG_SLOT_COUNT]; /* by enum pg_slot */
	struct pg_place place;			 /* of the transport header of the packet in hand */
	struct pg_place inner;			 /* of the quoted transport header */
	struct pg_view view;			 /* of the flow in hand */
	struct pg_ends from;
	struct pg_ends to;
	struct pg_flow flow; /* the one that pg_flow_store writes */
	struct pg_placing placing;
	struct pg_opened opened[PG_OPENED_MOST]; /* by the packet in hand */
	__u32 opened_count;
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

static __always_inline struct pg_packet *pg_packet_in(__u32 slot)
{
	struct pg_scratch *own = pg_scratch();

	return own ? &own->packets[slot & (PG_SLOT_COUNT - 1)] : NULL;
}

/* Makes `behind` (PG_SLOT_BEHIND) a copy of another packet. */
static __always_inline void pg_copy_to_behind(struct pg_packet *behind,
					      const struct pg_packet *packet)
{
	*behind = *packet;
	behind->slot = PG_SLOT_BEHIND;
}
