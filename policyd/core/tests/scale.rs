//! A cluster of 10,000 pods and 1,000 policies, 110 pods of which are here: the whole build is quick.
//! `cargo test -p podgate-policy --release --test scale -- --nocapture` prints the times.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use std::time::{Duration, Instant};

use podgate_policy::compile::Engine;
use podgate_policy::convert;
use podgate_policy::index::Index;
use podgate_policy::object::Event;
use podgate_policy::tables::{Endpoint, EndpointId};
use serde_json::{Value, json};

const NAMESPACES: usize = 50;
const PODS: usize = 10_000;
const POLICIES: usize = 1_000;
const HERE: usize = 110;

fn address(pod: usize) -> String {
    format!("10.{}.{}.{}", pod >> 16, pod >> 8 & 255, pod & 255)
}

/// Twenty apps and a version in each namespace, and a name that no two pods share, as in a StatefulSet.
fn pod(number: usize) -> Value {
    let labels = json!({
        "app": format!("app-{}", number / NAMESPACES % 20),
        "version": format!("v{}", number % 3),
        "statefulset.kubernetes.io/pod-name": format!("pod-{number}"),
    });
    let name = format!("ns-{}/pod-{number}", number % NAMESPACES);
    let ports = cluster::with_ports(&[("http", "", 8000 + (number % 5) as u16)]);
    cluster::pod_object(&name, &[&address(number)], labels, ports)
}

/// Each kind of peer and port: other apps, other namespaces, blocks with holes, names, ranges.
fn policy(number: usize) -> Value {
    let app = |n: usize| json!({"matchLabels": {"app": format!("app-{}", n % 20)}});
    let namespace = json!({"matchLabels": {
        "kubernetes.io/metadata.name": format!("ns-{}", number * 7 % NAMESPACES),
    }});
    let block = json!({
        "cidr": format!("10.0.{}.0/20", number % 16 * 16),
        "except": [format!("10.0.{}.{}/28", number % 16 * 16, number % 16 * 16)],
    });
    json!({
        "metadata": {"namespace": format!("ns-{}", number % NAMESPACES), "name": format!("p-{number}")},
        "spec": {
            "podSelector": app(number / NAMESPACES),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": app(number / 50 + 1)}], "ports": [{"port": "http"}]},
                {
                    "from": [{"namespaceSelector": namespace, "podSelector": {
                        "matchExpressions": [
                            {"key": "version", "operator": "NotIn", "values": [format!("v{}", number % 3)]},
                        ],
                    }}],
                    "ports": [{"port": 80}, {"port": 1000, "endPort": 1100}],
                },
                {"from": [{"ipBlock": block}], "ports": [{"port": 443}]},
            ],
            "egress": [
                {"to": [{"podSelector": app(number / 50 + 2)}], "ports": [{"port": "http"}]},
                {"ports": [{"port": 53, "protocol": "UDP"}]},
            ],
        },
    })
}

#[test]
fn ten_thousand_pods_and_a_thousand_policies() {
    let pods: Vec<_> =
        (0..PODS).map(|number| serde_json::from_value(pod(number)).unwrap()).collect();
    let policies: Vec<_> =
        (0..POLICIES).map(|number| serde_json::from_value(policy(number)).unwrap()).collect();

    let started = Instant::now();
    let mut index = Index::new();
    for pod in &pods {
        index.apply(Event::from(convert::pod(pod).unwrap()));
    }
    for policy in &policies {
        index.apply(Event::from(convert::policy("kubernetes", policy).unwrap()));
    }
    let indexed = started.elapsed();

    let endpoints: Vec<Endpoint> = (0..HERE)
        .map(|number| {
            let pod = convert::pod(&pods[number * 89]).unwrap();
            let id = EndpointId(number as u32 + 1);
            Endpoint { id, pod: Some(pod.key), uid: pod.uid, addresses: pod.addresses }
        })
        .collect();
    index.take_changes();
    let started = Instant::now();
    let mut engine = Engine::of(&index, endpoints);
    let built = started.elapsed();
    let entries: usize = engine.compiled().tables.values().map(|table| table.entries.len()).sum();
    println!(
        "{PODS} pods, {POLICIES} policies, {HERE} endpoints: index {indexed:?}, build {built:?}; \
         {} hosts, {} nets, {} classes, {entries} entries",
        engine.compiled().hosts.len(),
        engine.compiled().nets.len(),
        engine.classes(),
    );
    assert_eq!(engine.compiled().tables.len(), HERE);

    let mut moved = convert::pod(&pods[5_000]).unwrap();
    moved.labels.insert("app".into(), "app-19".into());
    let address = moved.addresses[0];
    let started = Instant::now();
    index.apply(Event::from(moved));
    let changes = index.take_changes();
    let touched = engine.update(&index, changes);
    let followed = started.elapsed();
    println!("one pod's new label: {followed:?}, {touched:?}");
    assert!(touched.hosts.iter().all(|host| *host == address), "{:?}", touched.hosts);
    assert!(touched.nets.is_empty());
    let limit = Duration::from_millis(if cfg!(debug_assertions) { 5_000 } else { 500 });
    assert!(built < limit && followed < limit / 50, "{built:?}, {followed:?}");
}
