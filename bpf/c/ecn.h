/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Explicit congestion notification (RFC 3168): telling a sender that it is too fast, without a loss. */
#pragma once

#include <linux/if_ether.h>

#include "rewrite.h"

/* The two bits of the traffic class: 0 if the sender does not take part, 3 (CE) if it is to slow down. */
#define PG_ECN_CE 3

/* Sets CE in a packet whose sender takes part. Returns whether the packet has it then. */
static __always_inline int pg_set_ce(struct __sk_buff *skb)
{
	int is_v4 = skb->protocol == bpf_htons(ETH_P_IP), shift = is_v4 ? 0 : 4;
	__u16 before, after;
	__u8 start[2], ecn;

	/* the traffic class: of IPv4 the second byte, of IPv6 across the first two */
	if (bpf_skb_load_bytes(skb, PG_ETH_HLEN, start, sizeof(start)))
		return 0;
	ecn = start[1] >> shift & PG_ECN_CE;
	if (ecn == 0 || ecn == PG_ECN_CE)
		return ecn == PG_ECN_CE;
	__builtin_memcpy(&before, start, sizeof(before));
	start[1] |= PG_ECN_CE << shift;
	__builtin_memcpy(&after, start, sizeof(after));
	/* IPv4's own checksum makes up for the change, so that a checksum of the whole packet stays; IPv6 has none. */
	if (is_v4 && bpf_l3_csum_replace(skb, PG_IP4_CHECKSUM, before, after, sizeof(after)))
		return 0;
	return !bpf_skb_store_bytes(skb, PG_ETH_HLEN, start, sizeof(start),
				    is_v4 ? 0 : BPF_F_RECOMPUTE_CSUM);
}
