//! The conformance suite of ClusterNetworkPolicy, unmodified, passes on a cluster of two nodes: each of its tests, by
//! name, and with all features that it knows. `docs/conformance` keeps the report that it writes.

use std::path::Path;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use podgate_tests::cluster::conformance::{Outcome, Patience, Verdict};
use podgate_tests::cluster::{Cluster, Options};

/// The report, from the root of the tree.
const REPORT: &str = "docs/conformance/v0.3.0.yaml";

/// Set by `make conformance`: the suite waits as long as it likes, and its report is written to the tree.
const WRITE: &str = "PODGATE_WRITE_CONFORMANCE";

/// More than 170 of the suite's probes are of packets that must not arrive, and each is made at least twice: with its
/// own three seconds the suite takes twenty minutes.
const SHORT: Duration = Duration::from_millis(800);

const TESTS: [&str; 30] = [
    "CNPAdminTierEgressInlineCIDRPeers",
    "CNPAdminTierEgressNamedPort",
    "CNPAdminTierEgressNodePeers",
    "CNPAdminTierEgressSCTP",
    "CNPAdminTierEgressTCP",
    "CNPAdminTierEgressUDP",
    "CNPAdminTierGress",
    "CNPAdminTierIngressNamedPort",
    "CNPAdminTierIngressSCTP",
    "CNPAdminTierIngressTCP",
    "CNPAdminTierIngressUDP",
    "CNPAdminTierIntegration",
    "CNPAdminTierPodSelector",
    "CNPAdminTierPortRange",
    "CNPAdminTierPriorityField",
    "CNPAdminTierSamePriority",
    "CNPBaselineTierEgressInlineCIDRPeers",
    "CNPBaselineTierEgressNamedPort",
    "CNPBaselineTierEgressNodePeers",
    "CNPBaselineTierEgressSCTP",
    "CNPBaselineTierEgressTCP",
    "CNPBaselineTierEgressUDP",
    "CNPBaselineTierGress",
    "CNPBaselineTierIngressNamedPort",
    "CNPBaselineTierIngressSCTP",
    "CNPBaselineTierIngressTCP",
    "CNPBaselineTierIngressUDP",
    "CNPBaselineTierPodSelector",
    "CNPBaselineTierPortRange",
    "CNPBaselineTierSamePriority",
];

#[test]
fn the_suite_passes_whole() -> Result<()> {
    let write = env::var_os(WRITE).is_some();
    let cluster = Cluster::start(Options::default())?;
    cluster.install_podgate()?;
    let outcome =
        cluster.conformance(if write { Patience::Full } else { Patience::Short(SHORT) })?;
    let mut ran: Vec<_> = outcome.tests.iter().map(|(name, _)| name.as_str()).collect();
    ran.sort_unstable();
    ensure!(ran == TESTS, "the suite has other tests than these: {ran:?}");
    let failed: Vec<_> =
        outcome.tests.iter().filter(|(_, verdict)| *verdict != Verdict::Passed).collect();
    ensure!(
        failed.is_empty(),
        "{} of {} tests of the suite have not passed: {failed:?}\n{}\n{}",
        failed.len(),
        TESTS.len(),
        failed.iter().map(|(name, _)| outcome.said(name)).collect::<Vec<_>>().join("\n"),
        cluster.podgate_logs(),
    );
    check_report(&outcome, write)?;
    cluster.finish()
}

fn check_report(outcome: &Outcome, write: bool) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(REPORT);
    if write {
        return fs::write(&path, &outcome.report).with_context(|| format!("write {REPORT}"));
    }
    let kept = fs::read_to_string(&path).with_context(|| format!("read {REPORT}"))?;
    ensure!(
        lasting(&kept) == lasting(&outcome.report),
        "{REPORT} says something else than the suite now: make conformance writes it again\n{}",
        outcome.report
    );
    Ok(())
}

/// The lines that say neither when it was written nor of which version of podgate, in an order of their own: the suite
/// lists features in any order.
fn lasting(report: &str) -> Vec<&str> {
    let passing = ["date:", "  version:"];
    let mut lines: Vec<_> = report
        .lines()
        .filter(|line| !passing.iter().any(|start| line.starts_with(start)))
        .collect();
    lines.sort_unstable();
    lines
}
