/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Telling user space about a verdict, within a limit per CPU and second. */
#pragma once

#include "clock.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"

static __always_inline void pg_note(__u32 note)
{
	__u32 slot = PG_NOTE_BASE + note;
	struct pg_counter *counter = bpf_map_lookup_elem(&counters, &slot);

	if (counter)
		counter->packets++;
}

/* Called for denials and, where somebody listens, new flows: never for an established packet.
 * `outcome` is the reason, with the verdict in its second byte. */
PG_VERIFIED_ALONE int pg_tell(struct __sk_buff *skb, __u32 slot, __u32 direction, __u32 outcome)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_limiter *limit;
	struct pg_control *ctl;
	struct pg_event *event;
	__u32 zero = 0, now;

	if (!packet)
		return 0;
	limit = bpf_map_lookup_elem(&limiter, &zero);
	ctl = bpf_map_lookup_elem(&control, &zero);
	if (!limit || !ctl)
		return 0;
	now = pg_now();
	if (limit->second != now) {
		limit->second = now;
		limit->told = 0;
	}
	if (limit->told >= ctl->events_per_second) {
		pg_note(PG_NOTE_EVENT_LIMIT);
		return 0;
	}
	limit->told++;
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
