/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Changing a packet's ends: addresses, ports and every checksum that covers them.
 *
 * Checksums are moved by the difference, never computed anew: the packet may be one of 64 KiB of which the program
 * sees the headers, its checksum may be left to a device (CHECKSUM_PARTIAL: the field holds the pseudo header's sum
 * only, which BPF_F_PSEUDO_HDR knows), and a wrong one must stay as wrong as it was. Nothing is written through
 * packet pointers: a program that does so has every packet copied that is shared with a socket's queue, those
 * that it only looks at too.
 */
#pragma once

#include "packet.h"
#include "parse.h"
#include "sctp.h"

#define PG_IP4_CHECKSUM (PG_ETH_HLEN + 10)
#define PG_IP4_SOURCE (PG_ETH_HLEN + 12)
#define PG_IP6_SOURCE (PG_ETH_HLEN + 8)

/* A sum of the Internet checksum's kind, not folded to 16 bits (the kernel's __wsum). */
static __always_inline __u32 pg_sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline __u32 pg_word(const struct pg_addr *addr, int i)
{
	return ((const __u32 *)addr->bytes)[i];
}

static __always_inline __u64 pg_addr_sum(const struct pg_addr *from, const struct pg_addr *to)
{
	return (__u64)pg_word(to, 0) + pg_word(to, 1) + pg_word(to, 2) + pg_word(to, 3) +
	       (__u32)~pg_word(from, 0) + (__u32)~pg_word(from, 1) + (__u32)~pg_word(from, 2) +
	       (__u32)~pg_word(from, 3);
}

/* What the checksums change by when the ends in the scratch, `to`, take the place of `from`. The mapped form's leading
 * words are the same on both sides and cancel out. */
PG_VERIFIED_ALONE __u32 pg_addresses_diff(void)
{
	struct pg_scratch *own = pg_scratch();

	if (!own)
		return 0;
	return pg_sum_fold(pg_addr_sum(&own->from.source, &own->to.source) +
			   pg_addr_sum(&own->from.destination, &own->to.destination));
}

static __always_inline __u32 pg_ports_word(const struct pg_ends *ends)
{
	return *(const __u32 *)ends->ports;
}

static __always_inline __u32 pg_ports_diff(const struct pg_ends *from, const struct pg_ends *to)
{
	return pg_sum_fold((__u64)pg_ports_word(to) + (__u32)~pg_ports_word(from));
}

/* Writes both addresses of the IP header at `at`, and IPv4's own checksum. */
static __always_inline long pg_write_addresses4(struct __sk_buff *skb, __u32 at,
						const struct pg_ends *to, __u32 diff)
{
	__be32 addresses[2] = { pg_word(&to->source, 3), pg_word(&to->destination, 3) };

	return bpf_l3_csum_replace(skb, at + 10, 0, diff, 0) ||
	       bpf_skb_store_bytes(skb, at + 12, addresses, sizeof(addresses), 0);
}

/*
 * IPv6 has no checksum of its own that would make up for the addresses in a sum over the whole packet
 * (CHECKSUM_COMPLETE), so the store has to move that sum: BPF_F_RECOMPUTE_CSUM. bpf_l4_csum_replace with
 * BPF_F_PSEUDO_HDR moves it back, as if this were IPv4; the two cancel out, which is right, as the transport's
 * checksum makes up for the addresses. (BPF_F_IPV6, which says so directly, is there since kernel 6.16 only.)
 */
static __always_inline long pg_write_addresses6(struct __sk_buff *skb, __u32 at,
						const struct pg_ends *to)
{
	return bpf_skb_store_bytes(skb, at + 8, to, 32, BPF_F_RECOMPUTE_CSUM);
}

/* The checksum of TCP, UDP or UDP-like at `at`, where `diff` and `ports` are what changed. */
static __always_inline long pg_write_checksum(struct __sk_buff *skb, __u32 at, __u8 protocol,
					      __u32 diff, __u32 ports)
{
	/* UDP without a checksum stays without; one that comes out as 0 is written as its other form. */
	__u64 zero = protocol == PG_IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	if (bpf_l4_csum_replace(skb, at, 0, diff, zero | BPF_F_PSEUDO_HDR))
		return -1;
	return ports ? bpf_l4_csum_replace(skb, at, 0, ports, zero) : 0;
}

static __always_inline __u32 pg_checksum_offset(__u8 protocol)
{
	switch (protocol) {
	case PG_IPPROTO_TCP:
		return 16;
	case PG_IPPROTO_UDP:
		return 6;
	case PG_IPPROTO_ICMPV6:
		return 2;
	default: /* ICMP covers no addresses; SCTP: sctp.h */
		return 0;
	}
}

/* Gives the packet in hand the ends `to` of the scratch in place of `from`. A later fragment has no ports. Not 0: the kernel had no memory for it, or the packet
 * cannot be changed (a fragment of SCTP whose ports change: its checksum covers what is not here). */
PG_VERIFIED_ALONE int pg_rewrite(struct __sk_buff *skb)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_scratch *own = pg_scratch();
	__u32 diff, moved = 0, offset;
	struct pg_ends *from, *to;
	struct pg_place *place;

	if (!packet || !own)
		return -1;
	place = &own->place;
	from = &own->from;
	to = &own->to;
	offset = pg_checksum_offset(place->protocol);
	diff = pg_addresses_diff();
	if (packet->fragment != PG_LATER_FRAGMENT && pg_ports_word(from) != pg_ports_word(to)) {
		moved = pg_ports_diff(from, to);
		if (place->protocol == PG_IPPROTO_SCTP) {
			if (packet->fragment != PG_WHOLE ||
			    pg_sctp_ports(skb, place->offset, place->room,
					  pg_ports_word(from) ^ pg_ports_word(to)))
				return -1;
		}
		if (bpf_skb_store_bytes(skb, place->offset, to->ports, 4, 0))
			return -1;
	}
	if (packet->family == 4) {
		if (pg_write_addresses4(skb, PG_ETH_HLEN, to, diff))
			return -1;
	} else if (pg_write_addresses6(skb, PG_ETH_HLEN, to)) {
		return -1;
	}
	if (offset && packet->fragment != PG_LATER_FRAGMENT)
		return pg_write_checksum(skb, place->offset + offset, place->protocol, diff, moved);
	return 0;
}
