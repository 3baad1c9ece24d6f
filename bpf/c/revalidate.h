/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Revalidation: evaluating policy again for a known flow after a change. */
#pragma once

#include "conntrack.h"
#include "policy.h"
#include "traffic.h"
#include "verdict.h"

/* Reports a known flow that an audited rule begins to decide, as it does a new one: connections that were there before the
 * policy are what an audit has to name. Once for each rule; one event that the limits hold back is not made up for. */
static __always_inline void pg_report_audited(struct __sk_buff *skb, struct pg_packet *packet,
					      const struct pg_flow *flow, int reason)
{
	if (reason != PG_ALLOW_AUDIT || packet->rule == flow->rule ||
	    packet->owner != flow->owner || pg_mode() == PG_MODE_OFF)
		return;
	if (flow->flags & PG_FLOW_REVNAT) {
		packet->service = flow->other;
		packet->service_port = flow->other_port;
	}
	pg_event_emit(skb, packet->slot, flow->direction, PG_DENY_POLICY | PG_VERDICT_ALLOW << 8);
}

/* Evaluates policy for a known flow. For one that kube-proxy translates, the peer is the backend that it translates
 * to. */
static __always_inline int pg_flow_reevaluate(struct __sk_buff *skb, struct pg_packet *packet,
					      const struct pg_flow *flow)
{
	__u32 again = PG_EVAL_REVALIDATE |
		      (flow->flags & PG_FLOW_BY_OWN_NODE ? PG_EVAL_OWN_NODE : 0);
	int external = flow->flags & PG_FLOW_EXTERNAL_NAT, reason;
	/* Set on both paths: the verifier does not see that the two conditions are one. */
	struct pg_addr peer = {};
	__be16 port = 0;

	if (external) {
		pg_peer(packet, &peer);
		port = pg_peer_port(packet);
		pg_set_peer(packet, &flow->other);
		pg_set_ports(packet, pg_pod_port(packet), flow->other_port);
	}
	reason = pg_policy_verdict(skb, packet->slot, flow->direction, again);
	if (pg_is_metered())
		pg_classify(packet->slot, flow->direction);
	pg_report_audited(skb, packet, flow, reason);
	if (external) {
		pg_set_peer(packet, &peer);
		pg_set_ports(packet, pg_pod_port(packet), port);
		packet->no_track_verdict = 0; /* it was set for other addresses than the flow's */
	}
	return reason;
}

/*
 * Whether a mid-stream segment without a flow entry may belong to a connection that policy has revoked and whose entry
 * was evicted. The direction in which that was opened is not known any more, and allowing the segment by its own
 * direction would bring the connection back; so policy must allow both directions. This holds only at a pod that has
 * lost such an entry, and for as long as the connection may live on at its ends. Other protocols need no such check:
 * their revoked flows expire after half a minute, and then either side may open a new one.
 */
PG_GLOBAL_FN int pg_may_be_revoked(struct __sk_buff *skb, __u32 direction)
{
	__u32 ifindex = skb->ifindex;
	struct pg_share *share = bpf_map_lookup_elem(&shares, &ifindex);

	if (!share || !share->cut_evicted ||
	    pg_now() - share->cut_evicted > pg_flow_lifetime(PG_IPPROTO_TCP, PG_FLOW_REVOKED))
		return 0;
	/* In place, as a copy would not fit on the stack. The caller evaluates the packet itself after this. */
	return pg_policy_verdict(skb, PG_SLOT_PACKET,
				 direction == PG_EGRESS ? PG_INGRESS : PG_EGRESS,
				 PG_EVAL_REVALIDATE) >= PG_DENY_FIRST;
}

/* Assigns a slot to a flow that user space has written. */
static __always_inline void pg_assign_slot(__u32 slot, struct pg_flow *flow)
{
	struct pg_scratch *scratch = pg_scratch();

	if (!scratch)
		return;
	flow->flags &= ~PG_FLOW_NO_SLOT;
	scratch->flow.owner = flow->owner;
	pg_flow_store(slot, 1);
}

/* Makes the new verdict that of the flow. */
static __always_inline void pg_flow_reconsider(struct pg_flow *flow, const struct pg_packet *packet,
					       int reason, __u32 epoch, __u32 now)
{
	if (reason < PG_DENY_FIRST) {
		flow->rule = packet->rule;
		if (flow->state == PG_FLOW_REVOKED)
			flow->state = PG_FLOW_ESTABLISHED;
	} else if (flow->state != PG_FLOW_REVOKED) {
		flow->state = PG_FLOW_REVOKED;
		pg_flow_extend(flow, pg_protocol(packet), now);
	}
	flow->epoch = epoch;
}

/* Brings a known flow up to the current epoch. Returns 0 if the flow is to be treated as unknown: it belongs to an
 * earlier pod with the same ifindex, or would not be tracked now. The caller has read the epoch before the first
 * look-up of this evaluation: if policy changes meanwhile, the flow keeps the older epoch and is revalidated again. */
static __always_inline int pg_flow_revalidate(struct __sk_buff *skb, struct pg_packet *packet,
					      struct pg_flow *flow, __u32 epoch, __u32 now)
{
	int reason;

	if (flow->epoch == epoch)
		return 1;
	reason = pg_flow_reevaluate(skb, packet, flow);
	if (packet->owner != flow->owner || packet->no_track_verdict)
		return 0;
	if (flow->flags & PG_FLOW_NO_SLOT)
		pg_assign_slot(packet->slot, flow);
	pg_stat_inc(PG_STAT_REVALIDATED);
	pg_flow_reconsider(flow, packet, reason, epoch, now);
	if (pg_is_metered())
		pg_reclassified(flow, pg_protocol(packet));
	else
		flow->counted = 0; /* at a meter that is gone */
	return 1;
}
