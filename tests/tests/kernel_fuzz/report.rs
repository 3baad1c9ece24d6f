//! Failures of a run, each kind once, small, and ready to be played again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use podgate_tests::fuzz::shrink::shrink;
use podgate_tests::fuzz::{Shot, time};

use crate::gate::{Failure, Tally};

/// Trials that share the time. They may run one after the other.
const TRIALS: u32 = 3;
/// Kinds of failures after which a run ends.
const ENOUGH: usize = 12;

/// What has failed so far.
#[derive(Default)]
pub(crate) struct Report {
    failures: BTreeMap<String, String>,
}

impl Report {
    /// Whether the run is over: the time, if it was enough to prove anything, or so many kinds of failures.
    pub(crate) fn is_over(&self, begun: Instant, tally: &Tally) -> bool {
        let time = time() / TRIALS;
        let late = begun.elapsed() > time;
        let never = begun.elapsed() > time * 8;
        self.failures.len() >= ENOUGH || never || (late && proves_something(tally))
    }

    /// Takes a failure in; `play` plays a sequence again.
    pub(crate) fn add(
        &mut self,
        origin: &str,
        shots: &[Shot],
        failure: &Failure,
        play: impl Fn(&[Shot]) -> Result<(), Failure>,
    ) {
        if self.failures.contains_key(&failure.kind) {
            return;
        }
        let same = |again: Failure| again.kind == failure.kind;
        let mut text = String::new();
        let upto = shots[..=failure.at].to_vec();
        if play(&upto).err().is_none_or(|again| !same(again)) {
            text.push_str("  (did not fail when played again)\n");
        }
        let small = shrink(upto, |candidate| play(candidate).err().is_some_and(same));
        let detail = play(&small).err().map_or_else(|| failure.detail.clone(), |last| last.detail);
        let _ = writeln!(text, "  {origin} {detail}");
        for shot in small {
            let _ = writeln!(text, "  {shot:?}");
        }
        self.failures.insert(failure.kind.clone(), text);
    }

    /// Prints what was done, and fails if anything has, or if it was too little to prove anything.
    pub(crate) fn end(self, seed: u64, tally: &Tally) {
        println!("PODGATE_FUZZ_SEED={seed}: {tally:?}");
        let mut all = String::new();
        for (kind, text) in &self.failures {
            let _ = write!(all, "\n{kind}\n{text}");
        }
        assert!(self.failures.is_empty(), "PODGATE_FUZZ_SEED={seed}{all}");
        assert!(proves_something(tally), "too little to prove anything: {tally:?}");
    }
}

fn proves_something(tally: &Tally) -> bool {
    tally.must_drop > 1000 && tally.must_pass > 100
}
