/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose packet the meter (meter.h) has before it: noted by the fast path and the slow path, which find its flow. */
#pragma once

#include "scratch.h"

/* Which of the two kinds of programs runs. A constant in each of them: the one for unmetered pods has no code of the meter. */
enum pg_metering {
	PG_UNMETERED = 0,
	PG_METERED = 1,
};

/* Before the slow path. */
static __always_inline void pg_meter_begin(enum pg_metering metering)
{
	struct pg_scratch *scratch = pg_scratch();

	if (!scratch)
		return;
	__builtin_memset(&scratch->metered, 0, sizeof(scratch->metered));
	scratch->metered.on = metering;
}

/* The flow of the packet in hand is known. */
static __always_inline void pg_meter_note(struct pg_scratch *scratch, const struct pg_flow *flow)
{
	scratch->metered.owner = flow->owner;
	scratch->metered.traffic_rule = flow->traffic_rule;
	scratch->metered.scope = flow->scope;
}

/* The fast path has found the flow. Returns the packet of which an event would be, without its key. */
static __always_inline struct pg_packet *pg_meter_flow(const struct pg_flow *flow, __u8 family)
{
	struct pg_scratch *scratch = pg_scratch();
	struct pg_packet *packet;

	if (!scratch)
		return NULL;
	__builtin_memset(&scratch->metered, 0, sizeof(scratch->metered));
	scratch->metered.on = PG_METERED;
	pg_meter_note(scratch, flow);
	packet = &scratch->packets[PG_SLOT_PACKET];
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->family = family;
	packet->owner = flow->owner;
	return packet;
}
