/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Load balancing: which backend of a service a new flow gets, and which one a known flow has. */
#pragma once

#include "clock.h"
#include "conntrack.h"

/* On a clash of tuples the first attempts select another backend, the others another source port. */
#define PG_BACKEND_ATTEMPTS 3
#define PG_LB_ATTEMPTS 8

/* How many backends are searched for the one that a connection had. */
#define PG_RECOVER_SCAN 8

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

/* Returns enum pg_backend_state, or 0 if the service does not have this backend any more. */
static __always_inline __u32 pg_backend_lookup(__u32 service, const struct pg_addr *addr,
					       __be16 port)
{
	struct pg_backend_key key = { .service = service, .addr = *addr, .port = port };
	struct pg_backend_value *found = bpf_map_lookup_elem(&backends, &key);

	return found ? found->state : 0;
}

/* The state of the backend in the scratch space's NAT data, as a backend of the service to which the packet in
 * `slot` goes. Returns enum pg_backend_state, or 0. */
PG_GLOBAL_FN __u32 pg_nat_backend_state(__u32 slot)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_service *service;

	if (!packet || !scratch)
		return 0;
	service = pg_service_find(packet);
	if (!service)
		return 0;
	return pg_backend_lookup(service->id, &scratch->nat.other, scratch->nat.other_port);
}

/* The number under which the backends of a service's clients are remembered. */
static __always_inline __u32 pg_affinity_number(const struct pg_service *service)
{
	return service->affinity ? service->affinity : service->id;
}

/* The backend that session affinity gives the client. Returns 0 if it has none, or one that is not ready here: another
 * address of the service may have other backends. */
static __always_inline int pg_affinity_backend(const struct pg_service *service,
					       const struct pg_addr *client,
					       struct pg_backend *backend)
{
	struct pg_affinity_key key = { .service = pg_affinity_number(service), .client = *client };
	struct pg_affinity *last = bpf_map_lookup_elem(&affinity, &key);

	if (!last || pg_now() - last->seen > service->affinity_seconds ||
	    pg_backend_lookup(service->id, &last->addr, last->port) != PG_BACKEND_READY)
		return 0;
	backend->addr = last->addr;
	backend->port = last->port;
	return 1;
}

/* A random backend. If the slot is gone because the service shrank between the two look-ups, the service is read
 * once more. */
static __always_inline int pg_random_backend(const struct pg_packet *packet,
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

/* A random port of the range that Linux uses for outgoing connections, in network order. */
static __always_inline __be16 pg_random_port(void)
{
	return bpf_htons(32768 + bpf_get_prandom_u32() % 28232);
}

/* A TCP segment other than a connection's SYN. */
static __always_inline int pg_is_midstream(const struct pg_packet *packet)
{
	return pg_protocol(packet) == PG_IPPROTO_TCP && !pg_is_opening(packet);
}

/* Whether `flow` is the reverse-NAT entry of the DNAT entry with the key of `packet`. */
static __always_inline int pg_nat_pair_matches(const struct pg_flow *flow,
					       const struct pg_packet *packet)
{
	struct pg_addr service;

	pg_peer(packet, &service);
	return (flow->flags & PG_FLOW_REVNAT) && flow->own_port == pg_pod_port(packet) &&
	       flow->other_port == pg_peer_port(packet) && !pg_addr_differs(&flow->other, &service);
}

static __always_inline void pg_xlate_to_backend(struct pg_packet *xlated,
						const struct pg_packet *packet,
						const struct pg_backend *backend)
{
	pg_copy_to_xlated(xlated, packet);
	pg_peer(packet, &xlated->service);
	xlated->service_port = pg_peer_port(packet);
	pg_set_peer(xlated, &backend->addr);
	pg_set_ports(xlated, pg_pod_port(packet), backend->port);
}

/* For a mid-stream segment whose DNAT entry alone was evicted: finds the backend by its reverse-NAT entry and makes
 * `xlated` the packet with that key. Returns 0 if there is none. */
PG_GLOBAL_FN int pg_recover_backend(void)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *xlated = pg_packet_in(PG_SLOT_XLATED);
	struct pg_service *service;
	struct pg_slot_key key;
	__u32 count, n;

	if (!packet || !xlated)
		return 0;
	service = pg_service_find(packet);
	if (!service)
		return 0;
	key.service = service->id;
	count = service->count;
#pragma clang loop unroll(disable)
	for (n = 0; n < PG_RECOVER_SCAN; n++) {
		struct pg_backend *backend;
		struct pg_flow *flow;

		if (n >= count)
			break;
		key.slot = n;
		backend = bpf_map_lookup_elem(&slots, &key);
		if (!backend)
			break;
		pg_xlate_to_backend(xlated, packet, backend);
		flow = pg_flow_find(xlated);
		if (flow && pg_nat_pair_matches(flow, packet))
			return 1;
	}
	return 0;
}

/* Selects a backend of the service to which `packet` goes and makes `xlated` the packet with that key. From the
 * second attempt on `xlated` is the previous selection, whose tuple was in use. Returns 0 if there is no backend. */
PG_GLOBAL_FN int pg_select_backend(__u32 attempt)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *xlated = pg_packet_in(PG_SLOT_XLATED);
	struct pg_backend backend = {};
	struct pg_service *service;
	struct pg_addr client;
	int kept = 0;

	if (!packet || !xlated)
		return 0;
	service = pg_service_find(packet);
	if (!service)
		return 0;
	pg_pod(packet, &client);
	if (attempt &&
	    (service->affinity_seconds || service->count == 1 || attempt > PG_BACKEND_ATTEMPTS)) {
		pg_set_ports(xlated, pg_random_port(), pg_peer_port(xlated));
		return 1;
	}
	if (pg_is_midstream(packet))
		return !attempt && pg_recover_backend();
	if (service->affinity_seconds)
		kept = pg_affinity_backend(service, &client, &backend);
	if (!kept && !pg_random_backend(packet, service, &backend))
		return 0;
	pg_xlate_to_backend(xlated, packet, &backend);
	xlated->affinity = service->affinity_seconds ? pg_affinity_number(service) : 0;
	return 1;
}
