//! How each cost grows: one table of times, allocations, entries and memory, by the size of the cluster and the number of
//! ClusterNetworkPolicies.
//! `cargo bench -p podgate-policy --bench growth`; each size has a process of its own, whose peak memory is that
//! size's.

#![allow(clippy::unwrap_used, reason = "a measurement that panics has failed")]

mod cluster;

use std::alloc::System;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster::{CLUSTER_POLICIES, Cluster, SIZES, cluster_policy, edited_cluster_policy};
use podgate_policy::compile::{Engine, EngineDelta, TableDelta};
use podgate_policy::diff::{Change as MapChange, State, TableChange, plan};
use podgate_policy::index::Index;
use podgate_policy::model::Namespace;
use podgate_policy::object::{Event, ObjectId};
use podgate_policy::tables::Entry;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Events of each kind.
const EVENTS: usize = 400;

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    if let [pods, policies, cluster_policies] = arguments[..] {
        return one(pods, policies, cluster_policies);
    }
    let itself = std::env::current_exe().unwrap();
    for (pods, policies) in SIZES {
        for cluster_policies in CLUSTER_POLICIES {
            let sizes = [pods, policies, cluster_policies].map(|size| size.to_string());
            let status = Command::new(&itself).args(&sizes).status().unwrap();
            assert!(status.success(), "{sizes:?}: {status}");
        }
    }
}

/// A line of /proc/self/status, in KiB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = status.lines().find(|l| l.starts_with(line)).unwrap();
    found.split_whitespace().nth(1).unwrap().parse().unwrap()
}

struct World {
    index: Index,
    engine: Engine,
    hosts: usize,
    entries: usize,
}

impl World {
    fn take(&mut self, event: Event) {
        self.index.apply(event);
        let changes = self.index.take_changes();
        let touched = self.engine.update(&self.index, changes);
        self.hosts += touched.hosts.len() + touched.nets.len();
        self.entries += touched.tables.len();
    }

    /// Times many events of one kind.
    fn time(&mut self, kind: &str, events: Vec<Event>) {
        let count = events.len();
        let mut times: Vec<Duration> = Vec::with_capacity(count);
        (self.hosts, self.entries) = (0, 0);
        let region = Region::new(ALLOCATOR);
        for event in events {
            let started = Instant::now();
            self.take(event);
            times.push(started.elapsed());
        }
        let allocations = region.change().allocations / count;
        times.sort_unstable();
        println!(
            "  {kind:<24} {:>9.1?} p50 {:>9.1?} p99  {allocations:>6} allocations  {:>8.2} class entries  {:>6.2} tables",
            times[count / 2],
            times[count * 99 / 100],
            self.hosts as f64 / count as f64,
            self.entries as f64 / count as f64,
        );
    }
}

impl World {
    /// Times changes of cluster policies to the last step of their plans, all that policyd does but for the system calls.
    fn time_with_plan(&mut self, cluster_policies: usize) {
        let state_of =
            |engine: &Engine| State::of(engine.compiled(), |_, table| table.entries.clone());
        let mut state = state_of(&self.engine);
        let (mut times, mut plans, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        for number in EVENTS..EVENTS + 100 {
            let event = Event::from(edited_cluster_policy(cluster_policies, number));
            let started = Instant::now();
            self.index.apply(event);
            let changes = self.index.take_changes();
            let touched = self.engine.update(&self.index, changes);
            let change = change(&self.engine, &touched);
            let planning = Instant::now();
            let steps = plan(&state, &change);
            plans.push(planning.elapsed());
            times.push(started.elapsed());
            taken.push(steps.len());
            steps.into_iter().for_each(|step| state.apply(step));
            state.ranked = change.ranked;
        }
        assert_eq!(state, state_of(&self.engine));
        times.sort_unstable();
        plans.sort_unstable();
        taken.sort_unstable();
        println!(
            "  the same, with its plan {:>9.1?} p50 {:>9.1?} p99, of which the plan {:.1?} p50 {:.1?} p99; {} steps p50 {} p99",
            times[50], times[98], plans[50], plans[98], taken[50], taken[98]
        );
    }
}

/// What the engine says is different, as the writer hands it to the plan.
fn change(engine: &Engine, touched: &EngineDelta) -> MapChange<Entry> {
    let compiled = engine.compiled();
    let tables = touched.tables.iter().map(|(id, part)| {
        let change = match (compiled.tables.get(id), part) {
            (None, _) => TableChange::Gone,
            (Some(table), TableDelta::Whole) => TableChange::Whole(table.entries.clone()),
            (Some(table), TableDelta::Classes(classes)) => {
                let column = |class| (class, table.column(class));
                TableChange::Classes(classes.iter().copied().map(column).collect())
            }
        };
        (*id, change)
    });
    let host = |address| (address, compiled.hosts.get(&address).copied());
    let net = |prefix| (prefix, compiled.nets.get(&prefix).copied());
    MapChange {
        hosts: touched.hosts.iter().copied().map(host).collect(),
        nets: touched.nets.iter().copied().map(net).collect(),
        tables: tables.collect(),
        ranked: compiled.is_ranked(),
    }
}

fn one(pods: usize, policies: usize, cluster_policies: usize) {
    let mut cluster = Cluster::new(pods, policies);
    let base = memory("VmRSS");
    let started = Instant::now();
    let mut index = Index::new();
    for event in cluster.namespaces.iter().cloned().map(Event::from) {
        index.apply(event);
    }
    let mut making = Duration::ZERO;
    for number in 0..cluster.size() {
        let made = Instant::now();
        let pod = cluster.pod(number);
        making += made.elapsed();
        index.apply(Event::from(pod));
    }
    for policy in cluster.policies.drain(..) {
        index.apply(Event::from(policy));
    }
    for policy in (0..cluster_policies).map(cluster_policy) {
        index.apply(Event::from(policy));
    }
    let indexed = started.elapsed() - making;
    index.take_changes();
    let region = Region::new(ALLOCATOR);
    let started = Instant::now();
    let engine = Engine::of(&index, cluster.endpoints.iter().cloned());
    let built = started.elapsed();
    let allocations = region.change().allocations;
    // what the writer has beside it: the state of the maps, and the first plan
    let started = Instant::now();
    let state = State::of(engine.compiled(), |_, table| table.entries.clone());
    let change = MapChange::between(&State::default(), &state);
    let steps = plan(&State::default(), &change);
    let planned = started.elapsed();
    let entries: usize = state.tables.values().map(|table| table.len()).sum();
    let (hosts, nets) = (state.hosts.len(), state.nets.len());
    println!(
        "{pods} pods, {policies} policies, {cluster_policies} cluster policies: index {indexed:.1?}, build {built:.1?} ({allocations} allocations), first plan {planned:.1?} ({} steps)",
        steps.len()
    );
    drop((change, steps));
    println!(
        "  in the maps: {hosts} addresses, {nets} prefixes, {} classes, {entries} table entries (about {} KiB in the kernel)",
        engine.classes(),
        // bytes per entry as measured: a hash's, a trie's, a trie's with two keys for each entry
        (hosts * 90 + nets * 40 + entries * 2 * 72) / 1024
    );
    println!(
        "  memory: {} MiB now, {} MiB at most, of which {} MiB were there before",
        memory("VmRSS") / 1024,
        memory("VmHWM") / 1024,
        base / 1024,
    );

    let policies_before = Cluster::new(pods, policies).policies;
    cluster.policies = policies_before;
    let mut world = World { index, engine, hosts: 0, entries: 0 };
    let new: Vec<_> = (0..EVENTS).map(|number| cluster.new_pod(number)).collect();
    let gone = new.iter().map(|pod| Event::Gone(ObjectId::Pod(pod.key.clone()))).collect();
    world.time("a pod comes", new.into_iter().map(Event::from).collect());
    world.time("a pod goes", gone);
    let relabel = |number| Event::from(cluster.relabelled(number));
    world.time("a pod's label changes", (0..EVENTS).map(relabel).collect());
    let edit = |number| Event::from(cluster.edited(number));
    world.time("a policy changes", (0..EVENTS).map(edit).collect());
    let namespaces = (0..EVENTS).map(|number| {
        let namespace = cluster.namespaces[number * 31 % cluster.namespaces.len()].clone();
        let mut labels = namespace.labels.clone();
        labels.insert("stage".into(), ["prod", "dev"][number % 2].into());
        Event::from(Namespace { labels, ..namespace })
    });
    world.time("a namespace relabelled", namespaces.collect());
    if cluster_policies > 0 {
        let edit = |number| Event::from(edited_cluster_policy(cluster_policies, number));
        world.time("a cluster policy changes", (0..EVENTS).map(edit).collect());
        world.time_with_plan(cluster_policies);
    }
    let burst: Vec<_> = (2_000..3_000).map(|number| cluster.new_pod(number)).collect();
    let started = Instant::now();
    for pod in burst {
        world.index.apply(Event::from(pod));
    }
    let changes = world.index.take_changes();
    world.engine.update(&world.index, changes);
    println!("  1,000 pods in one burst: {:.1?}", started.elapsed());
}
