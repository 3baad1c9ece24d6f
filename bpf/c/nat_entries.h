/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The pair of entries of a flow through a service (abi.h, PG_FLOW_DNAT): how each is found from the other, written
 * and kept alive. `packet` has the DNAT entry's key, `xlated` the key after translation, which is the reverse-NAT
 * entry's. */
#pragma once

#include "lb.h"
#include "translate.h"

/* Whether `flow` is the other entry of a hairpin flow with the key of `packet`: the one keyed from the backend's
 * side. */
static __always_inline int pg_is_hairpin_pair(const struct pg_flow *flow,
					      const struct pg_packet *packet)
{
	struct pg_addr pod;

	pg_pod(packet, &pod);
	return (flow->flags & PG_FLOW_HAIRPIN) && flow->own_port == pg_peer_port(packet) &&
	       flow->other_port == pg_pod_port(packet) && !pg_addr_differs(&flow->other, &pod);
}

/* From the translated key of a hairpin flow to the key of its other entry, (backend, service), and back. In place,
 * as a second packet does not fit on the stack. */
static __always_inline void pg_to_hairpin_pair(struct pg_packet *xlated)
{
	struct pg_addr endpoint;

	pg_peer(xlated, &endpoint);
	pg_set_pod(xlated, &endpoint);
	pg_set_peer(xlated, &xlated->service);
	pg_set_ports(xlated, pg_peer_port(xlated), pg_pod_port(xlated));
}

static __always_inline void pg_from_hairpin_pair(struct pg_packet *xlated,
						 const struct pg_packet *packet)
{
	struct pg_addr addr;

	pg_pod(xlated, &addr);
	pg_set_peer(xlated, &addr);
	pg_pod(packet, &addr);
	pg_set_pod(xlated, &addr);
	pg_set_ports(xlated, pg_peer_port(xlated), pg_pod_port(xlated));
}

/* Whether a flow has ended for both ends. A revoked one has, while denials are enforced. */
static __always_inline int pg_flow_ended(const struct pg_flow *flow)
{
	return flow->state == PG_FLOW_CLOSED ||
	       (flow->state == PG_FLOW_REVOKED && pg_mode() == PG_MODE_ENFORCE);
}

/* Whether the tuple after translation is in use by another live flow of the pod. */
PG_GLOBAL_FN int pg_tuple_in_use(__u32 is_hairpin)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *xlated = pg_packet_in(PG_SLOT_XLATED);
	struct pg_flow *flow;

	if (!packet || !xlated)
		return 1;
	if (is_hairpin)
		pg_to_hairpin_pair(xlated);
	flow = pg_flow_find(xlated);
	if (is_hairpin)
		pg_from_hairpin_pair(xlated, packet);
	if (!flow || pg_flow_expired(flow, pg_now()) || flow->owner != xlated->owner)
		return 0;
	if (is_hairpin ? pg_is_hairpin_pair(flow, packet) : pg_nat_pair_matches(flow, packet))
		return 0;
	/* A flow that has ended, or is revoked, makes room for a new connection. */
	return !(pg_is_opening(packet) && pg_flow_ended(flow));
}

static __always_inline void pg_nat_entry_init(struct pg_flow *flow, const struct pg_packet *xlated,
					      __u32 epoch, __u32 state)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->epoch = epoch;
	flow->expires = pg_now() + pg_flow_lifetime(pg_protocol(xlated), state);
	flow->owner = xlated->owner;
	flow->rule = xlated->rule;
	flow->state = state;
	if (xlated->tcp_flags & PG_TCP_FIN)
		flow->flags |= pg_fin_of(PG_EGRESS);
}

/* Writes the reverse-NAT entry, or the second entry of a hairpin flow. Before the DNAT entry, so that a reply is
 * translated even if it arrives before that is written. */
PG_GLOBAL_FN int pg_revnat_insert(__u32 epoch, __u32 state, __u32 is_hairpin)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *xlated = pg_packet_in(PG_SLOT_XLATED);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_flow *flow, *before;

	if (!packet || !xlated || !scratch)
		return -1;
	flow = &scratch->flow;
	pg_nat_entry_init(flow, xlated, epoch, state);
	if (is_hairpin) {
		flow->direction = PG_INGRESS;
		flow->flags |= PG_FLOW_DNAT | PG_FLOW_HAIRPIN;
		pg_pod(packet, &flow->other);
		flow->other_port = pg_pod_port(packet);
		flow->own_port = pg_peer_port(packet);
		pg_to_hairpin_pair(xlated);
		pg_flow_store(PG_SLOT_XLATED, 0);
		pg_from_hairpin_pair(xlated, packet);
	} else {
		flow->direction = PG_EGRESS;
		flow->flags |= PG_FLOW_REVNAT;
		flow->other = xlated->service;
		flow->other_port = pg_peer_port(packet);
		flow->own_port = pg_pod_port(packet);
		/* Keep the port of what the pod sends to the backend directly (direct.h). */
		before = pg_flow_find(xlated);
		if (before && before->owner == flow->owner && before->direct_port) {
			flow->direct_port = before->direct_port;
			if ((__s32)(before->expires - flow->expires) > 0)
				flow->expires = before->expires;
		}
		pg_flow_store(PG_SLOT_XLATED, 0);
		if (state != PG_FLOW_REVOKED)
			pg_expect_fragments(xlated);
	}
	return 0;
}

/* Writes the DNAT entry and, with session affinity, the client's backend. */
PG_GLOBAL_FN int pg_dnat_insert(__u32 epoch, __u32 state, __u32 is_hairpin)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *xlated = pg_packet_in(PG_SLOT_XLATED);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_flow *flow;

	if (!packet || !xlated || !scratch)
		return -1;
	flow = &scratch->flow;
	pg_nat_entry_init(flow, xlated, epoch, state);
	flow->direction = PG_EGRESS;
	flow->flags |= PG_FLOW_DNAT | (is_hairpin ? PG_FLOW_HAIRPIN : 0);
	pg_peer(xlated, &flow->other);
	flow->other_port = pg_peer_port(xlated);
	flow->own_port = pg_pod_port(xlated);
	pg_flow_store(PG_SLOT_PACKET, 0);
	if (xlated->affinity && state != PG_FLOW_REVOKED) {
		struct pg_affinity_key key = { .service = xlated->affinity };
		struct pg_affinity last = { .port = flow->other_port, .seen = pg_now() };

		pg_pod(packet, &key.client);
		last.addr = flow->other;
		bpf_map_update_elem(&affinity, &key, &last, BPF_ANY);
	}
	return 0;
}

/* Makes `xlated` the packet with its key after translation by `nat`: that of the reverse-NAT entry, or of a hairpin
 * flow the addresses between which policy is evaluated. */
static __always_inline void pg_xlate_key(struct pg_packet *xlated, const struct pg_packet *packet,
					 const struct pg_nat *nat)
{
	pg_copy_to_xlated(xlated, packet);
	pg_peer(packet, &xlated->service);
	xlated->service_port = pg_peer_port(packet);
	pg_set_peer(xlated, &nat->other);
	pg_set_ports(xlated, nat->own_port, nat->other_port);
}

/* Gives the other entry of the pair whose NAT data is in the scratch space the same expiry, also while only the
 * backend sends. */
PG_GLOBAL_FN int pg_nat_extend_other(__u32 expires)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_packet *xlated = pg_packet_in(PG_SLOT_XLATED);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_flow *other;

	if (!packet || !xlated || !scratch)
		return -1;
	pg_xlate_key(xlated, packet, &scratch->nat);
	other = pg_flow_find(xlated);
	if (other && ((other->flags & PG_FLOW_DNAT) || other->direct_port))
		pg_flow_expires(other, expires);
	return 0;
}

/* Whether the flow may keep its backend, which is in the scratch space too. */
static __always_inline int pg_may_keep_backend(const struct pg_packet *packet,
					       const struct pg_flow *dnat,
					       const struct pg_flow *flow, __u32 epoch)
{
	/* A retransmitted SYN keeps its backend, which may have answered the first one already. */
	if (pg_is_opening(packet))
		return !pg_flow_ended(flow) &&
		       pg_nat_backend_state(packet->slot) == PG_BACKEND_READY;
	return dnat->epoch == epoch || pg_protocol(packet) == PG_IPPROTO_TCP ||
	       pg_nat_backend_state(packet->slot) != 0;
}
