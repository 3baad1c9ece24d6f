/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From bytes to a flow's key. Ports are read behind the real header (IPv4 options, IPv6 extension headers),
 * never out of a later fragment, never beyond what the IP header says the packet holds.
 *
 * The common packet has its headers in the linear part and is read in place; everything else goes through
 * bpf_skb_load_bytes, which does not care where the bytes are.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "conntrack.h"
#include "packet.h"
#include "scratch.h"

/* linux/icmp.h drags libc's headers in; these are its names and numbers. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_TIMESTAMP 13
#define ICMP_TIMESTAMPREPLY 14
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PARAMPROB 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

#define PG_IP_OFFSET_MASK 0x1fff
#define PG_IP_MORE_FRAGMENTS 0x2000

#define PG_NEXTHDR_HOP 0
#define PG_NEXTHDR_ROUTING 43
#define PG_NEXTHDR_FRAGMENT 44
#define PG_NEXTHDR_AUTH 51
#define PG_NEXTHDR_DEST 60
#define PG_NEXTHDR_MOBILITY 135
#define PG_NEXTHDR_HIP 139
#define PG_NEXTHDR_SHIM6 140

/* More extension headers than any real packet has; RFC 8504 lets a host give up at 8. */
#define PG_MAX_EXTENSIONS 8

#define PG_ICMP_ERROR_HLEN 8

/* The first bytes of every transport header we read. */
struct pg_transport {
	__be16 source;
	__be16 destination;
	__u8 more[10]; /* byte 13 of the whole: TCP flags */
};

static __always_inline void pg_set_kind(struct pg_packet *packet, __u8 kind)
{
	if (packet->family == 4)
		packet->key.v4.kind = kind;
	else
		packet->key.v6.kind = kind;
}

static __always_inline __u32 pg_transport_length(__u8 protocol)
{
	switch (protocol) {
	case PG_IPPROTO_TCP:
		return 20;
	case PG_IPPROTO_SCTP:
		return 12;
	case PG_IPPROTO_UDP:
	case PG_IPPROTO_ICMP:
	case PG_IPPROTO_ICMPV6:
		return 8;
	default:
		return 0;
	}
}

/* A query and its answer share a flow of its own kind, named by who asked: a request of one side never
 * counts as the reply to a request of the other (GHSA-c66w-hq56-4q97). An answer whose question is unknown is
 * judged, and opens nothing. */
static __always_inline void pg_set_echo(struct pg_packet *packet, __u32 direction, int is_request,
					__be16 id, __be16 sort)
{
	int by_pod = is_request ? direction == PG_EGRESS : direction == PG_INGRESS;

	pg_set_kind(packet, by_pod ? PG_FLOW_ECHO_BY_POD : PG_FLOW_ECHO_BY_PEER);
	pg_set_ports(packet, id, sort);
	packet->forgettable = !is_request;
}

static __always_inline void pg_set_icmp4(struct pg_packet *packet, __u32 direction, __u8 type,
					 __be16 id)
{
	switch (type) {
	case ICMP_ECHO:
	case ICMP_ECHOREPLY:
		pg_set_echo(packet, direction, type == ICMP_ECHO, id, 0);
		return;
	case ICMP_TIMESTAMP:
	case ICMP_TIMESTAMPREPLY:
		pg_set_echo(packet, direction, type == ICMP_TIMESTAMP, id,
			    bpf_htons(ICMP_TIMESTAMP));
		return;
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		packet->related = 1;
		break;
	}
	pg_set_ports(packet, bpf_htons(type), 0);
	packet->forgettable = 1;
}

static __always_inline void pg_set_icmp6(struct pg_packet *packet, __u32 direction, __u8 type,
					 __be16 id)
{
	if (type == ICMPV6_ECHO_REQUEST || type == ICMPV6_ECHO_REPLY) {
		pg_set_echo(packet, direction, type == ICMPV6_ECHO_REQUEST, id, 0);
		return;
	}
	packet->related = type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	pg_set_ports(packet, bpf_htons(type), 0);
	packet->forgettable = 1;
}

/* Multicast listener discovery and neighbour discovery: messages between hosts of one link. */
static __always_inline int pg_is_link_message(__u8 type)
{
	return (type >= 130 && type <= 137) || type == 143;
}

/* Ports, flags, identifiers. `direct` is the header if it lies in the linear part, else NULL. */
static __always_inline int pg_parse_transport(struct __sk_buff *skb, struct pg_packet *packet,
					      __u32 direction, const struct pg_place *place,
					      const struct pg_transport *direct)
{
	struct pg_transport copy = {};
	__be16 source, destination;
	__u8 flags;

	if (place->room < pg_transport_length(place->protocol))
		return PG_SHAPE_MALFORMED;
	if (pg_transport_length(place->protocol) == 0)
		return PG_SHAPE_FLOW;
	if (direct) {
		source = direct->source;
		destination = direct->destination;
		flags = direct->more[9];
	} else {
		long failed = place->protocol == PG_IPPROTO_TCP
				      ? bpf_skb_load_bytes(skb, place->offset, &copy, sizeof(copy))
				      : bpf_skb_load_bytes(skb, place->offset, &copy, 8);

		if (failed)
			return PG_SHAPE_MALFORMED;
		source = copy.source;
		destination = copy.destination;
		flags = copy.more[9];
	}
	if (place->protocol == PG_IPPROTO_ICMP || place->protocol == PG_IPPROTO_ICMPV6) {
		__u8 type = *(__u8 *)&source;
		__be16 id = direct ? *(__be16 *)direct->more : *(__be16 *)copy.more;

		if (place->protocol == PG_IPPROTO_ICMP && packet->family == 4) {
			pg_set_icmp4(packet, direction, type, id);
		} else if (place->protocol == PG_IPPROTO_ICMPV6 && packet->family == 6) {
			if (packet->fragment == PG_WHOLE && pg_is_link_message(type))
				packet->control = type;
			pg_set_icmp6(packet, direction, type, id);
		}
		return PG_SHAPE_FLOW;
	}
	if (place->protocol == PG_IPPROTO_TCP)
		packet->tcp_flags = flags;
	if (direction == PG_EGRESS)
		pg_set_ports(packet, source, destination);
	else
		pg_set_ports(packet, destination, source);
	return PG_SHAPE_FLOW;
}

static __always_inline int pg_parse4(struct __sk_buff *skb, struct pg_packet *packet,
				     __u32 direction, struct pg_place *place)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct pg_transport *direct = NULL;
	struct iphdr *ip = data + PG_ETH_HLEN;
	__u32 header, length, fragment;

	packet->family = 4;
	packet->key.v4.ifindex = skb->ifindex;
	if ((void *)(ip + 1) > end) {
		if (bpf_skb_pull_data(skb, PG_ETH_HLEN + sizeof(*ip)))
			return PG_SHAPE_MALFORMED;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + PG_ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return PG_SHAPE_MALFORMED;
	}
	if (direction == PG_EGRESS) {
		packet->key.v4.pod = ip->saddr;
		packet->key.v4.peer = ip->daddr;
	} else {
		packet->key.v4.pod = ip->daddr;
		packet->key.v4.peer = ip->saddr;
	}
	packet->key.v4.protocol = ip->protocol;
	header = ip->ihl * 4;
	length = bpf_ntohs(ip->tot_len);
	if (!length) /* a BIG TCP packet is longer than its header can say */
		length = skb->len - PG_ETH_HLEN;
	if (ip->version != 4 || header < sizeof(*ip) || length < header ||
	    PG_ETH_HLEN + header > skb->len)
		return PG_SHAPE_MALFORMED;
	place->protocol = ip->protocol;
	place->offset = PG_ETH_HLEN + header;
	place->room = length - header;

	fragment = bpf_ntohs(ip->frag_off) & (PG_IP_MORE_FRAGMENTS | PG_IP_OFFSET_MASK);
	if (fragment) {
		packet->fragment = fragment & PG_IP_OFFSET_MASK ? PG_LATER_FRAGMENT
								: PG_FIRST_FRAGMENT;
		packet->fragment_id = ip->id;
		if (packet->fragment == PG_LATER_FRAGMENT)
			return PG_SHAPE_FLOW;
	}
	if ((void *)ip + header + sizeof(*direct) <= end)
		direct = (void *)ip + header;
	return pg_parse_transport(skb, packet, direction, place, direct);
}

/* Walks the extension headers of the packet in `slot`, from its place in the scratch on, and moves the place behind
 * them. Returns 0, or -1 if the chain is cut short, too long or source-routed (its addresses are then not the ends of
 * the flow). Leaves fragment and id in the packet. */
PG_VERIFIED_ALONE int pg_walk6(struct __sk_buff *skb, __u32 slot)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_scratch *own = pg_scratch();
	struct pg_place *place;
	__u32 offset, room;
	__u8 next;
	int i;

	if (!packet || !own)
		return -1;
	place = slot == PG_SLOT_QUOTED ? &own->inner : &own->place;
	offset = place->offset;
	room = place->room;
	next = place->protocol;

	for (i = 0; i <= PG_MAX_EXTENSIONS; i++) {
		__u8 header[8];
		__u32 length;

		switch (next) {
		case PG_NEXTHDR_HOP:
		case PG_NEXTHDR_ROUTING:
		case PG_NEXTHDR_FRAGMENT:
		case PG_NEXTHDR_AUTH:
		case PG_NEXTHDR_DEST:
		case PG_NEXTHDR_MOBILITY:
		case PG_NEXTHDR_HIP:
		case PG_NEXTHDR_SHIM6:
			break;
		default:
			place->protocol = next;
			place->offset = offset;
			place->room = room;
			return 0;
		}
		if (room < sizeof(header) || bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
			return -1;
		length = (header[1] + 1) * 8;
		if (next == PG_NEXTHDR_AUTH)
			length = (header[1] + 2) * 4;
		if (next == PG_NEXTHDR_ROUTING && header[3] != 0)
			return -1;
		if (next == PG_NEXTHDR_FRAGMENT) {
			__u32 field = (header[2] << 8 | header[3]);

			length = 8;
			place->has_fragment_header = 1;
			packet->fragment_id = *(__u32 *)(header + 4);
			if (field & 0xfff8)
				packet->fragment = PG_LATER_FRAGMENT;
			else if (field & 1)
				packet->fragment = PG_FIRST_FRAGMENT;
			if (packet->fragment == PG_LATER_FRAGMENT) {
				/* What follows is data, whatever it is called: the transport protocol is the
				 * first fragment's, found by its id. */
				place->protocol = header[0];
				return 0;
			}
		}
		if (length > room)
			return -1;
		next = header[0];
		offset += length;
		room -= length;
	}
	return -1;
}

/* An IPv4 address in the form in which the maps hold it. No packet has one (RFC 4291, 2.5.5.2), and it must not be taken
 * for that IPv4 address. */
static __always_inline int pg_is_mapped(const struct pg_addr *addr)
{
	const __be32 *words = (const void *)addr->bytes;

	return !(words[0] | words[1] | (words[2] ^ bpf_htonl(0xffff)));
}

static __always_inline int pg_parse6(struct __sk_buff *skb, struct pg_packet *packet,
				     __u32 direction, struct pg_place *place)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct pg_transport *direct = NULL;
	struct ipv6hdr *ip = data + PG_ETH_HLEN;
	struct pg_addr *source, *destination;

	packet->family = 6;
	packet->key.v6.ifindex = skb->ifindex;
	if ((void *)(ip + 1) > end) {
		if (bpf_skb_pull_data(skb, PG_ETH_HLEN + sizeof(*ip)))
			return PG_SHAPE_MALFORMED;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + PG_ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return PG_SHAPE_MALFORMED;
	}
	source = direction == PG_EGRESS ? &packet->key.v6.pod : &packet->key.v6.peer;
	destination = direction == PG_EGRESS ? &packet->key.v6.peer : &packet->key.v6.pod;
	if (ip->version != 6)
		return PG_SHAPE_MALFORMED;
	__builtin_memcpy(source, &ip->saddr, 16);
	__builtin_memcpy(destination, &ip->daddr, 16);
	if (pg_is_mapped(source) || pg_is_mapped(destination))
		return PG_SHAPE_MALFORMED;
	place->protocol = ip->nexthdr;
	place->offset = PG_ETH_HLEN + sizeof(*ip);
	place->room = bpf_ntohs(ip->payload_len);
	if (!place->room) /* jumbo payload, or none */
		place->room = skb->len - place->offset;

	if (place->protocol == PG_IPPROTO_TCP || place->protocol == PG_IPPROTO_UDP) {
		if ((void *)(ip + 1) + sizeof(*direct) <= end)
			direct = (void *)(ip + 1);
	} else if (pg_walk6(skb, packet->slot)) {
		packet->key.v6.protocol = place->protocol;
		return PG_SHAPE_MALFORMED;
	}
	packet->key.v6.protocol = place->protocol;
	if (packet->fragment == PG_LATER_FRAGMENT)
		return PG_SHAPE_FLOW;
	return pg_parse_transport(skb, packet, direction, place, direct);
}

/*
 * Fills `quoted` with the flow that an ICMP error is about, as its own pod's side saw it, and `inner` with where
 * the quoted transport header is; 0 if it can be told.
 * An error travels against the packet it quotes, and goes to that packet's sender: one that goes
 * elsewhere, or that a pod sends in another's name, is no answer to the flow and is judged as itself.
 */
static __always_inline int pg_parse_quote4(struct __sk_buff *skb, const struct pg_packet *packet,
					   __u32 direction, const struct pg_place *place,
					   struct pg_packet *quoted, struct pg_place *inner)
{
	__u32 offset = place->offset + PG_ICMP_ERROR_HLEN;
	__be16 ports[4];
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return -1;
	if (ip.version != 4 || ip.ihl < 5 || (ip.frag_off & bpf_htons(PG_IP_OFFSET_MASK)))
		return -1;
	/* What lies behind the error's own end is a trailer's, and no quote. */
	if (place->room < PG_ICMP_ERROR_HLEN + ip.ihl * 4 + sizeof(ports) ||
	    bpf_skb_load_bytes(skb, offset + ip.ihl * 4, ports, sizeof(ports)))
		return -1;
	quoted->family = 4;
	quoted->key.v4.ifindex = skb->ifindex;
	quoted->key.v4.protocol = ip.protocol;
	if (direction == PG_INGRESS) { /* the pod sent it */
		quoted->key.v4.pod = ip.saddr;
		quoted->key.v4.peer = ip.daddr;
		if (packet->key.v4.pod != ip.saddr)
			return -1;
	} else {
		quoted->key.v4.pod = ip.daddr;
		quoted->key.v4.peer = ip.saddr;
		if (packet->key.v4.pod != ip.daddr || packet->key.v4.peer != ip.saddr)
			return -1;
	}
	inner->protocol = ip.protocol;
	inner->offset = offset + ip.ihl * 4;
	inner->room = place->room - PG_ICMP_ERROR_HLEN - ip.ihl * 4;
	if (ip.protocol == PG_IPPROTO_ICMP) {
		__u32 sent = direction == PG_INGRESS ? PG_EGRESS : PG_INGRESS;

		pg_set_icmp4(quoted, sent, *(__u8 *)ports, ports[2]);
		return quoted->related ? -1 : 0; /* no errors about errors */
	}
	if (pg_transport_length(ip.protocol) == 0)
		return 0;
	if (direction == PG_INGRESS)
		pg_set_ports(quoted, ports[0], ports[1]);
	else
		pg_set_ports(quoted, ports[1], ports[0]);
	return 0;
}

static __always_inline int pg_parse_quote6(struct __sk_buff *skb, const struct pg_packet *packet,
					   __u32 direction, const struct pg_place *place,
					   struct pg_packet *quoted, struct pg_place *inner)
{
	__u32 offset = place->offset + PG_ICMP_ERROR_HLEN;
	struct ipv6hdr ip;
	__be16 ports[4];

	if (place->room < PG_ICMP_ERROR_HLEN + sizeof(ip) ||
	    bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 6)
		return -1;
	inner->protocol = ip.nexthdr;
	inner->offset = offset + sizeof(ip);
	inner->room = place->room - PG_ICMP_ERROR_HLEN - sizeof(ip);
	quoted->family = 6;
	if (pg_walk6(skb, quoted->slot) || quoted->fragment == PG_LATER_FRAGMENT)
		return -1;
	quoted->fragment = PG_WHOLE;
	if (inner->room < sizeof(ports) ||
	    bpf_skb_load_bytes(skb, inner->offset, ports, sizeof(ports)))
		return -1;
	quoted->key.v6.ifindex = skb->ifindex;
	quoted->key.v6.protocol = inner->protocol;
	if (direction == PG_INGRESS) {
		__builtin_memcpy(&quoted->key.v6.pod, &ip.saddr, 16);
		__builtin_memcpy(&quoted->key.v6.peer, &ip.daddr, 16);
		if (pg_addr_differs(&packet->key.v6.pod, &ip.saddr))
			return -1;
	} else {
		__builtin_memcpy(&quoted->key.v6.pod, &ip.daddr, 16);
		__builtin_memcpy(&quoted->key.v6.peer, &ip.saddr, 16);
		if (pg_addr_differs(&packet->key.v6.pod, &ip.daddr) ||
		    pg_addr_differs(&packet->key.v6.peer, &ip.saddr))
			return -1;
	}
	if (inner->protocol == PG_IPPROTO_ICMPV6) {
		__u32 sent = direction == PG_INGRESS ? PG_EGRESS : PG_INGRESS;

		pg_set_icmp6(quoted, sent, *(__u8 *)ports, ports[2]);
		return quoted->related ? -1 : 0;
	}
	if (pg_transport_length(inner->protocol) == 0)
		return 0;
	if (direction == PG_INGRESS)
		pg_set_ports(quoted, ports[0], ports[1]);
	else
		pg_set_ports(quoted, ports[1], ports[0]);
	return 0;
}
