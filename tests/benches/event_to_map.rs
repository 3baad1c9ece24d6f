//! How long an event takes to be in the kernel's maps: 10,000 pods, 1,000 policies, 110 endpoints; the real writer,
//! real maps. A lone event is sent, and the answer awaited that what was sent before is in force. Then a burst, then
//! changes of single ClusterNetworkPolicies, first among 10, then among 500. Needs root.
//!
//! cargo bench -p podgate-tests --bench event_to_map

#[path = "../../policyd/core/benches/cluster/mod.rs"]
mod cluster;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podgate_bpf::abi::Startup;
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::{PodRef, Registration};
use podgate_bpf::{Datapath, PinRoot};
use podgate_policy::model::Namespace;
use podgate_policy::object::{Object, ObjectId};
use podgate_testkit::sandbox;
use policyd::snapshot::NodeState;
use policyd::sources::{Rank, Update};
use policyd::sync::services::ServiceMode;
use policyd::writer::{Handle, Message, Writer};

use cluster::{CLUSTER_POLICIES, Cluster, cluster_policy, edited_cluster_policy};

/// Events of each kind.
const EVENTS: usize = 500;

fn main() -> Result<()> {
    let root = PinRoot::new(sandbox::pin_dir());
    let datapath =
        Arc::new(Datapath::open_or_load(&root, &Sizes::default()).context("load the programs")?);
    let measured = measure(datapath);
    Datapath::unload(&root).context("unload the programs")?;
    measured
}

struct Timed {
    handle: Handle,
    runtime: tokio::runtime::Runtime,
}

impl Timed {
    fn send(&self, update: Update) -> Result<()> {
        Ok(self.handle.send(Message::Source(Rank(0), update))?)
    }

    fn settle(&self) -> Result<()> {
        Ok(self.runtime.block_on(self.handle.settled())?)
    }

    fn each(&self, kind: &str, updates: Vec<Update>) -> Result<()> {
        let mut times = Vec::with_capacity(updates.len());
        for update in updates {
            let started = Instant::now();
            self.send(update)?;
            self.settle()?;
            times.push(started.elapsed());
            // a lone event finds a writer that sleeps
            std::thread::sleep(Duration::from_micros(500));
        }
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("  {kind:<30} p50 {:>9.1?}  p99 {:>9.1?}  max {:>9.1?}", at(50), at(99), at(100));
        Ok(())
    }
}

fn set(object: Object) -> Update {
    Update::Change { set: vec![object], gone: Vec::new() }
}

fn measure(datapath: Arc<Datapath>) -> Result<()> {
    let (pods, policies) = (10_000, 1_000);
    let cluster = Cluster::new(pods, policies);
    for endpoint in &cluster.endpoints {
        let pod = endpoint.pod.clone().context("an endpoint without a pod")?;
        // no interface has these numbers: nothing is attached, only maps are written
        let ifindex = 1_000_000 + endpoint.id.0;
        datapath.maps.register(&Registration {
            ifindex,
            owner: ifindex,
            startup: Startup::Hold,
            anti_spoofing: true,
            addresses: endpoint.addresses.clone(),
            mac: None,
            netns_cookie: 0,
            container_id: format!("c{ifindex}"),
            interface: "eth0".into(),
            host_interface: format!("v{ifindex}"),
            network: "bench".into(),
            pod: Some(PodRef {
                namespace: pod.namespace.to_string(),
                name: pod.name.to_string(),
                uid: String::new(),
            }),
            netns: String::new(),
        })?;
    }
    let shared = Arc::new(NodeState::new(
        datapath.clone(),
        "bench".into(),
        ServiceMode::default(),
        "/nowhere/install.json".into(),
    ));
    let writer = Writer::start(shared.clone(), ["bench".to_owned()], |_| {})?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let timed = Timed { handle: writer.handle(), runtime };

    let namespaces = cluster.namespaces.iter().cloned().map(Object::Namespace);
    let all = (0..cluster.size()).map(|number| Object::Pod(cluster.pod(number)));
    let all = namespaces.chain(all).chain(cluster.policies.iter().cloned().map(Object::Policy));
    let all: Vec<Object> = all.collect();
    let started = Instant::now();
    timed.send(Update::Replace(all))?;
    timed.settle()?;
    let snapshot = shared.snapshot();
    ensure!(
        snapshot.ready && snapshot.problems().is_empty(),
        "not in force: {:?}",
        snapshot.problems()
    );
    println!(
        "{pods} pods, {policies} policies, {} endpoints: in force after {:.1?}; {} addresses, {} prefixes, {} classes, {} map entries; {} MiB at most",
        snapshot.endpoints.len(),
        started.elapsed(),
        snapshot.peers,
        snapshot.nets,
        snapshot.classes,
        snapshot.rules,
        peak()? / 1024,
    );

    let new: Vec<_> = (0..EVENTS).map(|number| cluster.new_pod(number)).collect();
    let gone = new
        .iter()
        .map(|pod| Update::Change { set: Vec::new(), gone: vec![ObjectId::Pod(pod.key.clone())] });
    let gone = gone.collect();
    timed.each("a pod comes", new.into_iter().map(|pod| set(Object::Pod(pod))).collect())?;
    timed.each("a pod goes", gone)?;
    let relabelled = (0..EVENTS).map(|number| set(Object::Pod(cluster.relabelled(number))));
    timed.each("a pod's label changes", relabelled.collect())?;
    let edited = (0..EVENTS).map(|number| set(Object::Policy(cluster.edited(number))));
    timed.each("a policy changes", edited.collect())?;
    let namespaces = (0..EVENTS).map(|number| {
        let namespace = cluster.namespaces[number * 31 % cluster.namespaces.len()].clone();
        let mut labels = namespace.labels.clone();
        labels.insert("stage".into(), ["prod", "dev"][number % 2].into());
        set(Object::Namespace(Namespace { labels, ..namespace }))
    });
    timed.each("a namespace relabelled", namespaces.collect())?;

    let commits = shared.snapshot().commits.count;
    let burst: Vec<_> =
        (2_000..3_000).map(|number| set(Object::Pod(cluster.new_pod(number)))).collect();
    let started = Instant::now();
    for update in burst {
        timed.send(update)?;
    }
    timed.settle()?;
    println!(
        "  1,000 pods in one burst: {:.1?}, {} commits",
        started.elapsed(),
        shared.snapshot().commits.count - commits
    );

    for count in CLUSTER_POLICIES.into_iter().filter(|count| *count > 0) {
        let policies = (0..count).map(|number| Object::ClusterPolicy(cluster_policy(number)));
        timed.send(Update::Change { set: policies.collect(), gone: Vec::new() })?;
        timed.settle()?;
        let edited = (0..EVENTS)
            .map(|number| set(Object::ClusterPolicy(edited_cluster_policy(count, number))));
        timed.each(&format!("one of {count} cluster policies"), edited.collect())?;
        let snapshot = shared.snapshot();
        ensure!(snapshot.problems().is_empty(), "not in force: {:?}", snapshot.problems());
    }
    Ok(())
}

/// The most memory this process ever had, KiB.
fn peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).context("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}
