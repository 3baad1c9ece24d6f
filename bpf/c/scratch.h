/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What does not fit on the stack, which is 512 bytes for a whole chain of calls. One per CPU: a program runs to its
 * end before another one starts there. Nothing is kept for the next packet; each user writes before it reads. */
#pragma once

#include <linux/ip.h>
#include <linux/ipv6.h>

#include "packet.h"

/* Addresses and ports of a packet; IPv4 is mapped. */
struct pg_tuple {
	struct pg_addr source;
	struct pg_addr destination;
	__be16 ports[2]; /* source, destination */
};

/* The NAT data of an entry (struct pg_flow). */
struct pg_nat {
	struct pg_addr other;
	__be16 other_port;
	__be16 own_port;
	__u32 flags;
};

/* Where the transport header is. */
struct pg_l4 {
	__u32 off; /* from the start of the frame, bytes */
	__u32 len; /* from there to the end of the packet according to its IP header, bytes */
	__u8 protocol;
	__u8 has_fragment_header; /* there is one, perhaps of an unfragmented packet (RFC 6946) */
};

/* The search for a slot for a flow (flow_table.h). */
struct pg_slot_search {
	union pg_flow_key key;
	union pg_flow_key occupant;
	union pg_flow_key victim;
	__u32 cost;	     /* of `key` (pg_eviction_cost) */
	__u32 occupant_cost; /* of `occupant` */
	__u32 index;	     /* slot of `occupant` */
	__u32 high;	     /* of the ring, at that moment */
};

/* A new flow that has no slot yet. */
struct pg_opened {
	union pg_flow_key key;
	struct pg_flow flow; /* only if the table was full */
	__u32 owner;
	__u32 family;
	__u32 in_table; /* 0: the table was full */
};

/* The verdict on the packet in hand (verdict.h). */
struct pg_outcome {
	__u32 reason; /* enum pg_reason, to be counted */
	__u32 event;  /* reason and verdict to be reported (pg_event_emit); 0: no event */
	__u32 slot;   /* enum pg_slot of the packet that the event describes */
	__u32 answer; /* not 0: it is denied, and its sender is told (reject.h) */
};

struct pg_tcp {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledged;
	__u8 length; /* of the header, in its upper half, 32-bit words */
	__u8 flags;
	__be16 window;
	__u16 checksum;
	__be16 urgent;
};

struct pg_icmp {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u16 unused[2];
};

/* How much of the packet an ICMP error quotes: its IP header and as many bytes after that as tell the flow. */
#define PG_QUOTE4 (sizeof(struct iphdr) + 8)
#define PG_QUOTE6 (sizeof(struct ipv6hdr) + 8)

/* What is sent to the sender of a denied packet in its place (reject.h), after the Ethernet header. */
union pg_answer {
	struct {
		struct iphdr ip;
		struct pg_tcp tcp;
	} reset4;
	struct {
		struct ipv6hdr ip;
		struct pg_tcp tcp;
	} reset6;
	struct {
		struct iphdr ip;
		struct pg_icmp icmp;
		__u8 quote[PG_QUOTE4];
	} error4;
	struct {
		struct ipv6hdr ip;
		struct pg_icmp icmp;
		__u8 quote[PG_QUOTE6];
	} error6;
};

/* A packet opens at most two flows, and assigns slots to one or two that user space has written. A power of two:
 * indexes are masked. */
#define PG_OPENED_MOST 4

/* The packets in the scratch space. A global function takes a packet's number (packet.h, `slot`) and no pointer to
 * it: kernels before 5.12 take no pointer to memory as an argument of such a function, and those before 6.2 no map
 * key from memory that was passed like that. All take a key inside a map's value. */
enum pg_slot {
	PG_SLOT_PACKET = 0, /* the packet in hand */
	PG_SLOT_XLATED = 1, /* the same, with its key after DNAT */
	PG_SLOT_QUOTED = 2, /* the one that an ICMP error quotes */
	PG_SLOT_COUNT = 4,  /* a power of two: a number is masked to stay inside */
};

/* What the meter has to know of the packet in hand (meter.h). */
struct pg_metered {
	__u32 on;	   /* enum pg_metering of the program that runs */
	__u32 owner;	   /* of the pod's endpoint; 0: not known */
	__u8 traffic_rule; /* of its flow */
	__u8 scope;	   /* of its flow */
	__u8 opens;	   /* not 0: it is the first packet of a flow that is remembered */
	__u8 admitted;	   /* not 0: that flow has a place in the count of open connections */
};

struct pg_scratch {
	struct pg_packet packets[PG_SLOT_COUNT]; /* by enum pg_slot */
	struct pg_l4 l4;			 /* of the transport header of the packet in hand */
	struct pg_l4 inner_l4;			 /* of the quoted transport header */
	struct pg_nat nat;			 /* of the flow in hand */
	struct pg_outcome outcome;		 /* of the packet in hand */
	union pg_answer answer;			 /* to the packet in hand */
	struct pg_tuple from;
	struct pg_tuple to;
	struct pg_flow flow; /* what pg_flow_store writes */
	struct pg_slot_search search;
	struct pg_opened opened[PG_OPENED_MOST]; /* by the packet in hand */
	__u32 opened_count;
	struct pg_metered metered; /* the packet in hand */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pg_scratch);
} scratch_space SEC(".maps");

static __always_inline struct pg_scratch *pg_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch_space, &zero);
}

static __always_inline int pg_is_metered(void)
{
	struct pg_scratch *scratch = pg_scratch();

	return scratch && scratch->metered.on;
}

static __always_inline struct pg_packet *pg_packet_in(__u32 slot)
{
	struct pg_scratch *scratch = pg_scratch();

	return scratch ? &scratch->packets[slot & (PG_SLOT_COUNT - 1)] : NULL;
}

/* Makes `xlated` (PG_SLOT_XLATED) a copy of another packet. */
static __always_inline void pg_copy_to_xlated(struct pg_packet *xlated,
					      const struct pg_packet *packet)
{
	*xlated = *packet;
	xlated->slot = PG_SLOT_XLATED;
}
