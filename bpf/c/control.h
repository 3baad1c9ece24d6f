/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a link needs to work, and passes whatever policy says: ARP, neighbour discovery, multicast listener discovery,
 * DHCP. Only where it can be what it claims to be: by direction, length, hop limit and the ends that it may have. What
 * cannot is judged like any other packet. With anti-spoofing a pod speaks of its own addresses only, and is no router.
 */
#pragma once

#include "decide.h"
#include "policy.h"
#include "translate.h"
#include "verdict.h"

#define PG_AF_INET 2
#define PG_AF_INET6 10

/* A packet of which nothing is known that policy could speak of: it passes where everything may. */
PG_VERIFIED_ALONE int pg_unjudgeable(struct __sk_buff *skb, __u32 direction, __u32 reason)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	int judged;

	if (!packet)
		return PG_TC_DROP;
	judged = pg_judge(skb, packet->slot, direction, PG_JUDGE_WITHOUT_PEER);

	return pg_settle(skb, packet, direction, judged == PG_DENY_POLICY ? (int)reason : judged);
}

/* The endpoint whose addresses have to be its own; NULL: any may be. */
static __always_inline struct pg_endpoint *pg_bound_endpoint(struct __sk_buff *skb,
							     struct pg_packet *packet)
{
	__u32 ifindex = skb->ifindex;
	struct pg_endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);

	if (!endpoint)
		return NULL;
	packet->owner = endpoint->owner;
	if (!endpoint->anti_spoofing || endpoint->startup == PG_STARTUP_WATCH ||
	    pg_is_handed_over(endpoint))
		return NULL;
	return endpoint;
}

/* ARP for IPv4 over Ethernet (RFC 826). */
struct pg_arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
};

/* The shortest Ethernet frame, to which ARP is padded, with room for a trailer that a driver left in. */
#define PG_ARP_FRAME 64

/* Whether the pod may send this: with one of its addresses as the sender, at the hardware address that the frame comes
 * from. A probe (RFC 5227) has no sender, and asks for the address to be used. */
static __always_inline int pg_is_honest_arp(struct __sk_buff *skb,
					    const struct pg_endpoint *endpoint,
					    const struct pg_arp *arp)
{
	__be32 sender, target;
	__u8 mac[6];

	__builtin_memcpy(&sender, arp->sender, 4);
	__builtin_memcpy(&target, arp->target, 4);
	if (!sender)
		return arp->operation == bpf_htons(1) && pg_is_own4(endpoint, target);
	if (bpf_skb_load_bytes(skb, 6, mac, sizeof(mac)))
		return 0;
	return pg_is_own4(endpoint, sender) &&
	       !((mac[0] ^ arp->sender_mac[0]) | (mac[1] ^ arp->sender_mac[1]) |
		 (mac[2] ^ arp->sender_mac[2]) | (mac[3] ^ arp->sender_mac[3]) |
		 (mac[4] ^ arp->sender_mac[4]) | (mac[5] ^ arp->sender_mac[5]));
}

/* Towards the pod all ARP passes: what neighbours ask each other is broadcast, and what the pod could do about it,
 * answer, is judged. Hosts read the sender of a frame that is too long as well, and perhaps of other forms, so that what
 * a pod sends in one that cannot be vouched for counts as in another's name. */
PG_VERIFIED_ALONE int pg_arp(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_endpoint *endpoint;
	struct pg_arp arp = {};
	int unread;

	if (!packet)
		return PG_TC_DROP;
	unread = bpf_skb_load_bytes(skb, PG_ETH_HLEN, &arp, sizeof(arp)) ||
		 skb->len > PG_ARP_FRAME || arp.hardware != bpf_htons(1) ||
		 arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_length != 6 ||
		 arp.protocol_length != 4 ||
		 (arp.operation != bpf_htons(1) && arp.operation != bpf_htons(2));
	endpoint = pg_bound_endpoint(skb, packet);
	if (direction == PG_EGRESS && endpoint && (unread || !pg_is_honest_arp(skb, endpoint, &arp)))
		return pg_deny(skb, packet, direction, PG_DENY_SPOOFED);
	if (unread)
		return pg_unjudgeable(skb, direction, PG_DENY_NOT_IP);
	return pg_allow(skb, direction, PG_ALLOW_CONTROL);
}

/* A frame with a VLAN tag. Behind it may stand ARP or IP in any name, which neighbours take for untagged where the tag says
 * a priority only (VLAN 0), or where a bridge takes off the tag of the VLAN that the pod's port is in. A pod with
 * addresses of its own in VLANs is one that speaks under further addresses: without anti-spoofing. */
PG_VERIFIED_ALONE int pg_tagged(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);

	if (!packet)
		return PG_TC_DROP;
	if (direction == PG_EGRESS && pg_bound_endpoint(skb, packet))
		return pg_deny(skb, packet, direction, PG_DENY_SPOOFED);
	return pg_unjudgeable(skb, direction, PG_DENY_NOT_IP);
}

/* The interface behind which the node finds an address that needs no router; 0: there is none. Minus one: the node
 * would not forward to it. */
static __always_inline int pg_neighbour_interface(struct __sk_buff *skb, __u8 family,
						  const struct pg_addr *from,
						  const struct pg_addr *to)
{
	struct bpf_fib_lookup fib = { .family = family, .ifindex = skb->ifindex };
	long found;

	if (family == PG_AF_INET) {
		fib.ipv4_src = pg_unmap_addr4(from);
		fib.ipv4_dst = pg_unmap_addr4(to);
	} else {
		__builtin_memcpy(fib.ipv6_src, from, 16);
		__builtin_memcpy(fib.ipv6_dst, to, 16);
	}
	found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (found == BPF_FIB_LKUP_RET_UNSUPP_LWT)
		return 0;
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH &&
	    found != BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return -1;
	/* A router's address stands in place of the destination's then. */
	if (family == PG_AF_INET ? fib.ipv4_dst != pg_unmap_addr4(to)
				 : !!pg_addr_differs(fib.ipv6_dst, to))
		return 0;
	return fib.ifindex;
}

/*
 * Whether the packet's peer is a neighbour of the pod: an address of the node, or one that the node finds, without a
 * router, behind the same interface as the pod. What the node would not forward cannot leave the link. The number is the
 * pod's own interface's too where kernels before 5.12 know no link address and leave it as it was.
 */
PG_VERIFIED_ALONE int pg_is_neighbour(struct __sk_buff *skb)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	__u32 ifindex = skb->ifindex;
	struct pg_endpoint *endpoint;
	struct pg_addr pod = {}, peer;
	int at_pod, at_peer;
	__u8 family;

	if (!packet)
		return 0;
	pg_peer(packet, &peer);
	if (pg_is_node_addr(&peer))
		return 1;
	endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
	if (!endpoint)
		return 0;
	family = packet->family == 4 ? PG_AF_INET : PG_AF_INET6;
	if (family == PG_AF_INET)
		pg_map_addr4(&pod, endpoint->addr4[0]);
	else
		pod = endpoint->addr6[0];
	at_peer = pg_neighbour_interface(skb, family, &pod, &peer);
	if (at_peer < 0 || (__u32)at_peer == ifindex)
		return 1;
	if (at_peer == 0)
		return 0;
	at_pod = pg_neighbour_interface(skb, family, &peer, &pod);
	return at_pod == at_peer;
}

/* What the start of an ICMPv6 message of a link says. */
struct pg_link_head {
	__u8 type;
	__u8 code;
	__u8 checksum[2];
	__u8 rest[4];
	struct pg_addr target; /* of neighbour solicitations and advertisements */
};

/* The shortest and the longest of each type; 0: there is none. Beside the fixed part neighbours say a link address and a
 * nonce (RFC 7527), 8 bytes each; routers say what they like. */
static __always_inline int pg_is_of_length(__u8 type, __u32 length)
{
	switch (type) {
	case 130: /* query; the second version's names sources */
		return length == 24 || (length >= 28 && length <= 1280);
	case 131: /* report */
	case 132: /* done */
		return length == 24;
	case 143: /* report, second version: groups and sources */
		return length >= 8 && length <= 1280;
	case 133: /* router solicitation */
		return length >= 8 && length <= 8 + 16;
	case 134: /* router advertisement */
		return length >= 16 && length <= 1280;
	case 135: /* neighbour solicitation */
	case 136: /* neighbour advertisement */
		return length >= 24 && length <= 24 + 16;
	default: /* redirect: with the start of a packet */
		return length >= 40 && length <= 1280;
	}
}

static __always_inline int pg_is_unspecified(const struct pg_addr *addr)
{
	static const struct pg_addr unspecified = {};

	return !pg_addr_differs(addr, &unspecified);
}

/* ff02::/16, the groups of a link. */
static __always_inline int pg_is_link_group(const struct pg_addr *addr)
{
	return addr->bytes[0] == 0xff && (addr->bytes[1] & 0xf) == 2;
}

/* Whether a message with these ends stays on the link, or was sent there, and is one that hosts act on. */
static __always_inline int pg_is_of_link(struct __sk_buff *skb, __u32 direction,
					 const struct pg_packet *packet,
					 const struct pg_link_head *head, __u8 hop_limit)
{
	const struct pg_addr *from, *to;
	int of_link;

	if (direction == PG_EGRESS) {
		from = &packet->key.v6.pod;
		to = &packet->key.v6.peer;
	} else {
		from = &packet->key.v6.peer;
		to = &packet->key.v6.pod;
	}
	if (head->code != 0)
		return 0;
	/* To a group of a wider scope too: at a hop limit of 1 it goes no further. */
	if (head->type < 133 || head->type == 143)
		return hop_limit == 1 && to->bytes[0] == 0xff &&
		       (pg_is_link_local(from) || pg_is_unspecified(from));
	if (hop_limit != 255)
		return 0;
	of_link = pg_is_link_group(to) || pg_is_link_local(to);
	switch (head->type) {
	case 133:
		return of_link;
	case 134:
		return of_link && pg_is_link_local(from);
	case 137:
		/* It carries the start of a packet. Where routers beside the node send them, they are judged. */
		return pg_is_link_local(from) &&
		       (direction == PG_EGRESS ? of_link : packet->origin != PG_FROM_ELSEWHERE);
	}
	if (head->target.bytes[0] == 0xff)
		return 0;
	/* A hop limit of 255 proves that it was sent on the link. One from the pod has yet to stay there: a router
	 * forwards what is addressed to another. */
	if (of_link || direction == PG_INGRESS)
		return 1;
	return to->bytes[0] != 0xff && pg_is_neighbour(skb);
}

/* Whether a pod of these addresses may send it. */
static __always_inline int pg_is_honest_message(const struct pg_endpoint *endpoint,
						const struct pg_packet *packet,
						const struct pg_link_head *head)
{
	const struct pg_addr *from = &packet->key.v6.pod;
	int nameless = pg_is_unspecified(from);

	if (head->type == 134 || head->type == 137)
		return 0;
	if (!nameless && !pg_is_pods6(endpoint, from))
		return 0;
	/* Detection of duplicates is for an address that is about to be used (RFC 4862). */
	if (head->type == 136 || (head->type == 135 && nameless))
		return pg_is_pods6(endpoint, &head->target);
	return 1;
}

/* A whole packet of neighbour discovery or multicast listener discovery. PG_PLAIN: it is no more than an ICMPv6 message. */
PG_VERIFIED_ALONE int pg_link_message(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_scratch *own = pg_scratch();
	struct pg_link_head head = {};
	struct pg_endpoint *endpoint;
	__u32 length;
	__u8 hops;

	if (!packet || !own)
		return PG_TC_DROP;
	/* The packet may be shorter than it says. */
	length = own->place.offset + own->place.room > skb->len ? 0 : own->place.room;
	if (length >= sizeof(head)) {
		if (bpf_skb_load_bytes(skb, own->place.offset, &head, sizeof(head)))
			return PG_TC_DROP;
	} else if (bpf_skb_load_bytes(skb, own->place.offset, &head, 8)) {
		return PG_TC_DROP;
	}
	if (bpf_skb_load_bytes(skb, PG_ETH_HLEN + 7, &hops, sizeof(hops)))
		return PG_TC_DROP;
	endpoint = pg_bound_endpoint(skb, packet);
	/* What a pod must not say it must not say in a wrong form either, to pods that policy lets it speak to. */
	if (endpoint && (direction == PG_EGRESS ? !pg_is_honest_message(endpoint, packet, &head)
						: pg_is_misdirected(skb, endpoint, packet)))
		return pg_deny(skb, packet, direction, PG_DENY_SPOOFED);
	/* Hosts ignore it behind a fragment header, of whatever fragment (RFC 6980). */
	if (own->place.has_fragment_header || !pg_is_of_length(head.type, length) ||
	    !pg_is_of_link(skb, direction, packet, &head, hops))
		return PG_PLAIN;
	return pg_allow(skb, direction, PG_ALLOW_CONTROL);
}

/* DHCP between a client and the servers and relays of its link. A unicast renewal is ordinary UDP, for which policy
 * speaks. */
static __always_inline int pg_is_dhcp(const struct pg_packet *packet, __u32 direction)
{
	if (pg_protocol(packet) != PG_IPPROTO_UDP)
		return 0;
	if (packet->family == 4)
		return packet->key.v4.pod_port == bpf_htons(68) &&
		       packet->key.v4.peer_port == bpf_htons(67) &&
		       (direction == PG_INGRESS || packet->key.v4.peer == 0xffffffff);
	if (packet->key.v6.pod_port != bpf_htons(546) || packet->key.v6.peer_port != bpf_htons(547))
		return 0;
	/* ff02::1:2 is every relay and server. */
	return direction == PG_EGRESS ? pg_is_link_local(&packet->key.v6.pod) &&
						pg_is_link_group(&packet->key.v6.peer)
				      : pg_is_link_local(&packet->key.v6.peer);
}

/* A question passes, and an answer to it for a while. The address it is for is the one that the pod is to be given.
 * PG_PLAIN: an answer to none, or one from another link. */
PG_VERIFIED_ALONE int pg_dhcp(struct __sk_buff *skb, __u32 direction)
{
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	struct pg_endpoint *endpoint;

	if (!packet)
		return PG_TC_DROP;
	endpoint = pg_bound_endpoint(skb, packet);
	if (direction == PG_EGRESS) {
		if (endpoint && (packet->family == 6 || packet->key.v4.pod) &&
		    pg_is_spoofed(endpoint, packet))
			return pg_deny(skb, packet, direction, PG_DENY_SPOOFED);
		pg_expect(packet, PG_EXPECT_DHCP, PG_EXPECT_DHCP_SECONDS);
		return pg_allow(skb, direction, PG_ALLOW_CONTROL);
	}
	if (!pg_is_expected(packet, PG_EXPECT_DHCP))
		return PG_PLAIN;
	/* No router forwards a broadcast, nor from a link-local address. */
	if (packet->family == 4 && packet->key.v4.pod != 0xffffffff && !pg_is_neighbour(skb))
		return PG_PLAIN;
	return pg_allow(skb, direction, PG_ALLOW_CONTROL);
}
