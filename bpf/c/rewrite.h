/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Rewriting addresses and ports, and every checksum that covers them.
 *
 * Checksums are updated by the difference and never computed over the packet, for three reasons: the program sees only
 * the headers of a packet of up to 64 KiB; the checksum may be left to a device (CHECKSUM_PARTIAL: the field then holds
 * the sum of the pseudo header, which BPF_F_PSEUDO_HDR handles); and a wrong checksum must stay wrong. Nothing is
 * written through packet pointers: with a program that does so, the kernel copies every packet that is shared with a
 * socket's queue, also those that are only read.
 */
#pragma once

#include "packet.h"
#include "parse.h"
#include "sctp.h"

#define PG_IP4_CHECKSUM (PG_ETH_HLEN + 10)
#define PG_IP4_SOURCE (PG_ETH_HLEN + 12)
#define PG_IP6_SOURCE (PG_ETH_HLEN + 8)

/* Folds an Internet checksum sum to 32 bits, not to 16 (the kernel's __wsum). */
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

/* The checksum difference of replacing the addresses `from` of the scratch space by `to`. The leading words of
 * mapped addresses are equal and cancel out. */
PG_GLOBAL_FN __u32 pg_addresses_diff(void)
{
	struct pg_scratch *scratch = pg_scratch();

	if (!scratch)
		return 0;
	return pg_sum_fold(pg_addr_sum(&scratch->from.source, &scratch->to.source) +
			   pg_addr_sum(&scratch->from.destination, &scratch->to.destination));
}

static __always_inline __u32 pg_ports_word(const struct pg_tuple *tuple)
{
	return *(const __u32 *)tuple->ports;
}

static __always_inline __u32 pg_ports_diff(const struct pg_tuple *from, const struct pg_tuple *to)
{
	return pg_sum_fold((__u64)pg_ports_word(to) + (__u32)~pg_ports_word(from));
}

/* Writes both addresses of the IPv4 header at `at`, and its checksum. Returns 0 unless a helper failed. */
static __always_inline long pg_write_addresses4(struct __sk_buff *skb, __u32 at,
						const struct pg_tuple *to, __u32 diff)
{
	__be32 addresses[2] = { pg_word(&to->source, 3), pg_word(&to->destination, 3) };

	return bpf_l3_csum_replace(skb, at + 10, 0, diff, 0) ||
	       bpf_skb_store_bytes(skb, at + 12, addresses, sizeof(addresses), 0);
}

/* IPv6 has no header checksum that would compensate for the addresses in a sum over the whole packet
 * (CHECKSUM_COMPLETE), so the store has to update that sum: BPF_F_RECOMPUTE_CSUM. bpf_l4_csum_replace with
 * BPF_F_PSEUDO_HDR then updates it once more, as it does for IPv4; the two cancel out, which is right, as the
 * transport checksum compensates for the addresses. (BPF_F_IPV6, which says so directly, exists since kernel 6.16
 * only.) */
static __always_inline long pg_write_addresses6(struct __sk_buff *skb, __u32 at,
						const struct pg_tuple *to)
{
	return bpf_skb_store_bytes(skb, at + 8, to, 32, BPF_F_RECOMPUTE_CSUM);
}

/* Updates the transport checksum at `at` by the difference of the addresses and that of the ports. */
static __always_inline long pg_write_checksum(struct __sk_buff *skb, __u32 at, __u8 protocol,
					      __u32 diff, __u32 ports)
{
	/* UDP without a checksum stays without; one that comes out as 0 is written as 0xffff. */
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

/* Replaces the addresses and ports `from` of the packet in hand by `to`, both in the scratch space. A later fragment
 * has no ports. Returns 0; otherwise the packet may be partly rewritten: a helper failed, the frame is shorter than
 * its headers say, or it is a fragment of SCTP whose ports change (the checksum covers bytes that are not here). */
PG_GLOBAL_FN int pg_rewrite(struct __sk_buff *skb)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_scratch *scratch = pg_scratch();
	__u32 diff, moved = 0, offset;
	struct pg_tuple *from, *to;
	struct pg_l4 *l4;

	if (!packet || !scratch)
		return -1;
	l4 = &scratch->l4;
	from = &scratch->from;
	to = &scratch->to;
	offset = pg_checksum_offset(l4->protocol);
	diff = pg_addresses_diff();
	if (packet->fragment != PG_LATER_FRAGMENT && pg_ports_word(from) != pg_ports_word(to)) {
		moved = pg_ports_diff(from, to);
		if (l4->protocol == PG_IPPROTO_SCTP) {
			if (packet->fragment != PG_NOT_FRAGMENTED ||
			    pg_sctp_ports(skb, l4->off, l4->len,
					  pg_ports_word(from) ^ pg_ports_word(to)))
				return -1;
		}
		if (bpf_skb_store_bytes(skb, l4->off, to->ports, 4, 0))
			return -1;
	}
	if (packet->family == 4) {
		if (pg_write_addresses4(skb, PG_ETH_HLEN, to, diff))
			return -1;
	} else if (pg_write_addresses6(skb, PG_ETH_HLEN, to)) {
		return -1;
	}
	if (offset && packet->fragment != PG_LATER_FRAGMENT)
		return pg_write_checksum(skb, l4->off + offset, l4->protocol, diff, moved);
	return 0;
}
