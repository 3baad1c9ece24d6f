/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments: only the first one has ports, and the later ones get its verdict. */
#pragma once

#include "flow_verdict.h"

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
		/* The protocol is no part of an IPv6 datagram's identity, and a later fragment may not have it: the
		 * header after the fragment header may be another extension header. */
		key->source = packet->key.v6.pod;
		key->destination = packet->key.v6.peer;
	}
	key->direction = direction;
}

/* The origin of a fragment to the pod, as far as it makes a difference to the verdict. That of a connected socket
 * counts as the node's: the socket's state may change between two fragments, and in IPv6 not all of them have the
 * protocol. */
static __always_inline __u8 pg_fragment_origin(struct __sk_buff *skb,
					       const struct pg_packet *packet, __u32 direction)
{
	if (direction == PG_INGRESS && skb->ingress_ifindex == skb->ifindex)
		return PG_ORIGIN_POD;
	return packet->origin == PG_ORIGIN_NODE_CONNECTED ? PG_ORIGIN_NODE : packet->origin;
}

/* Records a first fragment's verdict, which was that of a whole packet, for the later ones. */
PG_GLOBAL_FN int pg_fragment_record(struct __sk_buff *skb, __u32 direction, enum pg_action action)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_frag_key key = {};
	struct pg_control *ctl = pg_control();
	struct pg_frag frag = {};
	struct pg_flow *flow;
	__u8 translated = PG_FLOW_DNAT;

	if (!packet)
		return 0;
	pg_frag_key(&key, skb, packet, direction);
	frag.expires = pg_now() + 30; /* as long as a receiver waits (ip_frag_time) */
	frag.verdict = action == PG_TC_DROP ? PG_VERDICT_DENY : PG_VERDICT_ALLOW;
	frag.protocol = pg_protocol(packet);
	frag.pod_port = pg_pod_port(packet);
	frag.peer_port = pg_peer_port(packet);
	frag.kind = packet->family == 4 ? packet->key.v4.kind : packet->key.v6.kind;
	frag.epoch = ctl ? ctl->epoch : 0;
	frag.refused = packet->refused;
	frag.origin = pg_fragment_origin(skb, packet, direction);
	/* A reverse-NAT entry matches only packets to the pod; a packet from the pod with its key belongs to another
	 * flow. */
	if (direction == PG_INGRESS)
		translated |= PG_FLOW_REVNAT;
	flow = pg_flow_find(packet);
	if (flow && (flow->flags & translated)) {
		frag.flags = flow->flags;
		frag.other = flow->other;
		frag.other_port = flow->other_port;
		frag.own_port = flow->own_port;
	}
	bpf_map_update_elem(&frags, &key, &frag, BPF_ANY);
	/* A fragmented answer: the fragments of the next one may arrive out of order. */
	if (flow && direction == PG_INGRESS && flow->direction == PG_EGRESS &&
	    action != PG_TC_DROP && !packet->refused) {
		packet->owner = flow->owner;
		pg_expect_fragments(packet);
	}
	return 0;
}

/* A later fragment of a translated datagram. Policy was evaluated with the first one, and is evaluated again if it
 * has changed since. */
PG_GLOBAL_FN enum pg_action pg_fragment_translated(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_control *ctl = pg_control();
	struct pg_packet *xlated;
	struct pg_nat *nat;
	struct pg_flow *flow;
	enum pg_action action;
	int valid;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	nat = &scratch->nat;
	xlated = &scratch->packets[PG_SLOT_XLATED];
	/* From a service address to the pod: kube-proxy's translation, not ours to change. */
	if (direction == PG_INGRESS && (nat->flags & PG_FLOW_DNAT))
		return pg_allow(scratch, PG_ALLOW_FLOW);
	if (nat->flags & PG_FLOW_HAIRPIN) {
		valid = pg_hairpin_revalidate(skb);
		pg_copy_to_xlated(xlated, packet);
		flow = pg_flow_find(packet);
	} else {
		if (direction == PG_EGRESS)
			pg_xlate_key(xlated, packet, nat);
		else
			pg_copy_to_xlated(xlated, packet);
		flow = pg_flow_find(xlated);
		valid = flow &&
			pg_flow_revalidate(skb, xlated, flow, ctl ? ctl->epoch : 0, pg_now());
	}
	if (valid && flow && flow->state != PG_FLOW_REVOKED)
		action = pg_allow(scratch, PG_ALLOW_FLOW);
	else
		action = pg_deny(scratch, xlated, PG_DENY_FRAGMENT);
	return action == PG_TC_NEXT ? PG_NEXT_TRANSLATE : action;
}

/* A later fragment that arrives before the first one passes if some port of the peer is allowed, or, to a pod, if
 * the pod has itself opened a flow of this protocol to the peer, through a service or not: it may be part of the
 * answer. A datagram whose first fragment is denied never becomes whole, so that all it costs is space in the pod's
 * reassembly queue. */
PG_GLOBAL_FN enum pg_action pg_early_fragment(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	static const struct pg_addr directly = {};
	struct pg_expect *answer = NULL;
	enum pg_action action;
	int reason;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	reason = pg_policy_verdict(skb, packet->slot, direction, PG_EVAL_SOME_PORT);
	/* What is audited is counted and told with the first fragment. */
	if (reason == PG_ALLOW_AUDIT)
		reason = PG_ALLOW_POLICY;
	if (direction == PG_INGRESS && (reason == PG_ALLOW_POLICY || reason == PG_DENY_POLICY))
		answer = pg_expect_find(packet, PG_EXPECT_FRAGMENTS);
	if (reason == PG_ALLOW_POLICY || (answer && reason == PG_DENY_POLICY))
		reason = PG_ALLOW_FRAGMENT;
	else if (reason == PG_DENY_POLICY)
		reason = PG_DENY_FRAGMENT;
	if (!answer || !pg_addr_differs(&answer->service, &directly))
		return pg_verdict_no_flow(scratch, packet, reason);
	/* The first fragment will come from the service address, and so must this one. */
	scratch->nat.other = answer->service;
	scratch->nat.other_port = 0;
	scratch->nat.own_port = 0;
	scratch->nat.flags = PG_FLOW_REVNAT;
	action = pg_verdict_no_flow(scratch, packet, reason);
	return action == PG_TC_NEXT ? PG_NEXT_TRANSLATE : action;
}

/* A later fragment: after its first one, or before it. Returns PG_NEXT_LB if the datagram is translated
 * (pg_fragment_translated decides), or the verdict. */
PG_GLOBAL_FN enum pg_action pg_later_fragment(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_control *ctl = pg_control();
	struct pg_frag_key key = {};
	struct pg_frag *first;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	pg_frag_key(&key, skb, packet, direction);
	first = bpf_map_lookup_elem(&frags, &key);
	/* A fragment of another origin only claims to be part of the datagram. */
	if (first && (__s32)(first->expires - pg_now()) >= 0 &&
	    first->origin == pg_fragment_origin(skb, packet, direction)) {
		pg_set_ports(packet, first->pod_port, first->peer_port);
		pg_set_kind(packet, first->kind);
		if (packet->family == 6)
			packet->key.v6.protocol = first->protocol;
		if (first->verdict != PG_VERDICT_ALLOW)
			return pg_deny(scratch, packet, PG_DENY_FRAGMENT);
		if (first->flags) {
			scratch->nat.other = first->other;
			scratch->nat.other_port = first->other_port;
			scratch->nat.own_port = first->own_port;
			scratch->nat.flags = first->flags;
			return PG_NEXT_LB;
		}
		packet->svc_checked = 1;
		if (!pg_flow_find(packet)) {
			/* An ICMP error, or an answer without its question, has no flow to find. The recorded
			 * verdict holds for it, unless policy has changed since or it was a denial that was not
			 * enforced. */
			if (ctl && first->epoch == ctl->epoch && !first->refused)
				return pg_allow(scratch, PG_ALLOW_FRAGMENT);
			packet->no_track = 1;
		}
		return pg_flow_verdict(skb, direction);
	}
	return pg_early_fragment(skb, direction);
}
