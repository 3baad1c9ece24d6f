/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Expectations: what a pod has asked for and what is not found by a flow's key. Fragments of an answer that arrive
 * before the one with the ports, and answers of a DHCP server whose address is not known yet. */
#pragma once

#include "clock.h"
#include "maps.h"
#include "packet.h"

/* For fragments: time since the pod's last new flow to the peer, or the last answer in order, coarse seconds. What
 * this allows is useless without the first fragment, which policy decides on. */
#define PG_EXPECT_FRAGMENTS_SECONDS 600
/* For DHCP: time since the pod's last request. Clients retry after 64 s at the latest (RFC 2131; RFC 8415: 120 s). */
#define PG_EXPECT_DHCP_SECONDS 64

static __always_inline void pg_expect_key(struct pg_expect_key *key, __u32 ifindex,
					  const struct pg_packet *packet, __u8 kind)
{
	key->ifindex = ifindex;
	key->kind = kind;
	if (kind == PG_EXPECT_DHCP) {
		/* Requests of each family have their own answers. */
		if (packet->family == 4)
			pg_map_addr4(&key->peer, 0);
		return;
	}
	pg_peer(packet, &key->peer);
	key->protocol = pg_protocol(packet);
}

static __always_inline __u32 pg_packet_ifindex(const struct pg_packet *packet)
{
	return packet->family == 4 ? packet->key.v4.ifindex : packet->key.v6.ifindex;
}

static __always_inline void pg_expect(const struct pg_packet *packet, __u8 kind, __u32 seconds)
{
	struct pg_expect_key key = {};
	struct pg_expect fresh = {};
	struct pg_expect *known;

	pg_expect_key(&key, pg_packet_ifindex(packet), packet, kind);
	fresh.owner = packet->owner;
	fresh.expires = pg_now() + seconds;
	if (packet->service_port)
		fresh.service = packet->service;
	known = bpf_map_lookup_elem(&expected, &key);
	/* Each DNS query is a flow: write only if something changes, at most once a second. */
	if (known && known->owner == fresh.owner && known->expires == fresh.expires &&
	    !pg_addr_differs(&known->service, &fresh.service))
		return;
	bpf_map_update_elem(&expected, &key, &fresh, BPF_ANY);
}

/* The pod has opened a flow to the packet's peer, which may answer in fragments. TCP does not: its segments fit the
 * path. */
static __always_inline void pg_expect_fragments(const struct pg_packet *packet)
{
	if (pg_protocol(packet) != PG_IPPROTO_TCP)
		pg_expect(packet, PG_EXPECT_FRAGMENTS, PG_EXPECT_FRAGMENTS_SECONDS);
}

static __always_inline struct pg_expect *pg_expect_find(const struct pg_packet *packet, __u8 kind)
{
	struct pg_expect_key key = {};
	struct pg_expect *found;

	pg_expect_key(&key, pg_packet_ifindex(packet), packet, kind);
	found = bpf_map_lookup_elem(&expected, &key);
	if (!found || found->owner != packet->owner || (__s32)(found->expires - pg_now()) < 0)
		return NULL;
	return found;
}
