/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Accounting: what an accounted pod exchanges with whom, by scope (abi_limits.h), of packets that pass. */
#pragma once

#include "traffic.h"

/* The scope of the packet in hand; PG_SCOPE_COUNT: it is of none, as it only serves the link. */
static __always_inline __u32 pg_account_scope(const struct pg_scratch *scratch)
{
	const struct pg_packet *packet = &scratch->packets[PG_SLOT_PACKET];

	/* That of its flow. */
	if (scratch->metered.owner)
		return scratch->metered.scope;
	if (!packet->family || scratch->outcome.reason == PG_ALLOW_CONTROL)
		return PG_SCOPE_COUNT;
	return pg_scope_of(packet);
}

/* Counts a packet that passes: `bytes` and `packets` on the wire. `of`: the pod's entry of `limits`. */
static __always_inline void pg_account(const struct pg_scratch *scratch, __u32 owner,
				       __u32 direction, const struct pg_limits *of, __u64 bytes,
				       __u64 packets)
{
	struct pg_account_key key = { .owner = owner, .direction = direction };
	struct pg_account *account;
	__u32 scope;

	if (!(of->flags & PG_LIMITS_ACCOUNT))
		return;
	scope = pg_account_scope(scratch);
	if (scope >= PG_SCOPE_COUNT)
		return;
	key.scope = scope;
	account = bpf_map_lookup_elem(&accounts, &key);
	if (!account)
		return;
	account->packets += packets;
	account->bytes += bytes;
	if (scratch->metered.opens)
		account->flows++;
}
