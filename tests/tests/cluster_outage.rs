//! The API server goes away: enforcement goes on, new pods on known policies start enforced, and what was deleted
//! meanwhile is found to be so.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use podgate_testkit::wait::until;
use podgate_tests::cluster::matrix::{Matrix, Way};
use podgate_tests::cluster::shared::{self, Test};
use podgate_tests::cluster::{CLUSTER_TIMEOUT, Cluster, Options, pods};
use podgate_tests::runtime::traffic::{CONNECT_TIMEOUT, Exchange, PORT, Target, talk};
use serde_json::{Value, json};

/// What the tests share. They build on each other's end, in this order.
struct Stage {
    cluster: Cluster,
    matrix: Matrix,
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("enforcement goes on without the API server", enforcement_goes_on),
        Test::new("what was deleted in the gap is gone, what was made is there", the_gap_is_found),
        Test::new(
            "a container that starts again during an outage is enforced",
            a_restart_in_an_outage,
        ),
        Test::new("the API server's restart disturbs nobody", a_restart),
    ];
    shared::main(start, tests, |stage| stage.cluster.finish())
}

fn start() -> Result<Stage> {
    let cluster = Cluster::start(Options::default())?;
    cluster.install_podgate()?;
    let ways = [Way::Pod, Way::Service];
    let matrix = Matrix::with_ways(&cluster, &["x", "y"], &["a", "b"], &ways)?;
    Ok(Stage { cluster, matrix })
}

fn policy(name: &str, pod: &str, from: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "namespace": "x", "name": name },
        "spec": {
            "podSelector": { "matchLabels": { "pod": pod } },
            "policyTypes": ["Ingress"],
            "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "ns": from } } }] }],
        },
    })
}

impl Stage {
    /// Every pair is as the API server's objects say, once and at once, round after round.
    fn stays(&self, what: &str, world: &podgate_tests::oracle::World, rounds: u8) -> Result<()> {
        let cases = self.matrix.cases();
        let verdicts = cases.iter().map(|case| Matrix::oracle(world, case));
        let verdicts = verdicts.collect::<Result<Vec<_>>>()?;
        for round in 0..rounds {
            let wrong = self.matrix.differences(&verdicts)?;
            ensure!(wrong.is_empty(), "{what}, round {round}: {}", wrong.join("\n  "));
        }
        Ok(())
    }
}

fn enforcement_goes_on(stage: &mut Stage) -> Result<()> {
    stage.cluster.apply(&[policy("a-from-y", "a", "y")])?;
    stage.cluster.await_policies()?;
    let world = stage.cluster.world()?;
    stage.matrix.expect_oracle("before the outage", &world)?;
    stage.cluster.control.kill_api()?;
    stage.stays("during the outage", &world, 3)?;
    for worker in &stage.cluster.workers {
        let status = worker.policyd("/v1/status")?;
        ensure!(status["ready"] == true, "{} is not ready in an outage: {status}", worker.name);
    }
    stage.cluster.control.start_api()?;
    stage.cluster.control.await_api()?;
    stage.stays("after the outage", &world, 2)
}

fn the_gap_is_found(stage: &mut Stage) -> Result<()> {
    // policyd sees nothing of it: its connections are broken, and the API server is back before it is
    stage.cluster.apply(&[policy("a-from-y", "a", "y"), policy("b-from-y", "b", "y")])?;
    stage.cluster.await_policies()?;
    stage.matrix.expect_oracle("before the gap", &stage.cluster.world()?)?;
    for worker in &stage.cluster.workers {
        worker.partition(true)?;
    }
    stage.cluster.kubectl(&["delete", "networkpolicy", "-n", "x", "a-from-y"])?;
    stage.cluster.apply(&[policy("b-from-x", "b", "x")])?;
    stage.cluster.kubectl(&["label", "namespace", "y", "ns=other", "--overwrite"])?;
    stage.cluster.control.kill_api()?;
    stage.cluster.control.start_api()?;
    stage.cluster.control.await_api()?;
    let world = stage.cluster.world()?;
    for worker in &stage.cluster.workers {
        worker.partition(false)?;
    }
    stage.cluster.await_policies()?;
    stage.matrix.expect_oracle("after the gap", &world)?;
    stage.cluster.kubectl(&["label", "namespace", "y", "ns=y", "--overwrite"])?;
    stage.cluster.kubectl(&["delete", "networkpolicies", "-n", "x", "--all"])?;
    stage.cluster.await_policies()?;
    stage.matrix.expect("without any policy", |_| true).map(|_| ())
}

fn a_restart_in_an_outage(stage: &mut Stage) -> Result<()> {
    let cluster = &mut stage.cluster;
    let [allowed, refused] = ["x/b", "y/b"].map(|id| stage.matrix.pod(id).cloned());
    let (allowed, refused) = (allowed?, refused?);
    let listen = |cluster: &Cluster, pod: &pods::Workload| {
        Target::listen(&cluster.workers[pod.worker].node, &pod.netns)
    };
    let at_allowed = listen(cluster, &allowed)?;
    let at_refused = listen(cluster, &refused)?;
    let script = format!(
        "echo hello | nc -w 1 {} {PORT}; echo hello | nc -w 20 {} {PORT}; exec sleep 1000000",
        refused.addresses[0], allowed.addresses[0]
    );
    cluster.apply(&[json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "namespace": "x", "name": "egress" },
        "spec": {
            "podSelector": { "matchLabels": { "pod": "again" } },
            "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "pod": "b" } } }] }],
        },
    })])?;
    cluster.await_policies()?;
    cluster.apply(&[pods::with_command("x", "again", Some(1), &script)])?;
    let before = cluster.workload("x", "again")?;
    let first = until(CLUSTER_TIMEOUT, || at_allowed.accepted() == 1);
    ensure!(first, "the pod did not reach x/b at its first start");
    cluster.control.kill_api()?;
    // its sandbox ends, and so its network: the kubelet makes both anew by itself, with nobody to ask
    let node = &cluster.workers[before.worker].node;
    let mut cri = node.cri()?;
    let old = cri.find("x", "again")?.context("the pod has no sandbox")?;
    cri.stop(&old).context("end the sandbox")?;
    let again = until(CLUSTER_TIMEOUT, || at_allowed.accepted() == 2);
    let state = node.registrations()?;
    let status = cluster.workers[before.worker].policyd("/v1/endpoints")?;
    cluster.control.start_api()?;
    cluster.control.await_api()?;
    ensure!(again, "the pod did not reach x/b after it started again: {state:#?} {status:#}");
    ensure!(at_refused.accepted() == 0, "y/b was reached");
    let through = before.addresses.map(|address| at_refused.packets_from(address));
    ensure!(through == [0, 0], "packets reached y/b: {through:?}");
    cluster.kubectl(&["delete", "pod", "-n", "x", "again", "--now"])?;
    cluster.kubectl(&["delete", "networkpolicies", "-n", "x", "--all"])?;
    cluster.await_policies()
}

fn a_restart(stage: &mut Stage) -> Result<()> {
    let cluster = &mut stage.cluster;
    let [client, server] = ["y/a", "x/a"].map(|id| stage.matrix.pod(id).cloned());
    let (client, server) = (client?, server?);
    let _target = Target::listen(&cluster.workers[server.worker].node, &server.netns)?;
    cluster.apply(&[policy("a-from-y", "a", "y")])?;
    cluster.await_policies()?;
    let node = &cluster.workers[client.worker].node;
    let talked = talk(node, &client.netns, server.addresses[0], CONNECT_TIMEOUT)?;
    talked.context("y/a reaches x/a")?;
    let talks = Exchange::start(node, &client.netns, server.addresses[0])?;
    for _ in 0..3 {
        cluster.control.kill_api()?;
        cluster.control.start_api()?;
        cluster.control.await_api()?;
    }
    // policyd follows again
    cluster.apply(&[policy("b-from-y", "b", "y")])?;
    cluster.await_policies()?;
    let (answered, faults) = talks.stop();
    ensure!(faults.is_empty(), "lost after {answered} answers: {faults:?}");
    ensure!(answered > 100, "only {answered} answers");
    stage.matrix.expect_oracle("after three restarts", &stage.cluster.world()?).map(|_| ())
}
