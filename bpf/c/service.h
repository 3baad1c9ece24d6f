/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services: a pod's packet to a service's address goes to one of its endpoints, and is judged as that.
 *
 * A flow through a service is two entries (abi.h, PG_FLOW_SERVICE): the service view says where the packets go and
 * is only good as long as the endpoint view, which is judged and tracked, points back at it. The choice is made once,
 * for a new flow; it is kept as long as the flow lives. What becomes of it when the endpoint goes away is up to the
 * protocol: UDP and SCTP move on with their next packet, a TCP connection ends when its ends end it, and a SYN on
 * it chooses anew: what kube-proxy does, which forgets the state of the first two. A connection of which nothing is
 * known is none of ours: whoever has translated it so far will go on to.
 *
 * A pod that picks itself: its kernel drops what comes back with its own source address, so the source becomes the
 * service's address too, and the packet is sent back through the interface that it came from. (pod:p to service:v)
 * becomes (service:q to pod:e) with q = p unless that is taken, and its answer, (pod:e to service:q), becomes
 * (service:v to pod:p). Both are service views of the same kind, each the other's counterpart, and what comes out is
 * the key of the counterpart: to_pod meets it and lets it pass.
 */
#pragma once

#include "again.h"
#include "conntrack.h"
#include "translate.h"
#include "verdict.h"

/* Not verdicts: what a packet's way leads to next. */
#define PG_PLAIN (-2)	/* no service has to do with it */
#define PG_STALE (-3)	/* its service view is no good any more: choose anew */
#define PG_ASK (-4)	/* a service has to do with it */
#define PG_HAIRPIN (-5) /* it is for pg_known_hairpin */
#define PG_SEND (-6)	/* it passes, translated as the view in the scratch says */

/* The first choices that clash try another endpoint, the others another port. */
#define PG_OTHER_ENDPOINTS 3
#define PG_ATTEMPTS 8

/* Among how many endpoints one is looked for that a connection had. */
#define PG_SEARCHED 8

static __always_inline int pg_has_ports(__u8 protocol)
{
	return protocol == PG_IPPROTO_TCP || protocol == PG_IPPROTO_UDP ||
	       protocol == PG_IPPROTO_SCTP;
}

static __always_inline struct pg_service *pg_service_find(const struct pg_packet *packet)
{
	if (packet->family == 4) {
		struct pg_service4_key key = {
			.addr = packet->key.v4.peer,
			.port = packet->key.v4.peer_port,
			.protocol = packet->key.v4.protocol,
		};

		return bpf_map_lookup_elem(&services4, &key);
	} else {
		struct pg_service6_key key = {
			.addr = packet->key.v6.peer,
			.port = packet->key.v6.peer_port,
			.protocol = packet->key.v6.protocol,
		};

		return bpf_map_lookup_elem(&services6, &key);
	}
}

/* enum pg_backend_state, or 0 if the service does not have it (any more). */
static __always_inline __u32 pg_backend_state_of(__u32 service, const struct pg_addr *addr,
						 __be16 port)
{
	struct pg_backend_key key = { .service = service, .addr = *addr, .port = port };
	struct pg_backend_value *found = bpf_map_lookup_elem(&backends, &key);

	return found ? found->state : 0;
}

/* The state of the endpoint at which the service view with the key of `packet` points. */
PG_VERIFIED_ALONE __u32 pg_backend_of(struct pg_packet *packet, struct pg_view *view)
{
	struct pg_service *service;

	if (!packet || !view)
		return 0;
	service = pg_service_find(packet);
	return service ? pg_backend_state_of(service->id, &view->other, view->other_port) : 0;
}

/* The endpoint that a client had last, if it is to have it again. */
static __always_inline int pg_affine(const struct pg_service *service, const struct pg_addr *client,
				     struct pg_backend *backend)
{
	struct pg_affinity_key key = { .service = service->id, .client = *client };
	struct pg_affinity *last = bpf_map_lookup_elem(&affinity, &key);

	if (!last || pg_now() - last->seen > service->affinity_seconds ||
	    pg_backend_state_of(service->id, &last->addr, last->port) != PG_BACKEND_READY)
		return 0;
	backend->addr = last->addr;
	backend->port = last->port;
	return 1;
}

/* Any endpoint. A slot that is not there (the service shrank between the two look-ups) asks the service again. */
static __always_inline int pg_any_backend(const struct pg_packet *packet,
					  struct pg_service *service, struct pg_backend *backend)
{
	struct pg_backend *found = NULL;
	int i;

	for (i = 0; i < 2 && service && service->count && !found; i++) {
		struct pg_slot_key key = { .service = service->id };

		key.slot = bpf_get_prandom_u32() % service->count;
		found = bpf_map_lookup_elem(&slots, &key);
		if (!found)
			service = pg_service_find(packet);
	}
	if (!found)
		return 0;
	*backend = *found;
	return 1;
}

/* A port out of the range that Linux takes for outgoing connections. */
static __always_inline __be16 pg_any_port(void)
{
	return bpf_htons(32768 + bpf_get_prandom_u32() % 28232);
}

/* A segment of a connection that was opened by other ones. */
static __always_inline int pg_is_under_way(const struct pg_packet *packet)
{
	return pg_protocol(packet) == PG_IPPROTO_TCP && !pg_is_opening(packet);
}

/* Whether an endpoint view is the other half of the service view with the key of `packet`. */
static __always_inline int pg_points_back(const struct pg_flow *flow, const struct pg_packet *packet)
{
	struct pg_addr service;

	pg_peer(packet, &service);
	return (flow->flags & PG_FLOW_ENDPOINT) && flow->own_port == pg_pod_port(packet) &&
	       flow->other_port == pg_peer_port(packet) && !pg_addr_differs(&flow->other, &service);
}

static __always_inline void pg_set_behind(struct pg_packet *behind, const struct pg_packet *packet,
					  const struct pg_backend *backend)
{
	*behind = *packet;
	pg_peer(packet, &behind->service);
	behind->service_port = pg_peer_port(packet);
	pg_set_peer(behind, &backend->addr);
	pg_set_ports(behind, pg_pod_port(packet), backend->port);
}

/* Whether the full map has forgotten the service view alone of the connection that `packet` belongs to: then makes
 * `behind` what it was. */
PG_VERIFIED_ALONE int pg_find_again(struct pg_packet *packet, struct pg_packet *behind)
{
	struct pg_service *service;
	struct pg_slot_key key;
	__u32 count, n;

	if (!packet || !behind)
		return 0;
	service = pg_service_find(packet);
	if (!service)
		return 0;
	key.service = service->id;
	count = service->count;
#pragma clang loop unroll(disable)
	for (n = 0; n < PG_SEARCHED; n++) {
		struct pg_backend *backend;
		struct pg_flow *flow;

		if (n >= count)
			break;
		key.slot = n;
		backend = bpf_map_lookup_elem(&slots, &key);
		if (!backend)
			break;
		pg_set_behind(behind, packet, backend);
		flow = pg_flow_find(behind);
		if (flow && pg_points_back(flow, packet))
			return 1;
	}
	return 0;
}

/* Makes `behind` the flow to one of the endpoints of the service that `packet` is for; 0 if there is none. In
 * later attempts `behind` is an earlier choice, which clashed. */
PG_VERIFIED_ALONE int pg_pick(struct pg_packet *packet, struct pg_packet *behind, __u32 attempt)
{
	struct pg_backend backend = {};
	struct pg_service *service;
	struct pg_addr client;
	int kept = 0;

	if (!packet || !behind)
		return 0;
	service = pg_service_find(packet);
	if (!service)
		return 0;
	pg_pod(packet, &client);
	if (attempt &&
	    (service->affinity_seconds || service->count == 1 || attempt > PG_OTHER_ENDPOINTS)) {
		pg_set_ports(behind, pg_any_port(), pg_peer_port(behind));
		return 1;
	}
	if (pg_is_under_way(packet))
		return !attempt && pg_find_again(packet, behind);
	if (service->affinity_seconds)
		kept = pg_affine(service, &client, &backend);
	if (!kept && !pg_any_backend(packet, service, &backend))
		return 0;
	pg_set_behind(behind, packet, &backend);
	behind->affinity = service->affinity_seconds ? service->id : 0;
	return 1;
}

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

/* Whether the place of the other view is another live flow's. */
PG_VERIFIED_ALONE int pg_is_taken(struct pg_packet *packet, struct pg_packet *behind,
				  __u32 is_hairpin)
{
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
	return !(pg_is_opening(packet) && flow->state >= PG_FLOW_CLOSED);
}

static __always_inline void pg_new_view(struct pg_flow *flow, const struct pg_packet *behind,
					__u32 epoch, __u32 state)
{
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
PG_VERIFIED_ALONE int pg_remember_endpoint(struct pg_packet *packet, struct pg_packet *behind,
					   __u32 epoch, __u32 state, __u32 is_hairpin)
{
	struct pg_flow flow = {};

	if (!packet || !behind)
		return -1;
	pg_new_view(&flow, behind, epoch, state);
	if (is_hairpin) {
		flow.direction = PG_INGRESS;
		flow.flags |= PG_FLOW_SERVICE | PG_FLOW_HAIRPIN;
		pg_pod(packet, &flow.other);
		flow.other_port = pg_pod_port(packet);
		flow.own_port = pg_peer_port(packet);
		pg_to_counterpart(behind);
		pg_flow_store(behind, &flow);
		pg_from_counterpart(behind, packet);
	} else {
		flow.direction = PG_EGRESS;
		flow.flags |= PG_FLOW_ENDPOINT;
		flow.other = behind->service;
		flow.other_port = pg_peer_port(packet);
		flow.own_port = pg_pod_port(packet);
		pg_flow_store(behind, &flow);
	}
	return 0;
}

/* Remembers the service view, and for a while the client's choice. */
PG_VERIFIED_ALONE int pg_remember_service(struct pg_packet *packet, struct pg_packet *behind,
					  __u32 epoch, __u32 state, __u32 is_hairpin)
{
	struct pg_flow flow = {};

	if (!packet || !behind)
		return -1;
	pg_new_view(&flow, behind, epoch, state);
	flow.direction = PG_EGRESS;
	flow.flags |= PG_FLOW_SERVICE | (is_hairpin ? PG_FLOW_HAIRPIN : 0);
	pg_peer(behind, &flow.other);
	flow.other_port = pg_peer_port(behind);
	flow.own_port = pg_pod_port(behind);
	pg_flow_store(packet, &flow);
	if (behind->affinity && state != PG_FLOW_CUT) {
		struct pg_affinity_key key = { .service = behind->affinity };
		struct pg_affinity last = { .port = flow.other_port, .seen = pg_now() };

		pg_pod(packet, &key.client);
		last.addr = flow.other;
		bpf_map_update_elem(&affinity, &key, &last, BPF_ANY);
	}
	return 0;
}

/* Where denials pass, they are translated all the same, and remembered as what they are: conntrack.h. */
static __always_inline __u32 pg_service_state(const struct pg_packet *packet, int reason)
{
	if (reason >= PG_DENY_FIRST)
		return PG_FLOW_CUT;
	return pg_is_under_way(packet) ? PG_FLOW_ESTABLISHED : PG_FLOW_NEW;
}

/* A packet from the pod that opens a flow to a service: choose, judge the choice, remember, rewrite. PG_PLAIN if
 * there is no such service. A choice that policy refuses is not made again: kube-proxy would not either. */
PG_VERIFIED_ALONE int pg_new_service(struct __sk_buff *skb, struct pg_packet *packet)
{
	struct pg_control *ctl = pg_control();
	__u32 epoch = ctl ? ctl->epoch : 0, attempt, state, hairpin = 0;
	struct pg_scratch *own = pg_scratch();
	int reason = PG_DENY_PORT_TAKEN;
	struct pg_packet *behind;

	if (!packet || !own)
		return PG_TC_DROP;
	behind = &own->behind;
	for (attempt = 0; attempt < PG_ATTEMPTS; attempt++) {
		if (!pg_pick(packet, behind, attempt))
			return PG_PLAIN;
		reason = pg_judge(skb, behind, PG_EGRESS, 0);
		/* It may be of a conversation from before, which somebody else translates: to another endpoint. */
		if (behind->watched && !pg_is_opening(packet))
			return PG_PLAIN;
		hairpin = reason == PG_ALLOW_OWN_ADDRESS;
		if (reason >= PG_DENY_FIRST || !pg_is_taken(packet, behind, hairpin))
			break;
		reason = PG_DENY_PORT_TAKEN;
	}
	if (reason == PG_DENY_PORT_TAKEN ||
	    (reason >= PG_DENY_FIRST && pg_mode() == PG_MODE_ENFORCE))
		return pg_deny(skb, behind, PG_EGRESS, reason);
	state = pg_service_state(packet, reason);
	pg_remember_endpoint(packet, behind, epoch, state, hairpin);
	pg_remember_service(packet, behind, epoch, state, hairpin);
	pg_peer(behind, &own->view.other);
	own->view.other_port = pg_peer_port(behind);
	own->view.own_port = pg_pod_port(behind);
	own->view.flags = hairpin ? PG_FLOW_HAIRPIN : 0;
	if (reason >= PG_DENY_FIRST)
		pg_deny(skb, behind, PG_EGRESS, reason);
	else
		pg_allow_new(skb, behind, PG_EGRESS, reason);
	return PG_SEND;
}

/* The flow behind a service view: its key is the endpoint view's, or, of a pod that picked itself, still says
 * between which of its addresses. */
static __always_inline void pg_behind(struct pg_packet *behind, const struct pg_packet *packet,
				      const struct pg_view *view)
{
	*behind = *packet;
	pg_peer(packet, &behind->service);
	behind->service_port = pg_peer_port(packet);
	pg_set_peer(behind, &view->other);
	pg_set_ports(behind, view->own_port, view->other_port);
}

/* Whether the view's endpoint may be kept. */
static __always_inline int pg_keeps_backend(struct pg_packet *packet, struct pg_view *backend,
					    const struct pg_flow *view, const struct pg_flow *flow,
					    __u32 epoch)
{
	/* A SYN sent again stays: the endpoint that was sent the first may be answering. */
	if (pg_is_opening(packet))
		return flow->state < PG_FLOW_CLOSED &&
		       pg_backend_of(packet, backend) == PG_BACKEND_READY;
	return view->epoch == epoch || pg_protocol(packet) == PG_IPPROTO_TCP ||
	       pg_backend_of(packet, backend) != 0;
}

/* A packet with the key of a service view of a pod that picked itself. Both views pass what is theirs; only the
 * pod's own packets are rewritten. */
PG_VERIFIED_ALONE int pg_known_hairpin(struct __sk_buff *skb, struct pg_packet *packet,
				       __u32 direction)
{
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	struct pg_scratch *own = pg_scratch();
	struct pg_packet *behind;
	struct pg_flow *view;
	int reason;

	if (!packet || !own)
		return PG_TC_DROP;
	behind = &own->behind;
	view = pg_flow_find(packet);
	if (!view || pg_flow_expired(view, now) || !(view->flags & PG_FLOW_HAIRPIN))
		return PG_STALE;
	pg_view_of(&own->view, view);
	if (direction == PG_EGRESS) {
		if (pg_is_opening(packet) && view->direction != PG_EGRESS)
			return PG_STALE;
		if (view->direction == PG_EGRESS &&
		    !pg_keeps_backend(packet, &own->view, view, view, epoch))
			return PG_STALE;
	}
	if (view->epoch != epoch) {
		/* Whoever opened it: a pod that reaches itself. */
		pg_behind(behind, packet, &own->view);
		reason = pg_judge(skb, behind, PG_EGRESS, PG_JUDGE_AGAIN);
		if (behind->owner != view->owner || reason != PG_ALLOW_OWN_ADDRESS)
			return PG_STALE;
		pg_note(PG_NOTE_JUDGED_AGAIN);
		view->epoch = epoch;
	}
	if (direction == PG_EGRESS) {
		struct pg_flow *counterpart;

		pg_behind(behind, packet, &own->view);
		pg_to_counterpart(behind);
		counterpart = pg_flow_find(behind);
		if (!counterpart || !pg_is_counterpart(counterpart, packet))
			return PG_STALE;
	}
	pg_flow_track(view, pg_protocol(packet), packet->tcp_flags, direction, now);
	if (direction == PG_INGRESS)
		return pg_allow(skb, direction, PG_ALLOW_FLOW);
	pg_count(skb, direction, PG_ALLOW_FLOW);
	return PG_SEND;
}

/* A packet with the key of a service view: from the pod it goes where the view says; PG_STALE if that is no good
 * any more, PG_HAIRPIN if the view is the other kind. To the pod it can only be somebody else's translation, under way since before this one. */
PG_VERIFIED_ALONE int pg_known_service(struct __sk_buff *skb, struct pg_packet *packet,
				       __u32 direction)
{
	struct pg_control *ctl = pg_control();
	__u32 now = pg_now(), epoch = ctl ? ctl->epoch : 0;
	struct pg_scratch *own = pg_scratch();
	struct pg_flow *view, *flow;
	struct pg_packet *behind;
	int action;

	if (!packet || !own)
		return PG_TC_DROP;
	behind = &own->behind;
	view = pg_flow_find(packet);
	if (!view || pg_flow_expired(view, now) || !(view->flags & PG_FLOW_SERVICE))
		return PG_STALE;
	if (view->flags & PG_FLOW_HAIRPIN)
		return PG_HAIRPIN;
	pg_view_of(&own->view, view);
	pg_behind(behind, packet, &own->view);
	flow = pg_flow_find(behind);
	if ((!flow || pg_flow_expired(flow, now)) && direction == PG_EGRESS &&
	    !pg_is_opening(packet) &&
	    (pg_is_under_way(packet) || pg_backend_of(packet, &own->view))) {
		/* The full map has forgotten the endpoint view alone: the choice was made. */
		__u32 reason = pg_judge(skb, behind, PG_EGRESS, PG_JUDGE_AGAIN);

		if (reason >= PG_DENY_FIRST && pg_mode() == PG_MODE_ENFORCE)
			return pg_deny(skb, behind, PG_EGRESS, reason);
		pg_remember_endpoint(packet, behind, epoch, pg_service_state(packet, reason), 0);
		flow = pg_flow_find(behind);
	}
	if (!flow || pg_flow_expired(flow, now) || !pg_points_back(flow, packet))
		return PG_STALE;
	if (direction == PG_EGRESS && !pg_keeps_backend(packet, &own->view, view, flow, epoch))
		return PG_STALE;
	if (!pg_refresh(skb, behind, flow, epoch, now))
		return PG_STALE;
	if (direction == PG_EGRESS)
		view->epoch = epoch;
	if (flow->state == PG_FLOW_CUT) {
		if (pg_protocol(packet) == PG_IPPROTO_TCP || pg_mode() != PG_MODE_ENFORCE)
			pg_flow_extend(flow, pg_protocol(packet), now);
		behind->rule = 0;
		behind->owner = flow->owner;
		action = pg_deny(skb, behind, direction, PG_DENY_POLICY);
		if (action == PG_TC_DROP || direction == PG_INGRESS)
			return action;
	} else {
		if (direction == PG_INGRESS)
			return pg_allow(skb, direction, PG_ALLOW_FLOW);
		pg_flow_track(flow, pg_protocol(packet), packet->tcp_flags, direction, now);
		pg_count(skb, direction, PG_ALLOW_FLOW);
	}
	if (view->expires != flow->expires)
		view->expires = flow->expires;
	return PG_SEND;
}

/* The service view lives as long as the endpoint view, also where only the endpoint speaks for a while. */
PG_VERIFIED_ALONE int pg_extend_service(struct pg_packet *packet, struct pg_view *endpoint,
					__u32 expires)
{
	struct pg_scratch *own = pg_scratch();
	struct pg_flow *view;

	if (!packet || !endpoint || !own)
		return -1;
	pg_behind(&own->behind, packet, endpoint);
	view = pg_flow_find(&own->behind);
	if (view && (view->flags & PG_FLOW_SERVICE))
		view->expires = expires;
	return 0;
}
