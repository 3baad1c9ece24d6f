/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* An endpoint's share of what there is only so much of for all: of the flow tables (flow_table.h) and of the events. */
#pragma once

#include "maps.h"
#include "packet.h"

static __always_inline struct pg_share *pg_share_of(__u32 ifindex, __u32 owner)
{
	struct pg_share *share = bpf_map_lookup_elem(&shares, &ifindex);

	return share && share->owner == owner ? share : NULL;
}

/* An endpoint without a share, or with an earlier one's: its registration was made by an earlier build, or is being
 * made. */
PG_VERIFIED_ALONE int pg_share_open(__u32 ifindex, __u32 owner)
{
	struct pg_share fresh = { .owner = owner };

	bpf_map_update_elem(&shares, &ifindex, &fresh, BPF_ANY);
	return 0;
}
