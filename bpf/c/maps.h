/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map: key, value, who writes, who reads, what happens when it is full.
 * Sizes here are the defaults; the loader may set others before the first load (podgate_bpf::loader::Sizes).
 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* ifindex -> registration. Writer: plugin. Reader: programs (new flows only), policyd.
 * Full: ADD fails and says so. An interface without an entry passes nothing. */
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

/* Prefixes of addresses of the node itself. Writer: policyd, plugin (adds only). Reader: programs, for new flows that
 * the node's own stack sends. Full: reported; that address' probes are judged by policy. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct pg_node_key);
	__type(value, struct pg_node_addr);
} node_addrs SEC(".maps");

/* Flows. Writer and reader: programs. All of it is allocated at once: an insert that waits for memory could fail, and for
 * a pod that has done nothing. Full: flow_table.h lets no pod fill it. */
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

/* Their places in the rings of their endpoints. Writer and reader: programs; user space removes those of endpoints that
 * are gone. As many as there are flows. */
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

/* First fragments. Writer and reader: programs. Full: the oldest is forgotten; its later fragments are
 * judged as ones that came early. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct pg_frag_key);
	__type(value, struct pg_frag);
} frags SEC(".maps");

/* What pods have asked for beside flows (expect.h). Writer and reader: programs. Full: the oldest is forgotten: an
 * answer that comes with its fragments out of order, or a DHCP server's, is then judged by policy. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct pg_expect_key);
	__type(value, struct pg_expect);
} expected SEC(".maps");

/* Services. Writer: policyd. Reader: programs (new flows of pods, and once a flow and change). Full: reported; that
 * service stays as it was, or is left to kube-proxy. */
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

/* Their endpoints, of both families: by number, and by address. As above. */
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

/* Clients that keep their endpoint. Writer and reader: programs. Full: the client that opened no flow for the
 * longest time gets a new choice. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct pg_affinity_key);
	__type(value, struct pg_affinity);
} affinity SEC(".maps");

/* Packets and bytes by direction and reason, then notes. Writer: programs. Reader: policyd. */
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

/* Verdicts to tell. Writer: programs. Reader: policyd. Full: the event is lost and counted; event.h keeps it from being
 * one endpoint that fills it. */
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

/* Events told in the running second beside those that endpoints have of their own. Not pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pg_limiter);
} limiter SEC(".maps");
