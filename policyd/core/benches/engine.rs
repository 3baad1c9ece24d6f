//! What the engine costs, by the size of the cluster: a whole build, and each kind of event.
//! `cargo bench -p podgate-policy --bench engine`

#![allow(missing_docs, reason = "criterion's macros")]

mod cluster;

use std::time::Duration;

use cluster::{Cluster, HERE, SIZES};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use podgate_policy::engine::Engine;
use podgate_policy::index::{Change, Index};
use podgate_policy::model::Namespace;

/// Takes events in, one after the other, as a lone event each.
struct Following {
    index: Index,
    engine: Engine,
}

impl Following {
    fn new(cluster: &Cluster) -> Self {
        let mut index = cluster.index();
        index.take_changes();
        let engine = Engine::of(&index, cluster.endpoints.iter().cloned());
        Self { index, engine }
    }

    fn take(&mut self, change: Change) {
        self.index.apply(change);
        let changes = self.index.take_changes();
        self.engine.update(&self.index, changes);
    }
}

fn sizes(criterion: &mut Criterion) {
    for (pods, policies) in SIZES {
        let cluster = Cluster::new(pods, policies);
        let mut following = Following::new(&cluster);
        let mut group = criterion.benchmark_group(format!("{pods} pods, {policies} policies"));
        group.sample_size(10).warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_secs(1));

        let endpoints = &cluster.endpoints;
        group.bench_function(format!("build for {HERE} endpoints"), |bench| {
            bench.iter(|| Engine::of(&following.index, endpoints.iter().cloned()));
        });
        // each event and its undoing count as one
        let mut number = 0;
        group.bench_function("a pod comes and goes", |bench| {
            bench.iter_batched(
                || {
                    number += 1;
                    cluster.new_pod(number % 1_000)
                },
                |pod| {
                    let key = pod.key.clone();
                    following.take(Change::PodSet(pod));
                    following.take(Change::PodGone(key));
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function("a pod's label changes and changes back", |bench| {
            bench.iter_batched(
                || {
                    number += 1;
                    (cluster.relabelled(number), cluster.pod(number * 7919 % cluster.size()))
                },
                |(changed, back)| {
                    following.take(Change::PodSet(changed));
                    following.take(Change::PodSet(back));
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function("a policy changes and changes back", |bench| {
            bench.iter_batched(
                || {
                    number += 1;
                    let edited = cluster.edited(number);
                    let id = edited.id.clone();
                    (edited, cluster.policies.iter().find(|p| p.id == id).cloned())
                },
                |(edited, back)| {
                    following.take(Change::PolicySet(edited));
                    back.into_iter().for_each(|back| following.take(Change::PolicySet(back)));
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function("a namespace is relabelled and back", |bench| {
            bench.iter_batched(
                || {
                    number += 1;
                    let back = cluster.namespaces[number * 31 % cluster.namespaces.len()].clone();
                    let mut labels = back.labels.clone();
                    let stage = if number % 2 == 0 { "prod" } else { "dev" };
                    labels.insert("stage".into(), stage.into());
                    (Namespace { labels, ..back.clone() }, back)
                },
                |(changed, back)| {
                    following.take(Change::NamespaceSet(changed));
                    following.take(Change::NamespaceSet(back));
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, sizes);
criterion_main!(benches);
