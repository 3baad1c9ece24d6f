/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Telling the sender of a packet that an entry rejects (PG_VERDICT_REJECT): a TCP segment is answered with a RST, anything
 * else with "administratively prohibited" (ICMP 3/13, ICMPv6 1/1), each from the address to which the packet was sent.
 * The answer takes the packet's place.
 *
 * What must not be answered is dropped like any denied packet: a RST, an ICMP message that is no query, a fragment, what
 * has no single sender or was not for a single receiver (RFC 1122, 3.2.2). So is, because it is rare, a packet with IP
 * options or extension headers, and what goes beyond a number of answers that each pod has in a second.
 */
#pragma once

#include "clock.h"
#include "conntrack.h"
#include "lb.h"
#include "rewrite.h"
#include "share.h"

#define PG_ANSWERS_A_SECOND 100

/*
 * An answer to somebody outside the pod enters the node as if the pod had sent it, through the interface that the packet
 * was about to leave by: bridged or routed, it finds its way like the pod's packets. There it meets from_pod, which knows
 * it by this mark and takes that off again. Nobody else can put a mark on a packet there: the kernel clears it when a
 * packet leaves the pod's namespace, and no program comes before this one.
 */
#define PG_MARK_ANSWER 0x70676174

static __always_inline int pg_is_own_answer(struct __sk_buff *skb)
{
	if (skb->mark != PG_MARK_ANSWER)
		return 0;
	skb->mark = 0;
	return 1;
}

/* Neither of one host nor to one: unspecified, loopback, multicast, reserved, broadcast. */
static __always_inline int pg_is_not_unicast4(__be32 addr)
{
	__u32 first = bpf_ntohl(addr) >> 24;

	return first == 0 || first == 127 || first >= 224;
}

static __always_inline int pg_is_not_unicast6(const struct pg_addr *addr)
{
	const __be32 *words = (const void *)addr->bytes;

	return addr->bytes[0] == 0xff ||
	       !(words[0] | words[1] | words[2] | (words[3] & bpf_htonl(0xfffffffe)));
}

/* Whether a packet like this is answered at all. */
static __always_inline int pg_is_answerable(struct __sk_buff *skb, const struct pg_packet *packet,
					    const struct pg_l4 *l4)
{
	__u8 protocol = pg_protocol(packet), group;

	if (packet->fragment != PG_NOT_FRAGMENTED || (packet->tcp_flags & PG_TCP_RST))
		return 0;
	if ((protocol == PG_IPPROTO_ICMP || protocol == PG_IPPROTO_ICMPV6) &&
	    (packet->no_track ||
	     (packet->family == 4 ? packet->key.v4.kind : packet->key.v6.kind) == PG_FLOW_PLAIN))
		return 0;
	if (bpf_skb_load_bytes(skb, 0, &group, sizeof(group)) || (group & 1))
		return 0;
	if (packet->family == 4)
		return l4->off == PG_ETH_HLEN + sizeof(struct iphdr) &&
		       !pg_is_not_unicast4(packet->key.v4.pod) &&
		       !pg_is_not_unicast4(packet->key.v4.peer);
	return packet->family == 6 && l4->off == PG_ETH_HLEN + sizeof(struct ipv6hdr) &&
	       !pg_is_not_unicast6(&packet->key.v6.pod) && !pg_is_not_unicast6(&packet->key.v6.peer);
}

/* Without a lock: two CPUs that answer at once may count one answer less. */
static __always_inline int pg_take_answer(struct pg_share *share)
{
	__u32 second = pg_now() << 8, answers = share->answers;

	if ((answers & 0xffffff00) != second)
		answers = second;
	if ((answers & 0xff) >= PG_ANSWERS_A_SECOND)
		return 0;
	share->answers = answers + 1;
	return 1;
}

/* Whether the checksum is left to a device (CHECKSUM_PARTIAL), which no field of the context says: bpf_l4_csum_replace
 * leaves such a checksum as it is unless the pseudo header has changed. Tried on bytes of the Ethernet header, which no
 * checksum covers and which are written anew. Returns a negative number if a helper failed. */
static __always_inline int pg_is_checksum_partial(struct __sk_buff *skb)
{
	__u16 zero = 0, tried = 0;

	if (bpf_skb_store_bytes(skb, 0, &zero, sizeof(zero), 0) ||
	    bpf_l4_csum_replace(skb, 0, 0, 1, 0) ||
	    bpf_skb_load_bytes(skb, 0, &tried, sizeof(tried)))
		return -1;
	return tried == zero;
}

/* The sum of whole words, folded to 16 bits; the checksum is its complement. `seed`: a sum to which it is added. */
static __always_inline __u32 pg_sum(__u32 *bytes, __u32 length, __u32 seed)
{
	__u32 sum = bpf_csum_diff(NULL, 0, bytes, length, seed);

	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The sum of the pseudo header of an answer whose addresses are `length` bytes at `addresses`. */
static __always_inline __u32 pg_pseudo_sum(void *addresses, __u32 length, __u32 protocol,
					   __u32 payload)
{
	__be32 rest = bpf_htonl(protocol + payload);

	return pg_sum(addresses, length, pg_sum(&rest, sizeof(rest), 0));
}

static __always_inline void pg_ip4_of_answer(struct iphdr *ip, const struct pg_packet *packet,
					     __u32 direction, __u32 protocol, __u32 length)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	*(__u8 *)ip = 0x45;
	ip->tot_len = bpf_htons(length);
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->protocol = protocol;
	ip->saddr = direction == PG_EGRESS ? packet->key.v4.peer : packet->key.v4.pod;
	ip->daddr = direction == PG_EGRESS ? packet->key.v4.pod : packet->key.v4.peer;
	ip->check = ~pg_sum((void *)ip, sizeof(*ip), 0);
}

static __always_inline void pg_ip6_of_answer(struct ipv6hdr *ip, const struct pg_packet *packet,
					     __u32 direction, __u32 protocol, __u32 payload)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	*(__u8 *)ip = 0x60;
	ip->payload_len = bpf_htons(payload);
	ip->nexthdr = protocol;
	ip->hop_limit = 64;
	__builtin_memcpy(&ip->saddr,
			 direction == PG_EGRESS ? &packet->key.v6.peer : &packet->key.v6.pod, 16);
	__builtin_memcpy(&ip->daddr,
			 direction == PG_EGRESS ? &packet->key.v6.pod : &packet->key.v6.peer, 16);
}

/* The RST to the segment `tcp` (RFC 9293, 3.10.7.1), in its place. `length`: of the segment with its header, bytes. */
static __always_inline void pg_make_reset(struct pg_tcp *tcp, __u32 length)
{
	__u32 sequence = bpf_ntohl(tcp->sequence) + length - (tcp->length >> 4) * 4;
	__be16 source = tcp->source;
	int acknowledges = tcp->flags & PG_TCP_ACK;

	if (tcp->flags & PG_TCP_SYN)
		sequence++;
	if (tcp->flags & PG_TCP_FIN)
		sequence++;
	tcp->source = tcp->destination;
	tcp->destination = source;
	tcp->sequence = acknowledges ? tcp->acknowledged : 0;
	tcp->acknowledged = acknowledges ? 0 : bpf_htonl(sequence);
	tcp->length = sizeof(*tcp) / 4 << 4;
	tcp->flags = acknowledges ? PG_TCP_RST : PG_TCP_RST | PG_TCP_ACK;
	tcp->window = 0;
	tcp->checksum = 0;
	tcp->urgent = 0;
}

/* Its checksum; where a device will write that, the sum that it begins with. */
static __always_inline __u16 pg_reset_checksum(struct pg_tcp *tcp, __u32 pseudo, int partial)
{
	return partial ? pseudo : ~pg_sum((void *)tcp, sizeof(*tcp), pseudo);
}

/* Reads the segment in hand and makes it the RST to itself. Returns 0 unless a helper failed. */
static __always_inline int pg_load_reset(struct __sk_buff *skb, const struct pg_l4 *l4,
					 struct pg_tcp *tcp)
{
	if (bpf_skb_load_bytes(skb, l4->off, tcp, sizeof(*tcp)))
		return -1;
	pg_make_reset(tcp, l4->len);
	return 0;
}

/* Puts an answer of so many bytes behind the Ethernet header. Returns 0 unless a helper failed. */
static __always_inline int pg_put_answer(struct __sk_buff *skb, const void *answer, __u32 length)
{
	return bpf_skb_change_tail(skb, PG_ETH_HLEN + length, 0) ||
	       bpf_skb_store_bytes(skb, PG_ETH_HLEN, answer, length, BPF_F_RECOMPUTE_CSUM);
}

/* Makes the packet its own answer, behind the Ethernet header. Returns 0 unless a helper failed. */
PG_GLOBAL_FN int pg_answer4(struct __sk_buff *skb, __u32 direction, int partial)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	union pg_answer *answer;
	__u32 pseudo;

	if (!scratch || !packet)
		return -1;
	answer = &scratch->answer;
	if (pg_protocol(packet) == PG_IPPROTO_TCP) {
		if (pg_load_reset(skb, &scratch->l4, &answer->reset4.tcp))
			return -1;
		pg_ip4_of_answer(&answer->reset4.ip, packet, direction, PG_IPPROTO_TCP,
				 sizeof(answer->reset4));
		pseudo = pg_pseudo_sum(&answer->reset4.ip.saddr, 8, PG_IPPROTO_TCP,
				       sizeof(answer->reset4.tcp));
		answer->reset4.tcp.checksum = pg_reset_checksum(&answer->reset4.tcp, pseudo,
								partial);
		return pg_put_answer(skb, &answer->reset4, sizeof(answer->reset4));
	}
	/* A checksum that a device writes for UDP lands in the unused bytes, as one's complement 0: the sum of all that it
	 * covers is that already. */
	if (bpf_skb_load_bytes(skb, PG_ETH_HLEN, answer->error4.quote, PG_QUOTE4))
		return -1;
	pg_ip4_of_answer(&answer->error4.ip, packet, direction, PG_IPPROTO_ICMP,
			 sizeof(answer->error4));
	__builtin_memset(&answer->error4.icmp, 0, sizeof(answer->error4.icmp));
	answer->error4.icmp.type = ICMP_DEST_UNREACH;
	answer->error4.icmp.code = 13;
	answer->error4.icmp.checksum = ~pg_sum((void *)&answer->error4.icmp,
					       sizeof(answer->error4.icmp) + PG_QUOTE4, 0);
	return pg_put_answer(skb, &answer->error4, sizeof(answer->error4));
}

/* As pg_answer4. */
PG_GLOBAL_FN int pg_answer6(struct __sk_buff *skb, __u32 direction, int partial)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet = pg_packet_in(PG_SLOT_PACKET);
	union pg_answer *answer;
	__u32 pseudo;

	if (!scratch || !packet)
		return -1;
	answer = &scratch->answer;
	if (pg_protocol(packet) == PG_IPPROTO_TCP) {
		if (pg_load_reset(skb, &scratch->l4, &answer->reset6.tcp))
			return -1;
		pg_ip6_of_answer(&answer->reset6.ip, packet, direction, PG_IPPROTO_TCP,
				 sizeof(answer->reset6.tcp));
		pseudo = pg_pseudo_sum(&answer->reset6.ip.saddr, 32, PG_IPPROTO_TCP,
				       sizeof(answer->reset6.tcp));
		answer->reset6.tcp.checksum = pg_reset_checksum(&answer->reset6.tcp, pseudo,
								partial);
		return pg_put_answer(skb, &answer->reset6, sizeof(answer->reset6));
	}
	if (bpf_skb_load_bytes(skb, PG_ETH_HLEN, answer->error6.quote, PG_QUOTE6))
		return -1;
	pg_ip6_of_answer(&answer->error6.ip, packet, direction, PG_IPPROTO_ICMPV6,
			 sizeof(answer->error6.icmp) + PG_QUOTE6);
	__builtin_memset(&answer->error6.icmp, 0, sizeof(answer->error6.icmp));
	answer->error6.icmp.type = ICMPV6_DEST_UNREACH;
	answer->error6.icmp.code = 1;
	pseudo = pg_pseudo_sum(&answer->error6.ip.saddr, 32, PG_IPPROTO_ICMPV6,
			       sizeof(answer->error6.icmp) + PG_QUOTE6);
	/* A device writes the checksum that makes all sum up where UDP has its, which is in the unused bytes here, and
	 * begins with what is there. */
	if (partial)
		answer->error6.icmp.unused[1] = pseudo;
	else
		answer->error6.icmp.checksum = ~pg_sum((void *)&answer->error6.icmp,
						       sizeof(answer->error6.icmp) + PG_QUOTE6,
						       pseudo);
	return pg_put_answer(skb, &answer->error6, sizeof(answer->error6));
}

/* Makes the denied packet in hand the answer to it and sends that to its sender. Returns PG_TC_REDIRECT, or PG_TC_DROP if
 * it is not answered. */
PG_GLOBAL_FN enum pg_action pg_reject(struct __sk_buff *skb, __u32 direction)
{
	struct pg_scratch *scratch = pg_scratch();
	__u32 ifindex = skb->ifindex;
	__u8 addresses[12], swapped[12];
	struct pg_packet *packet;
	struct pg_share *share;
	int partial;

	if (!scratch)
		return PG_DROP_UNREACHABLE;
	packet = &scratch->packets[PG_SLOT_PACKET];
	share = bpf_map_lookup_elem(&shares, &ifindex);
	if (!share || !pg_is_answerable(skb, packet, &scratch->l4) || !pg_take_answer(share) ||
	    bpf_skb_load_bytes(skb, 0, addresses, sizeof(addresses)))
		return PG_TC_DROP;
	partial = pg_is_checksum_partial(skb);
	/* Where a device writes the checksum, it writes it into the answer, too, which is made for the places that TCP and UDP
	 * have for theirs. */
	if (partial < 0 || (partial && pg_protocol(packet) != PG_IPPROTO_TCP &&
			    pg_protocol(packet) != PG_IPPROTO_UDP))
		return PG_TC_DROP;
	if (packet->family == 4 ? pg_answer4(skb, direction, partial)
				: pg_answer6(skb, direction, partial))
		return PG_TC_DROP;
	__builtin_memcpy(swapped, addresses + 6, 6);
	__builtin_memcpy(swapped + 6, addresses, 6);
	if (bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0))
		return PG_TC_DROP;
	if (direction == PG_INGRESS) {
		skb->mark = PG_MARK_ANSWER;
		return bpf_redirect(ifindex, BPF_F_INGRESS);
	}
	/* Straight into the pod, past its own gate. Its hardware address was not the packet's, by which the kernel has seen
	 * already for whom it is. */
	if (bpf_skb_change_type(skb, 0 /* PACKET_HOST */))
		return PG_TC_DROP;
	return bpf_redirect_peer(ifindex, 0);
}
