/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Telling user space about a verdict, within limits: each endpoint has its share of them. */
#pragma once

#include "clock.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"
#include "share.h"

static __always_inline void pg_note(__u32 note)
{
	__u32 slot = PG_NOTE_BASE + note;
	struct pg_counter *counter = bpf_map_lookup_elem(&counters, &slot);

	if (counter)
		counter->packets++;
}

/*
 * Each endpoint may tell so many events at once and so many more in each second, whatever the others do: the ring holds
 * as many of a hundred endpoints even if nobody reads it. What goes beyond that all have in common, and only as long as half
 * of the ring is free.
 */
#define PG_EVENT_BURST 100
#define PG_EVENT_RATE 16

static __always_inline int pg_takes_own_event(struct pg_share *share, __u32 now)
{
	__u32 passed, tokens;

	/* Without the lock: in a flood of denials the answer is nearly always no. */
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

static __always_inline int pg_takes_common_event(const struct pg_control *ctl, __u32 now)
{
	__u32 zero = 0;
	struct pg_limiter *limit = bpf_map_lookup_elem(&limiter, &zero);

	if (!limit)
		return 0;
	if (limit->second != now) {
		limit->second = now;
		limit->told = 0;
	}
	if (limit->told >= ctl->events_per_second ||
	    bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >
		    bpf_ringbuf_query(&events, BPF_RB_RING_SIZE) / 2)
		return 0;
	__sync_fetch_and_add(&limit->told, 1);
	return 1;
}

/* Called for denials and, where somebody listens, new flows: never for an established packet.
 * `outcome` is the reason, with the verdict in its second byte. */
PG_VERIFIED_ALONE int pg_tell(struct __sk_buff *skb, __u32 slot, __u32 direction, __u32 outcome)
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
	/* Also where nobody was judged, as with a later fragment. */
	share = bpf_map_lookup_elem(&shares, &ifindex);
	if (!ctl->events_per_second ||
	    (!(share && pg_takes_own_event(share, now)) && !pg_takes_common_event(ctl, now))) {
		if (share)
			__sync_fetch_and_add(&share->events_held, 1);
		pg_note(PG_NOTE_EVENT_LIMIT);
		return 0;
	}
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		pg_note(PG_NOTE_EVENT_LOST);
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
	event->reason = outcome & 0xff;
	event->verdict = outcome >> 8;
	event->family = packet->family;
	event->pad = 0;
	event->service_port = packet->service_port;
	event->service = packet->service;
	bpf_ringbuf_submit(event, 0);
	return 0;
}
