//! Kinds that an API server may do without: not served, served later, removed, not permitted. And nodes, whose heartbeats
//! are no news.

use std::time::Duration;

use podgate_policy::object::{Kind, Served};
use policyd::sources::kubernetes::Connection;
use serde_json::{Value, json};

use crate::server::Answer::{Page, Status, Watch};
use crate::server::{Of, Then, event};
use crate::world::{World, cluster_policy, pod};

fn absent() -> crate::server::Answer {
    Status(404, "NotFound")
}

fn forbidden() -> crate::server::Answer {
    Status(403, "Forbidden")
}

fn list(items: Vec<Value>) -> crate::server::Answer {
    Page { items, version: "9", next: None }
}

fn connection(world: &World, kind: Kind) -> Connection {
    world.watch(kind).connection
}

#[test]
fn only_nodes_and_kinds_of_crds_are_optional() {
    let optional = Kind::ALL.iter().filter(|kind| kind.served() == Served::Optional);
    assert_eq!(
        optional.collect::<Vec<_>>(),
        [&Kind::Node, &Kind::ClusterPolicy, &Kind::PodTrafficPolicy]
    );
}

#[tokio::test(start_paused = true)]
async fn without_the_crd_the_source_is_synced_at_once_and_the_crd_may_come_later() {
    let world = World::start(|server| {
        server.script(Of::ClusterPolicies, (0..200).map(|_| absent()));
    });
    world.synced().await;
    assert_eq!(world.server.lists(Of::ClusterPolicies).len(), 1, "no second request was needed");
    assert_eq!(connection(&world, Kind::ClusterPolicy), Connection::Absent);
    assert_eq!(world.problems(), "");
    assert_eq!(world.watch(Kind::ClusterPolicy).errors, 0);

    // asked again, slowly, whatever pods come, and without news for the writer
    let updates = world.updates();
    for _ in 0..600 {
        world.health.wake();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let asked = world.server.lists(Of::ClusterPolicies).len();
    assert!((20..60).contains(&asked), "{asked} requests in ten minutes");
    assert_eq!(world.updates(), updates);
    assert_eq!(world.watch(Kind::ClusterPolicy).lists, 1);

    world.server.clear(Of::ClusterPolicies);
    world.server.script(Of::ClusterPolicies, [list(vec![cluster_policy("a", 1, "3")])]);
    let before = tokio::time::Instant::now();
    world.until("it is known", |world| world.cluster_policy("a").is_some()).await;
    assert!(before.elapsed() <= Duration::from_secs(31), "{:?}", before.elapsed());
    world
        .until("it is watched", |world| !world.server.watches(Of::ClusterPolicies).is_empty())
        .await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(connection(&world, Kind::ClusterPolicy), Connection::Up);
    world.server.say(Of::ClusterPolicies, &event("ADDED", &cluster_policy("b", 2, "10")));
    world.until("the next is known", |world| world.cluster_policy("b").is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn when_the_crd_is_removed_its_objects_are_gone_but_not_by_one_answer() {
    let world = World::start(|server| {
        server.script(Of::ClusterPolicies, [list(vec![cluster_policy("a", 1, "3")])]);
    });
    world.watching().await;
    assert!(world.cluster_policy("a").is_some());
    // a server that starts up may say so once or twice
    world.server.script(
        Of::ClusterPolicies,
        [absent(), absent(), absent(), list(vec![cluster_policy("a", 1, "3")])],
    );
    world.server.cut(Of::ClusterPolicies);
    world
        .until("it is watched again", |world| world.server.watches(Of::ClusterPolicies).len() == 3)
        .await;
    assert!(world.cluster_policy("a").is_some());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(connection(&world, Kind::ClusterPolicy), Connection::Up);
    // the watch's 404, and three to the list
    world.server.script(Of::ClusterPolicies, (0..4).map(|_| absent()));
    world.server.cut(Of::ClusterPolicies);
    world.until("it is gone", |world| world.cluster_policy("a").is_none()).await;
    assert_eq!(connection(&world, Kind::ClusterPolicy), Connection::Absent);
    assert_eq!(world.problems(), "");
    assert!(world.state().synced);
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_listed_keeps_nothing_waiting_and_is_reported() {
    let world = World::start(|server| {
        server.script(Of::Nodes, (0..10).map(|_| forbidden()));
        server.script(Of::Pods, [list(vec![pod("a", "x", "1")])]);
    });
    assert!(!world.state().synced);
    world.synced().await;
    assert_eq!(world.pods(), ["a"]);
    let problems = world.problems();
    assert!(problems.starts_with("list nodes: the API server says 403 Forbidden: "), "{problems}");
    assert!(problems.contains("ClusterRole"), "{problems}");
    assert!(matches!(connection(&world, Kind::Node), Connection::Forbidden { .. }));
    // permitted at last
    world.until("it is listed", |world| connection(world, Kind::Node) == Connection::Up).await;
    assert_eq!(world.problems(), "");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_it_was_forbidden_stays() {
    let world = World::start(|server| {
        server.script(Of::ClusterPolicies, [list(vec![cluster_policy("a", 1, "3")])]);
    });
    world.watching().await;
    world.server.script(Of::ClusterPolicies, (0..100).map(|_| forbidden()));
    world.server.cut(Of::ClusterPolicies);
    world
        .until("it is reported", |world| {
            matches!(connection(world, Kind::ClusterPolicy), Connection::Forbidden { .. })
        })
        .await;
    assert!(world.cluster_policy("a").is_some());
    assert!(world.state().synced);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_otherwise_is_waited_for() {
    let world = World::start(|server| {
        server.script(Of::ClusterPolicies, (0..5).map(|_| Status(500, "InternalError")));
    });
    world.until("it failed", |world| world.watch(Kind::ClusterPolicy).errors == 5).await;
    assert!(!world.state().synced, "a policy not known yet would be missing");
    world.synced().await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_policy_that_cannot_be_read_is_left_out_or_stays_as_it_was() {
    let world = World::start(|server| {
        server.script(Of::ClusterPolicies, [list(vec![cluster_policy("a", 1001, "3")])]);
    });
    world.watching().await;
    assert_eq!(world.cluster_policy("a"), None);
    let problems = world.problems();
    assert!(problems.starts_with("read clusternetworkpolicy a: spec.priority: "), "{problems}");
    assert!(problems.ends_with("it has no effect: what it denies may pass"), "{problems}");
    let say = |policy: &Value| world.server.say(Of::ClusterPolicies, &event("MODIFIED", policy));
    say(&cluster_policy("a", 7, "10"));
    world.until("it is mended", |world| world.problems().is_empty()).await;
    say(&cluster_policy("a", 1001, "11"));
    world.until("it is reported", |world| !world.problems().is_empty()).await;
    assert_eq!(world.cluster_policy("a").unwrap().priority, 7);
    assert!(world.problems().ends_with("what was read of it before stays in force"));
    // what fails closed by itself is a version like others
    let mut unknown = cluster_policy("a", 8, "12");
    unknown["spec"]["ingress"][0]["action"] = json!("Log");
    say(&unknown);
    world.until("it is known", |world| world.cluster_policy("a").unwrap().priority == 8).await;
    assert_eq!(world.problems(), "");
}

fn node(address: &str, heartbeat: &str, version: &str) -> Value {
    json!({
        "metadata": {
            "name": "n1", "uid": "u", "resourceVersion": version, "labels": {"zone": "a"},
            "annotations": {"ttl": "0"}, "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {"podCIDR": "10.0.0.0/24"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": "n1"}],
            "conditions": [{"type": "Ready", "lastHeartbeatTime": heartbeat}],
            "images": [{"names": ["i"], "sizeBytes": 7}],
        },
    })
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_of_a_node_is_no_news() {
    let world = World::start(|server| {
        let open = Watch(vec![], Then::StayOpen);
        server.script(Of::Nodes, [list(vec![node("192.0.2.1", "1", "1")]), open]);
    });
    world.watching().await;
    let known = world.node("n1").unwrap();
    assert_eq!(known.labels.get("zone").map(|value| &**value), Some("a"));
    assert_eq!(known.addresses.len(), 1);
    let updates = world.updates();
    for (nth, version) in ["10", "11", "12"].into_iter().enumerate() {
        world
            .server
            .say(Of::Nodes, &event("MODIFIED", &node("192.0.2.1", &nth.to_string(), version)));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.updates(), updates);
    world.server.say(Of::Nodes, &event("MODIFIED", &node("192.0.2.2", "9", "13")));
    world.until("it has moved", |world| world.node("n1").unwrap() != known).await;
    assert_eq!(world.updates(), updates + 1);
    // gone, and back as it was
    world.server.say(Of::Nodes, &event("DELETED", &node("192.0.2.2", "9", "14")));
    world.until("it is gone", |world| world.node("n1").is_none()).await;
    world.server.say(Of::Nodes, &event("ADDED", &node("192.0.2.2", "9", "15")));
    world.until("it is back", |world| world.node("n1").is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_only_a_later_version_is_asked_for_that() {
    let world = World::start(|server| {
        server.script(Of::ClusterPolicies, (0..100).map(|_| absent()));
        let open = Watch(vec![], Then::StayOpen);
        server.script(Of::LaterClusterPolicies, [list(vec![cluster_policy("a", 1, "3")]), open]);
    });
    world.synced().await;
    assert!(world.cluster_policy("a").is_some());
    assert_eq!(world.problems(), "");
    world
        .until("it is watched", |world| !world.server.watches(Of::LaterClusterPolicies).is_empty())
        .await;
    assert_eq!(world.server.watches(Of::ClusterPolicies), []);
    assert_eq!(world.watch(Kind::ClusterPolicy).version, "policy.networking.k8s.io/v1beta1");
    assert_eq!(connection(&world, Kind::ClusterPolicy), Connection::Up);
}

#[tokio::test(start_paused = true)]
async fn traffic_policies_are_read_and_what_cannot_be_read_of_one_is_told() {
    let policy = |name: &str, spec: Value| {
        json!({
            "metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "3"},
            "spec": spec,
        })
    };
    let odd = json!({"podSelector": {}, "dscp": 99, "priority": 2});
    let selectorless = json!({"dscp": 1});
    let items = vec![policy("odd", odd), policy("broken", selectorless)];
    let world = World::start(|server| {
        server.script(Of::TrafficPolicies, [list(items)]);
    });
    world.synced().await;
    let read = world.traffic_policy("odd").unwrap();
    assert_eq!(read.problems.len(), 1, "{:?}", read.problems);
    assert!(read.limits.marks.dscp.is_none() && read.limits.marks.priority.is_some());
    assert!(world.traffic_policy("broken").is_none());
    let told = "read podtrafficpolicy shop/broken: spec.podSelector: must be given; until it can be read, it has no effect";
    assert!(world.problems().contains(told), "{}", world.problems());
}
