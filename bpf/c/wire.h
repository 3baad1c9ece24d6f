/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a packet takes of the wire: a GSO packet is one here and many there, each with headers of its own. */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "packet.h"

/* How much of the wire a packet takes. */
struct pg_wire {
	__u64 bytes;
	__u64 packets;
};

/* The length of the headers that each segment of a GSO packet has; 0: they cannot be read. */
static __always_inline __u32 pg_segment_headers(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 length = PG_ETH_HLEN;
	__u8 protocol, tcp_length;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + PG_ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return 0;
		length += (*(__u8 *)ip & 0xf) * 4;
		protocol = ip->protocol;
	} else {
		struct ipv6hdr *ip = data + PG_ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return 0;
		length += sizeof(*ip);
		protocol = ip->nexthdr;
	}
	if (protocol != PG_IPPROTO_TCP)
		return length + 8;
	if (bpf_skb_load_bytes(skb, length + 12, &tcp_length, 1))
		return 0;
	return length + (tcp_length >> 4) * 4;
}

static __always_inline void pg_wire_of(struct __sk_buff *skb, struct pg_wire *wire)
{
	__u32 segments = skb->gso_segs, size = skb->gso_size, headers;

	wire->bytes = skb->len;
	wire->packets = 1;
	if (!size)
		return;
	headers = pg_segment_headers(skb);
	if (skb->len <= headers)
		return;
	/* What comes from another kernel through a virtual device need not say. */
	if (!segments)
		segments = (skb->len - headers + size - 1) / size;
	if (segments > 1) {
		wire->packets = segments;
		wire->bytes += (__u64)(segments - 1) * headers;
	}
}
