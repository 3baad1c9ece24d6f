/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* log2 of the kernel's ticks per second, rounded. Set by the loader, which finds it in a section of its own. */
const volatile __u32 pg_tick_shift SEC(".rodata.tick") = 8;

/* Coarse seconds: 0.85 to 1.28 s each, depending on the tick rate (1.02 s at 250 and 1000 Hz). Reading jiffies is
 * one inlined load; bpf_ktime_get_coarse_ns is a call that costs a third of the rest of an established packet's
 * path, and bpf_ktime_get_ns costs as much again. */
static __always_inline __u32 pg_now(void)
{
	return bpf_jiffies64() >> pg_tick_shift;
}
