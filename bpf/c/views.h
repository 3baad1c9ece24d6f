/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The two entries of a flow through a service (abi.h, PG_FLOW_SERVICE): how each is known as the other's, remembered and
 * kept alive. `packet` has the service view's key, `behind` that of the flow behind it.
 */
#pragma once

#include "pick.h"
#include "translate.h"

/* The counterpart of a service view of a pod that picked itself: from the endpoint's side. */
static __always_inline int pg_is_counterpart(const struct pg_flow *flow,
					     const struct pg_packet *packet)
{
	struct pg_addr pod;

	pg_pod(packet, &pod);
	return (flow->flags & PG_FLOW_HAIRPIN) && flow->own_port == pg_peer_port(packet) &&
	       flow->other_port == pg_pod_port(packet) && !pg_addr_differs(&flow->other, &pod);
}

/* From the key of the flow behind a pod's service view to that of the counterpart, the endpoint's side towards the
 * service; and back. In place: a second packet does not fit on the stack. */
static __always_inline void pg_to_counterpart(struct pg_packet *behind)
{
	struct pg_addr endpoint;

	pg_peer(behind, &endpoint);
	pg_set_pod(behind, &endpoint);
	pg_set_peer(behind, &behind->service);
	pg_set_ports(behind, pg_peer_port(behind), pg_pod_port(behind));
}

static __always_inline void pg_from_counterpart(struct pg_packet *behind,
						const struct pg_packet *packet)
{
	struct pg_addr addr;

	pg_pod(behind, &addr);
	pg_set_peer(behind, &addr);
	pg_pod(packet, &addr);
	pg_set_pod(behind, &addr);
	pg_set_ports(behind, pg_peer_port(behind), pg_pod_port(behind));
}

/* Whether a flow is over for those who take part in it. One that was cut is, unless denials pass. */
static __always_inline int pg_has_ended(const struct pg_flow *flow)
{
	return flow->state == PG_FLOW_CLOSED ||
	       (flow->state == PG_FLOW_CUT && pg_mode() == PG_MODE_ENFORCE);
}

/* Whether the place of the other view is another live flow's. */
PG_VERIFIED_ALONE int pg_is_taken(__u32 is_hairpin)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *behind = pg_packet_in(PG_SLOT_BEHIND);
	struct pg_flow *flow;

	if (!packet || !behind)
		return 1;
	if (is_hairpin)
		pg_to_counterpart(behind);
	flow = pg_flow_find(behind);
	if (is_hairpin)
		pg_from_counterpart(behind, packet);
	if (!flow || pg_flow_expired(flow, pg_now()) || flow->owner != behind->owner)
		return 0;
	if (is_hairpin ? pg_is_counterpart(flow, packet) : pg_points_back(flow, packet))
		return 0;
	/* What has ended, or may not go on, makes room for a new connection. */
	return !(pg_is_opening(packet) && pg_has_ended(flow));
}

static __always_inline void pg_new_view(struct pg_flow *flow, const struct pg_packet *behind,
					__u32 epoch, __u32 state)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->epoch = epoch;
	flow->expires = pg_now() + pg_flow_lifetime(pg_protocol(behind), state);
	flow->owner = behind->owner;
	flow->rule = behind->rule;
	flow->state = state;
	if (behind->tcp_flags & PG_TCP_FIN)
		flow->flags |= pg_fin_of(PG_EGRESS);
}

/* Remembers the endpoint view, or the counterpart. Before the service view: a reply that overtakes it is
 * translated. */
PG_VERIFIED_ALONE int pg_remember_endpoint(__u32 epoch, __u32 state, __u32 is_hairpin)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *behind = pg_packet_in(PG_SLOT_BEHIND);
	struct pg_scratch *own = pg_scratch();
	struct pg_flow *flow, *before;

	if (!packet || !behind || !own)
		return -1;
	flow = &own->flow;
	pg_new_view(flow, behind, epoch, state);
	if (is_hairpin) {
		flow->direction = PG_INGRESS;
		flow->flags |= PG_FLOW_SERVICE | PG_FLOW_HAIRPIN;
		pg_pod(packet, &flow->other);
		flow->other_port = pg_pod_port(packet);
		flow->own_port = pg_peer_port(packet);
		pg_to_counterpart(behind);
		pg_flow_store(PG_SLOT_BEHIND, 0);
		pg_from_counterpart(behind, packet);
	} else {
		flow->direction = PG_EGRESS;
		flow->flags |= PG_FLOW_ENDPOINT;
		flow->other = behind->service;
		flow->other_port = pg_peer_port(packet);
		flow->own_port = pg_pod_port(packet);
		/* It goes on leading to what the pod sends directly. */
		before = pg_flow_find(behind);
		if (before && before->owner == flow->owner && before->direct_port) {
			flow->direct_port = before->direct_port;
			if ((__s32)(before->expires - flow->expires) > 0)
				flow->expires = before->expires;
		}
		pg_flow_store(PG_SLOT_BEHIND, 0);
		if (state != PG_FLOW_CUT)
			pg_expect_fragments(behind);
	}
	return 0;
}

/* Remembers the service view, and for a while the client's choice. */
PG_VERIFIED_ALONE int pg_remember_service(__u32 epoch, __u32 state, __u32 is_hairpin)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *behind = pg_packet_in(PG_SLOT_BEHIND);
	struct pg_scratch *own = pg_scratch();
	struct pg_flow *flow;

	if (!packet || !behind || !own)
		return -1;
	flow = &own->flow;
	pg_new_view(flow, behind, epoch, state);
	flow->direction = PG_EGRESS;
	flow->flags |= PG_FLOW_SERVICE | (is_hairpin ? PG_FLOW_HAIRPIN : 0);
	pg_peer(behind, &flow->other);
	flow->other_port = pg_peer_port(behind);
	flow->own_port = pg_pod_port(behind);
	pg_flow_store(PG_SLOT_PACKET, 0);
	if (behind->affinity && state != PG_FLOW_CUT) {
		struct pg_affinity_key key = { .service = behind->affinity };
		struct pg_affinity last = { .port = flow->other_port, .seen = pg_now() };

		pg_pod(packet, &key.client);
		last.addr = flow->other;
		bpf_map_update_elem(&affinity, &key, &last, BPF_ANY);
	}
	return 0;
}

/* The flow behind a service view: its key is the endpoint view's, or, of a pod that picked itself, still says
 * between which of its addresses. */
static __always_inline void pg_behind(struct pg_packet *behind, const struct pg_packet *packet,
				      const struct pg_view *view)
{
	pg_copy_to_behind(behind, packet);
	pg_peer(packet, &behind->service);
	behind->service_port = pg_peer_port(packet);
	pg_set_peer(behind, &view->other);
	pg_set_ports(behind, view->own_port, view->other_port);
}

/* The service view lives as long as the endpoint view, which the scratch has, also where only the endpoint speaks for
 * a while. */
PG_VERIFIED_ALONE int pg_extend_service(__u32 expires)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *behind = pg_packet_in(PG_SLOT_BEHIND);
	struct pg_scratch *own = pg_scratch();
	struct pg_flow *view;

	if (!packet || !behind || !own)
		return -1;
	pg_behind(behind, packet, &own->view);
	view = pg_flow_find(behind);
	if (view && ((view->flags & PG_FLOW_SERVICE) || view->direct_port))
		pg_flow_expires(view, expires);
	return 0;
}

/* Whether the endpoint of the view, which the scratch has too, may be kept. */
static __always_inline int pg_keeps_backend(const struct pg_packet *packet,
					    const struct pg_flow *view, const struct pg_flow *flow,
					    __u32 epoch)
{
	/* A SYN sent again stays: the endpoint that was sent the first may be answering. */
	if (pg_is_opening(packet))
		return !pg_has_ended(flow) && pg_backend_of(packet->slot) == PG_BACKEND_READY;
	return view->epoch == epoch || pg_protocol(packet) == PG_IPPROTO_TCP ||
	       pg_backend_of(packet->slot) != 0;
}
