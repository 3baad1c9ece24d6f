/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * From bytes to a flow's key. Ports are read after the real header (IPv4 options, IPv6 extension headers), never from a
 * later fragment, and never beyond the length in the IP header.
 *
 * Most packets have their headers in the linear part and are read there; the others go through bpf_skb_load_bytes,
 * which reads from anywhere in the packet.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "conntrack.h"
#include "packet.h"
#include "scratch.h"

/* linux/icmp.h would include libc's headers; these are its names and numbers. */
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

/* More extension headers than real packets have; RFC 8504 lets a host give up at 8. */
#define PG_MAX_EXTENSIONS 8

#define PG_ICMP_ERROR_HLEN 8

/* The first bytes of every transport header that is read. */
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

/* A query and its answer share a flow of their own kind, named after the side that asked: a request of one side
 * never counts as the reply to a request of the other (GHSA-c66w-hq56-4q97). Policy is evaluated for an answer whose
 * query is unknown, and it opens no flow. */
static __always_inline void pg_set_echo(struct pg_packet *packet, __u32 direction, int is_request,
					__be16 id, __be16 sort)
{
	int by_pod = is_request ? direction == PG_EGRESS : direction == PG_INGRESS;

	pg_set_kind(packet, by_pod ? PG_FLOW_ECHO_BY_POD : PG_FLOW_ECHO_BY_PEER);
	pg_set_ports(packet, id, sort);
	packet->no_track = !is_request;
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
	packet->no_track = 1;
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
	packet->no_track = 1;
}

/* Multicast listener discovery and neighbour discovery: messages between hosts of one link. */
static __always_inline int pg_is_icmp6_link_type(__u8 type)
{
	return (type >= 130 && type <= 137) || type == 143;
}

/* Reads ports, TCP flags and identifiers. `direct`: the header, if it is in the linear part, else NULL. */
static __always_inline enum pg_parse_result pg_parse_transport(struct __sk_buff *skb,
							       struct pg_packet *packet,
							       __u32 direction,
							       const struct pg_l4 *l4,
							       const struct pg_transport *direct)
{
	struct pg_transport copy = {};
	__be16 source, destination;
	__u8 flags;

	if (l4->len < pg_transport_length(l4->protocol))
		return PG_PARSE_MALFORMED;
	if (pg_transport_length(l4->protocol) == 0)
		return PG_PARSE_OK;
	if (direct) {
		source = direct->source;
		destination = direct->destination;
		flags = direct->more[9];
	} else {
		long failed = l4->protocol == PG_IPPROTO_TCP
				      ? bpf_skb_load_bytes(skb, l4->off, &copy, sizeof(copy))
				      : bpf_skb_load_bytes(skb, l4->off, &copy, 8);

		if (failed)
			return PG_PARSE_MALFORMED;
		source = copy.source;
		destination = copy.destination;
		flags = copy.more[9];
	}
	if (l4->protocol == PG_IPPROTO_ICMP || l4->protocol == PG_IPPROTO_ICMPV6) {
		__u8 type = *(__u8 *)&source;
		__be16 id = direct ? *(__be16 *)direct->more : *(__be16 *)copy.more;

		if (l4->protocol == PG_IPPROTO_ICMP && packet->family == 4) {
			pg_set_icmp4(packet, direction, type, id);
		} else if (l4->protocol == PG_IPPROTO_ICMPV6 && packet->family == 6) {
			if (packet->fragment == PG_NOT_FRAGMENTED && pg_is_icmp6_link_type(type))
				packet->icmp6_link_type = type;
			pg_set_icmp6(packet, direction, type, id);
		}
		return PG_PARSE_OK;
	}
	if (l4->protocol == PG_IPPROTO_TCP)
		packet->tcp_flags = flags;
	if (direction == PG_EGRESS)
		pg_set_ports(packet, source, destination);
	else
		pg_set_ports(packet, destination, source);
	return PG_PARSE_OK;
}

static __always_inline enum pg_parse_result pg_parse4(struct __sk_buff *skb,
						      struct pg_packet *packet, __u32 direction,
						      struct pg_l4 *l4)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct pg_transport *direct = NULL;
	struct iphdr *ip = data + PG_ETH_HLEN;
	__u32 header, length, fragment;

	packet->family = 4;
	packet->key.v4.ifindex = skb->ifindex;
	if ((void *)(ip + 1) > end) {
		if (bpf_skb_pull_data(skb, PG_ETH_HLEN + sizeof(*ip)))
			return PG_PARSE_MALFORMED;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + PG_ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return PG_PARSE_MALFORMED;
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
		return PG_PARSE_MALFORMED;
	l4->protocol = ip->protocol;
	l4->off = PG_ETH_HLEN + header;
	l4->len = length - header;

	fragment = bpf_ntohs(ip->frag_off) & (PG_IP_MORE_FRAGMENTS | PG_IP_OFFSET_MASK);
	if (fragment) {
		packet->fragment = fragment & PG_IP_OFFSET_MASK ? PG_LATER_FRAGMENT
								: PG_FIRST_FRAGMENT;
		packet->fragment_id = ip->id;
		if (packet->fragment == PG_LATER_FRAGMENT)
			return PG_PARSE_OK;
	}
	if ((void *)ip + header + sizeof(*direct) <= end)
		direct = (void *)ip + header;
	return pg_parse_transport(skb, packet, direction, l4, direct);
}

/* Skips the extension headers of the packet in `slot`, from its pg_l4 in the scratch space on, which it moves to the
 * transport header. Sets the packet's fragment and fragment_id. Returns 0, or -1 if the chain is truncated, too long
 * or source-routed (the addresses are not the flow's ends then). */
PG_GLOBAL_FN int pg_skip_extensions6(struct __sk_buff *skb, __u32 slot)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_l4 *l4;
	__u32 offset, left;
	__u8 next;
	int i;

	if (!packet || !scratch)
		return -1;
	l4 = slot == PG_SLOT_QUOTED ? &scratch->inner_l4 : &scratch->l4;
	offset = l4->off;
	left = l4->len;
	next = l4->protocol;

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
			l4->protocol = next;
			l4->off = offset;
			l4->len = left;
			return 0;
		}
		if (left < sizeof(header) || bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
			return -1;
		length = (header[1] + 1) * 8;
		if (next == PG_NEXTHDR_AUTH)
			length = (header[1] + 2) * 4;
		if (next == PG_NEXTHDR_ROUTING && header[3] != 0)
			return -1;
		if (next == PG_NEXTHDR_FRAGMENT) {
			__u32 field = (header[2] << 8 | header[3]);

			length = 8;
			l4->has_fragment_header = 1;
			packet->fragment_id = *(__u32 *)(header + 4);
			if (field & 0xfff8)
				packet->fragment = PG_LATER_FRAGMENT;
			else if (field & 1)
				packet->fragment = PG_FIRST_FRAGMENT;
			if (packet->fragment == PG_LATER_FRAGMENT) {
				/* What follows is data, whatever the next-header number says: the transport protocol
				 * is that of the first fragment, found by fragment_id. */
				l4->protocol = header[0];
				return 0;
			}
		}
		if (length > left)
			return -1;
		next = header[0];
		offset += length;
		left -= length;
	}
	return -1;
}

/* IPv4-mapped, the form in which the maps hold IPv4 addresses. No real packet has one (RFC 4291, 2.5.5.2), and it
 * must not be taken for that IPv4 address. */
static __always_inline int pg_is_v4_mapped(const struct pg_addr *addr)
{
	const __be32 *words = (const void *)addr->bytes;

	return !(words[0] | words[1] | (words[2] ^ bpf_htonl(0xffff)));
}

static __always_inline enum pg_parse_result pg_parse6(struct __sk_buff *skb,
						      struct pg_packet *packet, __u32 direction,
						      struct pg_l4 *l4)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct pg_transport *direct = NULL;
	struct ipv6hdr *ip = data + PG_ETH_HLEN;
	struct pg_addr *source, *destination;

	packet->family = 6;
	packet->key.v6.ifindex = skb->ifindex;
	if ((void *)(ip + 1) > end) {
		if (bpf_skb_pull_data(skb, PG_ETH_HLEN + sizeof(*ip)))
			return PG_PARSE_MALFORMED;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		ip = data + PG_ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return PG_PARSE_MALFORMED;
	}
	source = direction == PG_EGRESS ? &packet->key.v6.pod : &packet->key.v6.peer;
	destination = direction == PG_EGRESS ? &packet->key.v6.peer : &packet->key.v6.pod;
	if (ip->version != 6)
		return PG_PARSE_MALFORMED;
	__builtin_memcpy(source, &ip->saddr, 16);
	__builtin_memcpy(destination, &ip->daddr, 16);
	if (pg_is_v4_mapped(source) || pg_is_v4_mapped(destination))
		return PG_PARSE_MALFORMED;
	l4->protocol = ip->nexthdr;
	l4->off = PG_ETH_HLEN + sizeof(*ip);
	l4->len = bpf_ntohs(ip->payload_len);
	if (!l4->len) /* jumbo payload, or none */
		l4->len = skb->len - l4->off;

	if (l4->protocol == PG_IPPROTO_TCP || l4->protocol == PG_IPPROTO_UDP) {
		if ((void *)(ip + 1) + sizeof(*direct) <= end)
			direct = (void *)(ip + 1);
	} else if (pg_skip_extensions6(skb, packet->slot)) {
		packet->key.v6.protocol = l4->protocol;
		return PG_PARSE_MALFORMED;
	}
	packet->key.v6.protocol = l4->protocol;
	if (packet->fragment == PG_LATER_FRAGMENT)
		return PG_PARSE_OK;
	return pg_parse_transport(skb, packet, direction, l4, direct);
}

/* Sets `quoted` to the flow that an ICMP error is about, as its own pod sees it, and `inner` to the quoted transport
 * header. Returns 0, or -1 if the quote is truncated or has no flow's key. An error travels against the packet that
 * it quotes, to that packet's sender. One with another destination, or one that a pod sends with another source
 * address, does not belong to the flow: it gets a verdict as an ICMP packet of its own. */
static __always_inline int pg_parse_quote4(struct __sk_buff *skb, const struct pg_packet *packet,
					   __u32 direction, const struct pg_l4 *l4,
					   struct pg_packet *quoted, struct pg_l4 *inner)
{
	__u32 offset = l4->off + PG_ICMP_ERROR_HLEN;
	__be16 ports[4];
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return -1;
	if (ip.version != 4 || ip.ihl < 5 || (ip.frag_off & bpf_htons(PG_IP_OFFSET_MASK)))
		return -1;
	/* Bytes after the end of the error are padding, not part of the quote. */
	if (l4->len < PG_ICMP_ERROR_HLEN + ip.ihl * 4 + sizeof(ports) ||
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
	inner->off = offset + ip.ihl * 4;
	inner->len = l4->len - PG_ICMP_ERROR_HLEN - ip.ihl * 4;
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
					   __u32 direction, const struct pg_l4 *l4,
					   struct pg_packet *quoted, struct pg_l4 *inner)
{
	__u32 offset = l4->off + PG_ICMP_ERROR_HLEN;
	struct ipv6hdr ip;
	__be16 ports[4];

	if (l4->len < PG_ICMP_ERROR_HLEN + sizeof(ip) ||
	    bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 6)
		return -1;
	inner->protocol = ip.nexthdr;
	inner->off = offset + sizeof(ip);
	inner->len = l4->len - PG_ICMP_ERROR_HLEN - sizeof(ip);
	quoted->family = 6;
	if (pg_skip_extensions6(skb, quoted->slot) || quoted->fragment == PG_LATER_FRAGMENT)
		return -1;
	quoted->fragment = PG_NOT_FRAGMENTED;
	if (inner->len < sizeof(ports) || bpf_skb_load_bytes(skb, inner->off, ports, sizeof(ports)))
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
