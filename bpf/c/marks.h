/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What is written into packets that a metered pod may send: DSCP for the network, skb->priority for the node's queueing
 * disciplines, bits of skb->mark for its rules. What a traffic rule says is taken before what the pod's entry says. A packet
 * that has the values already is not written to.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "maps.h"
#include "reject.h"

/* Writes the upper six bits of the traffic class; the others are of ECN. */
static __always_inline void pg_write_dscp(struct __sk_buff *skb, __u8 dscp)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	/* Of either header the first two bytes: version, header length and traffic class, or version, traffic class and four
	 * bits of the flow label. */
	__be16 *first = data + PG_ETH_HLEN, old, new;

	if ((void *)(first + 1) > end)
		return;
	old = *first;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		new = (old & bpf_htons(0xff03)) | bpf_htons(dscp << 2);
		if (old == new ||
		    bpf_l3_csum_replace(skb, PG_ETH_HLEN + offsetof(struct iphdr, check), old, new,
					sizeof(new)))
			return;
		/* The two changes cancel out in the sum of the packet (CHECKSUM_COMPLETE). */
		bpf_skb_store_bytes(skb, PG_ETH_HLEN, &new, sizeof(new), 0);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		new = (old & bpf_htons(0xf03f)) | bpf_htons(dscp << 6);
		if (old != new)
			bpf_skb_store_bytes(skb, PG_ETH_HLEN, &new, sizeof(new),
					    BPF_F_RECOMPUTE_CSUM);
	}
}

/* Whether an entry says anything that is to be written. */
static __always_inline int pg_has_marks(const struct pg_limits *of)
{
	return of->mark_mask || (of->flags & (PG_LIMITS_PRIORITY | PG_LIMITS_DSCP));
}

static __always_inline __u32 pg_marked(__u32 mark, const struct pg_limits *of)
{
	return (mark & ~of->mark_mask) | (of->mark & of->mark_mask);
}

/* Writes what the pod's entry `of` says, and the entry of the packet's traffic rule, `of_rule`, which may be the same. Not a
 * global function: those take no pointers (packet.h). Returns 0. */
static __attribute__((noinline)) int pg_write_marks(struct __sk_buff *skb,
						    const struct pg_limits *of,
						    const struct pg_limits *of_rule)
{
	__u32 mark = skb->mark, marked;
	const struct pg_limits *from;

	if (!of || !of_rule)
		return 0;
	marked = pg_marked(pg_marked(mark, of), of_rule);
	/* That one would not be taken for the pod's (reject.h). */
	if (marked != mark && marked != PG_MARK_ANSWER)
		skb->mark = marked;
	from = of_rule->flags & PG_LIMITS_PRIORITY ? of_rule : of;
	if ((from->flags & PG_LIMITS_PRIORITY) && skb->priority != from->priority)
		skb->priority = from->priority;
	from = of_rule->flags & PG_LIMITS_DSCP ? of_rule : of;
	if (from->flags & PG_LIMITS_DSCP)
		pg_write_dscp(skb, from->dscp & 0x3f);
	return 0;
}

/* The marks of a packet that passes. `of`: the pod's entry of `limits`. */
static __always_inline void pg_mark(struct __sk_buff *skb, const struct pg_scratch *scratch,
				    __u32 owner, __u32 direction, const struct pg_limits *of)
{
	struct pg_limits_key key = { .owner = owner, .rule = scratch->metered.traffic_rule };
	const struct pg_limits *of_rule = NULL;

	if (direction != PG_EGRESS)
		return;
	if (key.rule)
		of_rule = bpf_map_lookup_elem(&limits, &key);
	if (!of_rule)
		of_rule = of;
	if (pg_has_marks(of) || pg_has_marks(of_rule))
		pg_write_marks(skb, of, of_rule);
}
