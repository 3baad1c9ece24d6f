//! What goes on while pods talk: policyd killed, restarted, replaced; policies that cut open connections; pods that come
//! and go with the same addresses; the first packet of a new pod.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podgate_testkit::wait::until;
use podgate_tests::cluster::podgate::NAMESPACE;
use podgate_tests::cluster::pods::{self, Workload};
use podgate_tests::cluster::shared::{self, Test};
use podgate_tests::cluster::{CLUSTER_TIMEOUT, Cluster, Options};
use podgate_tests::runtime::traffic::{Exchange, PORT, Target, talk};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let tests = vec![
        Test::new("open connections outlive policyd, killed and replaced", policyd_goes_and_comes),
        Test::new("a policy cuts the connections that it forbids, and no other", a_policy_cuts),
        Test::new("a label's change cuts and allows", labels_change),
        Test::new(
            "an address that is used again has its new pod's policy",
            addresses_are_used_again,
        ),
        Test::new("the first act of a pod meets its policy", the_first_act),
        Test::new("nodes reach their own pods, other nodes only by policy", nodes),
    ];
    shared::main(start, tests, Cluster::finish)
}

fn start() -> Result<Cluster> {
    let cluster = Cluster::start(Options::default())?;
    cluster.install_podgate()?;
    Ok(cluster)
}

/// Pods of a namespace that a test has for itself, each with its worker. Deleted with it, at the end.
fn pods(cluster: &Cluster, namespace: &str, names: &[(&str, usize)]) -> Result<Vec<Workload>> {
    cluster.make_namespaces(&[namespace])?;
    let manifests: Vec<_> =
        names.iter().map(|(name, node)| pods::manifest(namespace, name, Some(*node))).collect();
    cluster.apply(&manifests)?;
    cluster.workloads(&names.iter().map(|(name, _)| (namespace, *name)).collect::<Vec<_>>())
}

fn forget(cluster: &Cluster, namespace: &str) -> Result<()> {
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]).map(|_| ())
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "namespace": namespace, "name": name },
        "spec": spec,
    })
}

fn only_from(pod: &str, from: &[&str]) -> Value {
    json!({
        "podSelector": { "matchLabels": { "pod": pod } },
        "policyTypes": ["Ingress"],
        "ingress": [{ "from": [{
            "podSelector": { "matchExpressions": [
                { "key": "pod", "operator": "In", "values": from },
            ] },
        }] }],
    })
}

fn only_to(pod: &str, to: &[&str]) -> Value {
    json!({
        "podSelector": { "matchLabels": { "pod": pod } },
        "policyTypes": ["Egress"],
        "egress": [{ "to": [{
            "podSelector": { "matchExpressions": [
                { "key": "pod", "operator": "In", "values": to },
            ] },
        }] }],
    })
}

fn listen(cluster: &Cluster, pod: &Workload) -> Result<Target> {
    Target::listen(&cluster.workers[pod.worker].node, &pod.netns)
}

fn exchange(cluster: &Cluster, from: &Workload, to: IpAddr) -> Result<Exchange> {
    Exchange::start(&cluster.workers[from.worker].node, &from.netns, to)
        .with_context(|| format!("talk from {} to {to}", from.id()))
}

fn reaches(cluster: &Cluster, from: &Workload, to: IpAddr) -> bool {
    let limit = Duration::from_millis(400);
    let node = &cluster.workers[from.worker].node;
    talk(node, &from.netns, to, limit).is_ok_and(|talked| talked.is_ok())
}

/// Waits until a try ends as it should.
fn settles(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    ensure!(until(Duration::from_secs(20), &mut holds), "{what}: it has not come true");
    Ok(())
}

/// Ends an exchange that should have lost nothing and must have gone on during the last moments.
fn unharmed(what: &str, exchange: Exchange) -> Result<()> {
    let before = exchange.answered();
    let goes_on = until(Duration::from_secs(20), || exchange.answered() > before + 20);
    let (answered, faults) = exchange.stop();
    ensure!(faults.is_empty(), "{what}: lost after {answered} answers: {faults:?}");
    ensure!(goes_on, "{what}: it stands still after {answered} answers");
    Ok(())
}

fn policyd_goes_and_comes(cluster: &mut Cluster) -> Result<()> {
    let all = pods(cluster, "restart", &[("server", 1), ("near", 1), ("far", 2), ("stranger", 2)])?;
    let [server, near, far, stranger] = &all[..] else { unreachable!("four were asked for") };
    let _target = listen(cluster, server)?;
    let to = server.addresses[0];
    cluster.apply(&[policy("restart", "server", &only_from("server", &["near", "far"]))])?;
    settles("the stranger is out", || !reaches(cluster, stranger, to))?;
    let talks = [exchange(cluster, near, to)?, exchange(cluster, far, to)?];

    // SIGKILL on both nodes: the kubelet starts it again
    for worker in &cluster.workers {
        let pid = worker.policyd_pid()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill policyd")?;
        let back = until(CLUSTER_TIMEOUT, || {
            worker.policyd_pid().is_ok_and(|now| now != pid)
                && worker.policyd("/v1/status").is_ok_and(|status| status["ready"] == true)
        });
        ensure!(back, "{}'s policyd has not come back", worker.name);
        ensure!(!reaches(cluster, stranger, to), "the stranger came in during a restart");
    }
    // the pods themselves, one after the other as an upgrade does
    cluster.kubectl(&["delete", "pods", "-n", NAMESPACE, "--all", "--wait=false"])?;
    for _ in 0..20 {
        ensure!(!reaches(cluster, stranger, to), "the stranger came in during a replacement");
    }
    cluster.await_podgate()?;
    ensure!(!reaches(cluster, stranger, to), "the stranger came in after a replacement");
    // the new one is at work, not only the old one's maps
    cluster.apply(&[policy(
        "restart",
        "server",
        &only_from("server", &["near", "far", "stranger"]),
    )])?;
    settles("the stranger is let in", || reaches(cluster, stranger, to))?;
    for (what, talk) in ["near", "far"].iter().zip(talks) {
        unharmed(what, talk)?;
    }
    forget(cluster, "restart")
}

fn a_policy_cuts(cluster: &mut Cluster) -> Result<()> {
    let all = pods(cluster, "cuts", &[("server", 2), ("friend", 1), ("stranger", 1)])?;
    let [server, friend, stranger] = &all[..] else { unreachable!("three were asked for") };
    let target = listen(cluster, server)?;
    let to = server.addresses[0];
    let kept = exchange(cluster, friend, to)?;
    let cut = exchange(cluster, stranger, to)?;
    cluster.apply(&[policy("cuts", "server", &only_from("server", &["friend"]))])?;
    settles("the stranger cannot connect", || !reaches(cluster, stranger, to))?;
    // its open connection is cut as well: nothing of it arrives any more
    let quiet = until(Duration::from_secs(10), || {
        let before = target.packets_from(stranger.addresses[0]);
        std::thread::sleep(Duration::from_millis(300));
        target.packets_from(stranger.addresses[0]) == before
    });
    ensure!(quiet, "the stranger's open connection goes on");
    unharmed("the friend's connection", kept)?;
    cluster.kubectl(&["delete", "networkpolicy", "-n", "cuts", "server"])?;
    settles("the stranger connects again", || reaches(cluster, stranger, to))?;
    drop(cut);
    forget(cluster, "cuts")
}

fn labels_change(cluster: &mut Cluster) -> Result<()> {
    let all = pods(cluster, "labels", &[("server", 1), ("a", 1), ("b", 2)])?;
    let [server, a, b] = &all[..] else { unreachable!("three were asked for") };
    let _target = listen(cluster, server)?;
    let to = server.addresses[0];
    let role = json!({
        "podSelector": { "matchLabels": { "pod": "server" } },
        "policyTypes": ["Ingress"],
        "ingress": [
            { "from": [{ "podSelector": { "matchLabels": { "role": "client" } } }] },
            { "from": [{ "namespaceSelector": { "matchLabels": { "trusted": "yes" } },
                         "podSelector": { "matchLabels": { "pod": "b" } } }] },
        ],
    });
    cluster.apply(&[policy("labels", "server", &role)])?;
    cluster.await_policies()?;
    settles("nobody gets in", || !reaches(cluster, a, to) && !reaches(cluster, b, to))?;
    let label =
        |arguments: &[&str]| cluster.kubectl(&[&["label", "-n", "labels"], arguments].concat());
    label(&["pod", "a", "role=client"])?;
    settles("a gets in by its label", || reaches(cluster, a, to))?;
    ensure!(!reaches(cluster, b, to), "b gets in by a's label");
    label(&["namespace", "labels", "trusted=yes"])?;
    settles("b gets in by its namespace's label", || reaches(cluster, b, to))?;
    let talk = exchange(cluster, b, to)?;
    label(&["pod", "a", "role-"])?;
    settles("a is out again", || !reaches(cluster, a, to))?;
    unharmed("b, while a's label changed", talk)?;
    label(&["namespace", "labels", "trusted-"])?;
    settles("b is out again", || !reaches(cluster, b, to))?;
    forget(cluster, "labels")
}

fn addresses_are_used_again(cluster: &mut Cluster) -> Result<()> {
    let all = pods(cluster, "churn", &[("server", 2)])?;
    let server = &all[0];
    let _target = listen(cluster, server)?;
    let to = server.addresses[0];
    cluster.apply(&[policy("churn", "server", &only_from("server", &["friend"]))])?;
    cluster.await_policies()?;
    // few addresses are left on node 1, so that each is soon somebody else's: an odd number for two names in turn
    cluster.workers[0].limit_addresses(3)?;
    let mut seen = std::collections::BTreeMap::<IpAddr, Vec<&str>>::new();
    for round in 0..6 {
        let name = if round % 2 == 0 { "friend" } else { "stranger" };
        cluster.apply(&[pods::manifest("churn", name, Some(1))])?;
        let pod = cluster.workload("churn", name)?;
        let users = seen.entry(pod.addresses[0]).or_default();
        match name {
            "friend" => settles("the friend gets in", || reaches(cluster, &pod, to))?,
            _ => {
                for _ in 0..3 {
                    ensure!(
                        !reaches(cluster, &pod, to),
                        "a stranger got in at {:?} of {users:?}",
                        pod.addresses
                    );
                }
            }
        }
        users.push(name);
        cluster.kubectl(&["delete", "pod", "-n", "churn", name, "--now"])?;
    }
    cluster.workers[0].limit_addresses(250)?;
    let used_again =
        seen.values().any(|users| users.contains(&"friend") && users.contains(&"stranger"));
    ensure!(used_again, "no address had both: {seen:?}");
    forget(cluster, "churn")
}

fn the_first_act(cluster: &mut Cluster) -> Result<()> {
    let all = pods(cluster, "first", &[("friend", 1), ("stranger", 2)])?;
    let [friend, stranger] = &all[..] else { unreachable!("two were asked for") };
    let (at_friend, at_stranger) = (listen(cluster, friend)?, listen(cluster, stranger)?);
    cluster.apply(&[policy("first", "client", &only_to("client", &["friend"]))])?;
    cluster.await_policies()?;
    for node in [1, 2] {
        let script = format!(
            "echo hello | nc -w 2 {} {PORT} | grep -q hello && echo stranger answered
             echo hello | nc -w 15 {} {PORT} | grep -q hello && echo friend answered
             exec sleep 1000000",
            stranger.addresses[0], friend.addresses[0]
        );
        cluster.apply(&[pods::with_command("first", "client", Some(node), &script)])?;
        let client = cluster.workload("first", "client")?;
        let mut said = String::new();
        let acted = until(Duration::from_secs(40), || {
            said = cluster.kubectl(&["logs", "-n", "first", "client"]).unwrap_or_default();
            said.contains("friend answered")
        });
        ensure!(acted, "node {node}: the friend did not answer a new pod's first acts: {said:?}");
        ensure!(!said.contains("stranger"), "node {node}: the stranger answered: {said}");
        let source = client.addresses[0];
        ensure!(at_friend.packets_from(source) > 0, "node {node}: the friend saw nothing");
        let through = at_stranger.packets_from(source);
        ensure!(through == 0, "node {node}: {through} packets got through to the stranger");
        cluster.kubectl(&["delete", "pod", "-n", "first", "client", "--now"])?;
    }
    forget(cluster, "first")
}

fn nodes(cluster: &mut Cluster) -> Result<()> {
    let all = pods(cluster, "nodes", &[("server", 1)])?;
    let server = &all[0];
    let _target = listen(cluster, server)?;
    let talks = |worker: usize| {
        let limit = Duration::from_millis(400);
        server.addresses.iter().take(1).all(|to| {
            let node = &cluster.workers[worker].node;
            let talked = node.inside(|| podgate_tests::runtime::traffic::talk_here(*to, limit));
            talked.is_ok_and(|talked| talked.is_ok())
        })
    };
    settles("both nodes reach an open pod", || talks(0) && talks(1))?;
    cluster.apply(&[policy("nodes", "server", &only_from("server", &["nobody"]))])?;
    settles("the other node is out", || !talks(1))?;
    settles("the pod's own node is not", || talks(0))?;
    forget(cluster, "nodes")
}
