//! podgate comes to a cluster that is at work, and goes again: pods that run, with connections open, notice neither, but
//! for what policy forbids while it is there.

use std::fs;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podgate_testkit::wait::until;
use podgate_tests::cluster::podgate::NAMESPACE;
use podgate_tests::cluster::pods::{self, Workload};
use podgate_tests::cluster::shared::{self, Test};
use podgate_tests::cluster::{CLUSTER_TIMEOUT, Cluster, Options};
use podgate_tests::runtime::traffic::{Exchange, PORT, Target, talk};
use serde_json::{Value, json};

/// A cluster whose pods ran before podgate came.
struct Stage {
    cluster: Cluster,
    server: Workload,
    near: Workload,
    far: Workload,
    stranger: Workload,
    service: IpAddr,
    conflists: Vec<Vec<u8>>,
    _targets: [Target; 2],
    // in force through everything: by pod address near and far, by the service's far
    kept: Vec<(&'static str, Exchange)>,
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("running pods are adopted, their open connections go on", adopted),
        Test::new("a pod made afterwards is gated by the runtime", made_afterwards),
        Test::new("uninstalling frees everybody and harms no connection", uninstalled),
        Test::new("installed again it adopts again", installed_again),
    ];
    shared::main(start, tests, |stage| {
        drop(stage.kept);
        stage.cluster.finish()
    })
}

fn start() -> Result<Stage> {
    let cluster = Cluster::start(Options::default())?;
    let conflists = cluster.workers.iter().map(|worker| fs::read(worker.node.home(CONFLIST)));
    let conflists = conflists.collect::<Result<_, _>>().context("read the conflists")?;
    cluster.make_namespaces(&["live"])?;
    let of = |name, node| pods::manifest("live", name, Some(node));
    let mut service = pods::service("live", "server");
    service["spec"]["ports"] = json!([
        { "name": "tcp", "port": PORT, "protocol": "TCP" },
        { "name": "udp", "port": PORT, "protocol": "UDP" },
    ]);
    cluster.apply(&[
        of("server", 1),
        of("near", 1),
        of("far", 2),
        of("stranger", 2),
        service,
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "namespace": "live", "name": "server" },
            "spec": {
                "podSelector": { "matchLabels": { "pod": "server" } },
                // isolated both ways: its answers are those of allowed connections
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{ "from": [{ "podSelector": { "matchExpressions": [
                    { "key": "pod", "operator": "In", "values": ["near", "far", "late"] },
                ] } }] }],
            },
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "namespace": "live", "name": "far" },
            "spec": {
                "podSelector": { "matchLabels": { "pod": "far" } },
                "policyTypes": ["Egress"],
                "egress": [{ "to": [{ "podSelector": { "matchLabels": { "pod": "server" } } }] }],
            },
        }),
    ])?;
    let names = ["server", "near", "far", "stranger"].map(|name| ("live", name));
    let [server, near, far, stranger] = cluster
        .workloads(&names)?
        .try_into()
        .map_err(|got| anyhow::anyhow!("four pods were asked for: {got:?}"))?;
    let listen = |pod: &Workload| Target::listen(&cluster.workers[pod.worker].node, &pod.netns);
    let targets = [listen(&server)?, listen(&near)?];
    let service = cluster.service("live", "server")?[0];
    let mut stage = Stage {
        cluster,
        server,
        near,
        far,
        stranger,
        service,
        conflists,
        _targets: targets,
        kept: Vec::new(),
    };
    let to = stage.server.addresses[0];
    stage.settles("the service is translated", |s| s.reaches(&s.far, s.service))?;
    stage.kept = vec![
        ("near to the pod", stage.exchange(&stage.near, to)?),
        ("far to the pod", stage.exchange(&stage.far, to)?),
        ("far to the service", stage.exchange(&stage.far, stage.service)?),
    ];
    Ok(stage)
}

/// The primary plugin's file in a node.
const CONFLIST: &str = "conf/10-pods.conflist";

impl Stage {
    fn exchange(&self, from: &Workload, to: IpAddr) -> Result<Exchange> {
        Exchange::start(&self.cluster.workers[from.worker].node, &from.netns, to)
            .with_context(|| format!("talk from {} to {to}", from.id()))
    }

    fn reaches(&self, from: &Workload, to: IpAddr) -> bool {
        let node = &self.cluster.workers[from.worker].node;
        let talked = talk(node, &from.netns, to, Duration::from_millis(400));
        talked.is_ok_and(|talked| talked.is_ok())
    }

    fn settles(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        if until(Duration::from_secs(30), || holds(self)) {
            return Ok(());
        }
        let endpoints = self.cluster.workers.iter().map(|worker| worker.policyd("/v1/endpoints"));
        let endpoints: Vec<_> = endpoints.map(|told| format!("{told:?}")).collect();
        bail!(
            "{what}: it has not come true\n{}\n{}",
            endpoints.join("\n"),
            self.cluster.podgate_logs()
        )
    }

    /// Every open connection still gets answers.
    fn goes_on(&self) -> Result<()> {
        for (what, exchange) in &self.kept {
            let before = exchange.answered();
            let goes_on = until(Duration::from_secs(30), || exchange.answered() > before + 100);
            ensure!(goes_on, "{what}: stands still after {before} answers");
        }
        Ok(())
    }

    /// Nothing was lost since the beginning.
    fn lost_nothing(&mut self) -> Result<()> {
        self.goes_on()?;
        for (what, exchange) in self.kept.drain(..) {
            let (answered, faults) = exchange.stop();
            ensure!(faults.is_empty(), "{what}: lost after {answered} answers: {faults:?}");
        }
        Ok(())
    }
}

fn adopted(stage: &mut Stage) -> Result<()> {
    let to = stage.server.addresses[0];
    stage.settles("before podgate the stranger connects", |s| s.reaches(&s.stranger, to))?;
    stage.settles("before podgate far connects", |s| s.reaches(&s.far, s.near.addresses[0]))?;
    stage.settles("before podgate the server connects", |s| {
        s.reaches(&s.server, s.near.addresses[0])
    })?;
    let forbidden = stage.exchange(&stage.stranger, to)?;
    stage.cluster.install_podgate()?;
    stage.settles("the stranger is out", |s| !s.reaches(&s.stranger, to))?;
    stage.settles("every pod has its gate", |s| {
        let gated = |worker: &podgate_tests::cluster::worker::Worker| {
            let endpoints = worker.policyd("/v1/endpoints").unwrap_or_default();
            let list = endpoints.as_array().cloned().unwrap_or_default();
            list.iter().filter(|endpoint| endpoint["state"] == "enforced").count()
        };
        s.cluster.workers.iter().map(gated).sum::<usize>() == 4
    })?;
    stage.settles("far is judged", |s| !s.reaches(&s.far, s.near.addresses[0]))?;
    stage.settles("near connects", |s| s.reaches(&s.near, to))?;
    stage.settles("far connects", |s| s.reaches(&s.far, to))?;
    stage.settles("far reaches the service", |s| s.reaches(&s.far, s.service))?;
    ensure!(!stage.reaches(&stage.server, stage.near.addresses[0]), "the server gets out");
    // what was open and is forbidden is cut
    let before = forbidden.answered();
    std::thread::sleep(Duration::from_secs(1));
    ensure!(forbidden.answered() == before, "the stranger's open connection goes on");
    drop(forbidden);
    stage.goes_on()
}

fn made_afterwards(stage: &mut Stage) -> Result<()> {
    stage.cluster.apply(&[pods::manifest("live", "late", Some(2))])?;
    let late = stage.cluster.workload("live", "late")?;
    stage.settles("the new pod reaches the server", |s| s.reaches(&late, s.server.addresses[0]))?;
    let registrations = stage.cluster.workers[late.worker].node.registrations()?;
    let of_it = |r: &&podgate_bpf::maps::Registration| {
        r.pod.as_ref().is_some_and(|pod| (&*pod.namespace, &*pod.name) == ("live", "late"))
    };
    ensure!(registrations.iter().filter(of_it).count() == 1, "no registration: {registrations:#?}");
    stage.cluster.kubectl(&["delete", "pod", "-n", "live", "late", "--now"])?;
    stage.settles("nothing is left of the new pod", |s| {
        let registrations = s.cluster.workers[late.worker].node.registrations();
        registrations.is_ok_and(|all| !all.iter().any(|r| of_it(&r)))
    })
}

fn uninstalled(stage: &mut Stage) -> Result<()> {
    let cluster = &stage.cluster;
    cluster.kubectl(&["delete", "daemonset", "-n", NAMESPACE, "podgate", "--wait=true"])?;
    let gone = until(CLUSTER_TIMEOUT, || {
        let pods = cluster.admin().list::<k8s_openapi::api::core::v1::Pod>(NAMESPACE);
        pods.is_ok_and(|pods| pods.is_empty())
    });
    ensure!(gone, "podgate's pods are still there");
    // without its daemon the policies stand
    let to = stage.server.addresses[0];
    ensure!(!stage.reaches(&stage.stranger, to), "the cluster opened when the daemon went");
    stage.goes_on()?;

    let overlay = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/uninstall");
    cluster.kubectl(&["apply", "-k", overlay])?;
    let rollout =
        ["rollout", "status", "-n", NAMESPACE, "daemonset/podgate-uninstall", "--timeout=120s"];
    if let Err(error) = cluster.kubectl(&rollout) {
        let pods = cluster.kubectl(&["describe", "pods", "-n", NAMESPACE])?;
        let logs = ["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=uninstall"];
        let logs = cluster.kubectl(&[&logs[..], &["--all-containers", "--prefix"]].concat())?;
        return Err(error.context(format!("{pods}\n{logs}")));
    }
    stage.settles("the stranger is let in", |s| s.reaches(&s.stranger, to))?;
    stage.settles("far is free", |s| s.reaches(&s.far, s.near.addresses[0]))?;
    for (worker, before) in stage.cluster.workers.iter().zip(&stage.conflists) {
        let now = fs::read(worker.node.home(CONFLIST)).context("read the conflist")?;
        ensure!(&now == before, "{}'s conflist is not as it was", worker.name);
        let pins = worker.node.pins().dir().to_owned();
        ensure!(!pins.exists(), "{} has pins at {}", worker.name, pins.display());
        ensure!(!worker.node.home("bin/podgate").exists(), "{} has the plugin", worker.name);
    }
    stage.cluster.kubectl(&["delete", "-k", overlay])?;
    stage.lost_nothing()
}

fn installed_again(stage: &mut Stage) -> Result<()> {
    let to = stage.server.addresses[0];
    stage.kept = vec![("near, the second time", stage.exchange(&stage.near, to)?)];
    let objects: Vec<Value> = stage.cluster.podgate_objects()?;
    stage.cluster.apply(&objects)?;
    stage.cluster.await_podgate()?;
    stage.settles("the stranger is out again", |s| !s.reaches(&s.stranger, to))?;
    stage.lost_nothing()
}
