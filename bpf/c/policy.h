/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The policy verdict of a flow, in the direction of its first packet: endpoint, exceptions, class of the peer, the
 * endpoint's table. */
#pragma once

#include "handover.h"
#include "maps.h"
#include "origin.h"
#include "packet.h"
#include "scratch.h"

/* What the caller knows of the packet. */
enum pg_eval_flag {
	PG_EVAL_REVALIDATE = 1, /* of a known flow: who sent its first packet is known */
	PG_EVAL_OWN_NODE = 2,	/* with REVALIDATE: the pod's own node did */
	PG_EVAL_SOME_PORT = 4,	/* a fragment without ports: some port must be allowed */
	PG_EVAL_NO_PEER = 8,	/* the packet has no address or port: everything must be allowed */
};

/* Unused entries are 0.0.0.0, which is never a pod's address. */
static __always_inline int pg_is_pod_addr4(const struct pg_endpoint *endpoint, __be32 addr)
{
	const __be32 *addrs = endpoint->addr4;

	return addr != 0 &&
	       (addr == addrs[0] || addr == addrs[1] || addr == addrs[2] || addr == addrs[3]);
}

static __always_inline int pg_is_pod_addr6(const struct pg_endpoint *endpoint,
					   const struct pg_addr *addr)
{
	int i;

	for (i = 0; i < PG_ENDPOINT_ADDRS; i++) {
		if (i < endpoint->addr6_count && !pg_addr_differs(&endpoint->addr6[i], addr))
			return 1;
	}
	return 0;
}

static __always_inline int pg_is_pod_addr(const struct pg_endpoint *endpoint,
					  const struct pg_packet *packet, int the_peer)
{
	if (packet->family == 4)
		return pg_is_pod_addr4(endpoint,
				       the_peer ? packet->key.v4.peer : packet->key.v4.pod);
	return pg_is_pod_addr6(endpoint, the_peer ? &packet->key.v6.peer : &packet->key.v6.pod);
}

static __always_inline int pg_is_node_addr(const struct pg_addr *addr)
{
	struct pg_node_key key = { .prefixlen = 128, .addr = *addr };

	return bpf_map_lookup_elem(&node_addrs, &key) != NULL;
}

static __always_inline int pg_peer_is_node(const struct pg_packet *packet)
{
	struct pg_addr addr;

	pg_peer(packet, &addr);
	return pg_is_node_addr(&addr);
}

/* Whether a link-local address may be the pod's. None is registered, as interfaces assign them to themselves. One
 * that is derived from a hardware address (RFC 4291, appendix A) must be derived from the pod's. Of the others only
 * the node's are known not to be the pod's. */
static __always_inline int pg_may_be_pod_link_local(const struct pg_endpoint *endpoint,
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

/* Whether an address is registered, or a link-local one that the pod may have. */
static __always_inline int pg_may_be_pod_addr6(const struct pg_endpoint *endpoint,
					       const struct pg_addr *addr)
{
	if (pg_is_link_local(addr))
		return pg_may_be_pod_link_local(endpoint, addr);
	return pg_is_pod_addr6(endpoint, addr);
}

/* Whether the pod sends with a source address that is not its own. Also evaluated for packets that cannot be parsed,
 * whose addresses are known all the same, and at revalidation: what audit mode let pass must not become a flow of
 * this pod. */
static __always_inline int pg_is_spoofed(const struct pg_endpoint *endpoint,
					 const struct pg_packet *packet)
{
	if (packet->family == 4)
		return !pg_is_pod_addr4(endpoint, packet->key.v4.pod);
	return packet->family == 6 && !pg_may_be_pod_addr6(endpoint, &packet->key.v6.pod);
}

/* Whether the pod-side address is multicast, or IPv4's limited broadcast. */
static __always_inline int pg_is_multicast(const struct pg_packet *packet)
{
	__be32 addr = packet->key.v4.pod;

	if (packet->family == 6)
		return packet->key.v6.pod.bytes[0] == 0xff;
	return packet->family == 4 &&
	       (addr == 0xffffffff || (addr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000));
}

/* Whether the pod-side address is 0, as it is in a packet whose header could not be read. */
static __always_inline int pg_pod_addr_unset(const struct pg_packet *packet)
{
	static const struct pg_addr zero = {};

	return packet->family == 4 ? !packet->key.v4.pod
				   : !pg_addr_differs(&packet->key.v6.pod, &zero);
}

/* Whether a packet to the pod has another destination: a pod that has poisoned its neighbours' or its router's
 * caches could impersonate that destination. Multicast and broadcast are addressed to the pod too. */
static __always_inline int pg_is_misdirected(struct __sk_buff *skb,
					     const struct pg_endpoint *endpoint,
					     struct pg_packet *packet)
{
	__u8 frame[6];

	if (packet->family == 4) {
		__be32 to = packet->key.v4.pod;

		if (pg_is_multicast(packet) || pg_is_pod_addr4(endpoint, to))
			return 0;
		/* The subnet's broadcast address, whose prefix length is not known, or an address that a broadcast
		 * frame makes look like it: it must not become a flow on which the pod could answer from that
		 * address. */
		packet->no_track_verdict = 1;
		return bpf_skb_load_bytes(skb, 0, frame, sizeof(frame)) ||
		       (frame[0] & frame[1] & frame[2] & frame[3] & frame[4] & frame[5]) != 0xff;
	}
	return packet->family == 6 && !pg_is_multicast(packet) &&
	       !pg_may_be_pod_addr6(endpoint, &packet->key.v6.pod);
}

static __always_inline __u32 pg_peer_class(const struct pg_packet *packet)
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

/* The entry of a table for a class. `key` has all but the class. */
static __always_inline struct pg_policy_value *pg_policy_entry(void *table,
							       struct pg_policy_key *key,
							       __u32 class)
{
	struct pg_policy_value *entry = NULL;

	key->class = class;
	if (class != PG_CLASS_ANY)
		entry = bpf_map_lookup_elem(table, key);
	if (!entry) {
		key->class = PG_CLASS_ANY;
		entry = bpf_map_lookup_elem(table, key);
	}
	return entry;
}

/* A verdict that this build does not know denies. */
static __always_inline int pg_passes(const struct pg_policy_value *entry)
{
	return entry && (entry->verdict == PG_VERDICT_ALLOW || entry->verdict == PG_VERDICT_AUDIT);
}

/* What an entry says, or that there is none. Each fragment and each packet that opens nothing has a verdict of its own,
 * but only the first packet of a flow is worth a hit and an event; of what is denied no flow is remembered, and each packet
 * is a first one. */
static __always_inline enum pg_reason pg_decide(struct pg_packet *packet,
						struct pg_policy_value *entry, __u32 flags)
{
	if (!entry)
		return PG_DENY_POLICY;
	packet->rule = entry->rule;
	if (!(flags & (PG_EVAL_REVALIDATE | PG_EVAL_SOME_PORT))) {
		packet->logged = entry->flags & PG_POLICY_LOG;
		__sync_fetch_and_add(&entry->hits, 1);
	}
	packet->reject = entry->verdict == PG_VERDICT_REJECT &&
			 !(flags & (PG_EVAL_SOME_PORT | PG_EVAL_NO_PEER));
	if (!pg_passes(entry))
		return PG_DENY_POLICY;
	return entry->verdict == PG_VERDICT_AUDIT ? PG_ALLOW_AUDIT : PG_ALLOW_POLICY;
}

/* How often a peer's class and the endpoint's table are read at most. A commit adds what the new state allows, moves
 * addresses to their new classes, and then removes what only the old one allowed. A CPU that is held up between the reads
 * for as long as that takes (a virtual one that is not scheduled) has the class of before and the table of after, which
 * may refuse what both states allow, or allow what both refuse: it reads again. What it has at the third time holds; the
 * epoch that follows the commit has it judged again. */
#define PG_POLICY_READS 3

/* The number of steps that commits have written so far. */
static __always_inline __u32 pg_commit_steps(void)
{
	__u32 zero = 0, *steps = bpf_map_lookup_elem(&commit_steps, &zero);

	return steps ? *(volatile __u32 *)steps : 0;
}

/* Evaluates policy for the packet in `slot`, in `direction`. `flags`: enum pg_eval_flag. Sets the packet's rule,
 * class, owner and the other fields that packet.h marks as of the evaluation. */
PG_GLOBAL_FN enum pg_reason pg_policy_verdict(struct __sk_buff *skb, __u32 slot, __u32 direction,
					      __u32 flags)
{
	struct pg_packet *packet = pg_packet_in(slot);
	struct pg_policy_key key = { .prefixlen = PG_POLICY_PREFIX_PORT };
	struct pg_policy_value *entry = NULL;
	struct pg_endpoint *endpoint;
	__u32 ifindex = skb->ifindex, read;
	void *table;

	if (!packet)
		return PG_DENY_MALFORMED;
	packet->rule = 0;
	packet->class = PG_CLASS_ANY;
	packet->by_own_node = 0;
	packet->learning = 0;
	packet->handover = 0;
	packet->no_track_verdict = 0;
	packet->logged = 0;
	packet->reject = 0;
	endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
	if (!endpoint)
		return PG_DENY_NO_ENDPOINT;
	packet->owner = endpoint->owner;
	packet->learning = endpoint->startup == PG_STARTUP_LEARN;
	packet->handover = pg_in_handover(endpoint);
	if (!(flags & PG_EVAL_REVALIDATE) && pg_belongs_to_previous(endpoint, packet))
		return PG_DENY_STARTUP;
	/* A flow with a multicast pod address would allow packets from the pod with that source. */
	if (direction == PG_INGRESS && pg_is_multicast(packet))
		packet->no_track_verdict = 1;
	if (endpoint->anti_spoofing && !packet->learning &&
	    (direction == PG_EGRESS ? pg_is_spoofed(endpoint, packet)
				    : !((flags & PG_EVAL_NO_PEER) && pg_pod_addr_unset(packet)) &&
					      pg_is_misdirected(skb, endpoint, packet)))
		return PG_DENY_SPOOFED;

	key.owner = endpoint->owner;
	key.direction = direction;
	if (flags & PG_EVAL_NO_PEER) {
		key.protocol = 255;
	} else {
		/* A pod to itself, but not through a service: its own packet comes back through its own interface. A
		 * packet from elsewhere may only claim the pod's address; IPv6 has no martian check that would drop
		 * it. A flow's entry has no interface and would match both, so none is made and every packet is
		 * evaluated. */
		if (pg_is_pod_addr(endpoint, packet, 1)) {
			packet->no_track_verdict = 1;
			if (direction == PG_EGRESS || skb->ingress_ifindex == ifindex)
				return PG_ALLOW_OWN_ADDRESS;
		}
		if (direction == PG_INGRESS &&
		    ((flags & PG_EVAL_REVALIDATE) ? !!(flags & PG_EVAL_OWN_NODE)
						  : packet->origin && pg_opens_exchange(packet)) &&
		    pg_peer_is_node(packet)) {
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
		if (flags & PG_EVAL_SOME_PORT) {
			key.direction += PG_SOME_PORT;
			key.port = 0;
		}
	}

	/* After the node's own packets, whose flows are marked as such. */
	if (packet->learning)
		return PG_ALLOW_STARTUP;
#pragma clang loop unroll(disable)
	for (read = 0; read < PG_POLICY_READS; read++) {
		__u32 steps = pg_commit_steps();

		table = bpf_map_lookup_elem(&policies, &ifindex);
		if (!table)
			return endpoint->startup == PG_STARTUP_OPEN ? PG_ALLOW_STARTUP
								    : PG_DENY_STARTUP;
		if (!(flags & PG_EVAL_NO_PEER))
			packet->class = pg_peer_class(packet);
		entry = pg_policy_entry(table, &key, packet->class);
		if (pg_commit_steps() == steps)
			break;
	}
	return pg_decide(packet, entry, flags);
}
