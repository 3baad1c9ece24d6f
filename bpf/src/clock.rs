//! The programs' coarse clock (`c/clock.h`), read from user space.

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_getres, clock_gettime};

/// Nanoseconds of one tick of the kernel.
fn tick() -> u64 {
    const HZ_250: i64 = 4_000_000;
    let tick =
        clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(HZ_250, |t| t.num_nanoseconds());
    tick.max(1).unsigned_abs()
}

/// `pg_tick_shift`: a coarse second is two to the power of this many ticks.
pub(crate) fn tick_shift() -> u32 {
    (1e9 / tick() as f64).log2().round().clamp(0.0, 16.0) as u32
}

/// The programs' current time, in coarse seconds and exact to a few: the unit of a flow's `expires`. The kernel
/// starts counting ticks five minutes before 32 bits overflow, so that code that does not expect the overflow is
/// found early.
pub fn coarse_now() -> u32 {
    let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.num_nanoseconds());
    let ticks = uptime.unsigned_abs() / tick();
    let first = (1_u64 << 32) - 300 * (1_000_000_000 / tick());
    ((first + ticks) >> tick_shift()) as u32
}
