/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ICMP errors pass with the flow that they quote. What they quote is translated like the flow's own packets: an
 * error that the pod receives is about (pod to endpoint) and must be about (pod to service), which is what the pod
 * has sent; the pod's own error about what came from a service goes to the endpoint, about what that has sent.
 */
#pragma once

#include "decide.h"
#include "direct.h"

/* Changes the error's own checksum by a difference in what it covers. */
static __always_inline long pg_write_icmp_checksum(struct __sk_buff *skb, __u32 icmp, __u32 diff)
{
	return bpf_l4_csum_replace(skb, icmp + 2, 0, diff, 0);
}

/* The quoted ports, and the quoted checksum if the quote is long enough to have it. SCTP's is left as it is: it
 * covers what is not quoted. */
static __always_inline long pg_rewrite_quoted_ports(struct __sk_buff *skb, __u32 icmp,
						    const struct pg_place *inner,
						    struct pg_ends *from, struct pg_ends *to)
{
	__u32 moved = pg_ports_diff(from, to), checksum = pg_checksum_offset(inner->protocol);
	__u64 sum;
	__u16 old, new;

	if (bpf_skb_store_bytes(skb, inner->offset, to->ports, 4, 0) ||
	    pg_write_icmp_checksum(skb, icmp, moved))
		return -1;
	if (!checksum || inner->room < checksum + sizeof(old) ||
	    bpf_skb_load_bytes(skb, inner->offset + checksum, &old, sizeof(old)) ||
	    (inner->protocol == PG_IPPROTO_UDP && !old))
		return 0;
	/* ~new = ~old + what the covered words change by (RFC 1624). */
	sum = (__u64)(__u16)~old + pg_addresses_diff() + moved;
	sum = pg_sum_fold(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	new = ~(__u16)sum;
	if (inner->protocol == PG_IPPROTO_UDP && !new)
		new = 0xffff;
	if (bpf_skb_store_bytes(skb, inner->offset + checksum, &new, sizeof(new), 0))
		return -1;
	return pg_write_icmp_checksum(skb, icmp, pg_sum_fold((__u64) new + (__u32) ~(__u32)old));
}

/* Gives the quoted packet the ends that its receiver knows. Its key is that of the quoted flow, as its pod saw it; it
 * went against `direction`. */
PG_VERIFIED_ALONE int pg_rewrite_quote(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_QUOTED);
	struct pg_scratch *own = pg_scratch();
	struct pg_ends *from, *to;
	struct pg_place *place;
	__u32 diff, header;

	if (!packet || !own)
		return -1;
	place = &own->place;
	from = &own->from;
	to = &own->to;
	header = place->offset + PG_ICMP_ERROR_HLEN;
	if (direction == PG_INGRESS) {
		pg_pod(packet, &from->source);
		pg_peer(packet, &from->destination);
		from->ports[0] = pg_pod_port(packet);
		from->ports[1] = pg_peer_port(packet);
		to->source = from->source;
		to->destination = own->view.other;
		to->ports[0] = own->view.own_port;
		to->ports[1] = own->view.other_port;
	} else {
		pg_peer(packet, &from->source);
		pg_pod(packet, &from->destination);
		from->ports[0] = pg_peer_port(packet);
		from->ports[1] = pg_pod_port(packet);
		to->source = own->view.other;
		if (own->view.flags & PG_FLOW_HAIRPIN)
			to->destination = from->source;
		else
			to->destination = from->destination;
		to->ports[0] = own->view.other_port;
		to->ports[1] = own->view.own_port;
	}
	if (pg_rewrite_quoted_ports(skb, place->offset, &own->inner, from, to))
		return -1;
	diff = pg_addresses_diff();
	/* IPv4's header checksum makes up for the addresses; in IPv6 the error's own has to. */
	if (packet->family == 4)
		return pg_write_addresses4(skb, header, to, diff);
	return bpf_skb_store_bytes(skb, header + 8, to, 32, 0) ||
	       pg_write_icmp_checksum(skb, place->offset, diff);
}

/* Whether the quoted flow is allowed now; leaves its view in the scratch. */
PG_VERIFIED_ALONE int pg_quotes_allowed(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *quoted = pg_packet_in(PG_SLOT_QUOTED);
	struct pg_packet *behind = pg_packet_in(PG_SLOT_BEHIND);
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	struct pg_scratch *own = pg_scratch();
	struct pg_flow *flow;

	if (!quoted || !behind || !own)
		return 0;
	flow = pg_flow_find(quoted);
	if (!flow || pg_flow_expired(flow, now))
		return 0;
	pg_view_of(&own->view, flow);
	/* The pod's error about what the endpoint has answered it directly, to the port that it does not know of. */
	if (direction == PG_EGRESS && (flow->flags & PG_FLOW_ENDPOINT) && flow->direct_port) {
		pg_peer(quoted, &own->view.other);
		own->view.other_port = pg_peer_port(quoted);
		own->view.own_port = flow->direct_port;
		own->view.flags = PG_FLOW_SERVICE;
		pg_copy_to_behind(behind, quoted);
		pg_set_ports(behind, flow->direct_port, pg_peer_port(quoted));
		flow = pg_flow_find(behind);
		return flow && !pg_flow_expired(flow, now) && pg_is_direct(flow, quoted) &&
		       pg_refresh(skb, behind, flow, epoch, now) && flow->state != PG_FLOW_CUT;
	}
	if (!(flow->flags & PG_FLOW_SERVICE))
		return pg_refresh(skb, quoted, flow, epoch, now) && flow->state != PG_FLOW_CUT;
	/* A pod may always reach itself; whose flow it is was seen when the epoch moved. */
	if (flow->flags & PG_FLOW_HAIRPIN)
		return flow->epoch == epoch;
	pg_behind(behind, quoted, &own->view);
	flow = pg_flow_find(behind);
	return flow && !pg_flow_expired(flow, now) && pg_points_back(flow, quoted) &&
	       pg_refresh(skb, behind, flow, epoch, now) && flow->state != PG_FLOW_CUT;
}

/* Reads the flow that an error quotes into the scratch; 0 if it can be told. */
PG_VERIFIED_ALONE int pg_parse_quote(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *quoted = pg_packet_in(PG_SLOT_QUOTED);
	struct pg_scratch *own = pg_scratch();

	if (!packet || !quoted || !own)
		return -1;
	__builtin_memset(quoted, 0, sizeof(*quoted));
	quoted->slot = PG_SLOT_QUOTED;
	if (packet->family == 4)
		return pg_parse_quote4(skb, packet, direction, &own->place, quoted, &own->inner);
	return pg_parse_quote6(skb, packet, direction, &own->place, quoted, &own->inner);
}

/* An ICMP error: PG_PLAIN if it quotes no packet of a flow that is allowed now. */
PG_VERIFIED_ALONE int pg_related(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_scratch *own = pg_scratch();
	struct pg_addr quoted, peer;

	if (!packet || !own)
		return PG_TC_DROP;
	if (pg_parse_quote(skb, direction) || !pg_quotes_allowed(skb, direction))
		return PG_PLAIN;
	pg_allow(skb, direction, PG_ALLOW_RELATED);
	/* The pod has sent to services and received from them: the other view is what nobody has seen there. */
	if (!(own->view.flags & (direction == PG_EGRESS ? PG_FLOW_SERVICE : PG_FLOW_ENDPOINT)))
		return PG_TC_NEXT;
	if (pg_rewrite_quote(skb, direction))
		return PG_TC_DROP;
	pg_peer(&own->packets[PG_SLOT_QUOTED], &quoted);
	pg_peer(packet, &peer);
	/* From a router on the way it goes on coming from there. */
	if (direction == PG_INGRESS && pg_addr_differs(&quoted, &peer))
		return PG_TC_NEXT;
	own->view.own_port = pg_pod_port(packet);
	own->view.other_port = pg_peer_port(packet);
	return PG_SEND;
}
