/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Buckets, as virtual clocks. `next` is when a bucket has room again: a packet that comes earlier is refused or, where packets
 * can wait, departs then; any other moves it on by what the packet costs. So a packet that is larger than the room (GSO) passes
 * whole, and those after it wait for its end. A bucket that was not used keeps `burst` of the time.
 *
 * A stream whose packets were refused is silent until its retransmission timer ends, 200 ms where round trips are short, and
 * then sends as fast as ever. If the bucket forgot that time, a limit would give such a stream half its rate. So for a while
 * after a refusal it keeps more than its burst (PG_STALL). Who goes on sending finds no more room for it.
 */
#pragma once

#include "maps.h"
#include "wire.h"

#define PG_MS 1000000ULL
/* What a bucket keeps after it has refused a packet, and how long after: a retransmission timer, and some. */
#define PG_STALL (500 * PG_MS)
/* Packets that would wait longer than this to depart are marked (ECN). */
#define PG_QUEUE_TARGET (5 * PG_MS)
/* Packets that would wait longer than this are dropped, or than as long as two full GSO packets take. */
#define PG_QUEUE_MOST (50 * PG_MS)
#define PG_QUEUE_BYTES (2 * 65536)
/* The part of the bandwidth that flows may use of which nothing waits: one in so many. */
#define PG_SPARSE_SHARE 4

/* What becomes of a packet by one entry of `limits`. */
struct pg_charge {
	__u64 wait;   /* ns until it departs */
	__u32 reason; /* why it is refused; 0: it is not, and is charged */
	__u32 limit;  /* enum pg_limit, if it is refused */
	__u32 mark;   /* not 0: little room is left, or it waits long */
};

static __always_inline __u64 pg_cost(const struct pg_rate *rate, __u64 units)
{
	return (units * rate->cost) >> PG_RATE_SHIFT;
}

/* When a bucket has room, no longer ago than what it keeps. */
static __always_inline __u64 pg_bucket_next(__u64 next, __u64 keeps, __u64 now)
{
	__u64 oldest = now > keeps ? now - keeps : 0;

	return next > oldest ? next : oldest;
}

/* Charges a packet to the buckets of one entry of `limits`, unless one of them refuses it. `queue`: the packet's place in
 * pg_meter.departs, if the qdisc of the interface lets packets wait; a negative number: it does not. */
static __always_inline void pg_bucket_charge(const struct pg_limits *of, struct pg_meter *meter,
					     __u32 direction, const struct pg_wire *wire, __u64 now,
					     int queue, struct pg_charge *charge)
{
	const struct pg_rate *bytes = &of->rates[direction][PG_LIMIT_BANDWIDTH];
	const struct pg_rate *packets = &of->rates[direction][PG_LIMIT_PACKETS];
	__u64 bytes_cost = pg_cost(bytes, wire->bytes);
	__u64 packets_cost = pg_cost(packets, wire->packets);
	__u64 bytes_keeps = bytes->burst, packets_keeps = packets->burst;
	__u64 half = bytes->burst / 2, most = 0, wait = 0;
	__u64 bytes_next, packets_next, sparse_next;
	__u32 mark = 0, reason = 0, slot = queue & (PG_METER_QUEUES - 1);

	if (queue >= 0) {
		most = pg_cost(bytes, PG_QUEUE_BYTES);
		if (most < PG_QUEUE_MOST)
			most = PG_QUEUE_MOST;
	}
	bpf_spin_lock(&meter->lock);
	if (now - meter->refused_at[direction] < PG_STALL) {
		if (queue < 0 && bytes_keeps < PG_STALL)
			bytes_keeps = PG_STALL;
		if (packets_keeps < PG_STALL)
			packets_keeps = PG_STALL;
	}
	bytes_next = pg_bucket_next(meter->next[direction][PG_LIMIT_BANDWIDTH], bytes_keeps, now);
	packets_next = pg_bucket_next(meter->next[direction][PG_LIMIT_PACKETS], packets_keeps, now);
	if (bytes_cost && bytes_next > now)
		wait = bytes_next - now;
	if (wait && queue >= 0 && meter->departs[slot] <= now) {
		sparse_next = pg_bucket_next(meter->next_sparse[direction], bytes->burst, now);
		if (sparse_next <= now) {
			meter->next_sparse[direction] = sparse_next + bytes_cost * PG_SPARSE_SHARE;
			wait = 0;
		}
	}
	if (packets_cost && packets_next > now) {
		meter->refused[direction][PG_LIMIT_PACKETS] += wire->packets;
		reason = PG_DENY_PACKET_RATE;
	} else if (wait > most) {
		meter->refused[direction][PG_LIMIT_BANDWIDTH] += wire->packets;
		reason = PG_DENY_BANDWIDTH;
	}
	if (reason) {
		meter->refused_at[direction] = now;
	} else {
		meter->next[direction][PG_LIMIT_BANDWIDTH] = bytes_next + bytes_cost;
		meter->next[direction][PG_LIMIT_PACKETS] = packets_next + packets_cost;
		meter->passed[direction].packets += wire->packets;
		meter->passed[direction].bytes += wire->bytes;
		if (wait) {
			meter->departs[slot] = now + wait;
			meter->delayed[direction] += wire->packets;
		}
	}
	bpf_spin_unlock(&meter->lock);
	if (queue >= 0)
		mark = wait > PG_QUEUE_TARGET;
	else if (bytes_cost)
		mark = now - bytes_next < half;
	charge->wait = wait;
	charge->mark = mark;
	charge->reason = reason;
	charge->limit = reason == PG_DENY_BANDWIDTH ? PG_LIMIT_BANDWIDTH : PG_LIMIT_PACKETS;
}

/* Takes a charge back: another limit has refused the packet. */
static __always_inline void pg_bucket_refund(const struct pg_limits *of, struct pg_meter *meter,
					     __u32 direction, const struct pg_wire *wire)
{
	__u64 bytes_cost = pg_cost(&of->rates[direction][PG_LIMIT_BANDWIDTH], wire->bytes);
	__u64 packets_cost = pg_cost(&of->rates[direction][PG_LIMIT_PACKETS], wire->packets);

	bpf_spin_lock(&meter->lock);
	meter->next[direction][PG_LIMIT_BANDWIDTH] -= bytes_cost;
	meter->next[direction][PG_LIMIT_PACKETS] -= packets_cost;
	meter->passed[direction].packets -= wire->packets;
	meter->passed[direction].bytes -= wire->bytes;
	bpf_spin_unlock(&meter->lock);
}
