//! Topology hints: each row of the table that was seen with kube-proxy 1.36 (docs/semantics.md 10.16 to 10.18).
//!
//! Endpoints a, b (on the own node, zone z1) and c, d (elsewhere, zone z2).

use podgate_policy::convert;
use podgate_policy::index::Index;
use podgate_policy::object::Event;
use podgate_policy::services::ServiceTable;
use serde_json::{Value, json};

use crate::{NODE, service, spell};

const NONE: [&str; 4] = ["", "", "", ""];
/// As a controller writes it: each zone's own.
const ZONES: [&str; 4] = ["z1", "z1", "z2", "z2"];

/// An endpoint: `state`, then whom its hints are for, comma by comma; "[]": an empty list, "": no list.
fn endpoint(number: usize, state: &str, nodes: &str, zones: &str) -> Value {
    let conditions = match state {
        "ready" => json!({}),
        "draining" => json!({"ready": false, "serving": true, "terminating": true}),
        _ => json!({"ready": false, "serving": false}),
    };
    let list = |names: &str| match names {
        "" => Value::Null,
        "[]" => json!([]),
        names => names.split(',').map(|name| json!({"name": name})).collect(),
    };
    json!({
        "addresses": [format!("10.0.0.{}", number + 1)],
        "conditions": conditions,
        "nodeName": if number < 2 { NODE } else { "there" },
        "hints": {"forNodes": list(nodes), "forZones": list(zones)},
    })
}

fn slice(name: &str, endpoints: &[Value]) -> Event {
    let object = json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints,
    });
    Event::from(convert::endpoint_slice(&serde_json::from_value(object).unwrap()).unwrap())
}

fn web(more: &[(&str, Value)]) -> Event {
    let mut spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    for (field, value) in more {
        spec[field] = value.clone();
    }
    service("web", spec)
}

/// The service of that name, of a node in a zone; "": in none.
fn index_of(spec: Event, states: [&str; 4], nodes: [&str; 4], zones: [&str; 4]) -> Index {
    let endpoints: Vec<Value> =
        (0..4).map(|at| endpoint(at, states[at], nodes[at], zones[at])).collect();
    let mut index = Index::new();
    index.apply(spec);
    index.apply(slice("web-a", &endpoints));
    index
}

fn table(index: &Index, zone: &str) -> ServiceTable {
    let mut table = ServiceTable::of(index.services(), NODE);
    table.set_zone(index.services(), (!zone.is_empty()).then(|| zone.into()));
    table
}

/// The endpoints that new flows go to, as letters; in brackets those that only keep flows.
fn letters(table: &ServiceTable) -> String {
    let lines = spell(table);
    let Some(line) = lines.first() else { return String::new() };
    let (_, backends) = line.split_once(" ->").unwrap();
    let letter = |backend: &str| {
        let letter =
            ["a", "b", "c", "d"][backend.as_bytes()["10.0.0.".len()] as usize - '1' as usize];
        if backend.ends_with("(serving)") { format!("({letter})") } else { letter.to_owned() }
    };
    backends.split_whitespace().map(letter).collect()
}

const READY: [&str; 4] = ["ready"; 4];

fn picked(states: [&str; 4], nodes: [&str; 4], zones: [&str; 4]) -> String {
    letters(&table(&index_of(web(&[]), states, nodes, zones), "z1"))
}

#[test]
fn s10_16_without_hints_all_are_picked() {
    assert_eq!(picked(READY, NONE, NONE), "abcd");
}

#[test]
fn s10_16_zone_hints_on_all_pick_those_whose_list_holds_the_zone() {
    assert_eq!(picked(READY, NONE, ZONES), "ab(c)(d)");
    assert_eq!(picked(READY, NONE, ["z1", "z3,z2", "z2,z1", "z2"]), "a(b)c(d)");
}

#[test]
fn s10_16_one_ready_endpoint_without_zone_hints_or_with_an_empty_list_makes_them_unused() {
    assert_eq!(picked(READY, NONE, ["z1", "z1", "z2", ""]), "abcd");
    assert_eq!(picked(READY, NONE, ["z1", "[]", "z2", "z2"]), "abcd");
}

#[test]
fn s10_16_no_endpoint_hinted_for_the_zone_makes_zone_hints_unused() {
    assert_eq!(picked(READY, NONE, ["z2", "z3", "z2", "z2"]), "abcd");
}

#[test]
fn s10_16_only_the_hint_counts_not_where_the_endpoint_is() {
    assert_eq!(picked(READY, NONE, ["z2", "z2", "z1", "z1"]), "(a)(b)cd");
}

#[test]
fn s10_16_node_hints_on_all_pick_those_for_the_node() {
    assert_eq!(picked(READY, [NODE, NODE, "there", "there"], NONE), "ab(c)(d)");
    // one is missing, one list is empty, none is for here
    assert_eq!(picked(READY, [NODE, "", "there", "there"], NONE), "abcd");
    assert_eq!(picked(READY, [NODE, "[]", "there", "there"], NONE), "abcd");
    assert_eq!(picked(READY, ["there"; 4], NONE), "abcd");
}

#[test]
fn s10_16_node_hints_come_before_zone_hints() {
    assert_eq!(picked(READY, [NODE, "there", "there", "there"], ZONES), "a(b)(c)(d)");
}

#[test]
fn s10_16_where_node_hints_are_unusable_zone_hints_count_and_then_nothing() {
    assert_eq!(picked(READY, ["there"; 4], ZONES), "ab(c)(d)");
    assert_eq!(picked(READY, [NODE, "", "there", "there"], ZONES), "ab(c)(d)");
    assert_eq!(picked(READY, ["there"; 4], ["z2"; 4]), "abcd");
}

#[test]
fn s10_16_an_unready_endpoint_without_hints_does_not_count() {
    let states = ["ready", "unready", "ready", "ready"];
    assert_eq!(picked(states, NONE, ["z1", "", "z2", "z2"]), "a(c)(d)");
    assert_eq!(picked(states, [NODE, "", "there", "there"], NONE), "a(c)(d)");
}

#[test]
fn s10_16_a_draining_endpoint_of_the_zone_is_not_picked_over_a_ready_one_of_another() {
    for state in ["draining", "unready"] {
        let kept = if state == "draining" { "(a)(b)" } else { "" };
        let found = picked([state, state, "ready", "ready"], NONE, ZONES);
        assert_eq!(found, format!("{kept}cd"), "{state}");
    }
}

#[test]
fn s10_17_where_no_endpoint_is_ready_hints_do_not_count() {
    assert_eq!(picked(["draining"; 4], [NODE, NODE, "there", "there"], ZONES), "abcd");
    assert_eq!(picked(["unready"; 4], NONE, ZONES), "");
}

#[test]
fn s10_17_hints_do_not_count_for_internal_traffic_policy_local() {
    let local = web(&[("internalTrafficPolicy", json!("Local"))]);
    let index = index_of(local, READY, [NODE, "there", NODE, NODE], ["z2", "z2", "z1", "z1"]);
    assert_eq!(letters(&table(&index, "z1")), "ab");
}

#[test]
fn s10_16_an_external_address_with_traffic_policy_local_has_the_cluster_list_with_hints() {
    let spec = web(&[
        ("type", json!("LoadBalancer")),
        ("externalTrafficPolicy", json!("Local")),
        ("externalIPs", json!(["1.2.3.4"])),
    ]);
    let index = index_of(spec, READY, NONE, ["z2", "z1", "z1", "z2"]);
    let at = "1.2.3.4:80/TCP -> 10.0.0.1:80(serving) 10.0.0.2:80 10.0.0.3:80 10.0.0.4:80(serving)";
    assert_eq!(spell(&table(&index, "z1"))[0], at);
}

#[test]
fn s10_16_traffic_distribution_and_the_annotation_decide_nothing() {
    let index = |distribution: Value, zones| {
        index_of(web(&[("trafficDistribution", distribution)]), READY, NONE, zones)
    };
    for distribution in [json!("PreferClose"), json!("PreferSameNode"), Value::Null] {
        let of = |zones| letters(&table(&index(distribution.clone(), zones), "z1"));
        assert_eq!((of(NONE), of(ZONES)), ("abcd".into(), "ab(c)(d)".into()), "{distribution}");
    }
}

#[test]
fn s10_16_a_node_without_a_zone_label_uses_node_hints_only() {
    let index = index_of(web(&[]), READY, NONE, ZONES);
    assert_eq!(letters(&table(&index, "")), "abcd");
    let index = index_of(web(&[]), READY, [NODE, "there", "there", "there"], ZONES);
    assert_eq!(letters(&table(&index, "")), "a(b)(c)(d)");
}

#[test]
fn s10_16_a_change_of_the_nodes_zone_is_followed_by_the_services_with_zone_hints() {
    let mut index = index_of(web(&[]), READY, NONE, ZONES);
    index.apply(service("plain", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]})));
    let mut table = table(&index, "z1");
    table.follow(index.services_mut());
    table.take_changes();
    for (zone, found) in
        [(Some("z2"), "(a)(b)cd"), (Some("z3"), "abcd"), (Some("z1"), "ab(c)(d)"), (None, "abcd")]
    {
        table.set_zone(index.services(), zone.map(Into::into));
        let changed: Vec<String> = table.take_changes().iter().map(ToString::to_string).collect();
        assert_eq!((letters(&table), changed), (found.into(), vec!["10.96.0.1:80/TCP".into()]));
        table.set_zone(index.services(), zone.map(Into::into));
        assert!(table.take_changes().is_empty(), "the zone is the same: {zone:?}");
    }
}

#[test]
fn a_backend_of_several_slices_is_for_all_whom_one_of_them_names() {
    let mut index = index_of(web(&[]), READY, NONE, ZONES);
    index.apply(slice("web-b", &[endpoint(2, "ready", "", "z1"), endpoint(0, "ready", "", "")]));
    assert_eq!(letters(&table(&index, "z1")), "abc(d)");
    // an entry that is not ready does not speak for the backend
    index.apply(slice("web-b", &[endpoint(2, "draining", "", "z1")]));
    assert_eq!(letters(&table(&index, "z1")), "ab(c)(d)");
}

#[test]
fn s10_18_behind_the_gate_every_ready_endpoint_may_be_picked_whatever_the_hints() {
    let spec = |more: &[(&str, Value)]| {
        let node_port = ("ports", json!([{"port": 80, "nodePort": 30080}]));
        web(&[&[("type", json!("NodePort")), node_port], more].concat())
    };
    let states = ["ready", "ready", "ready", "draining"];
    let nodes = [NODE, "there", "there", "there"];
    for policy in ["Cluster", "Local"] {
        let spec = spec(&[("externalTrafficPolicy", json!(policy))]);
        let table = table(&index_of(spec, states, nodes, ZONES), "z1");
        assert_eq!(letters(&table), "a(b)(c)(d)");
        let set = table.untranslated();
        let claims = &set.node_ports[&true].values().next().unwrap()[0];
        let reached: Vec<String> = claims.backends.iter().map(ToString::to_string).collect();
        assert_eq!(reached, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], "{policy}");
    }
}

#[test]
fn s10_18_a_service_that_is_left_to_kube_proxy_needs_every_ready_endpoint_whatever_the_hints() {
    let mut table = table(&index_of(web(&[]), READY, NONE, ZONES), "z1");
    assert_eq!(letters(&table), "ab(c)(d)");
    table.set_node_context(podgate_policy::services::NodeContext {
        translation_off: true,
        ..Default::default()
    });
    let set = table.untranslated();
    let claims = &set.ports.values().next().unwrap().values().next().unwrap()[0];
    assert_eq!(claims.backends.len(), 4);
}
