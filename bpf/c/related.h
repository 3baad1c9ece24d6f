/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors are allowed with the flow that they quote. The quoted packet is translated like the flow's own
 * packets: an error to the pod quotes (pod to backend) and must quote (pod to service), which is what the pod has
 * sent; the pod's own error about a packet from a service goes to the backend and quotes what that has sent. */
#pragma once

#include "flow_verdict.h"
#include "direct.h"

/* Updates the error's own checksum by the difference of the bytes that it covers. */
static __always_inline long pg_write_icmp_checksum(struct __sk_buff *skb, __u32 icmp, __u32 diff)
{
	return bpf_l4_csum_replace(skb, icmp + 2, 0, diff, 0);
}

/* Rewrites the quoted ports, and the quoted checksum if the quote is long enough to have it. SCTP's is left as it
 * is: it covers bytes that are not quoted. */
static __always_inline long pg_rewrite_quoted_ports(struct __sk_buff *skb, __u32 icmp,
						    const struct pg_l4 *inner,
						    struct pg_tuple *from, struct pg_tuple *to)
{
	__u32 moved = pg_ports_diff(from, to), checksum = pg_checksum_offset(inner->protocol);
	__u64 sum;
	__u16 old, new;

	if (bpf_skb_store_bytes(skb, inner->off, to->ports, 4, 0) ||
	    pg_write_icmp_checksum(skb, icmp, moved))
		return -1;
	if (!checksum || inner->len < checksum + sizeof(old) ||
	    bpf_skb_load_bytes(skb, inner->off + checksum, &old, sizeof(old)) ||
	    (inner->protocol == PG_IPPROTO_UDP && !old))
		return 0;
	/* ~new = ~old + the change of the covered words (RFC 1624). */
	sum = (__u64)(__u16)~old + pg_addresses_diff() + moved;
	sum = pg_sum_fold(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	new = ~(__u16)sum;
	if (inner->protocol == PG_IPPROTO_UDP && !new)
		new = 0xffff;
	if (bpf_skb_store_bytes(skb, inner->off + checksum, &new, sizeof(new), 0))
		return -1;
	return pg_write_icmp_checksum(skb, icmp, pg_sum_fold((__u64) new + (__u32) ~(__u32)old));
}

/* Rewrites the quoted packet to the addresses and ports that the error's receiver knows. PG_SLOT_QUOTED has the key
 * of the quoted flow, which went against `direction`. Returns 0, or -1 if a helper failed: the error is partly
 * rewritten then. */
PG_GLOBAL_FN int pg_rewrite_quote(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_QUOTED);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_tuple *from, *to;
	struct pg_l4 *l4;
	__u32 diff, header;

	if (!packet || !scratch)
		return -1;
	l4 = &scratch->l4;
	from = &scratch->from;
	to = &scratch->to;
	header = l4->off + PG_ICMP_ERROR_HLEN;
	if (direction == PG_INGRESS) {
		pg_pod(packet, &from->source);
		pg_peer(packet, &from->destination);
		from->ports[0] = pg_pod_port(packet);
		from->ports[1] = pg_peer_port(packet);
		to->source = from->source;
		to->destination = scratch->nat.other;
		to->ports[0] = scratch->nat.own_port;
		to->ports[1] = scratch->nat.other_port;
	} else {
		pg_peer(packet, &from->source);
		pg_pod(packet, &from->destination);
		from->ports[0] = pg_peer_port(packet);
		from->ports[1] = pg_pod_port(packet);
		to->source = scratch->nat.other;
		if (scratch->nat.flags & PG_FLOW_HAIRPIN)
			to->destination = from->source;
		else
			to->destination = from->destination;
		to->ports[0] = scratch->nat.other_port;
		to->ports[1] = scratch->nat.own_port;
	}
	if (pg_rewrite_quoted_ports(skb, l4->off, &scratch->inner_l4, from, to))
		return -1;
	diff = pg_addresses_diff();
	/* IPv4's header checksum compensates for the addresses; in IPv6 the error's own checksum has to. */
	if (packet->family == 4)
		return pg_write_addresses4(skb, header, to, diff);
	return bpf_skb_store_bytes(skb, header + 8, to, 32, 0) ||
	       pg_write_icmp_checksum(skb, l4->off, diff);
}

/* Whether the quoted flow is allowed now. Leaves its NAT data in the scratch space. */
PG_GLOBAL_FN int pg_quoted_flow_allowed(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *quoted = pg_packet_in(PG_SLOT_QUOTED);
	struct pg_packet *xlated = pg_packet_in(PG_SLOT_XLATED);
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	struct pg_scratch *scratch = pg_scratch();
	struct pg_flow *flow;

	if (!quoted || !xlated || !scratch)
		return 0;
	flow = pg_flow_find(quoted);
	if (!flow || pg_flow_expired(flow, now))
		return 0;
	pg_nat_of(&scratch->nat, flow);
	/* The pod's error about a backend's answer to what it sent directly: the backend knows another port
	 * (direct.h). */
	if (direction == PG_EGRESS && (flow->flags & PG_FLOW_REVNAT) && flow->direct_port) {
		pg_peer(quoted, &scratch->nat.other);
		scratch->nat.other_port = pg_peer_port(quoted);
		scratch->nat.own_port = flow->direct_port;
		scratch->nat.flags = PG_FLOW_DNAT;
		pg_copy_to_xlated(xlated, quoted);
		pg_set_ports(xlated, flow->direct_port, pg_peer_port(quoted));
		flow = pg_flow_find(xlated);
		return flow && !pg_flow_expired(flow, now) && pg_is_direct_flow(flow, quoted) &&
		       pg_flow_revalidate(skb, xlated, flow, epoch, now) &&
		       flow->state != PG_FLOW_REVOKED;
	}
	if (!(flow->flags & PG_FLOW_DNAT))
		return pg_flow_revalidate(skb, quoted, flow, epoch, now) &&
		       flow->state != PG_FLOW_REVOKED;
	/* Revalidated with its own next packet. */
	if (flow->flags & PG_FLOW_HAIRPIN)
		return flow->epoch == epoch && flow->state != PG_FLOW_REVOKED;
	pg_xlate_key(xlated, quoted, &scratch->nat);
	flow = pg_flow_find(xlated);
	return flow && !pg_flow_expired(flow, now) && pg_nat_pair_matches(flow, quoted) &&
	       pg_flow_revalidate(skb, xlated, flow, epoch, now) && flow->state != PG_FLOW_REVOKED;
}

/* Reads the flow that an error quotes into PG_SLOT_QUOTED. Returns 0, or -1 if the quote is too short or has no
 * flow's key. */
PG_GLOBAL_FN int pg_parse_quote(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *quoted = pg_packet_in(PG_SLOT_QUOTED);
	struct pg_scratch *scratch = pg_scratch();

	if (!packet || !quoted || !scratch)
		return -1;
	__builtin_memset(quoted, 0, sizeof(*quoted));
	quoted->slot = PG_SLOT_QUOTED;
	if (packet->family == 4)
		return pg_parse_quote4(skb, packet, direction, &scratch->l4, quoted,
				       &scratch->inner_l4);
	return pg_parse_quote6(skb, packet, direction, &scratch->l4, quoted, &scratch->inner_l4);
}

/* An ICMP error. Returns PG_NEXT_FLOW if it quotes no packet of a flow that is allowed now, PG_NEXT_TRANSLATE, or
 * the verdict. */
PG_GLOBAL_FN enum pg_action pg_related(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_addr quoted, peer;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	if (pg_parse_quote(skb, direction) || !pg_quoted_flow_allowed(skb, direction))
		return PG_NEXT_FLOW;
	pg_allow(scratch, PG_ALLOW_RELATED);
	/* The error itself is of no flow, also if that which it quotes was just revalidated. */
	scratch->metered.owner = 0;
	scratch->metered.traffic_rule = 0;
	/* The pod sends to services and receives from them, so that only these quotes have translated addresses. */
	if (!(scratch->nat.flags & (direction == PG_EGRESS ? PG_FLOW_DNAT : PG_FLOW_REVNAT)))
		return PG_TC_NEXT;
	if (pg_rewrite_quote(skb, direction))
		return pg_drop(scratch, PG_SLOT_PACKET, PG_DENY_REWRITE);
	pg_peer(&scratch->packets[PG_SLOT_QUOTED], &quoted);
	pg_peer(packet, &peer);
	/* An error from a router on the way keeps its source address. */
	if (direction == PG_INGRESS && pg_addr_differs(&quoted, &peer))
		return PG_TC_NEXT;
	scratch->nat.own_port = pg_pod_port(packet);
	scratch->nat.other_port = pg_peer_port(packet);
	return PG_NEXT_TRANSLATE;
}
