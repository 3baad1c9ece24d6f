/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Space in the flow tables, which all pods of the node share. A pod's new flow never evicts a live flow of another pod.
 *
 * Each endpoint has a ring of slots per family, with the key of one of its flows in each. A new flow takes the slot
 * under the ring's hand if the flow there has expired; otherwise the ring grows by a slot, as long as it is smaller
 * than the free rest of the table; otherwise the flow evicts one of its own pod's. A ring of live flows grows by a few
 * slots between two looks (PG_GROW_STEPS).
 *
 * "Smaller than the free rest" is a limit that moves: a pod alone gets about half of the table, each of k pods that
 * want as much as they can get one part of k + 1, and one part stays free for the next pod. When other pods need space
 * the limit falls, and each new flow of a pod above it returns a slot. An eighth is kept out of this, for pods with few
 * flows.
 *
 * Slots follow flows, never the reverse: a flow is in the table before it has a slot, and out of it before its slot is
 * given to another. The CPU whose delete of the flow succeeds owns the slot: that decides between two CPUs that want
 * the same one. A race may leave a flow without a slot or a slot without a flow, one for each race; user space removes
 * them (bpf/src/flow_table_repair.rs).
 */
#pragma once

#include "clock.h"
#include "event.h"
#include "maps.h"
#include "open_count.h"
#include "packet.h"
#include "scratch.h"
#include "share.h"

/* Entries of the tables, IPv4 and IPv6. Set by the loader. */
const volatile __u32 pg_flow_table_sizes[2] SEC(".rodata.flows") = { 131072, 65536 };

/* How many slots are searched for a flow to evict. A flow that is not an open connection ends the search early. */
#define PG_EVICT_SCAN 8
#define PG_EVICT_SCAN_MIN 4

/* The longest time to the expiry of a flow that is not an open connection (pg_flow_lifetime), coarse seconds. */
#define PG_TRANSIENT_MAX 600

/* Added to the cost of a revoked flow: above that of every other flow, so that it is evicted last. */
#define PG_COST_REVOKED 0x80000000
#define PG_COST_MAX 0xffffffff

#define PG_EEXIST 17

/* Slots that an endpoint gets in any case, as long as the table is not full. */
#define PG_MIN_SLOTS 8

/* A ring whose hand has met live flows twice in a row grows by this many slots before it looks again, while it may
 * grow. A look costs several times what growing does, and a pod whose flows are all live would pay for one with each
 * new flow without ever reusing a slot. A single live flow among expired ones does not count, or the ring would grow
 * at each round of the hand. */
#define PG_GROW_STEPS 8

static __always_inline int pg_flow_expired(const struct pg_flow *flow, __u32 now)
{
	return (__s32)(flow->expires - now) < 0;
}

static __always_inline struct pg_flow *pg_entry_find(__u32 family, union pg_flow_key *key)
{
	if (family == 4)
		return bpf_map_lookup_elem(&flows4, &key->v4);
	return bpf_map_lookup_elem(&flows6, &key->v6);
}

static __always_inline long pg_entry_write(__u32 family, union pg_flow_key *key,
					   const struct pg_flow *flow, __u64 flags)
{
	if (family == 4)
		return bpf_map_update_elem(&flows4, &key->v4, flow, flags);
	return bpf_map_update_elem(&flows6, &key->v6, flow, flags);
}

static __always_inline long pg_entry_delete(__u32 family, union pg_flow_key *key)
{
	if (family == 4)
		return bpf_map_delete_elem(&flows4, &key->v4);
	return bpf_map_delete_elem(&flows6, &key->v6);
}

static __always_inline int pg_slot_read(__u32 family, const struct pg_flow_slot_key *at,
					union pg_flow_key *to)
{
	if (family == 4) {
		struct pg_flow4_key *found = bpf_map_lookup_elem(&flow_slots4, at);

		if (!found)
			return 0;
		to->v4 = *found;
	} else {
		struct pg_flow6_key *found = bpf_map_lookup_elem(&flow_slots6, at);

		if (!found)
			return 0;
		to->v6 = *found;
	}
	return 1;
}

static __always_inline long pg_slot_write(__u32 family, const struct pg_flow_slot_key *at,
					  const union pg_flow_key *key, __u64 flags)
{
	if (family == 4)
		return bpf_map_update_elem(&flow_slots4, at, &key->v4, flags);
	return bpf_map_update_elem(&flow_slots6, at, &key->v6, flags);
}

static __always_inline long pg_slot_delete(__u32 family, const struct pg_flow_slot_key *at)
{
	if (family == 4)
		return bpf_map_delete_elem(&flow_slots4, at);
	return bpf_map_delete_elem(&flow_slots6, at);
}

static __always_inline __u32 pg_ifindex_of(__u32 family, const union pg_flow_key *key)
{
	return family == 4 ? key->v4.ifindex : key->v6.ifindex;
}

static __always_inline int pg_key_differs(__u32 family, const union pg_flow_key *a,
					  const union pg_flow_key *b)
{
	const __u32 *x = (const void *)a, *y = (const void *)b;
	__u32 differs = (x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) |
			(x[4] ^ y[4]);

	if (family != 4)
		differs |= (x[5] ^ y[5]) | (x[6] ^ y[6]) | (x[7] ^ y[7]) | (x[8] ^ y[8]) |
			   (x[9] ^ y[9]) | (x[10] ^ y[10]);
	return differs != 0;
}

static __always_inline struct pg_ring *pg_ring_of(struct pg_share *share, __u32 family)
{
	return family == 4 ? &share->rings[0] : &share->rings[1];
}

static __always_inline struct pg_flow_use *pg_flow_use_of(__u32 family)
{
	__u32 index = family == 4 ? 0 : 1;

	return bpf_map_lookup_elem(&flow_use, &index);
}

/* How many slots a ring may have at this moment. */
static __always_inline __u32 pg_ring_limit(__u32 family, const struct pg_flow_use *use)
{
	__u32 size = family == 4 ? pg_flow_table_sizes[0] : pg_flow_table_sizes[1];
	/* The count may lag by as many slots as there are CPUs. */
	__u64 full = size - size / 32, shared = full - size / 8, few = size / 2048,
	      used = use->slots;

	if (used >= full)
		return 0;
	if (few < PG_MIN_SLOTS)
		few = PG_MIN_SLOTS;
	return used < shared && shared - used > few ? shared - used : few;
}

/* The cost of evicting a live flow: coarse seconds until it would expire by itself; 0 for a closed one. A revoked
 * flow is evicted last, as its connection may live on at its ends (conntrack.h). */
static __always_inline __u32 pg_eviction_cost(const struct pg_flow *flow, __u32 now)
{
	__u32 left = flow->expires - now + 1;

	if (flow->state == PG_FLOW_CLOSED)
		return 0;
	return flow->state == PG_FLOW_REVOKED ? left | PG_COST_REVOKED : left;
}

/* Removes a live flow of an endpoint and counts it as evicted. Not 0: it is gone already. */
static __always_inline long pg_entry_evict(const struct pg_scratch *scratch, __u32 family,
					   union pg_flow_key *key, struct pg_share *share,
					   __u32 cost)
{
	if (scratch->metered.on) {
		struct pg_flow *flow = pg_entry_find(family, key);

		if (flow)
			pg_uncount(flow);
	}
	if (pg_entry_delete(family, key))
		return -1;
	if (cost & PG_COST_REVOKED)
		share->cut_evicted = pg_now() ?: 1;
	if (cost) {
		__sync_fetch_and_add(&pg_ring_of(share, family)->evicted, 1);
		pg_stat_inc(PG_STAT_FLOW_EVICTED);
	}
	return 0;
}

/* Advances a ring's hand and takes the slot under it for the flow that the search is for, unless a live flow of the
 * endpoint has it; that one's key, cost and slot are then in the search. `at_last`: try the slot that was assigned
 * last instead. Returns 1 if the flow has the slot. */
PG_GLOBAL_FN int pg_slot_try(__u32 family, __u32 ifindex, __u32 owner, __u32 at_last)
{
	struct pg_share *share = pg_share_of(ifindex, owner);
	struct pg_flow_slot_key at = { .owner = owner };
	struct pg_scratch *scratch = pg_scratch();
	struct pg_slot_search *search;
	__u32 now = pg_now(), high;
	struct pg_ring *ring;
	struct pg_flow *flow;

	if (!share || !scratch)
		return 0;
	search = &scratch->search;
	search->occupant_cost = PG_COST_MAX;
	ring = pg_ring_of(share, family);
	bpf_spin_lock(&share->lock);
	high = ring->high;
	at.index = at_last ? ring->last : ring->hand;
	if (at.index >= high)
		at.index = 0;
	if (!at_last)
		ring->hand = at.index + 1;
	bpf_spin_unlock(&share->lock);
	search->high = high;
	search->index = at.index;
	if (!high)
		return 0;
	if (!pg_slot_read(family, &at, &search->occupant))
		return !pg_slot_write(family, &at, &search->key, BPF_NOEXIST);
	if (!pg_key_differs(family, &search->occupant, &search->key))
		return 1;
	/* Another interface's key: the slot was given to another ring at this moment. */
	if (pg_ifindex_of(family, &search->occupant) != ifindex)
		return 0;
	flow = pg_entry_find(family, &search->occupant);
	if (flow && flow->owner == owner) {
		if (!pg_flow_expired(flow, now)) {
			search->occupant_cost = pg_eviction_cost(flow, now);
			if (search->occupant_cost)
				ring->steps = ring->steps ? PG_GROW_STEPS + 1 : 1;
			return 0;
		}
		ring->steps = 0;
		pg_uncount(flow);
		return !pg_entry_delete(family, &search->occupant) &&
		       !pg_slot_write(family, &at, &search->key, BPF_ANY);
	}
	return !pg_slot_delete(family, &at) &&
	       !pg_slot_write(family, &at, &search->key, BPF_NOEXIST);
}

/* Grows the ring by a slot for the flow with `key`, if the limit allows. Returns 1 if the flow has the slot. */
static __always_inline int pg_ring_grow(__u32 family, struct pg_share *share, __u32 owner,
					const union pg_flow_key *key)
{
	struct pg_ring *ring = pg_ring_of(share, family);
	struct pg_flow_slot_key at = { .owner = owner };
	struct pg_flow_use *use = pg_flow_use_of(family);
	__u32 limit;
	int added;

	if (!use)
		return 0;
	limit = pg_ring_limit(family, use);
	if (ring->high >= limit)
		return 0;
	bpf_spin_lock(&share->lock);
	at.index = ring->high;
	added = at.index < limit;
	if (added) {
		ring->high = at.index + 1;
		ring->last = at.index;
		if (ring->steps > 1)
			ring->steps--;
	}
	bpf_spin_unlock(&share->lock);
	if (!added)
		return 0;
	__sync_fetch_and_add(&use->slots, 1);
	return !pg_slot_write(family, &at, key, BPF_NOEXIST);
}

/* pg_ring_grow for the flow that the search is for. */
PG_GLOBAL_FN int pg_slot_add(__u32 family, __u32 ifindex, __u32 owner)
{
	struct pg_share *share = pg_share_of(ifindex, owner);
	struct pg_scratch *scratch = pg_scratch();

	return share && scratch && pg_ring_grow(family, share, owner, &scratch->search.key);
}

/* Finds a slot for the flow that the search is for. Returns 0, or -1 if there is none. */
PG_GLOBAL_FN int pg_slot_find(__u32 family, __u32 ifindex, __u32 owner)
{
	struct pg_flow_slot_key victim = { .owner = owner };
	__u32 n, least = PG_COST_MAX;
	struct pg_scratch *scratch = pg_scratch();
	struct pg_slot_search *search;
	struct pg_share *share;

	if (!scratch)
		return -1;
	search = &scratch->search;
	if (pg_slot_try(family, ifindex, owner, 0) || pg_slot_add(family, ifindex, owner))
		return 0;
#pragma clang loop unroll(disable)
	for (n = 0; n < PG_EVICT_SCAN; n++) {
		if (search->occupant_cost < least) {
			least = search->occupant_cost;
			victim.index = search->index;
			search->victim = search->occupant;
		}
		if (n >= search->high || (n >= PG_EVICT_SCAN_MIN && least <= PG_TRANSIENT_MAX))
			break;
		if (pg_slot_try(family, ifindex, owner, 0))
			return 0;
	}
	/* All are open connections: first evict the flow that came last, if it is not one. Otherwise a flood of
	 * datagrams would evict one connection at each step of the hand through a row of them. */
	if (least > PG_TRANSIENT_MAX) {
		if (pg_slot_try(family, ifindex, owner, 1))
			return 0;
		if (search->occupant_cost <= PG_TRANSIENT_MAX) {
			least = search->occupant_cost;
			victim.index = search->index;
			search->victim = search->occupant;
		}
	}
	share = pg_share_of(ifindex, owner);
	if (!share || search->cost < least || least == PG_COST_MAX)
		return -1;
	if (pg_entry_evict(scratch, family, &search->victim, share, least))
		return -1;
	pg_ring_of(share, family)->last = victim.index;
	return pg_slot_write(family, &victim, &search->key, BPF_ANY) ? -1 : 0;
}

/* Shrinks a ring by its last slot; a flow in it gets another slot, or is evicted. `unless_live`: only if it has no
 * live flow. */
PG_GLOBAL_FN int pg_ring_shrink(__u32 family, __u32 ifindex, __u32 owner, __u32 unless_live)
{
	struct pg_share *share = pg_share_of(ifindex, owner);
	struct pg_flow_slot_key at = { .owner = owner };
	struct pg_flow_use *use = pg_flow_use_of(family);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_slot_search *search;
	__u32 now = pg_now(), high;
	struct pg_ring *ring;
	struct pg_flow *flow;
	int taken;

	if (!share || !scratch || !use)
		return 0;
	search = &scratch->search;
	ring = pg_ring_of(share, family);
	high = ring->high;
	if (!high)
		return 0;
	at.index = high - 1;
	if (!pg_slot_read(family, &at, &search->occupant) ||
	    pg_ifindex_of(family, &search->occupant) != ifindex)
		return 0;
	/* The flow that has just got its slot: it would be evicted before it has lived at all. */
	if (!pg_key_differs(family, &search->occupant, &search->key))
		return 0;
	search->key = search->occupant;
	flow = pg_entry_find(family, &search->key);
	if (flow && (flow->owner != owner || pg_flow_expired(flow, now))) {
		if (flow->owner == owner) {
			pg_uncount(flow);
			pg_entry_delete(family, &search->key);
		}
		flow = NULL;
	}
	if (flow && unless_live)
		return 0;
	bpf_spin_lock(&share->lock);
	taken = ring->high == high;
	if (taken)
		ring->high = high - 1;
	bpf_spin_unlock(&share->lock);
	if (!taken)
		return 0;
	__sync_fetch_and_add(&use->slots, -1);
	pg_slot_delete(family, &at);
	if (!flow)
		return 0;
	search->cost = pg_eviction_cost(flow, now);
	if (pg_slot_find(family, ifindex, owner))
		pg_entry_evict(scratch, family, &search->key, share, search->cost);
	return 0;
}

/* Writes the flow in the scratch space with the key of the packet in `slot`. `in_table`: it is in the table already
 * and only lacks a slot. It gets its slot after the packet (pg_opened_slots), as there is no stack left for that
 * here. Returns 0. */
PG_GLOBAL_FN int pg_flow_store(__u32 slot, __u32 in_table)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_scratch *scratch = pg_scratch();
	struct pg_opened *opened;
	struct pg_flow *known;
	long failed = 0;
	__u32 family;

	if (!packet || !scratch)
		return -1;
	family = packet->family == 4 ? 4 : 6;
	if (scratch->metered.on && !in_table) {
		scratch->flow.traffic_rule = scratch->metered.traffic_rule;
		scratch->flow.scope = scratch->metered.scope;
		scratch->flow.counted = scratch->metered.admitted && pg_is_countable(&scratch->flow);
	}
	if (!in_table)
		failed = pg_entry_write(family, &packet->key, &scratch->flow, BPF_NOEXIST);
	if (failed == -PG_EEXIST) {
		/* A flow that has ended, or begins again, keeps its slot. */
		known = pg_entry_find(family, &packet->key);
		if (known)
			pg_uncount(known);
		if (known && known->owner == scratch->flow.owner &&
		    !(known->flags & PG_FLOW_NO_SLOT) &&
		    !pg_entry_write(family, &packet->key, &scratch->flow, BPF_EXIST))
			return 0;
		/* An earlier endpoint's flow, or one that was removed at this moment. */
		pg_entry_delete(family, &packet->key);
		failed = pg_entry_write(family, &packet->key, &scratch->flow, BPF_NOEXIST);
	}
	opened = &scratch->opened[scratch->opened_count & (PG_OPENED_MOST - 1)];
	scratch->opened_count++;
	opened->key = packet->key;
	opened->owner = scratch->flow.owner;
	if (failed)
		opened->flow = scratch->flow;
	opened->family = family;
	opened->in_table = !failed;
	return 0;
}

/* The new flow is lost. */
static __always_inline void pg_opened_uncount(struct pg_opened *opened)
{
	struct pg_flow *flow = opened->in_table ? pg_entry_find(opened->family, &opened->key)
						: &opened->flow;

	if (flow)
		pg_uncount(flow);
}

/* Assigns a slot to a new flow. */
PG_GLOBAL_FN int pg_opened_slot(__u32 number)
{
	struct pg_scratch *scratch = pg_scratch();
	__u32 family, ifindex, owner, limit;
	struct pg_opened *opened;
	struct pg_flow_use *use;
	struct pg_share *share;
	struct pg_ring *ring;

	if (!scratch)
		return -1;
	opened = &scratch->opened[number & (PG_OPENED_MOST - 1)];
	family = opened->family;
	ifindex = pg_ifindex_of(family, &opened->key);
	owner = opened->owner;
	share = pg_share_of(ifindex, owner);
	if (!share)
		pg_share_open(ifindex, owner);
	/* The common case: the pod is far from its limit, and a look at its ring would not pay. */
	else if (opened->in_table && pg_ring_of(share, family)->steps > 1 &&
		 pg_ring_grow(family, share, owner, &opened->key))
		return 0;
	scratch->search.key = opened->key;
	scratch->search.cost = PG_COST_MAX;
	if (pg_slot_find(family, ifindex, owner) && pg_slot_find(family, ifindex, owner)) {
		pg_opened_uncount(opened);
		if (opened->in_table)
			pg_entry_delete(family, &opened->key);
		pg_stat_inc(PG_STAT_FLOW_LOST);
		return -1;
	}
	/* The table was full although the count said otherwise; by now the flow that had the slot is gone. */
	if (!opened->in_table && pg_entry_write(family, &opened->key, &opened->flow, BPF_NOEXIST)) {
		pg_opened_uncount(opened);
		pg_stat_inc(PG_STAT_FLOW_LOST);
	}
	share = pg_share_of(ifindex, owner);
	use = pg_flow_use_of(family);
	if (!share || !use)
		return 0;
	ring = pg_ring_of(share, family);
	limit = pg_ring_limit(family, use);
	/* Above the limit with the slot that is returned and without it; otherwise it would come back at once. */
	if (ring->high > limit + 1)
		pg_ring_shrink(family, ifindex, owner, 0);
	else if (!(ring->hand & 3))
		pg_ring_shrink(family, ifindex, owner, 1);
	return 0;
}

/* After a packet: assigns slots to the flows that it has opened. */
static __always_inline void pg_opened_slots(void)
{
	struct pg_scratch *scratch = pg_scratch();
	__u32 number;

	if (!scratch)
		return;
#pragma clang loop unroll(disable)
	for (number = 0; number < PG_OPENED_MOST; number++) {
		if (number >= scratch->opened_count)
			break;
		pg_opened_slot(number);
	}
}
