/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The part of the contract with user space (abi.h) that is about what a pod may use.
 *
 * A pod with limits, marks or accounting is metered: its gate runs the programs from_pod_metered and to_pod_metered. Nothing
 * here is read for any other pod.
 */
#pragma once

#include "abi.h"

#pragma clang diagnostic push
#pragma clang diagnostic error "-Wpadded"

/* What a limit is of. Also the index of the origins in pg_limits and of the counters in pg_meter. */
enum pg_limit {
	PG_LIMIT_BANDWIDTH = 0,	       /* bytes on the wire a second */
	PG_LIMIT_PACKETS = 1,	       /* packets on the wire a second */
	PG_LIMIT_NEW_CONNECTIONS = 2,  /* flows a second */
	PG_LIMIT_OPEN_CONNECTIONS = 3, /* flows at a time */
	PG_LIMIT_COUNT = 4,
};
/* Those that are rates are the first. */
#define PG_RATE_COUNT 3

/* Traffic rules of a pod at most: their numbers are 1 to this. */
#define PG_TRAFFIC_RULES_MOST 254

/* limits, meters: of a metered pod (rule 0), or of one of its traffic rules. */
struct pg_limits_key {
	__u32 owner; /* of the endpoint */
	__u32 rule;  /* pg_flow.traffic_rule */
};

/* A bucket's rate: what a unit costs, in time. */
struct pg_rate {
	__u64 cost; /* ns, times 2^PG_RATE_SHIFT, of one unit: a byte, a packet, a flow; 0: no limit */
	__u64 burst; /* ns: how much unused time a bucket keeps */
};
#define PG_RATE_SHIFT 20

enum pg_limits_flag {
	/* The root qdisc of the host veth is fq: what exceeds the bandwidth to the pod is delayed, not dropped. Rule 0 only. */
	PG_LIMITS_SHAPE = 1,
	PG_LIMITS_ACCOUNT = 2, /* packets are counted by scope, in `accounts`. Rule 0 only */
	PG_LIMITS_RULES = 4,   /* the pod has a table in `traffic`. Rule 0 only */
	/* A flow above a limit of connections is rejected (reject.h), else dropped silently. */
	PG_LIMITS_REJECT_EGRESS = 8,
	PG_LIMITS_REJECT_INGRESS = 16,
	PG_LIMITS_PRIORITY = 32, /* `priority` is to be written */
	PG_LIMITS_DSCP = 64,	 /* `dscp` is to be written */
};

/* The origin of limits that the plugin has written at ADD, from what the runtime passed. */
#define PG_ORIGIN_RUNTIME 0xfffffffe

/* No limit of open connections. */
#define PG_OPEN_UNLIMITED 0xffffffff

/* Arrays of two are indexed by enum pg_direction. Written by policyd, and at ADD by the plugin. */
struct pg_limits {
	struct pg_rate rates[2][PG_RATE_COUNT]; /* by enum pg_limit */
	/* Numbers of what has set the limits, for events (pg_event.rule); policyd knows their names. */
	__u32 origins[2][PG_LIMIT_COUNT];
	__u32 open_most[2]; /* connections at a time; PG_OPEN_UNLIMITED: no limit */
	/* What is written into allowed packets from the pod. */
	__u32 mark; /* the bits of skb->mark that are in `mark_mask`; the others stay */
	__u32 mark_mask;
	__u32 priority; /* skb->priority */
	__u8 dscp;	/* the upper six bits of the traffic class, 0 to 63 */
	__u8 flags;	/* enum pg_limits_flag */
	__u8 pad[2];
};

/* Flows of a pod, told apart by their hash, of which packets are waiting in the qdisc. */
#define PG_METER_QUEUES 64

/* The state of the same. User space makes it, with zeros; the programs change it, under its lock. */
struct pg_meter {
	struct bpf_spin_lock lock;
	__u32 pad;
	__u32 open[2]; /* open connections, by direction of their first packet */
	/* When a bucket has room again, CLOCK_MONOTONIC, ns: in the past while it has some. */
	__u64 next[2][PG_RATE_COUNT];
	/* The same of the part of the bandwidth that flows may use of which nothing waits. */
	__u64 next_sparse[2];
	/* When the last packet was refused: a bucket keeps more for a while (bucket.h). */
	__u64 refused_at[2];
	/* To the pod, with PG_LIMITS_SHAPE: when the last packet of a flow that waits departs. */
	__u64 departs[PG_METER_QUEUES];
	struct pg_counter passed[2];
	__u64 refused[2][PG_LIMIT_COUNT]; /* packets dropped for a limit */
	__u64 marked[2];		  /* packets that were marked (ECN) instead */
	__u64 delayed[2];		  /* packets that were given a time of departure */
};

/* scopes: prefixes (v4 mapped, so its prefixes are 96 longer) -> where the peer is. Key: struct pg_node_key. Written by
 * policyd while some pod is accounted. An address that matches none is external. */
enum pg_scope_kind {
	PG_SCOPE_EXTERNAL = 0,
	PG_SCOPE_SAME_NODE = 1,
	PG_SCOPE_SAME_ZONE = 2,
	PG_SCOPE_OTHER_ZONE = 3,
	PG_SCOPE_CLUSTER = 4, /* a pod whose node, or the zone of it, is not known */
	PG_SCOPE_NODE = 5,    /* an address of a node */
	PG_SCOPE_COUNT = 8,
};

struct pg_scope {
	__u32 kind; /* enum pg_scope_kind */
};

/* accounts: what an accounted pod exchanged with a scope. Per CPU. */
struct pg_account_key {
	__u32 owner;
	__u8 scope;	/* enum pg_scope_kind */
	__u8 direction; /* enum pg_direction of the packets */
	__u8 pad[2];
};

struct pg_account {
	__u64 packets; /* on the wire */
	__u64 bytes;   /* on the wire, Ethernet header included */
	__u64 flows;   /* that began in this direction */
};

#pragma clang diagnostic pop
