/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a pod has asked for and no flow's key can name: the fragments of an answer that come ahead of the one with the
 * ports, and the answers of a DHCP server that is not known yet.
 */
#pragma once

#include "clock.h"
#include "maps.h"
#include "packet.h"

/* Of a peer's datagrams, after the pod's last new flow to it or the last one in order, coarse seconds. What passes by it
 * is of no use without the first fragment, which is judged. */
#define PG_EXPECT_FRAGMENTS_SECONDS 600
/* Of DHCP, after the pod's last question. Clients ask again after 64 s at the latest (RFC 2131, 8415: 120 s). */
#define PG_EXPECT_DHCP_SECONDS 64

static __always_inline void pg_expect_key(struct pg_expect_key *key, __u32 ifindex,
					  const struct pg_packet *packet, __u8 kind)
{
	key->ifindex = ifindex;
	key->kind = kind;
	if (kind == PG_EXPECT_DHCP) {
		/* Each family's question has its own answers. */
		if (packet->family == 4)
			pg_map_addr4(&key->peer, 0);
		return;
	}
	pg_peer(packet, &key->peer);
	key->protocol = pg_protocol(packet);
}

static __always_inline __u32 pg_ifindex(const struct pg_packet *packet)
{
	return packet->family == 4 ? packet->key.v4.ifindex : packet->key.v6.ifindex;
}

static __always_inline void pg_expect(const struct pg_packet *packet, __u8 kind, __u32 seconds)
{
	struct pg_expect_key key = {};
	struct pg_expect fresh = {};
	struct pg_expect *known;

	pg_expect_key(&key, pg_ifindex(packet), packet, kind);
	fresh.owner = packet->owner;
	fresh.expires = pg_now() + seconds;
	if (packet->service_port)
		fresh.service = packet->service;
	known = bpf_map_lookup_elem(&expected, &key);
	/* Each look-up of a name is a flow: written when something moves, once a second at most. */
	if (known && known->owner == fresh.owner && known->expires == fresh.expires &&
	    !pg_addr_differs(&known->service, &fresh.service))
		return;
	bpf_map_update_elem(&expected, &key, &fresh, BPF_ANY);
}

/* The pod has opened a flow to the packet's peer, which may answer in fragments. TCP's segments are cut to fit. */
static __always_inline void pg_expect_fragments(const struct pg_packet *packet)
{
	if (pg_protocol(packet) != PG_IPPROTO_TCP)
		pg_expect(packet, PG_EXPECT_FRAGMENTS, PG_EXPECT_FRAGMENTS_SECONDS);
}

static __always_inline struct pg_expect *pg_is_expected(const struct pg_packet *packet, __u8 kind)
{
	struct pg_expect_key key = {};
	struct pg_expect *found;

	pg_expect_key(&key, pg_ifindex(packet), packet, kind);
	found = bpf_map_lookup_elem(&expected, &key);
	if (!found || found->owner != packet->owner || (__s32)(found->expires - pg_now()) < 0)
		return NULL;
	return found;
}
