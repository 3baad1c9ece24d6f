/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Set by the loader, which finds it in a section of its own, to the power of two that is nearest to the kernel's
 * ticks per second. */
const volatile __u32 pg_tick_shift SEC(".rodata.tick") = 8;

/*
 * Coarse seconds: 0.85 to 1.28 s each, as the tick rate has it (1.02 s at 250 and 1000 Hz). Reading jiffies is
 * one load in line; bpf_ktime_get_coarse_ns is a call that costs a third of all the rest of an established
 * packet's way, and bpf_ktime_get_ns costs as much again as that.
 */
static __always_inline __u32 pg_now(void)
{
	return bpf_jiffies64() >> pg_tick_shift;
}
