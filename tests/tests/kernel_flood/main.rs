//! Live traffic while policyd is killed, policies, labels, services and pods change and one pod floods: nothing that the
//! states before and after a change both forbid ever arrives, and nothing that both allow is lost.
//!
//! ```text
//!   node 10.0.0.1 -- br0 -- client .10, server .11, server2 .12, other .13, drifter .14, flooder .15, sink .16, comer .17
//! ```
//!
//! The real policyd keeps the gates of real namespaces; this test does what the plugin does. Every stream of datagrams
//! has numbers, and a judge of its own knows by the clock which of them had to arrive ([`timeline`], [`judge`]).
//!
//! `PODGATE_FLOOD_SECONDS=<number>` says how long (60 unless set), `PODGATE_FLOOD_SEED=<number>` repeats what an earlier
//! run did, though not its timing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod driver;
mod judge;
mod judge_sees;
mod node;
mod policyd;
mod streams;
mod tcp;
mod timeline;
mod world;

use std::process::ExitCode;

use podgate_testkit::sandbox::{self, trial};

fn main() -> ExitCode {
    sandbox::run(|| {
        vec![
            trial("nothing_forbidden_arrives_and_nothing_allowed_is_lost", driver::run),
            trial("the_judge_sees_what_is_wrong_and_nothing_else", judge_sees::run),
        ]
    })
}
