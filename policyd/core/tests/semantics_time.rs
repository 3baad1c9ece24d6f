//! Section 11 of docs/semantics.md: who is a peer and whose an address is, while pods come and go.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use cluster::{Cluster, STRANGER, key, pod_object};
use podgate_policy::compile::Engine;
use podgate_policy::index::Index;
use podgate_policy::model::{Direction, ObjectKey, Pod, PodLife};
use podgate_policy::object::{Event, ObjectId};
use podgate_policy::tables::{Endpoint, EndpointId};
use serde_json::{Value, json};

const SHARED: &str = "10.0.0.50";

/// The shop, whose web lets in `app=good` only.
fn shop() -> Cluster {
    let mut cluster = Cluster::shop();
    let from = json!([{"podSelector": {"matchLabels": {"app": "good"}}}]);
    let selector = json!({"matchLabels": {"app": "web"}});
    cluster.policy("shop/web", json!({"podSelector": selector, "ingress": [{"from": from}]}));
    cluster
}

fn reaches_web(cluster: &Cluster, peer: &str) -> bool {
    cluster.ingress("shop/web", peer, "80/TCP")
}

/// A pod of another node that claims the shared address.
fn claimant(name: &str, app: &str, extra: Value) -> Value {
    pod_object(name, &[SHARED], json!({"app": app}), extra)
}

fn phase(phase: &str) -> Value {
    json!({"status": {"phase": phase}})
}

fn created(second: u32) -> Value {
    json!({"metadata": {"creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")}})
}

fn terminating() -> Value {
    json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
}

#[test]
fn s11_1_finished_pods_are_no_peers() {
    for finished in ["Succeeded", "Failed"] {
        let mut cluster = shop();
        cluster.object(&claimant("shop/job", "good", phase("Running")));
        assert!(reaches_web(&cluster, SHARED));
        cluster.object(&claimant("shop/job", "good", phase(finished)));
        assert!(!reaches_web(&cluster, SHARED), "{finished}");
    }
}

#[test]
fn s11_2_a_finished_pods_address_is_its_successors() {
    let mut cluster = shop();
    cluster.object(&claimant("shop/job", "good", phase("Succeeded")));
    cluster.object(&claimant("shop/new", "bad", created(1)));
    assert!(!reaches_web(&cluster, SHARED));
    let owner = cluster.index.owner_of(SHARED.parse().unwrap()).unwrap();
    assert_eq!(owner.key, key("shop/new"));
    // nor is it a target: what selects the old pod does not reach the new one's interface
    let selector = json!({"matchLabels": {"app": "good"}});
    cluster.policy("shop/old", json!({"podSelector": selector, "policyTypes": ["Ingress"]}));
    cluster.interface("shop/new", "", &[SHARED]);
    assert!(cluster.ingress("shop/new", STRANGER, "80/TCP"));
}

#[test]
fn s11_3_terminating_pods_stay_targets_and_peers_until_they_are_gone() {
    let mut cluster = shop();
    cluster.object(&claimant("shop/peer", "good", terminating()));
    assert!(reaches_web(&cluster, SHARED));
    let web = pod_object("shop/web", &["10.0.0.1"], json!({"app": "web"}), terminating());
    cluster.object(&web);
    assert!(!reaches_web(&cluster, STRANGER));
    cluster.index.apply(Event::Gone(ObjectId::Pod(key("shop/peer"))));
    assert!(!reaches_web(&cluster, SHARED));
}

#[test]
fn s11_4_pods_without_an_address_have_no_effect_until_they_have_one() {
    let mut cluster = shop();
    cluster.object(&pod_object("shop/peer", &[], json!({"app": "good"}), phase("Pending")));
    assert_eq!(cluster.compile().hosts.len(), 0);
    cluster.object(&claimant("shop/peer", "good", phase("Pending")));
    assert!(reaches_web(&cluster, SHARED), "a pending pod with an address counts");
}

#[test]
fn s11_5_disputes_live_beats_terminating_newer_beats_older_in_any_order() {
    let merged = |a: Value, b: Value| {
        let mut fields = a["metadata"].as_object().unwrap().clone();
        fields.extend(b["metadata"].as_object().unwrap().clone());
        json!({"metadata": fields})
    };
    // from the strongest claim to the weakest
    let claims = [
        claimant("shop/d-new", "good", created(9)),
        claimant("shop/b-old", "bad", created(5)),
        claimant("shop/c-old", "bad", created(5)),
        claimant("shop/a-unknown", "bad", json!({})),
        claimant("shop/a-new-terminating", "bad", merged(created(10), terminating())),
        claimant("shop/a-old-terminating", "bad", merged(created(1), terminating())),
        claimant("shop/a-finished", "bad", phase("Failed")),
    ];
    for rotation in 0..claims.len() {
        let mut cluster = shop();
        for nth in 0..claims.len() {
            cluster.object(&claims[(rotation + nth) % claims.len()]);
        }
        for (nth, claim) in claims.iter().enumerate() {
            let owner = cluster.index.owner_of(SHARED.parse().unwrap());
            let name = claim["metadata"]["name"].as_str().unwrap();
            if name == "a-finished" {
                assert!(owner.is_none(), "a finished pod owns nothing");
            } else {
                assert_eq!(&*owner.unwrap().key.name, name);
            }
            assert_eq!(reaches_web(&cluster, SHARED), nth == 0);
            cluster.index.apply(Event::Gone(ObjectId::Pod(key(&format!("shop/{name}")))));
        }
    }
}

#[test]
fn s11_6_a_pod_recreated_under_its_name_and_address_has_its_new_labels() {
    let mut cluster = shop();
    cluster.object(&claimant("shop/peer", "good", json!({"metadata": {"uid": "1"}})));
    assert!(reaches_web(&cluster, SHARED));
    cluster.object(&claimant("shop/peer", "bad", json!({"metadata": {"uid": "2"}})));
    assert!(!reaches_web(&cluster, SHARED));
}

#[test]
fn s11_7_an_interface_wins_any_dispute_and_counts_before_the_status_knows() {
    let mut cluster = shop();
    cluster.object(&pod_object("shop/peer", &[], json!({"app": "good"}), phase("Pending")));
    cluster.interface("shop/peer", "", &[SHARED]);
    assert!(reaches_web(&cluster, SHARED));
    cluster.object(&claimant("shop/elsewhere", "bad", created(59)));
    assert!(reaches_web(&cluster, SHARED));
    cluster.interface("shop/peer", "", &[]);
    assert!(!reaches_web(&cluster, SHARED));
}

#[test]
fn s11_8_the_address_of_an_interface_whose_pod_is_not_known_is_nobodys() {
    let mut cluster = shop();
    cluster.object(&claimant("shop/last", "good", json!({})));
    assert!(reaches_web(&cluster, SHARED));
    cluster.interface("shop/unheard-of", "", &[SHARED]);
    assert!(!reaches_web(&cluster, SHARED));
}

#[test]
fn s11_8_an_endpoint_of_an_unknown_pod_or_a_namesake_has_no_table() {
    let mut cluster = shop();
    let named =
        |uid: &str| pod_object("shop/re", &[], json!({}), json!({"metadata": {"uid": uid}}));
    cluster.interface("shop/re", "old", &[SHARED]);
    let asked = |cluster: &Cluster| {
        cluster.explain("shop/re", Direction::Ingress, STRANGER, "80/TCP").is_some()
    };
    assert!(!asked(&cluster), "unknown");
    cluster.object(&named("new"));
    assert!(!asked(&cluster), "a namesake");
    cluster.object(&named("old"));
    assert!(asked(&cluster), "itself");
    cluster.object(&named(""));
    assert!(asked(&cluster), "a hand-written pod has no uid");
}

#[test]
fn s11_9_an_endpoint_that_is_no_pod_is_not_isolated() {
    let endpoint = Endpoint { id: EndpointId(7), pod: None, uid: "".into(), addresses: Vec::new() };
    let engine = Engine::of(&Index::new(), [endpoint]);
    let table = &engine.compiled().tables[&EndpointId(7)];
    for direction in [Direction::Ingress, Direction::Egress] {
        let rule = table.lookup(
            direction,
            podgate_policy::tables::Class::ANY,
            cluster::transport("80/TCP"),
        );
        assert!(rule.is_some() && table.isolating(direction).is_empty());
    }
}

#[test]
fn a_static_pods_mirror_is_known_by_the_uid_the_runtime_knows() {
    let mut cluster = shop();
    let mirror = json!({"metadata": {
        "uid": "api-server-gave-it",
        "annotations": {"kubernetes.io/config.mirror": "hash"},
    }});
    cluster.object(&pod_object("shop/static", &[], json!({"app": "web"}), mirror));
    cluster.interface("shop/static", "hash", &[SHARED]);
    assert!(!cluster.ingress("shop/static", STRANGER, "80/TCP"));
}

/// Those of the index's own node that own addresses, at each moment.
#[test]
fn an_index_knows_the_pods_of_its_node() {
    let pod = |name: &str, node: Option<&str>, addresses: &[&str]| Pod {
        key: ObjectKey::new("shop", name),
        uid: "".into(),
        created: 0,
        labels: Default::default(),
        addresses: addresses.iter().map(|each| each.parse().unwrap()).collect(),
        ports: Vec::new().into(),
        life: PodLife::Live,
        host_network: false,
        host_addresses: Vec::new(),
        annotated_limits: None,
        node: node.map(Into::into),
    };
    let local =
        |index: &Index| index.local_pods().map(|pod| pod.key.name.to_string()).collect::<Vec<_>>();
    let mut index = Index::of_node("n1");
    let here = pod("here", Some("n1"), &["10.0.0.1"]);
    for pod in [
        here.clone(),
        pod("there", Some("n2"), &["10.0.0.2"]),
        pod("nowhere", None, &["10.0.0.3"]),
        pod("new", Some("n1"), &[]),
        Pod { host_network: true, ..pod("host", Some("n1"), &["192.0.2.1"]) },
    ] {
        index.apply(Event::from(pod));
    }
    assert_eq!(local(&index), ["here"]);
    index.apply(Event::from(pod("new", Some("n1"), &["10.0.0.4"])));
    assert_eq!(local(&index), ["here", "new"]);
    index.apply(Event::from(Pod { life: PodLife::Finished, ..here.clone() }));
    assert_eq!(local(&index), ["new"]);
    index.apply(Event::from(Pod { life: PodLife::Terminating, ..here }));
    index.apply(Event::Gone(ObjectId::Pod(ObjectKey::new("shop", "new"))));
    assert_eq!(local(&index), ["here"]);

    let mut index = Index::new();
    index.apply(Event::from(pod("nowhere", None, &["10.0.0.3"])));
    assert!(local(&index).is_empty(), "an index of no node");
}
