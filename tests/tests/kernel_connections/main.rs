//! The count of a pod's open connections, held against a model and against the flow table: after random opens, answers, ends,
//! resets and timeouts, and while two CPUs do as they like.
//!
//! `PODGATE_CONNECTIONS` sets how many packets are sent (100,000 unless it is set), `PODGATE_SEED` which.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod at_once;
mod model;
mod random;

fn main() -> std::process::ExitCode {
    podgate_testkit::sandbox::run(|| {
        let tests: [(&str, fn()); 2] = [
            ("connections_are_counted_as_a_model_and_the_flow_table_count_them", random::packets),
            ("two_cpus_count_what_the_flow_table_has", at_once::two_cpus),
        ];
        let trial = |(name, test)| podgate_testkit::sandbox::trial(name, test);
        tests.into_iter().map(trial).collect()
    })
}
