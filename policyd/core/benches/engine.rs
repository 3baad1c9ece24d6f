//! What the engine costs, by the size of the cluster: a whole build, and each kind of event.
//! `cargo bench -p podgate-policy --bench engine`

#![allow(missing_docs, reason = "criterion's macros")]

mod cluster;

use std::time::Duration;

use cluster::{CLUSTER_POLICIES, Cluster, HERE, SIZES, cluster_policy, edited_cluster_policy};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use podgate_policy::compile::Engine;
use podgate_policy::index::Index;
use podgate_policy::model::Namespace;
use podgate_policy::object::{Event, ObjectId};

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

    fn take(&mut self, event: Event) {
        self.index.apply(event);
        let changes = self.index.take_changes();
        self.engine.update(&self.index, changes);
    }
}

fn sizes(criterion: &mut Criterion) {
    for (pods, policies) in SIZES {
        let cluster = Cluster::new(pods, policies);
        let mut following = Following::new(&cluster);
        let name = format!("{pods} pods, {policies} policies");
        for count in CLUSTER_POLICIES.into_iter().filter(|count| *count > 0) {
            ranked(criterion, &format!("{name}, {count} cluster policies"), &cluster, count);
        }
        let mut group = criterion.benchmark_group(name);
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
                    following.take(Event::from(pod));
                    following.take(Event::Gone(ObjectId::Pod(key)));
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
                    following.take(Event::from(changed));
                    following.take(Event::from(back));
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
                    following.take(Event::from(edited));
                    back.into_iter().for_each(|back| following.take(Event::from(back)));
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
                    following.take(Event::from(changed));
                    following.take(Event::from(back));
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

/// The same cluster with ClusterNetworkPolicies: a build, and one of them that changes.
fn ranked(criterion: &mut Criterion, name: &str, cluster: &Cluster, count: usize) {
    let mut following = Following::new(cluster);
    for policy in (0..count).map(cluster_policy) {
        following.index.apply(Event::from(policy));
    }
    let changes = following.index.take_changes();
    following.engine.update(&following.index, changes);
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(1));
    group.bench_function(format!("build for {HERE} endpoints"), |bench| {
        bench.iter(|| Engine::of(&following.index, cluster.endpoints.iter().cloned()));
    });
    let mut number = 0;
    group.bench_function("a cluster policy changes and changes back", |bench| {
        bench.iter_batched(
            || {
                number += 1;
                (edited_cluster_policy(count, number), cluster_policy(number * 31 % count))
            },
            |(changed, back)| {
                following.take(Event::from(changed));
                following.take(Event::from(back));
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, sizes);
criterion_main!(benches);
