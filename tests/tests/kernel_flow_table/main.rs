//! What pods are to each other in the flow table: a pod that opens flows without end ends none of the others'.
//!
//! `PODGATE_FLOOD` sets how many flows are opened (30,000 unless it is set), `PODGATE_FLOOD_TABLE` how many fit in the table
//! (8,192): `PODGATE_FLOOD=1000000 PODGATE_FLOOD_TABLE=131072` is what the default table meets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod events;
mod fairness;
mod node;
mod victims;

fn main() -> std::process::ExitCode {
    podgate_testkit::sandbox::run(|| {
        let tests: [(&str, fn()); 8] = [
            ("a_flood_of_one_pod_ends_no_flow_of_a_hundred_others", victims::flood),
            ("while_one_pod_floods_denials_each_of_anothers_is_told", events::flood),
            ("pods_that_flood_get_equal_parts_and_others_find_room", fairness::equal_parts),
            ("a_pod_gives_back_what_others_need", fairness::gives_back),
            ("what_a_pod_has_goes_with_it", fairness::goes_with_its_pod),
            ("what_is_left_behind_is_found", fairness::repaired),
            ("a_pod_that_is_quiet_again_keeps_no_room", fairness::trimmed),
            ("cpus_that_open_flows_at_once_lose_none", fairness::at_once),
        ];
        let trial = |(name, test)| podgate_testkit::sandbox::trial(name, test);
        tests.into_iter().map(trial).collect()
    })
}
