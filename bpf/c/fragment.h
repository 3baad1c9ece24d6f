/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments: only the first has ports, and what it meets is what the later ones meet. */
#pragma once

#include "decide.h"

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

/* Where a fragment to the pod comes from, of the kinds that are judged differently. A connection's is the node's: its
 * state may change between two fragments, and in IPv6 not all of them tell the protocol. */
static __always_inline __u8 pg_frag_origin(struct __sk_buff *skb, const struct pg_packet *packet,
					   __u32 direction)
{
	if (direction == PG_INGRESS && skb->ingress_ifindex == skb->ifindex)
		return PG_FROM_ITSELF;
	return packet->origin == PG_FROM_CONNECTION ? PG_FROM_NODE : packet->origin;
}

/* A first fragment is judged like a whole packet; this tells its later ones what it met. */
PG_VERIFIED_ALONE int pg_tell_fragments(struct __sk_buff *skb, __u32 direction, int action)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_frag_key key = {};
	struct pg_control *ctl = pg_control();
	struct pg_frag frag = {};
	struct pg_flow *flow;
	__u8 translated = PG_FLOW_SERVICE;

	if (!packet)
		return PG_TC_DROP;
	pg_frag_key(&key, skb, packet, direction);
	frag.expires = pg_now() + 30; /* as long as a receiver waits (ip_frag_time) */
	frag.verdict = action == PG_TC_DROP ? PG_VERDICT_DENY : PG_VERDICT_ALLOW;
	frag.protocol = pg_protocol(packet);
	frag.pod_port = pg_pod_port(packet);
	frag.peer_port = pg_peer_port(packet);
	frag.kind = packet->family == 4 ? packet->key.v4.kind : packet->key.v6.kind;
	frag.epoch = ctl ? ctl->epoch : 0;
	frag.refused = packet->refused;
	frag.origin = pg_frag_origin(skb, packet, direction);
	/* An endpoint view's own key is met by what comes back; the pod's packet with it is none of the flow's. */
	if (direction == PG_INGRESS)
		translated |= PG_FLOW_ENDPOINT;
	flow = pg_flow_find(packet);
	if (flow && (flow->flags & translated)) {
		frag.flags = flow->flags;
		frag.other = flow->other;
		frag.other_port = flow->other_port;
		frag.own_port = flow->own_port;
	}
	bpf_map_update_elem(&frags, &key, &frag, BPF_ANY);
	/* An answer in fragments: the next one's may come out of order. */
	if (flow && direction == PG_INGRESS && flow->direction == PG_EGRESS &&
	    action != PG_TC_DROP && !packet->refused) {
		packet->owner = flow->owner;
		pg_expect_fragments(packet);
	}
	return action;
}

/* A later fragment of a datagram that is translated. Its flow was judged with the first one; if policy has changed
 * since, this one is judged anew. */
PG_VERIFIED_ALONE int pg_fragment_of_service(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_control *ctl = pg_control();
	struct pg_scratch *own = pg_scratch();
	struct pg_packet *judged;
	struct pg_view *view;
	struct pg_flow *flow;
	int action;

	if (!packet || !own)
		return PG_TC_DROP;
	view = &own->view;
	judged = &own->packets[PG_SLOT_BEHIND];
	/* To the pod, from a service's address: it is nobody's to translate. */
	if (direction == PG_INGRESS && (view->flags & PG_FLOW_SERVICE))
		return pg_allow(skb, direction, PG_ALLOW_FLOW);
	if (view->flags & PG_FLOW_HAIRPIN) {
		action = pg_allow(skb, direction, PG_ALLOW_FLOW);
	} else {
		if (direction == PG_EGRESS)
			pg_behind(judged, packet, view);
		else
			pg_copy_to_behind(judged, packet);
		flow = pg_flow_find(judged);
		if (flow && pg_refresh(skb, judged, flow, ctl ? ctl->epoch : 0, pg_now()) &&
		    flow->state != PG_FLOW_CUT)
			action = pg_allow(skb, direction, PG_ALLOW_FLOW);
		else
			action = pg_deny(skb, judged, direction, PG_DENY_FRAGMENT);
	}
	return action == PG_TC_NEXT ? PG_SEND : action;
}

/*
 * A later fragment ahead of its first one passes where some port of that peer is allowed, and to a pod that has itself
 * opened a flow of this protocol to that peer, through a service or not: it may be an answer's. A datagram whose
 * first fragment is refused is never whole, so what this gives away is room in the pod's reassembly queue.
 */
PG_VERIFIED_ALONE int pg_early_fragment(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	static const struct pg_addr directly = {};
	struct pg_scratch *own = pg_scratch();
	struct pg_expect *answer = NULL;
	int reason;

	if (!packet || !own)
		return PG_TC_DROP;
	reason = pg_judge(skb, packet->slot, direction, PG_JUDGE_SOME_PORT);
	if (direction == PG_INGRESS && (reason == PG_ALLOW_POLICY || reason == PG_DENY_POLICY))
		answer = pg_is_expected(packet, PG_EXPECT_FRAGMENTS);
	if (reason == PG_ALLOW_POLICY || (answer && reason == PG_DENY_POLICY))
		reason = PG_ALLOW_FRAGMENT;
	else if (reason == PG_DENY_POLICY)
		reason = PG_DENY_FRAGMENT;
	if (!answer || !pg_addr_differs(&answer->service, &directly))
		return pg_settle(skb, packet, direction, reason);
	/* The first fragment will come from the service's address, and so must this one. */
	own->view.other = answer->service;
	own->view.other_port = 0;
	own->view.own_port = 0;
	own->view.flags = PG_FLOW_ENDPOINT;
	return pg_settle(skb, packet, direction, reason) == PG_TC_NEXT ? PG_SEND : PG_TC_DROP;
}

/* A later fragment: of its first one's flow, or ahead of it. PG_ASK: pg_fragment_of_service decides. */
PG_VERIFIED_ALONE int pg_later_fragment(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_scratch *own = pg_scratch();
	struct pg_control *ctl = pg_control();
	struct pg_frag_key key = {};
	struct pg_frag *first;

	if (!packet || !own)
		return PG_TC_DROP;
	pg_frag_key(&key, skb, packet, direction);
	first = bpf_map_lookup_elem(&frags, &key);
	/* One from elsewhere only says that it is of the same datagram. */
	if (first && (__s32)(first->expires - pg_now()) >= 0 &&
	    first->origin == pg_frag_origin(skb, packet, direction)) {
		pg_set_ports(packet, first->pod_port, first->peer_port);
		pg_set_kind(packet, first->kind);
		if (packet->family == 6)
			packet->key.v6.protocol = first->protocol;
		if (first->verdict != PG_VERDICT_ALLOW)
			return pg_deny(skb, packet, direction, PG_DENY_FRAGMENT);
		if (first->flags) {
			own->view.other = first->other;
			own->view.other_port = first->other_port;
			own->view.own_port = first->own_port;
			own->view.flags = first->flags;
			return PG_ASK;
		}
		packet->asked = 1;
		if (!pg_flow_find(packet)) {
			/* An error or an answer without a question left no flow to find. It holds for what was
			 * judged like it: not after a denial that the mode let pass, nor a change of policy. */
			if (ctl && first->epoch == ctl->epoch && !first->refused)
				return pg_allow(skb, direction, PG_ALLOW_FRAGMENT);
			packet->forgettable = 1;
		}
		return pg_decide(skb, direction);
	}
	return pg_early_fragment(skb, direction);
}
