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
	return reason;
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
 * ifindex) and counts as unknown. The epoch is read before the judgement's first look-up: if policy
 * changes meanwhile, the flow keeps the older number and is judged again.
 */
static __always_inline int pg_refresh(struct __sk_buff *skb, struct pg_packet *packet,
				      struct pg_flow *flow, __u32 epoch, __u32 now)
{
	int reason;

	if (flow->epoch == epoch)
		return 1;
	reason = pg_judge_again(skb, packet, flow);
	if (packet->owner != flow->owner)
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
