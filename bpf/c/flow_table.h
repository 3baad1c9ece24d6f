/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Room in the flow tables, which all pods of the node share. No pod's new flow ever removes another pod's live one:
 *
 * Each endpoint has a ring of slots per family, each with the key of one of its flows. A new flow takes the slot under
 * the ring's hand if the flow there has expired; otherwise the ring grows by a slot, as long as it is smaller than what
 * is left of the table; otherwise the flow takes the place of one of its own pod's. A ring of live
 * flows grows by a few slots between two looks (PG_GROW_STEPS).
 *
 * "Smaller than what is left" is a limit that moves: a pod alone gets about half of the table, each of k that want as
 * much as they can get one part of k + 1, and one part stays free for whoever comes next. When others need room the limit
 * falls, and each new flow of a pod above it gives a slot back. An eighth is kept out of this, for pods with few flows.
 *
 * Slots follow flows, never the reverse: a flow is in the table before it has a slot, and out of it before its
 * slot is another's. Who removes a flow has its slot: of two CPUs that want the same one the delete tells which may.
 * What a race leaves behind (a flow without a slot, a slot without a flow) is bounded by it and mended by user space.
 */
#pragma once

#include "clock.h"
#include "event.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"
#include "share.h"

/* Entries of the tables; set by the loader. */
const volatile __u32 pg_flow_table_sizes[2] SEC(".rodata.flows") = { 131072, 65536 };

/* How many slots are looked at for the flow that goes. One that is no open connection ends the search early. */
#define PG_LOOKS 8
#define PG_FEW_LOOKS 4

/* The longest that the end of life of anything but an open connection is away (pg_flow_lifetime). */
#define PG_TRANSIENT 600

/* Above every flow's worth: a flow that goes last. */
#define PG_WORTH_CUT 0x80000000
#define PG_WORTH_MOST 0xffffffff

#define PG_EEXIST 17

/* Slots that an endpoint gets as long as there are any. */
#define PG_FEW_SLOTS 8

/* A ring that has met live flows under its hand twice in a row grows by so many slots before it looks again, as long as
 * it may grow. A look costs several times what growing does: with one for each new flow, a pod whose flows are all live
 * would pay for it without ever reusing a slot. One live flow among expired ones is no reason: the ring would grow by
 * that much each time that the hand meets it. */
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

static __always_inline struct pg_flow_use *pg_use_of(__u32 family)
{
	__u32 index = family == 4 ? 0 : 1;

	return bpf_map_lookup_elem(&flow_use, &index);
}

/* How many slots a ring may have at this moment. */
static __always_inline __u32 pg_limit(__u32 family, const struct pg_flow_use *use)
{
	__u32 size = family == 4 ? pg_flow_table_sizes[0] : pg_flow_table_sizes[1];
	/* What is counted may be behind what is taken by as many as there are CPUs. */
	__u64 full = size - size / 32, shared = full - size / 8, few = size / 2048,
	      used = use->slots;

	if (used >= full)
		return 0;
	if (few < PG_FEW_SLOTS)
		few = PG_FEW_SLOTS;
	return used < shared && shared - used > few ? shared - used : few;
}

/* What is lost with a live flow: coarse seconds until it would end by itself; 0 with one that has ended. A flow that
 * policy has revoked goes last, as the connection may live on at its ends (conntrack.h). */
static __always_inline __u32 pg_worth(const struct pg_flow *flow, __u32 now)
{
	__u32 left = flow->expires - now + 1;

	if (flow->state == PG_FLOW_CLOSED)
		return 0;
	return flow->state == PG_FLOW_CUT ? left | PG_WORTH_CUT : left;
}

/* Removes a live flow of an endpoint, and says so. Not 0: it is gone already. */
static __always_inline long pg_entry_evict(__u32 family, union pg_flow_key *key,
					   struct pg_share *share, __u32 worth)
{
	if (pg_entry_delete(family, key))
		return -1;
	if (worth & PG_WORTH_CUT)
		share->cut_evicted = pg_now() ?: 1;
	if (worth) {
		__sync_fetch_and_add(&pg_ring_of(share, family)->evicted, 1);
		pg_note(PG_NOTE_FLOW_EVICTED);
	}
	return 0;
}

/* Moves a ring's hand on, and takes the slot that it was at for the flow that is being placed, if no live flow of the
 * endpoint has it. If one has, leaves its key, worth and slot in the scratch. `at_last`: the slot that was given last,
 * in place of the hand's. */
PG_VERIFIED_ALONE int pg_try_slot(__u32 family, __u32 ifindex, __u32 owner, __u32 at_last)
{
	struct pg_share *share = pg_share_of(ifindex, owner);
	struct pg_flow_slot_key at = { .owner = owner };
	struct pg_scratch *own = pg_scratch();
	struct pg_placing *placing;
	__u32 now = pg_now(), high;
	struct pg_ring *ring;
	struct pg_flow *flow;

	if (!share || !own)
		return 0;
	placing = &own->placing;
	placing->met_worth = PG_WORTH_MOST;
	ring = pg_ring_of(share, family);
	bpf_spin_lock(&share->lock);
	high = ring->high;
	at.index = at_last ? ring->last : ring->hand;
	if (at.index >= high)
		at.index = 0;
	if (!at_last)
		ring->hand = at.index + 1;
	bpf_spin_unlock(&share->lock);
	placing->high = high;
	placing->index = at.index;
	if (!high)
		return 0;
	if (!pg_slot_read(family, &at, &placing->met))
		return !pg_slot_write(family, &at, &placing->key, BPF_NOEXIST);
	if (!pg_key_differs(family, &placing->met, &placing->key))
		return 1;
	/* Another interface's key: the slot was given to another ring in this moment. */
	if (pg_ifindex_of(family, &placing->met) != ifindex)
		return 0;
	flow = pg_entry_find(family, &placing->met);
	if (flow && flow->owner == owner) {
		if (!pg_flow_expired(flow, now)) {
			placing->met_worth = pg_worth(flow, now);
			if (placing->met_worth)
				ring->steps = ring->steps ? PG_GROW_STEPS + 1 : 1;
			return 0;
		}
		ring->steps = 0;
		return !pg_entry_delete(family, &placing->met) &&
		       !pg_slot_write(family, &at, &placing->key, BPF_ANY);
	}
	return !pg_slot_delete(family, &at) &&
	       !pg_slot_write(family, &at, &placing->key, BPF_NOEXIST);
}

/* Makes the ring larger by a slot for the flow with `key`, if it may be. Not 0: it has the slot. */
static __always_inline int pg_grow(__u32 family, struct pg_share *share, __u32 owner,
				   const union pg_flow_key *key)
{
	struct pg_ring *ring = pg_ring_of(share, family);
	struct pg_flow_slot_key at = { .owner = owner };
	struct pg_flow_use *use = pg_use_of(family);
	__u32 limit;
	int added;

	if (!use)
		return 0;
	limit = pg_limit(family, use);
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

/* The same for the flow that is being placed. */
PG_VERIFIED_ALONE int pg_add_slot(__u32 family, __u32 ifindex, __u32 owner)
{
	struct pg_share *share = pg_share_of(ifindex, owner);
	struct pg_scratch *own = pg_scratch();

	return share && own && pg_grow(family, share, owner, &own->placing.key);
}

/* Gives the flow whose key is in the scratch a slot. Not 0: it has none. */
PG_VERIFIED_ALONE int pg_place(__u32 family, __u32 ifindex, __u32 owner)
{
	struct pg_flow_slot_key victim = { .owner = owner };
	__u32 n, least = PG_WORTH_MOST;
	struct pg_scratch *own = pg_scratch();
	struct pg_placing *placing;
	struct pg_share *share;

	if (!own)
		return -1;
	placing = &own->placing;
	if (pg_try_slot(family, ifindex, owner, 0) || pg_add_slot(family, ifindex, owner))
		return 0;
#pragma clang loop unroll(disable)
	for (n = 0; n < PG_LOOKS; n++) {
		if (placing->met_worth < least) {
			least = placing->met_worth;
			victim.index = placing->index;
			placing->victim = placing->met;
		}
		if (n >= placing->high || (n >= PG_FEW_LOOKS && least <= PG_TRANSIENT))
			break;
		if (pg_try_slot(family, ifindex, owner, 0))
			return 0;
	}
	/* Open connections only: before one of them the flow that came last goes, if it is none. Else a flood of datagrams
	 * would take one connection at each step of the hand through a row of them. */
	if (least > PG_TRANSIENT) {
		if (pg_try_slot(family, ifindex, owner, 1))
			return 0;
		if (placing->met_worth <= PG_TRANSIENT) {
			least = placing->met_worth;
			victim.index = placing->index;
			placing->victim = placing->met;
		}
	}
	share = pg_share_of(ifindex, owner);
	if (!share || placing->worth < least || least == PG_WORTH_MOST)
		return -1;
	if (pg_entry_evict(family, &placing->victim, share, least))
		return -1;
	pg_ring_of(share, family)->last = victim.index;
	return pg_slot_write(family, &victim, &placing->key, BPF_ANY) ? -1 : 0;
}

/* Takes the last slot off a ring; a flow in it finds another place, or goes. With `unless_live`: only if there is none. */
PG_VERIFIED_ALONE int pg_give_back(__u32 family, __u32 ifindex, __u32 owner, __u32 unless_live)
{
	struct pg_share *share = pg_share_of(ifindex, owner);
	struct pg_flow_slot_key at = { .owner = owner };
	struct pg_flow_use *use = pg_use_of(family);
	struct pg_scratch *own = pg_scratch();
	struct pg_placing *placing;
	__u32 now = pg_now(), high;
	struct pg_ring *ring;
	struct pg_flow *flow;
	int taken;

	if (!share || !own || !use)
		return 0;
	placing = &own->placing;
	ring = pg_ring_of(share, family);
	high = ring->high;
	if (!high)
		return 0;
	at.index = high - 1;
	if (!pg_slot_read(family, &at, &placing->met) ||
	    pg_ifindex_of(family, &placing->met) != ifindex)
		return 0;
	/* The flow that has just been placed: it would go again before it has lived at all. */
	if (!pg_key_differs(family, &placing->met, &placing->key))
		return 0;
	placing->key = placing->met;
	flow = pg_entry_find(family, &placing->key);
	if (flow && (flow->owner != owner || pg_flow_expired(flow, now))) {
		if (flow->owner == owner)
			pg_entry_delete(family, &placing->key);
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
	placing->worth = pg_worth(flow, now);
	if (pg_place(family, ifindex, owner))
		pg_entry_evict(family, &placing->key, share, placing->worth);
	return 0;
}

/* Remembers the flow in the scratch under the key of the packet in `slot`. `is_there`: it is in the table already, and
 * lacks a slot only. Its slot it gets at the end (pg_place_flows): from here there is no stack left for it. */
PG_VERIFIED_ALONE int pg_flow_store(__u32 slot, __u32 is_there)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_scratch *own = pg_scratch();
	struct pg_opened *opened;
	struct pg_flow *known;
	long failed = 0;
	__u32 family;

	if (!packet || !own)
		return -1;
	family = packet->family == 4 ? 4 : 6;
	if (!is_there)
		failed = pg_entry_write(family, &packet->key, &own->flow, BPF_NOEXIST);
	if (failed == -PG_EEXIST) {
		/* One that has ended, or begins again: it keeps its slot. */
		known = pg_entry_find(family, &packet->key);
		if (known && known->owner == own->flow.owner && !(known->flags & PG_FLOW_UNPLACED) &&
		    !pg_entry_write(family, &packet->key, &own->flow, BPF_EXIST))
			return 0;
		/* An earlier endpoint's, or removed in this moment. */
		pg_entry_delete(family, &packet->key);
		failed = pg_entry_write(family, &packet->key, &own->flow, BPF_NOEXIST);
	}
	opened = &own->opened[own->opened_count & (PG_OPENED_MOST - 1)];
	own->opened_count++;
	opened->key = packet->key;
	opened->owner = own->flow.owner;
	if (failed)
		opened->flow = own->flow;
	opened->family = family;
	opened->is_there = !failed;
	return 0;
}

/* An opened flow's slot. */
PG_VERIFIED_ALONE int pg_place_flow(__u32 number)
{
	struct pg_scratch *own = pg_scratch();
	__u32 family, ifindex, owner, limit;
	struct pg_opened *opened;
	struct pg_flow_use *use;
	struct pg_share *share;
	struct pg_ring *ring;

	if (!own)
		return -1;
	opened = &own->opened[number & (PG_OPENED_MOST - 1)];
	family = opened->family;
	ifindex = pg_ifindex_of(family, &opened->key);
	owner = opened->owner;
	share = pg_share_of(ifindex, owner);
	if (!share)
		pg_share_open(ifindex, owner);
	/* Most new flows: the pod is far from its limit, and a look at its ring would not pay. */
	else if (opened->is_there && pg_ring_of(share, family)->steps > 1 &&
		 pg_grow(family, share, owner, &opened->key))
		return 0;
	own->placing.key = opened->key;
	own->placing.worth = PG_WORTH_MOST;
	if (pg_place(family, ifindex, owner) && pg_place(family, ifindex, owner)) {
		if (opened->is_there)
			pg_entry_delete(family, &opened->key);
		pg_note(PG_NOTE_FLOW_LOST);
		return -1;
	}
	/* The table was full, which what is counted did not say: the flow that had the slot has made room. */
	if (!opened->is_there && pg_entry_write(family, &opened->key, &opened->flow, BPF_NOEXIST))
		pg_note(PG_NOTE_FLOW_LOST);
	share = pg_share_of(ifindex, owner);
	use = pg_use_of(family);
	if (!share || !use)
		return 0;
	ring = pg_ring_of(share, family);
	limit = pg_limit(family, use);
	/* Above the limit with the slot that goes, and without it: else it would come back at once. */
	if (ring->high > limit + 1)
		pg_give_back(family, ifindex, owner, 0);
	else if (!(ring->hand & 3))
		pg_give_back(family, ifindex, owner, 1);
	return 0;
}

/* After a packet: the flows that it has opened get their slots. */
static __always_inline void pg_place_flows(void)
{
	struct pg_scratch *own = pg_scratch();
	__u32 number;

	if (!own)
		return;
#pragma clang loop unroll(disable)
	for (number = 0; number < PG_OPENED_MOST; number++) {
		if (number >= own->opened_count)
			break;
		pg_place_flow(number);
	}
}
