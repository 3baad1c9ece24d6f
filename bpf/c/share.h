/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* An endpoint's share of the resources that all endpoints of the node use: flow tables (flow_table.h) and events. */
#pragma once

#include "maps.h"
#include "packet.h"

static __always_inline struct pg_share *pg_share_of(__u32 ifindex, __u32 owner)
{
	struct pg_share *share = bpf_map_lookup_elem(&shares, &ifindex);

	return share && share->owner == owner ? share : NULL;
}

/* Makes the share of an endpoint that has none, or an earlier endpoint's: it was registered by an earlier build, or
 * is being registered now. Returns 0. */
PG_GLOBAL_FN int pg_share_open(__u32 ifindex, __u32 owner)
{
	struct pg_share fresh = { .owner = owner };

	bpf_map_update_elem(&shares, &ifindex, &fresh, BPF_ANY);
	return 0;
}
