/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a link needs to work, and is allowed whatever policy says: ARP, neighbour discovery, multicast listener
 * discovery, DHCP. Only packets that are valid messages by direction, length, hop limit and addresses; policy is
 * evaluated for all others. With anti-spoofing a pod may announce only its own addresses, and is no router. */
#pragma once

#include "flow_verdict.h"
#include "policy.h"
#include "translate.h"
#include "verdict.h"

#define PG_AF_INET 2
#define PG_AF_INET6 10

/* The verdict of a packet that has nothing policy can match: it passes only where everything is allowed. `reason`:
 * the denial. */
PG_GLOBAL_FN enum pg_action pg_verdict_no_key(struct __sk_buff *skb, __u32 direction, __u32 reason)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	int verdict;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	verdict = pg_policy_verdict(skb, packet->slot, direction, PG_EVAL_NO_PEER);

	return pg_verdict_no_flow(scratch, packet,
				  verdict == PG_DENY_POLICY ? (int)reason : verdict);
}

/* The endpoint of the packet if anti-spoofing holds for it now, else NULL. Sets the packet's owner. */
static __always_inline struct pg_endpoint *pg_antispoof_endpoint(struct __sk_buff *skb,
								 struct pg_packet *packet)
{
	__u32 ifindex = skb->ifindex;
	struct pg_endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);

	if (!endpoint)
		return NULL;
	packet->owner = endpoint->owner;
	if (!endpoint->anti_spoofing || endpoint->startup == PG_STARTUP_LEARN ||
	    pg_in_handover(endpoint))
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

/* The shortest Ethernet frame, to which ARP is padded, and 4 bytes for a trailer that some drivers leave in. */
#define PG_ARP_FRAME 64

/* Whether the pod may send this: the sender is one of its addresses, at the hardware address of the frame. A probe
 * (RFC 5227) has no sender and names the address that the pod is about to use. */
static __always_inline int pg_arp_sender_allowed(struct __sk_buff *skb,
						 const struct pg_endpoint *endpoint,
						 const struct pg_arp *arp)
{
	__be32 sender, target;
	__u8 mac[6];

	__builtin_memcpy(&sender, arp->sender, 4);
	__builtin_memcpy(&target, arp->target, 4);
	if (!sender)
		return arp->operation == bpf_htons(1) && pg_is_pod_addr4(endpoint, target);
	if (bpf_skb_load_bytes(skb, 6, mac, sizeof(mac)))
		return 0;
	return pg_is_pod_addr4(endpoint, sender) &&
	       !((mac[0] ^ arp->sender_mac[0]) | (mac[1] ^ arp->sender_mac[1]) |
		 (mac[2] ^ arp->sender_mac[2]) | (mac[3] ^ arp->sender_mac[3]) |
		 (mac[4] ^ arp->sender_mac[4]) | (mac[5] ^ arp->sender_mac[5]));
}

/* To the pod all ARP passes: requests are broadcast, and the pod's answers are checked. From the pod, a frame that
 * is too long or not of the usual form counts as spoofed, as receivers may read a sender from it that was not
 * checked here. */
PG_GLOBAL_FN enum pg_action pg_arp(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_endpoint *endpoint;
	struct pg_arp arp = {};
	int unread;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	unread = bpf_skb_load_bytes(skb, PG_ETH_HLEN, &arp, sizeof(arp)) ||
		 skb->len > PG_ARP_FRAME || arp.hardware != bpf_htons(1) ||
		 arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_length != 6 ||
		 arp.protocol_length != 4 ||
		 (arp.operation != bpf_htons(1) && arp.operation != bpf_htons(2));
	endpoint = pg_antispoof_endpoint(skb, packet);
	if (direction == PG_EGRESS && endpoint &&
	    (unread || !pg_arp_sender_allowed(skb, endpoint, &arp)))
		return pg_deny(scratch, packet, PG_DENY_SPOOFED);
	if (unread)
		return pg_verdict_no_key(skb, direction, PG_DENY_NOT_IP);
	return pg_allow(scratch, PG_ALLOW_CONTROL);
}

/* A frame with a VLAN tag. It may contain ARP or IP with any sender, which receivers take as untagged if the tag
 * only carries a priority (VLAN 0), or where a bridge removes the tag of the port's VLAN. A pod that has addresses
 * in VLANs of its own needs anti-spoofing off. */
PG_GLOBAL_FN enum pg_action pg_vlan(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	if (direction == PG_EGRESS && pg_antispoof_endpoint(skb, packet))
		return pg_deny(scratch, packet, PG_DENY_SPOOFED);
	return pg_verdict_no_key(skb, direction, PG_DENY_NOT_IP);
}

/* The interface on which the node reaches an address without a router. Returns 0 if there is none, -1 if the node
 * would not forward to it. */
static __always_inline int pg_on_link_interface(struct __sk_buff *skb, __u8 family,
						const struct pg_addr *from, const struct pg_addr *to)
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
	/* The route's gateway replaces the destination. */
	if (family == PG_AF_INET ? fib.ipv4_dst != pg_unmap_addr4(to)
				 : !!pg_addr_differs(fib.ipv6_dst, to))
		return 0;
	return fib.ifindex;
}

/* Whether the packet's peer is on the pod's link: an address of the node, or one that the node reaches, without a
 * router, on the same interface as the pod. What the node would not forward cannot leave the link. The result is
 * also the pod's own interface on kernels before 5.12, which leave the number unchanged if they know no link
 * address. */
PG_GLOBAL_FN int pg_is_on_link(struct __sk_buff *skb)
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
	at_peer = pg_on_link_interface(skb, family, &pod, &peer);
	if (at_peer < 0 || (__u32)at_peer == ifindex)
		return 1;
	if (at_peer == 0)
		return 0;
	at_pod = pg_on_link_interface(skb, family, &peer, &pod);
	return at_pod == at_peer;
}

/* The start of an ICMPv6 message of neighbour discovery or multicast listener discovery. */
struct pg_icmp6_link_hdr {
	__u8 type;
	__u8 code;
	__u8 checksum[2];
	__u8 rest[4];
	struct pg_addr target; /* of neighbour solicitations and advertisements */
};

/* Whether the length is valid for the type. After the fixed part, neighbours send a link address and a nonce (RFC
 * 7527), 8 bytes each; routers send any options. */
static __always_inline int pg_icmp6_link_length_valid(__u8 type, __u32 length)
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

/* ff02::/16, link-local multicast. */
static __always_inline int pg_is_link_group(const struct pg_addr *addr)
{
	return addr->bytes[0] == 0xff && (addr->bytes[1] & 0xf) == 2;
}

/* Whether a message with these addresses stays on the link, or was sent there, and is one that hosts act on. */
static __always_inline int pg_icmp6_link_scoped(struct __sk_buff *skb, __u32 direction,
						const struct pg_packet *packet,
						const struct pg_icmp6_link_hdr *head, __u8 hop_limit)
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
	/* Also to multicast of a wider scope: with a hop limit of 1 it goes no further. */
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
		/* A redirect carries the start of a packet. From routers other than the node it is subject to
		 * policy. */
		return pg_is_link_local(from) &&
		       (direction == PG_EGRESS ? of_link : packet->origin != PG_ORIGIN_EXTERNAL);
	}
	if (head->target.bytes[0] == 0xff)
		return 0;
	/* A hop limit of 255 proves that a message was sent on the link. One from the pod must also stay there: a
	 * router forwards what is addressed to another. */
	if (of_link || direction == PG_INGRESS)
		return 1;
	return to->bytes[0] != 0xff && pg_is_on_link(skb);
}

/* Whether a pod with these addresses may send the message. */
static __always_inline int pg_icmp6_link_sender_allowed(const struct pg_endpoint *endpoint,
							const struct pg_packet *packet,
							const struct pg_icmp6_link_hdr *head)
{
	const struct pg_addr *from = &packet->key.v6.pod;
	int nameless = pg_is_unspecified(from);

	if (head->type == 134 || head->type == 137)
		return 0;
	if (!nameless && !pg_may_be_pod_addr6(endpoint, from))
		return 0;
	/* Duplicate address detection is for an address that the pod is about to use (RFC 4862). */
	if (head->type == 136 || (head->type == 135 && nameless))
		return pg_may_be_pod_addr6(endpoint, &head->target);
	return 1;
}

/* An unfragmented message of neighbour discovery or multicast listener discovery. Returns PG_NEXT_FLOW if it is not
 * a valid one, which makes it ordinary ICMPv6, or the verdict. */
PG_GLOBAL_FN enum pg_action pg_icmp6_link(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_icmp6_link_hdr head = {};
	struct pg_endpoint *endpoint;
	__u32 length;
	long unread;
	__u8 hops;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	/* The frame may be shorter than the IP header says. */
	length = scratch->l4.off + scratch->l4.len > skb->len ? 0 : scratch->l4.len;
	if (length >= sizeof(head)) {
		unread = bpf_skb_load_bytes(skb, scratch->l4.off, &head, sizeof(head));
	} else {
		unread = bpf_skb_load_bytes(skb, scratch->l4.off, &head, 8);
	}
	if (unread || bpf_skb_load_bytes(skb, PG_ETH_HLEN + 7, &hops, sizeof(hops)))
		return pg_verdict_no_key(skb, direction, PG_DENY_MALFORMED);
	endpoint = pg_antispoof_endpoint(skb, packet);
	/* A spoofed message is denied in an invalid form too, also to peers that policy allows. */
	if (endpoint &&
	    (direction == PG_EGRESS ? !pg_icmp6_link_sender_allowed(endpoint, packet, &head)
				    : pg_is_misdirected(skb, endpoint, packet)))
		return pg_deny(scratch, packet, PG_DENY_SPOOFED);
	/* Hosts ignore it after a fragment header, whatever that says (RFC 6980). */
	if (scratch->l4.has_fragment_header || !pg_icmp6_link_length_valid(head.type, length) ||
	    !pg_icmp6_link_scoped(skb, direction, packet, &head, hops))
		return PG_NEXT_FLOW;
	return pg_allow(scratch, PG_ALLOW_CONTROL);
}

/* DHCP between a client and the servers and relays of its link. A unicast renewal is ordinary UDP, subject to
 * policy. */
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
	/* ff02::1:2 is all relays and servers. */
	return direction == PG_EGRESS ? pg_is_link_local(&packet->key.v6.pod) &&
						pg_is_link_group(&packet->key.v6.peer)
				      : pg_is_link_local(&packet->key.v6.peer);
}

/* A request passes, and then an answer to it for a while. The answer's destination is an address that the pod has
 * yet to be given. Returns PG_NEXT_FLOW for an answer without a request or from another link, or the verdict. */
PG_GLOBAL_FN enum pg_action pg_dhcp(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;
	struct pg_endpoint *endpoint;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	endpoint = pg_antispoof_endpoint(skb, packet);
	if (direction == PG_EGRESS) {
		if (endpoint && (packet->family == 6 || packet->key.v4.pod) &&
		    pg_is_spoofed(endpoint, packet))
			return pg_deny(scratch, packet, PG_DENY_SPOOFED);
		pg_expect(packet, PG_EXPECT_DHCP, PG_EXPECT_DHCP_SECONDS);
		return pg_allow(scratch, PG_ALLOW_CONTROL);
	}
	if (!pg_expect_find(packet, PG_EXPECT_DHCP))
		return PG_NEXT_FLOW;
	/* No router forwards a broadcast, nor a packet from a link-local address. */
	if (packet->family == 4 && packet->key.v4.pod != 0xffffffff && !pg_is_on_link(skb))
		return PG_NEXT_FLOW;
	return pg_allow(scratch, PG_ALLOW_CONTROL);
}
