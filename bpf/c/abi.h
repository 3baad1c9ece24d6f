/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The contract between the programs and user space: every key and value of every pinned map.
 *
 * bpf/src/abi.rs mirrors this file and bpf/tests/abi_btf.rs compares the two through the object's BTF.
 * A change of any layout here is a change of PG_ABI_VERSION, which is part of the pin path: two builds
 * with different layouts never share a map. Numbers are native endian except where "BE" says otherwise.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#define PG_ABI_VERSION 2

#pragma clang diagnostic push
#pragma clang diagnostic error "-Wpadded"

/* Seen from the pod: egress is what the pod sends (from_pod, TC ingress of its host veth). */
enum pg_direction {
	PG_EGRESS = 0,
	PG_INGRESS = 1,
};

/* Directions of policy keys only: "some port of this protocol is allowed". A fragment that overtakes
 * the first one of its datagram has no ports; it may pass where some port may (semantics 8). */
#define PG_SOME_PORT 2

/* Class 0: no atom matches this address. A policy entry of class 0 holds for every peer. */
#define PG_CLASS_ANY 0

/* What an endpoint without a policy map does. */
enum pg_startup {
	PG_STARTUP_HOLD = 0, /* only its own node may reach it */
	PG_STARTUP_OPEN = 1, /* everything passes */
	/* With a policy map or without: everything passes and is remembered. A pod that ran before podgate came,
	 * until policyd knows its open connections. */
	PG_STARTUP_WATCH = 2,
	/* The pod is being taken over from another layout, whose programs are in `previous` (handover.h):
	 * PREVIOUS: they judge every packet whose flow is not known here. OPENING: but for TCP connections that
	 * begin now. REMAINDER: they judge only what would be denied here. */
	PG_STARTUP_PREVIOUS = 3,
	PG_STARTUP_OPENING = 4,
	PG_STARTUP_REMAINDER = 5,
};

enum pg_mode {
	PG_MODE_ENFORCE = 0,
	PG_MODE_AUDIT = 1, /* a denial is counted and told, and the packet passes */
	PG_MODE_OFF = 2,   /* the same, untold */
};

/*
 * Why a packet passed or not: the index of the counters (direction * PG_REASON_COUNT + reason) and a
 * field of events. Numbers are never reused. Below PG_DENY_FIRST: passed.
 */
enum pg_reason {
	PG_REASON_UNUSED = 0,
	PG_ALLOW_FLOW = 1,	  /* of a flow already judged */
	PG_ALLOW_POLICY = 2,	  /* a rule (or "not isolated") allows this new flow */
	PG_ALLOW_OWN_NODE = 3,	  /* ingress that the pod's own node itself sends (origin.h) */
	PG_ALLOW_OWN_ADDRESS = 4, /* a pod to itself, through its own interface */
	PG_ALLOW_CONTROL = 5,	  /* ARP, neighbour discovery, multicast listener, DHCP */
	PG_ALLOW_RELATED = 6,	  /* ICMP error that quotes an allowed flow */
	PG_ALLOW_STARTUP = 7,	  /* startup state "open" */
	PG_ALLOW_FRAGMENT = 8, /* a fragment ahead of its first one, some port of that peer is allowed */
	PG_ALLOW_AUDIT = 9, /* would be denied, but the mode is not enforce */
	PG_DENY_FIRST = 16,
	PG_DENY_POLICY = 16,	/* isolated, and no rule allows it */
	PG_DENY_STARTUP = 17,	/* startup state "hold" */
	PG_DENY_SPOOFED = 18,	/* an address in the pod's place is not the pod's (antiSpoofing) */
	PG_DENY_MALFORMED = 19, /* no transport header where one must be */
	PG_DENY_NOT_IP = 20,	/* VLAN tag, foreign ethertype */
	PG_DENY_FRAGMENT = 21, /* its first fragment was denied, or no port of that peer is allowed */
	PG_DENY_NO_ENDPOINT = 22, /* the interface is not registered */
	PG_DENY_PORT_TAKEN = 23, /* two flows of the pod would look the same to one endpoint (service.h) */
	PG_REASON_COUNT = 32,
};

/* Not verdicts: things worth counting, in the counters' upper half (index PG_NOTE_BASE + note). */
enum pg_note {
	PG_NOTE_FLOW_LOST = 0,	  /* an allowed flow could not be remembered */
	PG_NOTE_EVENT_LOST = 1,	  /* the ring of events was full */
	PG_NOTE_EVENT_LIMIT = 2,  /* events held back by the rate limit */
	PG_NOTE_JUDGED_AGAIN = 3, /* flows judged again after a change of policy */
	PG_NOTE_FLOW_EVICTED = 4, /* live flows that had to make room for others of their pod */
	PG_NOTE_COUNT = 8,
};
#define PG_NOTE_BASE (2 * PG_REASON_COUNT)
#define PG_COUNTER_COUNT (PG_NOTE_BASE + PG_NOTE_COUNT)

struct pg_counter {
	__u64 packets;
	__u64 bytes;
};

/* An address of either family; IPv4 is mapped (::ffff:a.b.c.d). */
struct pg_addr {
	__u8 bytes[16] __attribute__((aligned(4)));
};

#define PG_ENDPOINT_ADDRS 4 /* per family */

/*
 * endpoints: ifindex of the host veth -> who lives behind it. Written by the plugin alone (ADD, DEL, GC);
 * policyd only deletes those whose interface is gone. The programs read the part before `netns_cookie`.
 *
 * `owner` is a random number drawn at registration. Policy keys and flows carry it, so nothing of an
 * earlier pod that had the same ifindex can serve this one.
 */
struct pg_endpoint {
	__u32 owner;
	__u8 startup; /* enum pg_startup */
	__u8 anti_spoofing;
	__u8 addr4_count;
	__u8 addr6_count;
	__be32 addr4[PG_ENDPOINT_ADDRS]; /* BE */
	struct pg_addr addr6[PG_ENDPOINT_ADDRS];
	__u8 mac[6]; /* of the pod's interface; 0: unknown */
	__u8 pad[2];

	/* For user space; text is UTF-8, ended by a zero byte. */
	__u64 netns_cookie; /* 0 where the kernel has none (before 5.14) */
	char container_id[256];
	char interface[16];	 /* inside the sandbox, CNI_IFNAME */
	char host_interface[16]; /* the veth's host end */
	char network[128];	 /* name of the network configuration */
	char pod_namespace[64];
	char pod_name[256];
	char pod_uid[64];
	char netns[256]; /* CNI_NETNS at ADD */
};

/*
 * policies: hash of maps, ifindex -> the endpoint's own LPM trie of what is allowed. Written by policyd.
 * An endpoint without one is in its startup state.
 *
 * The prefix covers owner, class and direction always (72 bits), then protocol, then leading bits of the
 * port: an entry for every protocol has 72, for all ports of one 80, for one port 96. No match is a denial.
 */
struct pg_policy_key {
	__u32 prefixlen;
	__u32 owner;
	__u32 class;
	__u8 direction; /* enum pg_direction, + PG_SOME_PORT */
	__u8 protocol;
	__be16 port; /* BE */
};
#define PG_POLICY_PREFIX_ANY 72
#define PG_POLICY_PREFIX_PROTOCOL 80
#define PG_POLICY_PREFIX_PORT 96

enum pg_verdict {
	PG_VERDICT_DENY = 0,
	PG_VERDICT_ALLOW = 1,
};

struct pg_policy_value {
	__u32 rule;   /* number of the rule that decides, policyd knows its name */
	__u8 verdict; /* enum pg_verdict */
	__u8 pad[3];
	__u64 hits; /* new flows it decided, written by the programs */
};

/* peers4, peers6: class of an exact address (hash), consulted first. nets4, nets6: of a prefix (LPM). */
struct pg_peer4_key {
	__be32 addr; /* BE */
};

struct pg_peer6_key {
	struct pg_addr addr;
};

struct pg_net4_key {
	__u32 prefixlen;
	__be32 addr; /* BE */
};

struct pg_net6_key {
	__u32 prefixlen;
	struct pg_addr addr;
};

struct pg_class {
	__u32 class;
};

/* node_addrs: prefixes of the node's own addresses (v4 mapped, so its prefixes are 96 longer). Written by policyd,
 * and by the plugin at ADD so that probes reach a pod before policyd's first start. */
struct pg_node_key {
	__u32 prefixlen;
	struct pg_addr addr;
};

struct pg_node_addr {
	__u32 pad;
};

/*
 * flows4, flows6: one entry per allowed flow of an endpoint. The key is the same for both directions:
 * the pod's side and the peer's side. Echo requests of the two sides are different flows.
 */
enum pg_flow_kind {
	PG_FLOW_PLAIN = 0,
	PG_FLOW_ECHO_BY_POD = 1,
	PG_FLOW_ECHO_BY_PEER = 2,
};

struct pg_flow4_key {
	__u32 ifindex;
	__be32 pod;	  /* BE */
	__be32 peer;	  /* BE */
	__be16 pod_port;  /* BE; identifier of an echo; 0 where the protocol has no ports */
	__be16 peer_port; /* BE */
	__u8 protocol;
	__u8 kind; /* enum pg_flow_kind */
	__u8 pad[2];
};

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

enum pg_flow_state {
	PG_FLOW_NEW = 0,	 /* only its opener has spoken */
	PG_FLOW_ESTABLISHED = 1, /* both have */
	PG_FLOW_CLOSING = 2,	 /* TCP: one side has sent FIN */
	PG_FLOW_CLOSED = 3,	 /* TCP: both have, or one RST */
	PG_FLOW_CUT = 4, /* policy no longer allows it: neither side's packets pass (conntrack.h) */
};

#define PG_FLOW_BY_OWN_NODE 1 /* allowed as the own node's; judged again as that */
#define PG_FLOW_FIN_FROM_POD 2
#define PG_FLOW_FIN_TO_POD 4
/* A flow to a service is two entries. The service view has the key that the pod sees: (pod, service address);
 * it says where the packets go. The endpoint view has the key that the others see: (pod, endpoint); it is the
 * flow that is judged and tracked, and says what its replies are to look like. */
#define PG_FLOW_SERVICE 8
#define PG_FLOW_ENDPOINT 16
/* With SERVICE: the endpoint is the pod itself. Both entries are service views then (service.h). */
#define PG_FLOW_HAIRPIN 32
/* Somebody else translates this flow: nothing is rewritten here, but `other` is judged in place of the peer.
 * Written by user space when it adopts a running pod, of connections that kube-proxy had translated. */
#define PG_FLOW_FOREIGN 64
/* Written by user space, and in no ring yet (struct pg_ring): its next packet gives it a slot. */
#define PG_FLOW_UNPLACED 128

struct pg_flow {
	__u32 epoch; /* of its last judgement; of a service view: of the last look at its backend */
	__u32 expires; /* coarse seconds, see clock.h */
	__u32 owner;
	__u32 rule;
	__u8 direction; /* enum pg_direction of its first packet: a reply is judged as the flow it answers */
	__u8 state; /* enum pg_flow_state */
	__u8 flags; /* PG_FLOW_* */
	__u8 pad;
	/* Only with the flags above. SERVICE, FOREIGN: the endpoint. ENDPOINT: the service. */
	struct pg_addr other;
	__be16 other_port; /* BE */
	__be16 own_port; /* BE; the pod's port in the other view: the same unless that one was taken */
	/* ENDPOINT: the port from which what the pod itself sends to the endpoint leaves, if it does; 0: none (direct.h). BE */
	__be16 direct_port;
	__u8 pad2[2];
};

/*
 * flow_slots4, flow_slots6: which flows an endpoint has, by number. Its slots 0 to `high` are a ring; a hand goes round it
 * and finds the place of the next flow (flow_table.h). The value is the flow's key.
 */
struct pg_flow_slot_key {
	__u32 owner;
	__u32 index;
};

/* One endpoint's slots of one family. */
struct pg_ring {
	__u32 high; /* slots 0 to high - 1 are its own */
	__u32 hand; /* the slot to look at next */
	__u32 last; /* the slot that was given to a flow last */
	__u32 steps; /* 0: the last look under the hand met no live flow; else one more than it grows until the next */
	__u64 evicted; /* live flows that made room for others of the endpoint */
};

/* shares: ifindex -> what an endpoint has of that of which there is only so much for all. Made at registration; a program
 * makes one that is missing or of an earlier endpoint. */
struct pg_share {
	struct bpf_spin_lock lock;
	__u32 owner;
	struct pg_ring rings[2]; /* IPv4, IPv6 */
	__u64 events_held;	 /* events that the rate limit held back */
	__u32 event_tokens;	 /* events that it may tell at once, beside those that all share */
	__u32 event_second;	 /* when that was seen last, coarse seconds */
	__u32 cut_evicted; /* when a connection that policy had revoked was last evicted, coarse seconds; 0: never */
	__u32 pad;
};

/* flow_use: how many slots all rings of a family have together. Mapped into user space, which mends what a race or
 * a process that was killed has left. */
struct pg_flow_use {
	__u64 slots;
};

/* frags: what the first fragment of a datagram said, for the later ones. LRU. */
struct pg_frag_key {
	__u32 ifindex;
	__u32 id;
	struct pg_addr source;
	struct pg_addr destination;
	__u8 protocol; /* IPv4 only, see gate.h */
	__u8 direction;
	__u8 pad[2];
};

struct pg_frag {
	__u32 expires;
	__be16 pod_port;
	__be16 peer_port;
	__u8 kind;    /* enum pg_flow_kind */
	__u8 verdict; /* enum pg_verdict */
	__u8 protocol;
	__u8 flags; /* PG_FLOW_SERVICE, ENDPOINT, HAIRPIN: the datagram is translated, `peer` too is the flow's */
	struct pg_addr other; /* as in pg_flow */
	__be16 other_port;    /* as in pg_flow */
	__be16 own_port;      /* as in pg_flow */
	__u32 epoch;	      /* in which the first fragment was judged */
	__u8 refused; /* not 0: it was denied, and passed because the mode was not enforce */
	__u8 origin;  /* enum pg_origin of the first fragment */
	__u8 pad[2];
};

/* expected: what a pod has asked for and cannot be found by a flow's key. LRU. */
enum pg_expect_kind {
	PG_EXPECT_FRAGMENTS = 0, /* datagrams of this protocol from this peer, whose fragments may be reordered */
	PG_EXPECT_DHCP = 1, /* answers of a DHCP server; `peer` is 0.0.0.0 (mapped) or ::, `protocol` 0 */
};

struct pg_expect_key {
	__u32 ifindex;
	struct pg_addr peer;
	__u8 protocol;
	__u8 kind; /* enum pg_expect_kind */
	__u8 pad[2];
};

struct pg_expect {
	__u32 owner;
	__u32 expires;
	struct pg_addr service; /* through which the pod talks to the peer; ::: directly */
};

/*
 * services4, services6: where a service listens -> which number it has and how many endpoints may be picked.
 * Written by policyd's writer alone, as are slots and backends. A service without an endpoint that may be
 * picked has no entry: its packets are none of the programs' business.
 *
 * Every slot below `count` holds a valid backend at every moment. To add one: backends, slot, count. To remove
 * one: the last slot's backend into its slot, count, and the last slot itself later, when no program that has read
 * the old count can still run.
 */
struct pg_service4_key {
	__be32 addr; /* BE */
	__be16 port; /* BE */
	__u8 protocol;
	__u8 pad;
};

struct pg_service6_key {
	struct pg_addr addr;
	__be16 port; /* BE */
	__u8 protocol;
	__u8 pad;
};

struct pg_service {
	__u32 id; /* of this address, port and protocol; not 0 */
	__u32 count;
	__u32 affinity_seconds; /* a client keeps its endpoint so long after its last new flow; 0: not at all */
	__u32 pad;
};

/* slots: the endpoints that may be picked, by number. */
struct pg_slot_key {
	__u32 service;
	__u32 slot;
};

struct pg_backend {
	struct pg_addr addr;
	__be16 port; /* BE */
	__u8 pad[2];
};

/* backends: the same by address, with those that are not picked any more but keep their flows. */
struct pg_backend_key {
	__u32 service;
	struct pg_addr addr;
	__be16 port; /* BE */
	__u8 pad[2];
};

enum pg_backend_state {
	PG_BACKEND_READY = 1,	/* may be picked */
	PG_BACKEND_SERVING = 2, /* keeps the flows it has */
};

struct pg_backend_value {
	__u32 state; /* enum pg_backend_state */
};

/* affinity: which endpoint a client had last, LRU. Written by the programs. */
struct pg_affinity_key {
	__u32 service;
	struct pg_addr client;
};

struct pg_affinity {
	struct pg_addr addr;
	__be16 port; /* BE */
	__u8 pad[2];
	__u32 seen; /* its last new flow, coarse seconds */
};

/* control: one entry, mapped into user space. */
struct pg_control {
	__u32 epoch; /* bumped by whoever changed what verdicts depend on; each flow is then judged once more */
	__u32 mode;	    /* enum pg_mode */
	__u32 tell_allowed; /* not 0: new allowed flows raise events too */
	__u32 events_per_second; /* of all endpoints together, beside those that each has of its own; 0: none at all */
	__u32 build; /* fingerprint of the object that the pinned programs came from */
};

/* events: ring buffer. */
struct pg_event {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	__u32 ifindex;
	__u32 owner;
	__u32 rule;
	__u32 peer_class;
	__u32 length; /* of the packet, bytes */
	struct pg_addr pod;
	struct pg_addr peer;
	__be16 pod_port;
	__be16 peer_port;
	__u8 direction;
	__u8 protocol;
	__u8 reason;  /* enum pg_reason */
	__u8 verdict; /* enum pg_verdict: what happened to the packet */
	__u8 family;  /* 4, 6, or 0 where the packet is no IP */
	__u8 pad;
	/* The service through which the pod talks to `peer`, as the pod sees it; port 0: none. */
	__be16 service_port;
	struct pg_addr service;
};

/* The rate limit of all endpoints together. Not pinned, not shared. */
struct pg_limiter {
	__u32 second;
	__u32 told;
};

#pragma clang diagnostic pop
