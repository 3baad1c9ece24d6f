//! Sections 4 (peers), 5 (ipBlock), 9 (nodes and hostNetwork) and 12 (families) of docs/semantics.md.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use cluster::{Cluster, STRANGER, pod_object};
use podgate_policy::object::{Event, ObjectId};
use serde_json::{Value, json};

const API: &str = "10.0.0.2";
const DB: &str = "10.0.0.3";
const PROBE: &str = "10.0.0.4";

/// The shop, whose web lets in what these rules say.
fn web_allows(ingress: Value) -> Cluster {
    let mut cluster = Cluster::shop();
    let selector = json!({"matchLabels": {"app": "web"}});
    cluster.policy("shop/web", json!({"podSelector": selector, "ingress": ingress}));
    cluster
}

fn reach(cluster: &Cluster, peers: &[(&str, bool)]) {
    for (peer, expected) in peers {
        assert_eq!(cluster.ingress("shop/web", peer, "80/TCP"), *expected, "{peer}");
    }
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

#[test]
fn s4_1_items_are_ored() {
    let cluster = web_allows(json!([
        {"from": [{"podSelector": app("api")}, {"ipBlock": {"cidr": "8.0.0.0/8"}}]},
    ]));
    reach(&cluster, &[(API, true), (STRANGER, true), (DB, false), ("9.0.0.1", false)]);
}

#[test]
fn s4_2_a_rule_needs_peer_and_port_and_rules_are_not_crossed() {
    let cluster = web_allows(json!([
        {"from": [{"podSelector": app("api")}], "ports": [{"port": 80}]},
        {"from": [{"podSelector": app("db")}], "ports": [{"port": 81}]},
    ]));
    for (peer, port, expected) in
        [(API, "80/TCP", true), (API, "81/TCP", false), (DB, "80/TCP", false), (DB, "81/TCP", true)]
    {
        assert_eq!(cluster.ingress("shop/web", peer, port), expected, "{peer} {port}");
    }
}

#[test]
fn s4_3_pod_selector_alone_is_about_the_policys_namespace() {
    let mut cluster = web_allows(json!([{"from": [{"podSelector": app("api")}]}]));
    cluster.pod("ops/api", &["10.0.0.5"], json!({"app": "api"}));
    reach(&cluster, &[(API, true), ("10.0.0.5", false)]);
}

#[test]
fn s4_4_namespace_selector_alone_is_about_all_pods_of_the_namespaces() {
    let team = json!({"matchLabels": {"team": "ops"}});
    let cluster = web_allows(json!([{"from": [{"namespaceSelector": team}]}]));
    reach(&cluster, &[(PROBE, true), (API, false), (STRANGER, false)]);
}

#[test]
fn s4_5_both_in_one_item_are_anded_in_two_items_ored() {
    let team = json!({"matchLabels": {"team": "ops"}});
    let both = json!([{"from": [{"namespaceSelector": team, "podSelector": app("alice")}]}]);
    let either = json!([{"from": [{"namespaceSelector": team}, {"podSelector": app("alice")}]}]);
    for (rules, ops_probe, shop_alice) in [(both, false, false), (either, true, true)] {
        let mut cluster = web_allows(rules);
        cluster.pod("ops/alice", &["10.0.0.5"], json!({"app": "alice"}));
        cluster.pod("shop/alice", &["10.0.0.6"], json!({"app": "alice"}));
        reach(&cluster, &[("10.0.0.5", true), (PROBE, ops_probe), ("10.0.0.6", shop_alice)]);
        reach(&cluster, &[(API, false)]);
    }
}

#[test]
fn s4_6_selectors_match_pods_only() {
    let cluster = web_allows(json!([{"from": [{"namespaceSelector": {}}]}]));
    reach(&cluster, &[(API, true), (STRANGER, false), ("192.168.0.1", false)]);
}

#[test]
fn s4_7_the_policys_own_namespace_matches_by_its_labels_only() {
    let team = json!({"matchLabels": {"team": "ops"}});
    let cluster =
        web_allows(json!([{"from": [{"namespaceSelector": team, "podSelector": app("api")}]}]));
    reach(&cluster, &[(API, false)]);
}

#[test]
fn s4_8_the_metadata_name_label_is_on_every_namespace() {
    let name = json!({"matchLabels": {"kubernetes.io/metadata.name": "ops"}});
    let mut cluster = web_allows(json!([{"from": [{"namespaceSelector": name}]}]));
    reach(&cluster, &[(PROBE, true), (API, false)]);
    cluster.namespace("ops", json!({"kubernetes.io/metadata.name": "shop"}));
    reach(&cluster, &[(PROBE, true)]);
    cluster.index.apply(Event::Gone(ObjectId::Namespace("ops".into())));
    reach(&cluster, &[(PROBE, true)]); // of a namespace without an object it is all that is known
    assert!(cluster.index.owner_of(PROBE.parse().unwrap()).is_some());
}

#[test]
fn s4_9_operators() {
    let labels = |value: Option<&str>| value.map_or(json!({}), |value| json!({"tier": value}));
    for (operator, values, missing, empty, a, c) in [
        ("In", json!(["a", "b"]), false, false, true, false),
        ("In", json!([""]), false, true, false, false),
        ("NotIn", json!(["a", "b"]), true, true, false, true),
        ("NotIn", json!([""]), true, false, true, true),
        ("Exists", json!(null), false, true, true, true),
        ("DoesNotExist", json!([]), true, false, false, false),
    ] {
        let expression = json!({"key": "tier", "operator": operator, "values": values});
        let selector = json!({"matchExpressions": [expression]});
        let mut cluster = web_allows(json!([{"from": [{"podSelector": selector}]}]));
        for (value, expected) in
            [(None, missing), (Some(""), empty), (Some("a"), a), (Some("c"), c)]
        {
            cluster.pod("shop/peer", &["10.0.0.9"], labels(value));
            let allowed = cluster.ingress("shop/web", "10.0.0.9", "80/TCP");
            assert_eq!(allowed, expected, "{expression} {value:?}");
        }
    }
}

#[test]
fn s4_10_all_requirements_are_anded() {
    let selector = json!({
        "matchLabels": {"app": "api", "tier": "a"},
        "matchExpressions": [{"key": "old", "operator": "DoesNotExist"}],
    });
    let mut cluster = web_allows(json!([{"from": [{"podSelector": selector}]}]));
    for (labels, expected) in [
        (json!({"app": "api", "tier": "a"}), true),
        (json!({"app": "api", "tier": "a", "more": ""}), true),
        (json!({"app": "api"}), false),
        (json!({"tier": "a"}), false),
        (json!({"app": "api", "tier": "a", "old": ""}), false),
    ] {
        cluster.pod("shop/peer", &["10.0.0.9"], labels.clone());
        assert_eq!(cluster.ingress("shop/web", "10.0.0.9", "80/TCP"), expected, "{labels}");
    }
}

#[test]
fn s4_11_a_contradictory_selector_selects_nothing_and_isolates_nothing() {
    let contradiction = json!({
        "matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}],
    });
    let mut cluster = Cluster::shop();
    cluster.policy("shop/none", json!({"podSelector": contradiction}));
    assert!(cluster.ingress("shop/web", STRANGER, "80/TCP"));
    let cluster = web_allows(json!([{"from": [{"podSelector": contradiction}]}]));
    reach(&cluster, &[(API, false), ("10.0.0.1", true)]); // web itself: its own address
}

#[test]
fn s4_12_changes_of_labels_namespaces_policies_and_pods_take_effect() {
    let peer = json!({
        "namespaceSelector": {"matchLabels": {"open": "yes"}},
        "podSelector": app("probe"),
    });
    let mut cluster = web_allows(json!([{"from": [peer]}]));
    reach(&cluster, &[(PROBE, false)]);
    cluster.namespace("ops", json!({"open": "yes"}));
    reach(&cluster, &[(PROBE, true)]);
    cluster.pod("ops/probe", &[PROBE], json!({"app": "other"}));
    reach(&cluster, &[(PROBE, false)]);
    cluster.object(&pod_object("ops/probe", &[PROBE], json!({"app": "probe"}), json!({})));
    reach(&cluster, &[(PROBE, true)]);
    cluster.policy("shop/web", json!({"podSelector": app("web")}));
    reach(&cluster, &[(PROBE, false)]);
    cluster.pod("shop/web", &["10.0.0.1"], json!({"app": "not-web"}));
    reach(&cluster, &[(PROBE, true)]);
    cluster.pod("shop/web", &["10.0.0.1"], json!({"app": "web"}));
    let id = cluster.index.policies().next().unwrap().id.clone();
    assert!(cluster.index.apply(Event::Gone(ObjectId::Policy(id))));
    reach(&cluster, &[(PROBE, true)]);
}

fn block(cidr: &str, except: &[&str]) -> Value {
    json!({"ipBlock": {"cidr": cidr, "except": except}})
}

#[test]
fn s5_1_a_block_matches_pod_addresses_too() {
    let cluster = web_allows(json!([{"from": [block("10.0.0.2/32", &[])]}]));
    reach(&cluster, &[(API, true), (DB, false)]);
}

#[test]
fn s5_2_a_pod_matched_by_a_selector_is_still_matched_by_every_block() {
    let cluster = web_allows(json!([
        {"from": [{"podSelector": app("api")}], "ports": [{"port": 81}]},
        {"from": [block("10.0.0.0/24", &[])], "ports": [{"port": 80}]},
        {"from": [block("10.0.0.0/8", &[])], "ports": [{"port": 82}]},
    ]));
    for (port, expected) in
        [("80/TCP", true), ("81/TCP", true), ("82/TCP", true), ("83/TCP", false)]
    {
        assert_eq!(cluster.ingress("shop/web", API, port), expected, "{port}");
    }
}

#[test]
fn s5_3_except_only_shrinks_its_own_cidr() {
    let cluster = web_allows(json!([{"from": [block("10.0.0.0/24", &["10.0.0.2/31"])]}]));
    reach(&cluster, &[(API, false), (DB, false), (PROBE, true), ("10.0.1.1", false)]);
}

#[test]
fn s5_4_except_is_not_a_deny() {
    let hole = block("10.0.0.0/24", &["10.0.0.2/32"]);
    let another_peer = json!([{"from": [hole, {"podSelector": app("api")}]}]);
    let another_block = json!([{"from": [hole, block("10.0.0.2/31", &[])]}]);
    let another_rule = json!([{"from": [hole]}, {"from": [block("10.0.0.0/8", &[])]}]);
    let everybody = json!([{"from": [hole]}, {}]);
    for rules in [another_peer, another_block, another_rule, everybody] {
        let cluster = web_allows(rules.clone());
        assert!(cluster.ingress("shop/web", API, "80/TCP"), "{rules}");
    }
    let mut cluster = web_allows(json!([{"from": [hole]}]));
    reach(&cluster, &[(API, false)]);
    cluster.policy("shop/another", json!({"ingress": [{"from": [{"podSelector": {}}]}]}));
    reach(&cluster, &[(API, true)]);
}

#[test]
fn s5_5_nested_holes_and_blocks() {
    let cluster = web_allows(json!([{"from": [
        block("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24"]),
        block("10.1.2.0/24", &["10.1.2.128/25"]),
    ]}]));
    reach(
        &cluster,
        &[("10.2.0.1", true), ("10.1.3.1", false), ("10.1.2.1", true), ("10.1.2.200", false)],
    );
}

#[test]
fn s5_6_one_family_per_block() {
    let cluster = web_allows(json!([{"from": [block("0.0.0.0/0", &[])]}]));
    reach(&cluster, &[(STRANGER, true), ("2001:db8::1", false), ("::ffff:8.8.8.8", true)]);
    let cluster = web_allows(json!([{"from": [block("::/0", &[])]}]));
    reach(&cluster, &[(STRANGER, false), ("2001:db8::1", true), ("::ffff:8.8.8.8", false)]);
}

#[test]
fn s5_7_all_containing_blocks_count_not_the_longest() {
    let cluster = web_allows(json!([
        {"from": [block("10.0.0.0/8", &[])], "ports": [{"port": 80}]},
        {"from": [block("10.1.0.0/16", &[])], "ports": [{"port": 443}]},
    ]));
    for (peer, port, expected) in [
        ("10.1.2.3", "80/TCP", true),
        ("10.1.2.3", "443/TCP", true),
        ("10.2.2.3", "80/TCP", true),
        ("10.2.2.3", "443/TCP", false),
    ] {
        assert_eq!(cluster.ingress("shop/web", peer, port), expected, "{peer} {port}");
    }
}

#[test]
fn s5_8_legacy_spellings_mean_what_they_meant() {
    for cidr in ["010.0.0.0/24", "10.0.0.77/24", "::ffff:10.0.0.0/120", "10.00.000.0/024"] {
        let cluster = web_allows(json!([{"from": [block(cidr, &["010.0.0.2/32"])]}]));
        reach(&cluster, &[(DB, true), (API, false), ("10.0.1.1", false), ("8.0.0.1", false)]);
    }
}

#[test]
fn s9_4_other_nodes_are_ordinary_addresses() {
    let node = "192.168.7.2";
    reach(&web_allows(json!([{"from": [{"namespaceSelector": {}}]}])), &[(node, false)]);
    reach(&web_allows(json!([{"from": [block("192.168.7.0/24", &[])]}])), &[(node, true)]);
}

#[test]
fn s9_5_a_host_network_pod_is_no_subject_and_as_a_peer_an_address() {
    let node = "192.168.7.2";
    let host = json!({"spec": {"hostNetwork": true}});
    for (peer, expected) in [
        (json!({"podSelector": {}}), false),
        (json!({"namespaceSelector": {}}), false),
        (block("192.168.7.2/32", &[]), true),
    ] {
        let mut cluster = web_allows(json!([{"from": [peer]}]));
        cluster.pod_with("shop/agent", &[node], json!({"app": "agent"}), host.clone());
        reach(&cluster, &[(node, expected)]);
        cluster.policy("shop/deny-all", json!({"policyTypes": ["Ingress", "Egress"]}));
        assert!(cluster.ingress("shop/agent", STRANGER, "80/TCP"));
        assert!(cluster.egress("shop/agent", STRANGER, "80/TCP"));
    }
}

#[test]
fn s12_1_selectors_stand_for_all_addresses_of_a_pod() {
    let mut cluster = web_allows(json!([{"from": [{"podSelector": app("dual")}]}]));
    let extra = json!({"status": {"podIP": "10.0.0.8"}});
    cluster.pod_with("shop/dual", &["10.0.0.8", "fd00::8"], json!({"app": "dual"}), extra);
    reach(&cluster, &[("10.0.0.8", true), ("fd00::8", true), ("fd00::9", false)]);
}

#[test]
fn s12_2_blocks_count_for_their_own_family_only() {
    let mut cluster = web_allows(json!([{"from": [block("fd00::/64", &["fd00::9/128"])]}]));
    cluster.pod("shop/dual", &["10.0.0.8", "fd00::8"], json!({"app": "dual"}));
    reach(&cluster, &[("10.0.0.8", false), ("fd00::8", true), ("fd00::9", false)]);
}

#[test]
fn s12_3_isolation_covers_both_families() {
    let mut cluster = web_allows(json!([]));
    cluster.pod("shop/web", &["10.0.0.1", "fd00::1"], json!({"app": "web"}));
    reach(&cluster, &[(STRANGER, false), ("2001:db8::1", false), ("fd00::1", true)]);
}
