/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Judging a known flow once more, after a change of policy. */
#pragma once

#include "conntrack.h"
#include "policy.h"

/* A flow that somebody else translates is judged by the endpoint that it was translated to. */
static __always_inline int pg_judge_again(struct __sk_buff *skb, struct pg_packet *packet,
					  const struct pg_flow *flow)
{
	__u32 again = PG_JUDGE_AGAIN | (flow->flags & PG_FLOW_BY_OWN_NODE ? PG_JUDGE_OWN_NODE : 0);
	struct pg_addr peer;
	__be16 port;
	int reason;

	if (!(flow->flags & PG_FLOW_FOREIGN))
		return pg_judge(skb, packet->slot, flow->direction, again);
	pg_peer(packet, &peer);
	port = pg_peer_port(packet);
	pg_set_peer(packet, &flow->other);
	pg_set_ports(packet, pg_pod_port(packet), flow->other_port);
	reason = pg_judge(skb, packet->slot, flow->direction, again);
	pg_set_peer(packet, &peer);
	pg_set_ports(packet, pg_pod_port(packet), port);
	packet->flowless = 0; /* that was said of other ends than the flow's */
	return reason;
}

/*
 * Whether a segment in the midst of a connection of which nothing is known may be of one that policy has revoked, and
 * whose entry had to make room: the direction in which that was opened is not known any more, and allowing the segment in
 * its own direction would bring it back. So policy must allow both. Only at a pod that has lost such an entry, and as
 * long as the connection may live on at its ends. Of the other protocols nothing can be brought back: their revoked flows
 * are forgotten after half a minute anyway, and then either side may open one of its own.
 */
PG_VERIFIED_ALONE int pg_is_revoked(struct __sk_buff *skb, __u32 direction)
{
	__u32 ifindex = skb->ifindex;
	struct pg_share *share = bpf_map_lookup_elem(&shares, &ifindex);

	if (!share || !share->cut_evicted ||
	    pg_now() - share->cut_evicted > pg_flow_lifetime(PG_IPPROTO_TCP, PG_FLOW_CUT))
		return 0;
	/* In place: a copy would not fit on the stack. The caller judges the packet itself after this. */
	return pg_judge(skb, PG_SLOT_PACKET, direction == PG_EGRESS ? PG_INGRESS : PG_EGRESS,
			PG_JUDGE_AGAIN) >= PG_DENY_FIRST;
}

/* A flow that user space has written gets its slot. */
static __always_inline void pg_give_slot(__u32 slot, struct pg_flow *flow)
{
	struct pg_scratch *own = pg_scratch();

	if (!own)
		return;
	flow->flags &= ~PG_FLOW_UNPLACED;
	own->flow.owner = flow->owner;
	pg_flow_store(slot, 1);
}

/*
 * Brings a known flow up to the epoch. 0: it is not this endpoint's (an earlier pod's that had the same
 * ifindex), or would not be remembered now, and counts as unknown. The epoch is read before the judgement's first
 * look-up: if policy changes meanwhile, the flow keeps the older number and is judged again.
 */
static __always_inline int pg_refresh(struct __sk_buff *skb, struct pg_packet *packet,
				      struct pg_flow *flow, __u32 epoch, __u32 now)
{
	int reason;

	if (flow->epoch == epoch)
		return 1;
	reason = pg_judge_again(skb, packet, flow);
	if (packet->owner != flow->owner || packet->flowless)
		return 0;
	if (flow->flags & PG_FLOW_UNPLACED)
		pg_give_slot(packet->slot, flow);
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
