// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Layouts of other versions, as small as will do: the records that are carried over, and a gate that passes the flows
 * it knows and nothing else. Without a macro it is layout 1 as it was released; SHUFFLED is one that never was, with
 * other places and lengths and a field that this build does not know; LACKING lacks a field that it needs.
 */
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

/* enum bpf_map_type: hash, array, LRU hash */
#define HASH 1
#define ARRAY 2
#define LRU_HASH 9

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 size) = (void *)26;

/* The beginning of struct __sk_buff. */
struct skb {
	__u32 words[10];
	__u32 ifindex;
};

struct pg_addr {
	__u8 bytes[16] __attribute__((aligned(4)));
};

#ifdef SHUFFLED
struct pg_endpoint {
	char container_id[300];
	__u32 unknown_to_others;
	__u8 anti_spoofing;
	__u8 startup;
	__u8 addr6_count;
	__u8 addr4_count;
	struct pg_addr addr6[6];
	__be32 addr4[6];
	char netns[256];
	char interface[16];
	char host_interface[16];
	char network[100];
	char pod_namespace[64];
	char pod_name[256];
	char pod_uid[64];
	__u64 netns_cookie;
	__u32 owner;
	__u32 pad;
};

struct pg_flow {
	struct pg_addr other;
	__be16 own_port;
	__be16 other_port;
	__u32 owner;
	__u32 expires;
	__u8 flags;
	__u8 state;
	__u8 direction;
	__u8 pad;
	__u32 epoch;
	__u32 unknown_to_others;
};

struct pg_flow4_key {
	__be16 peer_port;
	__be16 pod_port;
	__be32 peer;
	__be32 pod;
	__u32 ifindex;
	__u8 kind;
	__u8 protocol;
	__u8 pad[2];
};

struct pg_control {
	__u32 build;
	__u32 epoch;
	__u32 mode;
};
#else
struct pg_endpoint {
	__u32 owner;
	__u8 startup;
	__u8 anti_spoofing;
	__u8 addr4_count;
	__u8 addr6_count;
	__be32 addr4[4];
	struct pg_addr addr6[4];
	__u64 netns_cookie;
	char container_id[256];
	char interface[16];
	char host_interface[16];
	char network[128];
	char pod_namespace[64];
	char pod_name[256];
	char pod_uid[64];
	char netns[256];
};

struct pg_flow {
	__u32 epoch;
	__u32 expires;
	__u32 owner;
	__u32 rule;
	__u8 direction;
	__u8 state;
	__u8 flags;
	__u8 pad;
	struct pg_addr other;
	__be16 other_port;
#ifdef LACKING
	__be16 something_else;
#else
	__be16 own_port;
#endif
};

struct pg_flow4_key {
	__u32 ifindex;
	__be32 pod;
	__be32 peer;
	__be16 pod_port;
	__be16 peer_port;
	__u8 protocol;
	__u8 kind;
	__u8 pad[2];
};

struct pg_control {
	__u32 epoch;
	__u32 mode;
	__u32 tell_allowed;
	__u32 events_per_second;
	__u32 build;
};
#endif

struct pg_flow6_key {
	__u32 ifindex;
	struct pg_addr pod;
	struct pg_addr peer;
	__be16 pod_port;
	__be16 peer_port;
	__u8 protocol;
	__u8 kind;
	__u8 pad[2];
};

struct {
	__uint(type, HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct pg_endpoint);
} endpoints SEC(".maps");

/* Not a map of maps: only its keys matter here. */
struct {
	__uint(type, HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} policies SEC(".maps");

struct {
	__uint(type, LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct pg_flow4_key);
	__type(value, struct pg_flow);
} flows4 SEC(".maps");

struct {
	__uint(type, LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct pg_flow6_key);
	__type(value, struct pg_flow);
} flows6 SEC(".maps");

struct {
	__uint(type, ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pg_control);
} control SEC(".maps");

/* IPv4 behind an Ethernet header, no options. */
static inline __attribute__((always_inline)) int gate(struct skb *skb, int ingress)
{
	struct pg_flow4_key key = {};
	__u32 zero = 0, ifindex = skb->ifindex;
	__be32 addresses[2];
	__be16 ports[2];

	if (bpf_skb_load_bytes(skb, 14 + 12, addresses, 8) ||
	    bpf_skb_load_bytes(skb, 14 + 20, ports, 4) ||
	    bpf_skb_load_bytes(skb, 14 + 9, &key.protocol, 1))
		return 2;
	key.ifindex = ifindex;
	key.pod = addresses[ingress];
	key.peer = addresses[!ingress];
	key.pod_port = ports[ingress];
	key.peer_port = ports[!ingress];
	/* the other maps are to be the programs' too */
	bpf_map_lookup_elem(&control, &zero);
	bpf_map_lookup_elem(&policies, &ifindex);
	if (!bpf_map_lookup_elem(&endpoints, &ifindex))
		return 2;
	return bpf_map_lookup_elem(&flows4, &key) ? -1 : 2;
}

SEC("tc")
int from_pod(struct skb *skb)
{
	return gate(skb, 0);
}

SEC("tc")
int to_pod(struct skb *skb)
{
	return gate(skb, 1);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
