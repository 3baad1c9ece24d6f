//! How each cost grows: one table of times, allocations, entries and memory, by the size of the cluster.
//! `cargo bench -p podgate-policy --bench growth`; each size has a process of its own, whose peak memory is that
//! size's.

#![allow(clippy::unwrap_used, reason = "a measurement that panics has failed")]

mod cluster;

use std::alloc::System;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster::{Cluster, SIZES};
use podgate_policy::diff::{Change as MapChange, State, plan};
use podgate_policy::engine::Engine;
use podgate_policy::index::{Change, Index};
use podgate_policy::model::Namespace;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Events of each kind.
const EVENTS: usize = 400;

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    if let [pods, policies] = arguments[..] {
        return one(pods, policies);
    }
    let itself = std::env::current_exe().unwrap();
    for (pods, policies) in SIZES {
        let sizes = [pods.to_string(), policies.to_string()];
        let status = Command::new(&itself).args(sizes).status().unwrap();
        assert!(status.success(), "{pods} pods, {policies} policies: {status}");
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
    fn take(&mut self, change: Change) {
        self.index.apply(change);
        let changes = self.index.take_changes();
        let touched = self.engine.update(&self.index, changes);
        self.hosts += touched.hosts.len() + touched.nets.len();
        self.entries += touched.tables.len();
    }

    /// Times many events of one kind.
    fn time(&mut self, kind: &str, events: Vec<Change>) {
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
            "  {kind:<22} {:>9.1?} p50 {:>9.1?} p99  {allocations:>6} allocations  {:>8.2} class entries  {:>6.2} tables",
            times[count / 2],
            times[count * 99 / 100],
            self.hosts as f64 / count as f64,
            self.entries as f64 / count as f64,
        );
    }
}

fn one(pods: usize, policies: usize) {
    let mut cluster = Cluster::new(pods, policies);
    let base = memory("VmRSS");
    let started = Instant::now();
    let mut index = Index::new();
    for change in cluster.namespaces.iter().cloned().map(Change::NamespaceSet) {
        index.apply(change);
    }
    let mut making = Duration::ZERO;
    for number in 0..cluster.size() {
        let made = Instant::now();
        let pod = cluster.pod(number);
        making += made.elapsed();
        index.apply(Change::PodSet(pod));
    }
    for policy in cluster.policies.drain(..) {
        index.apply(Change::PolicySet(policy));
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
        "{pods} pods, {policies} policies: index {indexed:.1?}, build {built:.1?} ({allocations} allocations), first plan {planned:.1?} ({} steps)",
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
    let gone = new.iter().map(|pod| Change::PodGone(pod.key.clone())).collect();
    world.time("a pod comes", new.into_iter().map(Change::PodSet).collect());
    world.time("a pod goes", gone);
    let relabel = |number| Change::PodSet(cluster.relabelled(number));
    world.time("a pod's label changes", (0..EVENTS).map(relabel).collect());
    let edit = |number| Change::PolicySet(cluster.edited(number));
    world.time("a policy changes", (0..EVENTS).map(edit).collect());
    let namespaces = (0..EVENTS).map(|number| {
        let namespace = cluster.namespaces[number * 31 % cluster.namespaces.len()].clone();
        let mut labels = namespace.labels.clone();
        labels.insert("stage".into(), ["prod", "dev"][number % 2].into());
        Change::NamespaceSet(Namespace { labels, ..namespace })
    });
    world.time("a namespace relabelled", namespaces.collect());
    let burst: Vec<_> = (2_000..3_000).map(|number| cluster.new_pod(number)).collect();
    let started = Instant::now();
    for pod in burst {
        world.index.apply(Change::PodSet(pod));
    }
    let changes = world.index.take_changes();
    world.engine.update(&world.index, changes);
    println!("  1,000 pods in one burst: {:.1?}", started.elapsed());
}
