/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>


/* Coarse seconds: units of 2^30 ns since boot, wrapping after 146 years. The coarse clock costs 3 ns, the
 * exact one 32, which is as much as all the rest of an established packet's way. */
static __always_inline __u32 pg_now(void)
{
	return bpf_ktime_get_coarse_ns() >> 30;
}
