/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Events to user space, rate-limited: each endpoint has a share of its own. */
#pragma once

#include "clock.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"
#include "share.h"

static __always_inline void pg_stat_inc(__u32 stat)
{
	__u32 slot = PG_STAT_BASE + stat;
	struct pg_counter *counter = bpf_map_lookup_elem(&counters, &slot);

	if (counter)
		counter->packets++;
}

/* Each endpoint has a burst of events and a rate at which it refills, whatever the others do: the ring holds the
 * bursts of a hundred endpoints even if nothing reads it. Beyond that, all endpoints share one limit, as long as
 * half of the ring is free. */
#define PG_EVENT_BURST 100
#define PG_EVENT_RATE 16

static __always_inline int pg_take_endpoint_token(struct pg_share *share, __u32 now)
{
	__u32 passed, tokens;

	/* Without the lock, as in a flood of denials there is nearly always no token. */
	if (share->event_second == now && !share->event_tokens)
		return 0;
	bpf_spin_lock(&share->lock);
	passed = now - share->event_second;
	tokens = share->event_tokens;
	if (passed) {
		tokens = passed > PG_EVENT_BURST / PG_EVENT_RATE ? PG_EVENT_BURST
								 : tokens + passed * PG_EVENT_RATE;
		if (tokens > PG_EVENT_BURST)
			tokens = PG_EVENT_BURST;
		share->event_second = now;
	}
	share->event_tokens = tokens ? tokens - 1 : 0;
	bpf_spin_unlock(&share->lock);
	return tokens != 0;
}

static __always_inline int pg_take_shared_token(const struct pg_control *ctl, __u32 now)
{
	__u32 zero = 0;
	struct pg_limiter *limit = bpf_map_lookup_elem(&limiter, &zero);

	if (!limit)
		return 0;
	if (limit->second != now) {
		limit->second = now;
		limit->emitted = 0;
	}
	if (limit->emitted >= ctl->events_per_second ||
	    bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >
		    bpf_ringbuf_query(&events, BPF_RB_RING_SIZE) / 2)
		return 0;
	__sync_fetch_and_add(&limit->emitted, 1);
	return 1;
}

/* Called for drops and denials, for new flows where user space or the entry that decides wants those, and for known flows that
 * an audited rule begins to decide; never for any other packet of a known flow.
 * `reason_and_verdict`: the reason, with enum pg_verdict in the second byte. Returns 0. */
PG_GLOBAL_FN int pg_event_emit(struct __sk_buff *skb, __u32 slot, __u32 direction,
			       __u32 reason_and_verdict)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_share *share;
	struct pg_control *ctl;
	struct pg_event *event;
	__u32 zero = 0, now, ifindex = skb->ifindex;

	if (!packet)
		return 0;
	ctl = bpf_map_lookup_elem(&control, &zero);
	if (!ctl)
		return 0;
	now = pg_now();
	/* Also for packets whose policy was not evaluated, such as a later fragment. */
	share = bpf_map_lookup_elem(&shares, &ifindex);
	/* The shared limit is 0 where events are switched off, so that what an entry asks for has only the endpoint's own
	 * tokens then. */
	if ((!ctl->events_per_second && !packet->logged) ||
	    (!(share && pg_take_endpoint_token(share, now)) && !pg_take_shared_token(ctl, now))) {
		if (share)
			__sync_fetch_and_add(&share->events_held, 1);
		pg_stat_inc(PG_STAT_EVENT_LIMIT);
		return 0;
	}
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		pg_stat_inc(PG_STAT_EVENT_LOST);
		return 0;
	}
	event->time = bpf_ktime_get_ns();
	event->ifindex = skb->ifindex;
	event->owner = packet->owner;
	event->rule = packet->rule;
	event->peer_class = packet->class;
	event->length = skb->len;
	if (packet->family == 6) {
		event->pod = packet->key.v6.pod;
		event->peer = packet->key.v6.peer;
		event->pod_port = packet->key.v6.pod_port;
		event->peer_port = packet->key.v6.peer_port;
		event->protocol = packet->key.v6.protocol;
	} else {
		pg_map_addr4(&event->pod, packet->key.v4.pod);
		pg_map_addr4(&event->peer, packet->key.v4.peer);
		event->pod_port = packet->key.v4.pod_port;
		event->peer_port = packet->key.v4.peer_port;
		event->protocol = packet->key.v4.protocol;
	}
	event->direction = direction;
	event->reason = reason_and_verdict & 0xff;
	event->verdict = reason_and_verdict >> 8;
	event->family = packet->family;
	event->flags = packet->logged ? PG_EVENT_LOGGED : 0;
	event->service_port = packet->service_port;
	event->service = packet->service;
	bpf_ringbuf_submit(event, 0);
	return 0;
}
