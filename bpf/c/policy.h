/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Judging a flow by its first packet's direction: endpoint, exceptions, class of the peer, the pod's table. */
#pragma once

#include "handover.h"
#include "maps.h"
#include "origin.h"
#include "packet.h"
#include "scratch.h"

enum pg_judge_flag {
	PG_JUDGE_AGAIN = 1,	/* the flow was allowed once: who sent its first packet is known */
	PG_JUDGE_OWN_NODE = 2,	/* with AGAIN: that was the pod's own node */
	PG_JUDGE_SOME_PORT = 4, /* a fragment without ports */
	PG_JUDGE_WITHOUT_PEER = 8, /* nothing is known of the packet: only "everything" allows it */
};

/* Unused slots hold 0.0.0.0, which is nobody's address. */
static __always_inline int pg_is_own4(const struct pg_endpoint *endpoint, __be32 addr)
{
	const __be32 *own = endpoint->addr4;

	return addr != 0 && (addr == own[0] || addr == own[1] || addr == own[2] || addr == own[3]);
}

static __always_inline int pg_is_own6(const struct pg_endpoint *endpoint, const struct pg_addr *addr)
{
	int i;

	for (i = 0; i < PG_ENDPOINT_ADDRS; i++) {
		if (i < endpoint->addr6_count && !pg_addr_differs(&endpoint->addr6[i], addr))
			return 1;
	}
	return 0;
}

static __always_inline int pg_is_own(const struct pg_endpoint *endpoint,
				     const struct pg_packet *packet, int the_peer)
{
	if (packet->family == 4)
		return pg_is_own4(endpoint, the_peer ? packet->key.v4.peer : packet->key.v4.pod);
	return pg_is_own6(endpoint, the_peer ? &packet->key.v6.peer : &packet->key.v6.pod);
}

static __always_inline int pg_is_node_addr(const struct pg_addr *addr)
{
	struct pg_node_key key = { .prefixlen = 128, .addr = *addr };

	return bpf_map_lookup_elem(&node_addrs, &key) != NULL;
}

static __always_inline int pg_is_node(const struct pg_packet *packet)
{
	struct pg_addr addr;

	pg_peer(packet, &addr);
	return pg_is_node_addr(&addr);
}

/*
 * Whether a link-local address may be the pod's, none of which is registered: interfaces give themselves theirs. One
 * that is made of a hardware address (RFC 4291, appendix A) has to be made of the pod's. Of others only the node's are
 * known not to be.
 */
static __always_inline int pg_is_own_link_local(const struct pg_endpoint *endpoint,
						const struct pg_addr *addr)
{
	const __u8 *mac = endpoint->mac, *id = addr->bytes + 8;

	if (pg_is_node_addr(addr))
		return 0;
	if (id[3] != 0xff || id[4] != 0xfe || !(mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5]))
		return 1;
	return !((id[0] ^ 2 ^ mac[0]) | (id[1] ^ mac[1]) | (id[2] ^ mac[2]) | (id[5] ^ mac[3]) |
		 (id[6] ^ mac[4]) | (id[7] ^ mac[5]));
}

/* Registered, or a link-local one that it may have. */
static __always_inline int pg_is_pods6(const struct pg_endpoint *endpoint,
				       const struct pg_addr *addr)
{
	if (pg_is_link_local(addr))
		return pg_is_own_link_local(endpoint, addr);
	return pg_is_own6(endpoint, addr);
}

/* Whether the pod sends in another's name. Also asked of packets that cannot be parsed, whose addresses are known all
 * the same, and of flows judged again: what audit mode let pass must not be a flow of this pod later. */
static __always_inline int pg_is_spoofed(const struct pg_endpoint *endpoint,
					 const struct pg_packet *packet)
{
	if (packet->family == 4)
		return !pg_is_own4(endpoint, packet->key.v4.pod);
	return packet->family == 6 && !pg_is_pods6(endpoint, &packet->key.v6.pod);
}

/* Whether the address in the pod's place is a group's, or that of everyone on the link. */
static __always_inline int pg_is_group(const struct pg_packet *packet)
{
	__be32 addr = packet->key.v4.pod;

	if (packet->family == 6)
		return packet->key.v6.pod.bytes[0] == 0xff;
	return packet->family == 4 &&
	       (addr == 0xffffffff || (addr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000));
}

/* Whether the address in the pod's place is 0, as that of a packet whose header could not be read. */
static __always_inline int pg_is_nameless(const struct pg_packet *packet)
{
	static const struct pg_addr zero = {};

	return packet->family == 4 ? !packet->key.v4.pod
				   : !pg_addr_differs(&packet->key.v6.pod, &zero);
}

/* Whether the pod is sent what is for another: a pod that has made its neighbours or its router believe so could play
 * that other one. Groups and broadcasts are for it too. */
static __always_inline int pg_is_misdirected(struct __sk_buff *skb,
					     const struct pg_endpoint *endpoint,
					     struct pg_packet *packet)
{
	__u8 frame[6];

	if (packet->family == 4) {
		__be32 to = packet->key.v4.pod;

		if (pg_is_group(packet) || pg_is_own4(endpoint, to))
			return 0;
		/* The subnet's broadcast address, whose length is not known, or one that a neighbour's frame makes
		 * look like it: the pod must not have a flow to answer in its name. */
		packet->flowless = 1;
		return bpf_skb_load_bytes(skb, 0, frame, sizeof(frame)) ||
		       (frame[0] & frame[1] & frame[2] & frame[3] & frame[4] & frame[5]) != 0xff;
	}
	return packet->family == 6 && !pg_is_group(packet) &&
	       !pg_is_pods6(endpoint, &packet->key.v6.pod);
}

static __always_inline __u32 pg_class_of_peer(const struct pg_packet *packet)
{
	struct pg_class *found;

	if (packet->family == 4) {
		struct pg_peer4_key peer = { .addr = packet->key.v4.peer };

		found = bpf_map_lookup_elem(&peers4, &peer);
		if (!found) {
			struct pg_net4_key net = { .prefixlen = 32, .addr = packet->key.v4.peer };

			found = bpf_map_lookup_elem(&nets4, &net);
		}
	} else {
		found = bpf_map_lookup_elem(&peers6, &packet->key.v6.peer);
		if (!found) {
			struct pg_net6_key net = { .prefixlen = 128, .addr = packet->key.v6.peer };

			found = bpf_map_lookup_elem(&nets6, &net);
		}
	}
	return found ? found->class : PG_CLASS_ANY;
}

/* Judges the packet in `slot`. Returns enum pg_reason; leaves rule, class and owner in the packet. */
PG_VERIFIED_ALONE int pg_judge(struct __sk_buff *skb, __u32 slot, __u32 direction, __u32 flags)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_policy_key key = { .prefixlen = PG_POLICY_PREFIX_PORT };
	struct pg_policy_value *entry = NULL;
	struct pg_endpoint *endpoint;
	__u32 ifindex = skb->ifindex;
	void *table;

	if (!packet)
		return PG_DENY_MALFORMED;
	packet->rule = 0;
	packet->class = PG_CLASS_ANY;
	packet->by_own_node = 0;
	packet->watched = 0;
	packet->handover = 0;
	packet->flowless = 0;
	endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
	if (!endpoint)
		return PG_DENY_NO_ENDPOINT;
	packet->owner = endpoint->owner;
	packet->watched = endpoint->startup == PG_STARTUP_WATCH;
	packet->handover = pg_is_handed_over(endpoint);
	if (!(flags & PG_JUDGE_AGAIN) && pg_is_of_previous(endpoint, packet))
		return PG_DENY_STARTUP;
	/* No packet may come from a group, as the pod's would on a flow that has one for its own address. */
	if (direction == PG_INGRESS && pg_is_group(packet))
		packet->flowless = 1;
	if (endpoint->anti_spoofing && !packet->watched &&
	    (direction == PG_EGRESS ? pg_is_spoofed(endpoint, packet)
				    : !((flags & PG_JUDGE_WITHOUT_PEER) && pg_is_nameless(packet)) &&
					      pg_is_misdirected(skb, endpoint, packet)))
		return PG_DENY_SPOOFED;

	key.owner = endpoint->owner;
	key.direction = direction;
	if (flags & PG_JUDGE_WITHOUT_PEER) {
		key.protocol = 255;
	} else {
		/* A pod to itself, around a service: its own packet comes back through its own interface. One
		 * from elsewhere only says that it is the pod's; IPv6 has no martian check that would drop it. A flow
		 * has no interface, and would carry both: so there is none, and each packet is judged. */
		if (pg_is_own(endpoint, packet, 1)) {
			packet->flowless = 1;
			if (direction == PG_EGRESS || skb->ingress_ifindex == ifindex)
				return PG_ALLOW_OWN_ADDRESS;
		}
		if (direction == PG_INGRESS &&
		    ((flags & PG_JUDGE_AGAIN) ? !!(flags & PG_JUDGE_OWN_NODE)
					      : packet->origin && pg_begins(packet)) &&
		    pg_is_node(packet)) {
			packet->by_own_node = 1;
			return PG_ALLOW_OWN_NODE;
		}
		if (packet->family == 4) {
			key.protocol = packet->key.v4.protocol;
			key.port = direction == PG_INGRESS ? packet->key.v4.pod_port
							   : packet->key.v4.peer_port;
		} else {
			key.protocol = packet->key.v6.protocol;
			key.port = direction == PG_INGRESS ? packet->key.v6.pod_port
							   : packet->key.v6.peer_port;
		}
		if (flags & PG_JUDGE_SOME_PORT) {
			key.direction += PG_SOME_PORT;
			key.port = 0;
		}
	}

	/* After the node's own packets, which the flow remembers as such. */
	if (packet->watched)
		return PG_ALLOW_STARTUP;
	table = bpf_map_lookup_elem(&policies, &ifindex);
	if (!table)
		return endpoint->startup == PG_STARTUP_OPEN ? PG_ALLOW_STARTUP : PG_DENY_STARTUP;

	if (!(flags & PG_JUDGE_WITHOUT_PEER))
		packet->class = pg_class_of_peer(packet);
	if (packet->class != PG_CLASS_ANY) {
		key.class = packet->class;
		entry = bpf_map_lookup_elem(table, &key);
	}
	if (!entry) {
		key.class = PG_CLASS_ANY;
		entry = bpf_map_lookup_elem(table, &key);
	}
	if (!entry)
		return PG_DENY_POLICY;
	packet->rule = entry->rule;
	if (entry->verdict != PG_VERDICT_ALLOW)
		return PG_DENY_POLICY;
	if (!(flags & PG_JUDGE_AGAIN))
		__sync_fetch_and_add(&entry->hits, 1);
	return PG_ALLOW_POLICY;
}
