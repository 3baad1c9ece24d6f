//! Real sockets of real namespaces through real gates: what policy allows is never dropped, what it stops
//! allowing is cut at its next packet, whatever the kernel's own protocols make of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod bulk;
mod changes;
mod churn;
mod closing;
mod errors;
mod fragments;
mod neighbours;
mod node;
mod origins;
mod rejects;
mod services;
mod talk;

use std::process::ExitCode;

use libtest_mimic::Trial;
use podgate_bpf::attach::AttachMode;
use podgate_testkit::sandbox;
use podgate_tests::netlab::{Family, Lab};

/// A test in a lab of its own, for one family.
type Test = (&'static str, fn(&Lab, Family));

fn main() -> ExitCode {
    sandbox::run(|| {
        let tests = [
            changes::TESTS,
            closing::TESTS,
            errors::TESTS,
            rejects::TESTS,
            fragments::TESTS,
            node::TESTS,
            origins::TESTS,
            neighbours::TESTS,
            bulk::TESTS,
            churn::TESTS,
            services::TESTS,
        ]
        .concat();
        // Both kinds of attachment and both families, without all combinations: kernel_raw has those.
        let kinds = AttachMode::of_this_kernel().iter().copied().cycle();
        let ways = [Family::V4, Family::V6].into_iter().zip(kinds);
        let of = |way| tests.clone().into_iter().map(move |test| trial(way, test));
        ways.flat_map(of).collect()
    })
}

fn trial((family, attach): (Family, AttachMode), (name, test): Test) -> Trial {
    Trial::test(format!("{}::{attach}::{name}", family.name()), move || {
        let lab = Lab::new(attach);
        test(&lab, family);
        Ok(())
    })
}
