/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is known of the packet in hand: filled by parse.h, read by everything after it. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/*
 * A global function: the verifier checks it once, for any argument, and not again at every call with all that
 * the caller knows (which is a million instructions and more here). Its arguments are the context and numbers only:
 * kernels before 5.12 know no others (scratch.h).
 */
#define PG_VERIFIED_ALONE __attribute__((noinline))

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
	PG_WHOLE = 0,
	PG_FIRST_FRAGMENT,
	PG_LATER_FRAGMENT,
};

/* Who made a packet that goes to a pod (origin.h). */
enum pg_origin {
	PG_FROM_ELSEWHERE = 0,	/* whatever its source address says */
	PG_FROM_NODE = 1,	/* the node's own stack */
	PG_FROM_CONNECTION = 2, /* the same, for a TCP socket that is connected */
	PG_FROM_ITSELF = 3,	/* the pod, through its own interface; only in struct pg_frag */
};

/* What the parser found the packet to be. */
enum pg_shape {
	PG_SHAPE_FLOW = 0, /* belongs to the flow in `key` */
	PG_SHAPE_MALFORMED,
};

union pg_flow_key {
	struct pg_flow4_key v4;
	struct pg_flow6_key v6;
};

struct pg_packet {
	union pg_flow_key key;
	__u32 fragment_id;
	__u32 rule;	  /* of the judgement */
	__u32 class;	  /* of the peer, where a judgement looked it up */
	__u32 owner;	  /* of the endpoint */
	__u8 family;	  /* 4 or 6 */
	__u8 tcp_flags;	  /* 0 unless TCP */
	__u8 fragment;	  /* enum pg_fragment */
	__u8 related;	  /* an ICMP error: `key` is the quoted flow's, if that is known */
	__u8 forgettable; /* allowed or not, it opens no flow (echo reply without its request) */
	__u8 by_own_node;
	__be16 service_port; /* not 0: `key` is the endpoint's, and this the service that the pod talks to */
	struct pg_addr service;
	__u32 affinity; /* with it: the service's number, if its clients keep their endpoints */
	__u8 asked;	/* it is known that no service has to do with it */
	__u8 watched;	/* of the judgement: the endpoint is PG_STARTUP_WATCH */
	__u8 slot;	/* enum pg_slot: where in the scratch space it stands */
	__u8 handover; /* of the judgement: what is denied goes to the previous layout's programs */
	__u8 origin;   /* enum pg_origin: who made it, of packets to the pod */
	__u8 control; /* ICMPv6 type of a message that hosts of one link exchange (control.h), or 0 */
	__u8 refused; /* it was denied, and passes because the mode is not enforce */
	__u8 not_direct; /* it is known that no moved flow of the pod's own has to do with it (direct.h) */
	__u8 flowless; /* of the judgement: what it allows is not remembered as a flow (pg_judge) */
	__u8 pad[3];
};

/* 0 if the two are the same. Without branches, of which the verifier would follow every combination. */
static __always_inline __u32 pg_addr_differs(const void *a, const void *b)
{
	const __u32 *x = a, *y = b;

	return (x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]);
}

/* fe80::/10, which every interface gives itself and no router forwards. */
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

/* The two sides of the packet's key, whatever its family; IPv4 is mapped. */
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

/* A TCP packet that asks for a connection. */
static __always_inline int pg_is_opening(const struct pg_packet *packet)
{
	return (packet->tcp_flags & (PG_TCP_SYN | PG_TCP_ACK)) == PG_TCP_SYN;
}
