/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is known of the packet in hand: set by parse.h and the evaluation of policy, read by everything after. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* A global function: the verifier checks it once, for any argument, instead of at every call with all that it knows
 * of the caller (which takes more than a million instructions here). The arguments are the context and numbers only:
 * kernels before 5.12 take no others (scratch.h). */
#define PG_GLOBAL_FN __attribute__((noinline))

#define PG_ETH_HLEN 14

#define PG_IPPROTO_ICMP 1
#define PG_IPPROTO_TCP 6
#define PG_IPPROTO_UDP 17
#define PG_IPPROTO_ICMPV6 58
#define PG_IPPROTO_SCTP 132

#define PG_TCP_FIN 0x01
#define PG_TCP_SYN 0x02
#define PG_TCP_RST 0x04
#define PG_TCP_ACK 0x10

enum pg_fragment {
	PG_NOT_FRAGMENTED = 0,
	PG_FIRST_FRAGMENT,
	PG_LATER_FRAGMENT,
};

/* Who made a packet that goes to a pod (origin.h). */
enum pg_origin {
	PG_ORIGIN_EXTERNAL = 0,	      /* whatever its source address says */
	PG_ORIGIN_NODE = 1,	      /* the node's own stack */
	PG_ORIGIN_NODE_CONNECTED = 2, /* the same, for a TCP socket that is connected */
	PG_ORIGIN_POD = 3, /* the pod, through its own interface; only in struct pg_frag */
};

/* Result of parsing. */
enum pg_parse_result {
	PG_PARSE_OK = 0, /* `key` is set */
	PG_PARSE_MALFORMED,
};

union pg_flow_key {
	struct pg_flow4_key v4;
	struct pg_flow6_key v6;
};

struct pg_packet {
	union pg_flow_key key;
	__u32 fragment_id;
	__u32 rule;	  /* that decided (evaluation) */
	__u32 class;	  /* of the peer, if it was looked up (evaluation) */
	__u32 owner;	  /* of the endpoint (evaluation) */
	__u8 family;	  /* 4 or 6 */
	__u8 tcp_flags;	  /* 0 unless TCP */
	__u8 fragment;	  /* enum pg_fragment */
	__u8 related;	  /* an ICMP error */
	__u8 no_track;	  /* it opens no flow, whatever its verdict (an answer without its query) */
	__u8 by_own_node; /* allowed as the own node's (evaluation) */
	__be16 service_port; /* not 0: `key` has the backend, and this is the service that the pod talks to */
	struct pg_addr service;
	__u32 affinity;	  /* the service's number in `affinity`, if it has session affinity */
	__u8 svc_checked; /* no service applies: do not look again */
	__u8 learning;	  /* the endpoint is PG_STARTUP_LEARN (evaluation) */
	__u8 slot;	  /* enum pg_slot: its place in the scratch space */
	__u8 handover;	  /* what is denied goes to the previous layout's programs (evaluation) */
	__u8 origin;	  /* enum pg_origin, of packets to the pod */
	__u8 icmp6_link_type; /* ICMPv6 type, of neighbour discovery and multicast listener discovery; else 0 */
	__u8 refused;	       /* denied, but passes because the mode is not enforce */
	__u8 direct_checked;   /* no direct flow applies: do not look again (direct.h) */
	__u8 no_track_verdict; /* if allowed, it is not remembered as a flow (evaluation) */
	__u8 logged; /* the entry that decided on it, as the first of a flow, has PG_POLICY_LOG (evaluation) */
	__u8 reject; /* denied by an entry with PG_VERDICT_REJECT (evaluation) */
	__u8 pad;
};

/* Returns 0 if the two are equal. Without branches, as the verifier would follow every combination of them. */
static __always_inline __u32 pg_addr_differs(const void *a, const void *b)
{
	const __u32 *x = a, *y = b;

	return (x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]);
}

static __always_inline int pg_has_ports(__u8 protocol)
{
	return protocol == PG_IPPROTO_TCP || protocol == PG_IPPROTO_UDP ||
	       protocol == PG_IPPROTO_SCTP;
}

/* fe80::/10: assigned by each interface to itself, and forwarded by no router. */
static __always_inline int pg_is_link_local(const struct pg_addr *addr)
{
	return addr->bytes[0] == 0xfe && (addr->bytes[1] & 0xc0) == 0x80;
}

static __always_inline void pg_map_addr4(struct pg_addr *to, __be32 addr)
{
	__be32 *words = (void *)to->bytes;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = addr;
}

static __always_inline __u8 pg_protocol(const struct pg_packet *packet)
{
	return packet->family == 4 ? packet->key.v4.protocol : packet->key.v6.protocol;
}

/* The two sides of the packet's key in either family; IPv4 is mapped. */
static __always_inline void pg_pod(const struct pg_packet *packet, struct pg_addr *to)
{
	if (packet->family == 4)
		pg_map_addr4(to, packet->key.v4.pod);
	else
		*to = packet->key.v6.pod;
}

static __always_inline void pg_peer(const struct pg_packet *packet, struct pg_addr *to)
{
	if (packet->family == 4)
		pg_map_addr4(to, packet->key.v4.peer);
	else
		*to = packet->key.v6.peer;
}

static __always_inline __be16 pg_pod_port(const struct pg_packet *packet)
{
	return packet->family == 4 ? packet->key.v4.pod_port : packet->key.v6.pod_port;
}

static __always_inline __be16 pg_peer_port(const struct pg_packet *packet)
{
	return packet->family == 4 ? packet->key.v4.peer_port : packet->key.v6.peer_port;
}

static __always_inline __be32 pg_unmap_addr4(const struct pg_addr *addr)
{
	return ((const __be32 *)addr->bytes)[3];
}

static __always_inline void pg_set_pod(struct pg_packet *packet, const struct pg_addr *addr)
{
	if (packet->family == 4)
		packet->key.v4.pod = pg_unmap_addr4(addr);
	else
		packet->key.v6.pod = *addr;
}

static __always_inline void pg_set_peer(struct pg_packet *packet, const struct pg_addr *addr)
{
	if (packet->family == 4)
		packet->key.v4.peer = pg_unmap_addr4(addr);
	else
		packet->key.v6.peer = *addr;
}

static __always_inline void pg_set_ports(struct pg_packet *packet, __be16 pod, __be16 peer)
{
	if (packet->family == 4) {
		packet->key.v4.pod_port = pod;
		packet->key.v4.peer_port = peer;
	} else {
		packet->key.v6.pod_port = pod;
		packet->key.v6.peer_port = peer;
	}
}

/* A TCP SYN that opens a connection. */
static __always_inline int pg_is_opening(const struct pg_packet *packet)
{
	return (packet->tcp_flags & (PG_TCP_SYN | PG_TCP_ACK)) == PG_TCP_SYN;
}
