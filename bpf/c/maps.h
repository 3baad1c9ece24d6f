/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map: key, value, who writes, who reads, what happens when it is full.
 * Sizes here are the defaults; the loader may set others before the first load (podgate_bpf::loader::Sizes).
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "abi_limits.h"

/* ifindex -> registration. Writer: plugin; policyd, for pods that it adopts or takes over, and to delete those whose
 * interface is gone. Reader: programs (new flows only), policyd. Full: ADD fails and says so. An interface without
 * an entry passes nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct pg_endpoint);
} endpoints SEC(".maps");

/* The template of an endpoint's own map. It grows entry by entry, so the bound costs nothing. Sizes and not types:
 * user space makes the maps without BTF, and kernels 5.15 to 6.1 refuse one that differs in that from the template. */
struct pg_policy_map {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__uint(key_size, sizeof(struct pg_policy_key));
	__uint(value_size, sizeof(struct pg_policy_value));
};

/* ifindex -> policy map. Writer: policyd (plugin deletes at DEL). Reader: programs (new flows only).
 * Full: the endpoint stays in its startup state and is reported. A full inner map: the endpoint keeps
 * its last complete policy and is reported. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__array(values, struct pg_policy_map);
} policies SEC(".maps");

/* Never read: clang writes whole BTF only for types of maps and globals, and libbpf (the template above) and
 * bpf/tests/abi_btf.rs need these. */
struct {
	struct pg_policy_key policy_key;
	struct pg_policy_value policy_value;
	struct pg_event event;
} pg_layouts;

/* Address -> class, exact. Writer: policyd. Reader: programs (new flows only).
 * Full: no class changes at all until there is room, reported; verdicts stay those of the last policy. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct pg_peer4_key);
	__type(value, struct pg_class);
} peers4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct pg_peer6_key);
	__type(value, struct pg_class);
} peers6 SEC(".maps");

/* Prefix -> class, consulted where the exact maps have nothing. Writer, reader, full: as above. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct pg_net4_key);
	__type(value, struct pg_class);
} nets4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct pg_net6_key);
	__type(value, struct pg_class);
} nets6 SEC(".maps");

/* Prefixes of the node's own addresses. Writer: policyd, plugin (adds only). Reader: programs, for new flows that
 * the node's own stack sends. Full: reported; policy decides on probes from that address. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct pg_node_key);
	__type(value, struct pg_node_addr);
} node_addrs SEC(".maps");

/* Flows. Writer: programs; policyd, for pods that it adopts or takes over. Reader: programs, policyd. Allocated at
 * once: an insert that needs memory could fail, also for a pod that is not to blame. Full: flow_table.h lets no pod
 * fill it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct pg_flow4_key);
	__type(value, struct pg_flow);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct pg_flow6_key);
	__type(value, struct pg_flow);
} flows6 SEC(".maps");

/* The slots of the endpoints' rings, with the keys of their flows. Writer and reader: programs; user space removes
 * those of endpoints that are gone. Full: cannot be before the flows' table is. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct pg_flow_slot_key);
	__type(value, struct pg_flow4_key);
} flow_slots4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct pg_flow_slot_key);
	__type(value, struct pg_flow6_key);
} flow_slots6 SEC(".maps");

/* ifindex -> the endpoint's share of the flow tables and of the events. Writer: programs; plugin and policyd make and
 * remove entries. Full: as many as there are endpoints; without one an endpoint's flows are not remembered. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct pg_share);
} shares SEC(".maps");

/* How much of the flow tables is taken, by family. Writer: programs; user space, through shared memory. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct pg_flow_use);
} flow_use SEC(".maps");

/* First fragments. Writer and reader: programs. Full: the oldest is forgotten; later fragments of it count as ones
 * that arrived before their first. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct pg_frag_key);
	__type(value, struct pg_frag);
} frags SEC(".maps");

/* Expectations beside flows (expect.h). Writer and reader: programs. Full: the oldest is forgotten; policy then
 * decides on an answer whose fragments arrive out of order, or on a DHCP server's. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct pg_expect_key);
	__type(value, struct pg_expect);
} expected SEC(".maps");

/* Services. Writer: policyd. Reader: programs (new flows from pods, and each flow once per epoch). Full: reported;
 * the service stays as it was, or is left to kube-proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 16);
	__type(key, struct pg_service4_key);
	__type(value, struct pg_service);
} services4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 16);
	__type(key, struct pg_service6_key);
	__type(value, struct pg_service);
} services6 SEC(".maps");

/* Their backends, of both families: by number, and by address. Writer, reader, full: as above. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, struct pg_slot_key);
	__type(value, struct pg_backend);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, struct pg_backend_key);
	__type(value, struct pg_backend_value);
} backends SEC(".maps");

/* The backends of clients with session affinity. Writer and reader: programs. Full: the client whose last new flow
 * is the oldest gets a new backend. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct pg_affinity_key);
	__type(value, struct pg_affinity);
} affinity SEC(".maps");

/* Packets and bytes by direction and reason, then the statistics (enum pg_stat). Writer: programs. Reader: policyd. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PG_COUNTER_COUNT);
	__type(key, __u32);
	__type(value, struct pg_counter);
} counters SEC(".maps");

/* The epoch and the switches. Writer: user space, through shared memory. Reader: programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pg_control);
} control SEC(".maps");

/* How many steps of commits were written: one more after each write of a class or a table. Programs that look up both
 * compare it before and after (policy.h). Writer: policyd, through shared memory. Cannot be full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} commit_steps SEC(".maps");

/* Events. Writer: programs. Reader: policyd. Full: the event is lost and counted; event.h keeps one endpoint from
 * filling it. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* The programs of another layout, by direction, while pods are taken over from it (handover.h). Writer: policyd.
 * Empty: there is no other layout; a packet that would go there is dropped. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} previous SEC(".maps");

/* Events of the current second that came from the shared limit. Not pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pg_limiter);
} limiter SEC(".maps");

/* (owner, rule) -> what a metered pod, or one of its traffic rules, may use. Writer: policyd; the plugin at ADD, and DEL.
 * Reader: metered programs. Full: the pod keeps the limits that it has, and is reported. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct pg_limits_key);
	__type(value, struct pg_limits);
} limits SEC(".maps");

/* The same key -> how much of it is used. Made and removed with the entry of `limits`, by the same; kept when that changes.
 * Writer: metered programs; policyd, which counts open connections again. Full: as above. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct pg_limits_key);
	__type(value, struct pg_meter);
} meters SEC(".maps");

/* ifindex -> which traffic rule a new flow of a metered pod is of: keys as in `policies`, the rule's number in the value.
 * Writer: policyd. Reader: metered programs (new flows only). Full: the pod has no traffic rules, and is reported. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__array(values, struct pg_policy_map);
} traffic SEC(".maps");

/* Where peers are, for accounting. Writer: policyd, while some pod is accounted. Reader: metered programs (new flows only).
 * Full: reported; the rest count as external. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct pg_node_key);
	__type(value, struct pg_scope);
} scopes SEC(".maps");

/* What accounted pods exchanged with whom. Made and removed by policyd, added to by metered programs. Full: the pod is not
 * accounted, and is reported. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct pg_account_key);
	__type(value, struct pg_account);
} accounts SEC(".maps");
