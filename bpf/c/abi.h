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
 * the first one of its datagram has no ports; it may pass where some port may (docs/semantics.md 8.2). */
#define PG_SOME_PORT 2

/* Class 0: an address that matches no atom. A policy entry of class 0 applies to every peer. */
#define PG_CLASS_ANY 0

/* No address has these. A flow of a pod to itself through a service (hairpin.h) is judged by the entries of this class for
 * its family, in both directions. Where there is none it passes. */
#define PG_CLASS_SELF4 0xF7FFFFFE
#define PG_CLASS_SELF6 0xF7FFFFFF

/* What an endpoint without a policy map does. */
enum pg_startup {
	PG_STARTUP_HOLD = 0, /* only its own node may reach it */
	PG_STARTUP_OPEN = 1, /* everything passes */
	/* Learning, with or without a policy map: everything passes and is remembered as a flow. For a pod that ran before
	 * podgate came, until policyd knows its open connections. */
	PG_STARTUP_LEARN = 2,
	/* The pod is being taken over from another layout, whose programs are in `previous` (handover.h). PREVIOUS:
	 * they decide on every packet whose flow is not known here. OPENING: but for TCP connections that begin now.
	 * REMAINDER: they decide only on what would be denied here. */
	PG_STARTUP_PREVIOUS = 3,
	PG_STARTUP_OPENING = 4,
	PG_STARTUP_REMAINDER = 5,
};

enum pg_mode {
	PG_MODE_ENFORCE = 0,
	PG_MODE_AUDIT = 1, /* a denied packet passes, is counted and reported */
	PG_MODE_OFF = 2,   /* a denied packet passes and is counted */
};

/* Why a packet was allowed or denied: the index of the counters (direction * PG_REASON_COUNT + reason) and a field
 * of events. Numbers are never reused. Below PG_DENY_FIRST: allowed. */
enum pg_reason {
	PG_REASON_UNUSED = 0,
	PG_ALLOW_FLOW = 1,	  /* of a known flow */
	PG_ALLOW_POLICY = 2,	  /* a rule (or "not isolated") allows this new flow */
	PG_ALLOW_OWN_NODE = 3,	  /* ingress that the pod's own node itself sends (origin.h) */
	PG_ALLOW_OWN_ADDRESS = 4, /* a pod to itself, through its own interface */
	PG_ALLOW_CONTROL = 5,	  /* ARP, neighbour discovery, multicast listener, DHCP */
	PG_ALLOW_RELATED = 6,	  /* ICMP error that quotes an allowed flow */
	PG_ALLOW_STARTUP = 7,	  /* startup state "open" */
	PG_ALLOW_FRAGMENT = 8, /* a fragment ahead of its first one, some port of that peer is allowed */
	PG_ALLOW_AUDIT = 9, /* would be denied, but the mode is not enforce, or the rule is only audited */
	PG_DENY_FIRST = 16,
	PG_DENY_POLICY = 16,	/* isolated, and no rule allows it */
	PG_DENY_STARTUP = 17,	/* startup state "hold" */
	PG_DENY_SPOOFED = 18,	/* the pod-side address is not the pod's (antiSpoofing) */
	PG_DENY_MALFORMED = 19, /* no transport header where one must be */
	PG_DENY_NOT_IP = 20,	/* VLAN tag, foreign ethertype */
	PG_DENY_FRAGMENT = 21, /* its first fragment was denied, or no port of that peer is allowed */
	PG_DENY_NO_ENDPOINT = 22, /* the interface is not registered */
	PG_DENY_PORT_TAKEN = 23, /* two flows of the pod would look the same to one backend (direct.h) */
	PG_DENY_REWRITE = 24, /* allowed, but its translation failed: it must not leave partly rewritten */
	/* Of metered pods only (abi_limits.h), in every mode: allowed, but more than the pod may use. */
	PG_DENY_BANDWIDTH = 25,
	PG_DENY_PACKET_RATE = 26,
	PG_DENY_CONNECTION_RATE = 27,  /* the first packet of a flow: too many new ones */
	PG_DENY_CONNECTION_LIMIT = 28, /* the same: too many open ones */
	PG_REASON_COUNT = 32,
};

/* Statistics that are not verdicts, in the upper part of the counters (index PG_STAT_BASE + stat); only packets count. */
enum pg_stat {
	PG_STAT_FLOW_LOST = 0,	  /* an allowed flow could not be remembered */
	PG_STAT_EVENT_LOST = 1,	  /* the ring of events was full */
	PG_STAT_EVENT_LIMIT = 2,  /* events held back by the rate limit */
	PG_STAT_REVALIDATED = 3,  /* flows revalidated after a change of policy */
	PG_STAT_FLOW_EVICTED = 4, /* live flows evicted for others of their pod */
	PG_STAT_COUNT = 8,
};
#define PG_STAT_BASE (2 * PG_REASON_COUNT)
#define PG_COUNTER_COUNT (PG_STAT_BASE + PG_STAT_COUNT)

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
 * endpoints: ifindex of the host veth -> the pod at it. Written by the plugin (ADD, DEL, GC), and by policyd for pods
 * that it adopts or takes over; policyd also deletes those whose interface is gone. The programs read the part before
 * `netns_cookie`.
 *
 * `owner` is a random number drawn at registration. Policy keys and flows carry it, so that nothing of an earlier pod
 * with the same ifindex matches this one.
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
	/* policy entries only: passes, and is reported as what the rule would deny if its policy were not only audited */
	PG_VERDICT_AUDIT = 2,
	/* policy entries only: denies, and the sender is told (reject.h) */
	PG_VERDICT_REJECT = 3,
};

enum pg_policy_flag {
	PG_POLICY_LOG = 1, /* each new flow that the entry decides is reported */
};

struct pg_policy_value {
	__u32 rule;   /* number of the rule that decides, policyd knows its name */
	__u8 verdict; /* enum pg_verdict */
	__u8 flags;   /* enum pg_policy_flag */
	__u8 pad[2];
	__u64 hits; /* new flows that it decided on, and packets that it denied, written by the programs */
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
	PG_FLOW_NEW = 0,	 /* only its first sender has sent */
	PG_FLOW_ESTABLISHED = 1, /* both have */
	PG_FLOW_CLOSING = 2,	 /* TCP: one side has sent FIN */
	PG_FLOW_CLOSED = 3,	 /* TCP: both have, or one RST */
	PG_FLOW_REVOKED = 4, /* policy no longer allows it: packets of both sides are denied (conntrack.h) */
};

#define PG_FLOW_BY_OWN_NODE 1 /* allowed as the own node's; revalidated as that */
#define PG_FLOW_FIN_FROM_POD 2
#define PG_FLOW_FIN_TO_POD 4
/* A flow through a service is a pair of entries. The DNAT entry has the key that the pod sees, (pod, service address),
 * and says which backend its packets go to. The reverse-NAT entry has the key after translation, (pod, backend): policy
 * is evaluated and the state tracked on it, and it says which service address the replies come from. */
#define PG_FLOW_DNAT 8
#define PG_FLOW_REVNAT 16
/* With DNAT: the backend is the pod itself. Both entries have the DNAT flag then (hairpin.h). */
#define PG_FLOW_HAIRPIN 32
/* Translated outside podgate, by kube-proxy: nothing is rewritten here, but policy is evaluated with `other` as the
 * peer. Written by user space when it adopts a running pod, for connections that kube-proxy had translated before. */
#define PG_FLOW_EXTERNAL_NAT 64
/* Written by user space and not yet in its endpoint's ring (struct pg_ring): its next packet assigns it a slot. */
#define PG_FLOW_NO_SLOT 128

struct pg_flow {
	__u32 epoch; /* of its last evaluation; of a DNAT entry: of the last look-up of its backend */
	__u32 expires; /* coarse seconds, see clock.h */
	__u32 owner;
	__u32 rule;
	__u8 direction; /* enum pg_direction of its first packet, in which policy is evaluated for both directions */
	__u8 state;	   /* enum pg_flow_state */
	__u8 flags;	   /* PG_FLOW_* */
	__u8 traffic_rule; /* of a metered pod: the number of its traffic rule (abi_limits.h); 0: none */
	/* Only with a NAT flag. DNAT, EXTERNAL_NAT: the backend. REVNAT: the service address. */
	struct pg_addr other;
	__be16 other_port; /* BE */
	__be16 own_port; /* BE; the pod's port in the other entry of the pair: the same unless that was in use */
	/* REVNAT: the source port of what the pod sends to the backend directly from the same port; 0: none (direct.h). BE */
	__be16 direct_port;
	__u8 counted; /* of a metered pod; 1: it is counted in pg_meter.open */
	__u8 scope;   /* of a metered pod: enum pg_scope_kind of its peer */
};

/* flow_slots4, flow_slots6: the flows of an endpoint by slot number; the value is the flow's key. The slots 0 to
 * `high` - 1 are a ring, over which a hand (as in the CLOCK algorithm) moves to find the slot for the next flow
 * (flow_table.h). */
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
	__u64 evicted; /* live flows evicted for others of the endpoint */
};

/* shares: ifindex -> an endpoint's share of the resources that all endpoints of the node use. Made at registration;
 * a program makes one that is missing or an earlier endpoint's. */
struct pg_share {
	struct bpf_spin_lock lock;
	__u32 owner;
	struct pg_ring rings[2]; /* IPv4, IPv6 */
	__u64 events_held;	 /* events that the rate limit held back */
	__u32 event_tokens;	 /* events that it may raise now, beside the shared limit */
	__u32 event_second;	 /* when the tokens were refilled last, coarse seconds */
	__u32 cut_evicted; /* when a connection that policy had revoked was last evicted, coarse seconds; 0: never */
	__u32 answers; /* to denied packets: coarse second (24 bits), and how many in it (8 bits); see reject.h */
};

/* flow_use: how many slots all rings of a family have together. Mapped into user space, which corrects it after a
 * race or after a process was killed. */
struct pg_flow_use {
	__u64 slots;
};

/* frags: what the first fragment of a datagram said, for the later ones. LRU. */
struct pg_frag_key {
	__u32 ifindex;
	__u32 id;
	struct pg_addr source;
	struct pg_addr destination;
	__u8 protocol; /* IPv4 only, see fragment.h */
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
	__u8 flags; /* PG_FLOW_DNAT, REVNAT, HAIRPIN: the datagram is translated, with the four fields below */
	struct pg_addr other; /* as in pg_flow */
	__be16 other_port;    /* as in pg_flow */
	__be16 own_port;      /* as in pg_flow */
	__u32 epoch;	      /* of the first fragment's verdict */
	__u8 refused; /* not 0: it was denied, and passed because the mode was not enforce */
	__u8 origin;  /* enum pg_origin of the first fragment */
	__u8 pad[2];
};

/* expected: what a pod has asked for that is not found by a flow's key (expect.h). LRU. */
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
	struct pg_addr service; /* through which the pod talks to the peer; `::`: directly */
};

/*
 * services4, services6: service address, port and protocol -> the service's number and count of backends. Written by
 * policyd's writer alone, as are slots and backends. A service without a backend that may be selected has no entry: its
 * packets are not translated.
 *
 * Every slot below `count` holds a valid backend at every moment. To add a backend: backends, slot, count. To remove
 * one: the last slot's backend into its slot, count, and the last slot itself later, when no program that has read the
 * old count can still run.
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
	__u32 affinity_seconds; /* session affinity: time after the client's last new flow; 0: none */
	/* Its number in `affinity`, shared by all addresses of the service's port; 0, as an older policyd leaves it: `id`. */
	__u32 affinity;
};

/* slots: the backends that may be selected, by number. */
struct pg_slot_key {
	__u32 service;
	__u32 slot;
};

struct pg_backend {
	struct pg_addr addr;
	__be16 port; /* BE */
	__u8 pad[2];
};

/* backends: the same by address, with those that are not selected any more but keep their flows. */
struct pg_backend_key {
	__u32 service;
	struct pg_addr addr;
	__be16 port; /* BE */
	__u8 pad[2];
};

enum pg_backend_state {
	PG_BACKEND_READY = 1,	/* may be selected */
	PG_BACKEND_SERVING = 2, /* keeps the flows it has */
};

struct pg_backend_value {
	__u32 state; /* enum pg_backend_state */
};

/* affinity: the backend that a client had last, LRU. Written by the programs. */
struct pg_affinity_key {
	__u32 service; /* affinity of struct pg_service, or its id */
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
	__u32 epoch; /* bumped after each change on which verdicts depend; flows of an older one are revalidated */
	__u32 mode;	    /* enum pg_mode */
	__u32 tell_allowed; /* not 0: new allowed flows raise events too */
	/* Shared limit, beside each endpoint's own tokens; 0: no events at all, but for entries with PG_POLICY_LOG. */
	__u32 events_per_second;
	__u32 build; /* fingerprint of the object that the pinned programs came from */
};

enum pg_event_flag {
	PG_EVENT_LOGGED = 1, /* the entry that decided has PG_POLICY_LOG */
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
	__u8 flags;   /* enum pg_event_flag */
	/* The service through which the pod talks to `peer`; port 0: none. */
	__be16 service_port;
	struct pg_addr service;
};

/* The events of all endpoints together that the shared limit allowed in a second. Not pinned, not shared with user
 * space. */
struct pg_limiter {
	__u32 second;
	__u32 emitted;
};

#pragma clang diagnostic pop
