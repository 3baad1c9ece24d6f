/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From NAT data to a packet's new addresses and ports: to the backend from the pod, from the service address to the
 * pod. */
#pragma once

#include "conntrack.h"
#include "rewrite.h"
#include "verdict.h"

static __always_inline void pg_nat_of(struct pg_nat *nat, const struct pg_flow *flow)
{
	nat->other = flow->other;
	nat->other_port = flow->other_port;
	nat->own_port = flow->own_port;
	nat->flags = flow->flags;
}

/* Sends a hairpin packet back to the pod through the interface that it came from, with its Ethernet addresses
 * swapped. Routing it on the host would not work: its source is a service address (reverse path filters; IPVS has
 * those addresses itself), and bridges send nothing out of the port that it came in by, unless hairpin mode is on. */
static __always_inline enum pg_action pg_send_back(struct __sk_buff *skb, struct pg_scratch *scratch)
{
	__u8 addresses[12], swapped[12];

	if (bpf_skb_load_bytes(skb, 0, addresses, sizeof(addresses)))
		return pg_drop(scratch, scratch->outcome.slot, PG_DENY_REWRITE);
	__builtin_memcpy(swapped, addresses + 6, 6);
	__builtin_memcpy(swapped + 6, addresses, 6);
	if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0))
		return pg_drop(scratch, scratch->outcome.slot, PG_DENY_REWRITE);
	return bpf_redirect(skb->ifindex, 0);
}

/* Rewrites the packet in hand by the NAT data in the scratch space. Returns PG_TC_NEXT, PG_TC_REDIRECT for a
 * hairpin, or PG_TC_DROP if a helper failed: a packet that is partly rewritten must not leave, whatever the mode. */
PG_GLOBAL_FN enum pg_action pg_translate(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_tuple *from, *to;
	struct pg_nat *nat;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	nat = &scratch->nat;
	from = &scratch->from;
	to = &scratch->to;
	if (direction == PG_EGRESS) {
		pg_pod(packet, &from->source);
		pg_peer(packet, &from->destination);
		from->ports[0] = pg_pod_port(packet);
		from->ports[1] = pg_peer_port(packet);
		if (nat->flags & PG_FLOW_HAIRPIN)
			to->source = from->destination;
		else
			to->source = from->source;
		to->destination = nat->other;
		to->ports[0] = nat->own_port;
		to->ports[1] = nat->other_port;
	} else {
		pg_peer(packet, &from->source);
		pg_pod(packet, &from->destination);
		from->ports[0] = pg_peer_port(packet);
		from->ports[1] = pg_pod_port(packet);
		to->source = nat->other;
		to->destination = from->destination;
		to->ports[0] = nat->other_port;
		to->ports[1] = nat->own_port;
	}
	if (pg_rewrite(skb))
		return pg_drop(scratch, scratch->outcome.slot, PG_DENY_REWRITE);
	if (direction == PG_EGRESS && (nat->flags & PG_FLOW_HAIRPIN))
		return pg_send_back(skb, scratch);
	return PG_TC_NEXT;
}
