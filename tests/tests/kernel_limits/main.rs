//! What limits do to real streams of real namespaces: how exactly a rate holds, for whom, and what it leaves alone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod changes;
mod limited;
mod rates;
#[path = "../kernel_live/talk.rs"]
#[allow(dead_code, reason = "kernel_live uses the rest")]
mod talk;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::Trial;
use podgate_bpf::attach::AttachMode;
use podgate_testkit::sandbox;
use podgate_tests::netlab::{Family, Lab};

/// A test in a lab of its own, for one family.
type Test = (&'static str, fn(&Lab, Family));

fn main() -> ExitCode {
    sandbox::run(|| {
        let kinds = AttachMode::of_this_kernel().iter().copied().cycle();
        let ways = [Family::V4, Family::V6].into_iter().zip(kinds);
        let of = |way| {
            [rates::TESTS, changes::TESTS].concat().into_iter().map(move |test| trial(way, test))
        };
        ways.flat_map(of).collect()
    })
}

/// What one test sends as fast as it can takes the CPUs that another's senders would need to reach their limit.
static ALONE: Mutex<()> = Mutex::new(());

fn trial((family, attach): (Family, AttachMode), (name, test): Test) -> Trial {
    Trial::test(format!("{}::{attach}::{name}", family.name()), move || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = Lab::new(attach);
        test(&lab, family);
        Ok(())
    })
}
