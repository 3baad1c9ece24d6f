//! One gate under fire: random, damaged and cunning frames through the real programs, in sequences that leave state,
//! against an evaluator of its own (`podgate_tests::fuzz`).
//!
//! `PODGATE_FUZZ_SECONDS=<number>` says how long (60 unless set, all trials together); `PODGATE_FUZZ_SEED=<number>`
//! makes the frames of an earlier run again. What fails is printed as lines for `corpus.txt`, made as small as it
//! gets, and belongs there once it is mended.
//!
//! `BPF_PROG_TEST_RUN` makes linear packets only (to Linux 6.18); [`wire`] sends others over a real link.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod corpus;
mod deny_all;
mod gate;
mod policies;
mod report;
mod wire;

use std::process::ExitCode;

use podgate_testkit::sandbox::{self, trial};

fn main() -> ExitCode {
    sandbox::run(|| {
        vec![
            trial("frames_that_were_judged_wrongly_once", corpus::run),
            trial("an_isolated_pod_gets_and_sends_nothing_but_control_traffic", deny_all::run),
            trial("random_policies_are_kept_by_frames_of_every_shape", policies::run),
            trial("an_isolated_pod_on_a_real_link", wire::run),
        ]
    })
}
