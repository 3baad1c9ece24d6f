/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which endpoint of a service a new flow gets, and which one a known flow has. */
#pragma once

#include "clock.h"
#include "conntrack.h"

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

/* The state (enum pg_backend_state, or 0) of the endpoint at which the view in the scratch points, of the service that
 * the packet in `slot` is for. */
PG_VERIFIED_ALONE __u32 pg_backend_of(__u32 slot)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_scratch *own = pg_scratch();
	struct pg_service *service;

	if (!packet || !own)
		return 0;
	service = pg_service_find(packet);
	if (!service)
		return 0;
	return pg_backend_state_of(service->id, &own->view.other, own->view.other_port);
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
	pg_copy_to_behind(behind, packet);
	pg_peer(packet, &behind->service);
	behind->service_port = pg_peer_port(packet);
	pg_set_peer(behind, &backend->addr);
	pg_set_ports(behind, pg_pod_port(packet), backend->port);
}

/* Whether the full map has forgotten the service view alone of the connection that `packet` belongs to: then makes
 * `behind` what it was. */
PG_VERIFIED_ALONE int pg_find_again(void)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *behind = pg_packet_in(PG_SLOT_BEHIND);
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
PG_VERIFIED_ALONE int pg_pick(__u32 attempt)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *behind = pg_packet_in(PG_SLOT_BEHIND);
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
		return !attempt && pg_find_again();
	if (service->affinity_seconds)
		kept = pg_affine(service, &client, &backend);
	if (!kept && !pg_any_backend(packet, service, &backend))
		return 0;
	pg_set_behind(behind, packet, &backend);
	behind->affinity = service->affinity_seconds ? service->id : 0;
	return 1;
}
