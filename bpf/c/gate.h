/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet's way through the gate: the short one (short.h) where nothing is left to decide, else pg_long. */
#pragma once

#include "clock.h"
#include "conntrack.h"
#include "parse.h"
#include "policy.h"
#include "short.h"
#include "verdict.h"

/* Pass or drop a packet that belongs to no flow and opens none. */
static __always_inline int pg_settle(struct __sk_buff *skb, struct pg_packet *packet,
				     __u32 direction, int reason)
{
	if (reason >= PG_DENY_FIRST)
		return pg_deny(skb, packet, direction, reason);
	return pg_allow_new(skb, packet, direction, reason);
}

/* A packet of which nothing is known that policy could speak of: it passes where everything may. */
PG_VERIFIED_ALONE int pg_unjudgeable(struct __sk_buff *skb, struct pg_packet *packet,
				     __u32 direction, __u32 reason)
{
	int judged;

	if (!packet)
		return PG_TC_DROP;
	judged = pg_judge(skb, packet, direction, PG_JUDGE_WITHOUT_PEER);

	return pg_settle(skb, packet, direction, judged == PG_DENY_POLICY ? (int)reason : judged);
}

static __always_inline __u32 pg_again(const struct pg_flow *flow)
{
	return PG_JUDGE_AGAIN | (flow->flags & PG_FLOW_BY_OWN_NODE ? PG_JUDGE_OWN_NODE : 0);
}

/*
 * Brings a known flow up to the epoch. 0: it is not this endpoint's (an earlier pod's that had the same
 * ifindex) and counts as unknown. The epoch is read before the judgement's first look-up: if policy
 * changes meanwhile, the flow keeps the older number and is judged again.
 */
static __always_inline int pg_refresh(struct __sk_buff *skb, struct pg_packet *packet,
				      struct pg_flow *flow, __u32 epoch, __u32 now)
{
	int reason;

	if (flow->epoch == epoch)
		return 1;
	reason = pg_judge(skb, packet, flow->direction, pg_again(flow));
	if (packet->owner != flow->owner)
		return 0;
	pg_note(PG_NOTE_JUDGED_AGAIN);
	if (reason < PG_DENY_FIRST) {
		flow->rule = packet->rule;
		if (flow->state == PG_FLOW_CUT)
			flow->state = PG_FLOW_ESTABLISHED;
	} else if (flow->state != PG_FLOW_CUT) {
		flow->state = PG_FLOW_CUT;
		pg_flow_extend(flow, pg_protocol(packet), now);
	}
	flow->epoch = epoch;
	return 1;
}

/* A packet with a flow's key: of a known flow, or the first of one. */
PG_VERIFIED_ALONE int pg_decide(struct __sk_buff *skb, struct pg_packet *packet, __u32 direction)
{
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	__u8 state = PG_FLOW_NEW, protocol;
	struct pg_flow *flow;
	int opening, reason;

	if (!packet)
		return PG_TC_DROP;
	protocol = pg_protocol(packet);
	opening = (packet->tcp_flags & (PG_TCP_SYN | PG_TCP_ACK)) == PG_TCP_SYN;
	flow = pg_flow_find(packet);

	/* A SYN against the flow's direction, or on one that was cut, asks for a connection of its own. */
	if (flow && !pg_flow_expired(flow, now) &&
	    !(opening && (flow->direction != direction || flow->state == PG_FLOW_CUT)) &&
	    pg_refresh(skb, packet, flow, epoch, now)) {
		if (flow->state == PG_FLOW_CUT) {
			/* A cut datagram flow ends after a while, so that the other side may open one of its
			 * own. Not while its packets pass: an answer would take its place. */
			if (protocol == PG_IPPROTO_TCP || pg_mode() != PG_MODE_ENFORCE)
				pg_flow_extend(flow, protocol, now);
			packet->rule = 0;
			packet->owner = flow->owner;
			return pg_deny(skb, packet, direction, PG_DENY_POLICY);
		}
		pg_flow_track(flow, protocol, packet->tcp_flags, direction, now);
		return pg_allow(skb, direction, PG_ALLOW_FLOW);
	}

	if (packet->tcp_flags & PG_TCP_RST)
		packet->forgettable = 1; /* the end of a connection that is forgotten already */
	if (pg_is_dhcp(packet, direction))
		return pg_allow(skb, direction, PG_ALLOW_CONTROL);
	reason = pg_judge(skb, packet, direction, 0);
	if (reason >= PG_DENY_FIRST) {
		/* Where denials pass, the answer must not become the flow's first packet: see conntrack.h. */
		if (pg_mode() != PG_MODE_ENFORCE && !packet->forgettable)
			pg_flow_remember(packet, direction, epoch, PG_FLOW_CUT, now);
		return pg_deny(skb, packet, direction, reason);
	}
	if (!packet->forgettable) {
		if (protocol == PG_IPPROTO_TCP &&
		    !(packet->tcp_flags & PG_TCP_SYN)) /* picked up on its way */
			state = packet->tcp_flags & PG_TCP_FIN ? PG_FLOW_CLOSING
							       : PG_FLOW_ESTABLISHED;
		pg_flow_remember(packet, direction, epoch, state, now);
	}
	return pg_allow_new(skb, packet, direction, reason);
}

/* Whether the ICMP error quotes a packet of a flow that is allowed now. */
PG_VERIFIED_ALONE int pg_is_related(struct __sk_buff *skb, struct pg_packet *packet,
				    __u32 direction, struct pg_place *place)
{
	struct pg_packet quoted = {};
	struct pg_control *ctl = pg_control();
	struct pg_flow *flow;
	__u32 now = pg_now();
	int unknown;

	if (!packet || !place)
		return 0;
	if (packet->family == 4)
		unknown = pg_parse_quote4(skb, packet, direction, place, &quoted);
	else
		unknown = pg_parse_quote6(skb, packet, direction, place, &quoted);
	if (unknown)
		return 0;
	flow = pg_flow_find(&quoted);
	if (!flow || pg_flow_expired(flow, now) ||
	    !pg_refresh(skb, &quoted, flow, ctl ? ctl->epoch : 0, now))
		return 0;
	return flow->state != PG_FLOW_CUT;
}

static __always_inline void pg_frag_key(struct pg_frag_key *key, struct __sk_buff *skb,
					struct pg_packet *packet, __u32 direction)
{
	key->ifindex = skb->ifindex;
	key->id = packet->fragment_id;
	if (packet->family == 4) {
		pg_map_addr4(&key->source, packet->key.v4.pod);
		pg_map_addr4(&key->destination, packet->key.v4.peer);
		key->protocol = packet->key.v4.protocol;
	} else {
		/* The protocol is not part of an IPv6 datagram's identity, and later fragments may not tell
		 * it: behind the fragment header may stand another extension header. */
		key->source = packet->key.v6.pod;
		key->destination = packet->key.v6.peer;
	}
	key->direction = direction;
}

/* A first fragment is judged like a whole packet, and its later ones are told of it. */
PG_VERIFIED_ALONE int pg_first_fragment(struct __sk_buff *skb, struct pg_packet *packet,
					__u32 direction)
{
	struct pg_frag_key key = {};
	struct pg_frag frag = {};
	int action;

	if (!packet)
		return PG_TC_DROP;
	action = pg_decide(skb, packet, direction);
	pg_frag_key(&key, skb, packet, direction);
	frag.expires = pg_now() + 30; /* as long as a receiver waits (ip_frag_time) */
	frag.verdict = action == PG_TC_DROP ? PG_VERDICT_DENY : PG_VERDICT_ALLOW;
	frag.protocol = pg_protocol(packet);
	if (packet->family == 4) {
		frag.pod_port = packet->key.v4.pod_port;
		frag.peer_port = packet->key.v4.peer_port;
		frag.kind = packet->key.v4.kind;
	} else {
		frag.pod_port = packet->key.v6.pod_port;
		frag.peer_port = packet->key.v6.peer_port;
		frag.kind = packet->key.v6.kind;
	}
	bpf_map_update_elem(&frags, &key, &frag, BPF_ANY);
	return action;
}

/* A later fragment: of its first one's flow, or, ahead of it, wherever some port of that peer may be meant. A
 * datagram whose first fragment is refused is never whole. */
PG_VERIFIED_ALONE int pg_later_fragment(struct __sk_buff *skb, struct pg_packet *packet,
					__u32 direction)
{
	struct pg_frag_key key = {};
	struct pg_frag *first;
	int reason;

	if (!packet)
		return PG_TC_DROP;
	pg_frag_key(&key, skb, packet, direction);
	first = bpf_map_lookup_elem(&frags, &key);
	if (first && (__s32)(first->expires - pg_now()) >= 0) {
		pg_set_ports(packet, first->pod_port, first->peer_port);
		pg_set_kind(packet, first->kind);
		if (packet->family == 6)
			packet->key.v6.protocol = first->protocol;
		if (first->verdict != PG_VERDICT_ALLOW)
			return pg_deny(skb, packet, direction, PG_DENY_FRAGMENT);
		/* An error or an answer without a question left no flow to find. */
		if (!pg_flow_find(packet))
			return pg_allow(skb, direction, PG_ALLOW_FRAGMENT);
		return pg_decide(skb, packet, direction);
	}
	reason = pg_judge(skb, packet, direction, PG_JUDGE_SOME_PORT);
	if (reason == PG_ALLOW_POLICY)
		reason = PG_ALLOW_FRAGMENT;
	else if (reason == PG_DENY_POLICY)
		reason = PG_DENY_FRAGMENT;
	return pg_settle(skb, packet, direction, reason);
}

/* The long way: parse, and decide. */
PG_VERIFIED_ALONE int pg_long(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet packet = {};
	struct pg_place place = {};
	int shape;

	if (skb->vlan_present)
		return pg_unjudgeable(skb, &packet, direction, PG_DENY_NOT_IP);
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		shape = pg_parse4(skb, &packet, direction, &place);
		break;
	case bpf_htons(ETH_P_IPV6):
		shape = pg_parse6(skb, &packet, direction, &place);
		break;
	case bpf_htons(ETH_P_ARP):
		return pg_allow(skb, direction, PG_ALLOW_CONTROL);
	default:
		return pg_unjudgeable(skb, &packet, direction, PG_DENY_NOT_IP);
	}
	if (shape == PG_SHAPE_CONTROL)
		return pg_allow(skb, direction, PG_ALLOW_CONTROL);
	if (shape == PG_SHAPE_MALFORMED)
		return pg_unjudgeable(skb, &packet, direction, PG_DENY_MALFORMED);
	if (packet.fragment == PG_LATER_FRAGMENT)
		return pg_later_fragment(skb, &packet, direction);
	if (packet.fragment == PG_FIRST_FRAGMENT)
		return pg_first_fragment(skb, &packet, direction);
	if (packet.related && pg_is_related(skb, &packet, direction, &place))
		return pg_allow(skb, direction, PG_ALLOW_RELATED);
	return pg_decide(skb, &packet, direction);
}

static __always_inline int pg_gate(struct __sk_buff *skb, __u32 direction)
{
	if (pg_short(skb, direction))
		return pg_allow(skb, direction, PG_ALLOW_FLOW);
	return pg_long(skb, direction);
}
