//! Sections 1 (the decision), 2 (policyTypes) and 3 (empty versus missing) of docs/semantics.md, line by line.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use cluster::{Cluster, STRANGER};
use serde_json::{Value, json};

const WEB: &str = "10.0.0.1";
const API: &str = "10.0.0.2";
const PROBE: &str = "10.0.0.4";

/// The shop with one policy of this spec over all its pods.
fn with(spec: Value) -> Cluster {
    let mut cluster = Cluster::shop();
    cluster.policy("shop/it", spec);
    cluster
}

#[test]
fn s1_1_isolated_only_by_a_policy_of_its_namespace_that_selects_it() {
    let mut cluster = Cluster::shop();
    assert!(cluster.ingress("shop/web", STRANGER, "80/TCP"));
    cluster.policy("ops/all", json!({"policyTypes": ["Ingress", "Egress"]}));
    cluster.policy("shop/db", json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    assert!(cluster.ingress("shop/web", STRANGER, "80/TCP"));
    assert!(!cluster.ingress("shop/db", STRANGER, "80/TCP"));
    assert!(!cluster.ingress("ops/probe", STRANGER, "80/TCP"));
}

#[test]
fn s1_1_directions_are_independent() {
    let cluster = with(json!({"policyTypes": ["Ingress"]}));
    assert!(!cluster.ingress("shop/web", API, "80/TCP"));
    assert!(cluster.egress("shop/web", PROBE, "80/TCP"));
    let cluster = with(json!({"policyTypes": ["Egress"]}));
    assert!(cluster.ingress("shop/web", API, "80/TCP"));
    assert!(!cluster.egress("shop/web", PROBE, "80/TCP"));
}

#[test]
fn s1_2_not_isolated_allows_everything() {
    let cluster = Cluster::shop();
    for l4 in ["0/TCP", "80/TCP", "65535/UDP", "1/SCTP", "ICMP"] {
        for peer in [API, STRANGER, "2001:db8::1"] {
            assert!(cluster.ingress("shop/web", peer, l4) && cluster.egress("shop/web", peer, l4));
        }
    }
}

#[test]
fn s1_2_isolated_allows_the_union_of_all_rules_of_all_policies() {
    let mut cluster = with(json!({"ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 80}]},
        {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 81}]},
    ]}));
    cluster.policy("shop/another", json!({"ingress": [{"ports": [{"port": 82}]}]}));
    cluster.policy("shop/deny", json!({"policyTypes": ["Ingress"]}));
    for (peer, port, expected) in [
        (WEB, "80/TCP", true),
        (WEB, "81/TCP", true),
        (WEB, "82/TCP", true),
        (WEB, "83/TCP", false),
        (PROBE, "80/TCP", false),
        (PROBE, "82/TCP", true),
        (STRANGER, "82/TCP", true),
        (STRANGER, "81/TCP", false),
    ] {
        assert_eq!(cluster.ingress("shop/db", peer, port), expected, "{peer} {port}");
    }
}

#[test]
fn s1_3_pod_to_pod_needs_egress_at_the_source_and_ingress_at_the_destination() {
    let web = json!({"matchLabels": {"app": "web"}});
    let db = json!({"matchLabels": {"app": "db"}});
    let mut cluster = Cluster::shop();
    cluster.policy("shop/in", json!({"podSelector": db, "policyTypes": ["Ingress"]}));
    assert!(!cluster.connects("shop/web", "shop/db", "80/TCP"));
    cluster.policy(
        "shop/in",
        json!({"podSelector": db, "ingress": [{"from": [{"podSelector": web}]}]}),
    );
    assert!(cluster.connects("shop/web", "shop/db", "80/TCP"));
    cluster.policy("shop/out", json!({"podSelector": web, "policyTypes": ["Egress"]}));
    assert!(!cluster.connects("shop/web", "shop/db", "80/TCP"));
    assert!(cluster.ingress("shop/db", WEB, "80/TCP"), "the destination still lets it in");
}

#[test]
fn s1_5_a_pod_always_reaches_its_own_address() {
    let cluster = with(json!({"policyTypes": ["Ingress", "Egress"]}));
    assert!(cluster.connects("shop/web", "shop/web", "80/TCP"));
    assert!(!cluster.connects("shop/web", "shop/api", "80/TCP"));
}

#[test]
fn s2_1_missing_or_empty_types_mean_ingress() {
    for spec in [
        json!({}),
        json!({"policyTypes": null}),
        json!({"policyTypes": []}),
        json!({"policyTypes": [], "egress": []}),
        json!({"egress": null}),
    ] {
        let cluster = with(spec.clone());
        assert!(!cluster.ingress("shop/web", API, "80/TCP"), "{spec}");
        assert!(cluster.egress("shop/web", API, "80/TCP"), "{spec}");
    }
}

#[test]
fn s2_2_an_egress_rule_without_types_isolates_for_both() {
    for spec in [json!({"egress": [{}]}), json!({"policyTypes": [], "egress": [{}]})] {
        let cluster = with(spec.clone());
        assert!(!cluster.ingress("shop/web", API, "80/TCP"), "{spec}");
        assert!(cluster.egress("shop/web", STRANGER, "80/TCP"), "{spec}");
        let table = &cluster.compile().tables[&cluster.endpoints[0].id];
        assert_eq!((table.ingress.len(), table.egress.len()), (1, 1), "{spec}");
    }
}

#[test]
fn s2_3_rules_of_a_direction_that_is_not_in_types_are_ignored() {
    let only_egress =
        with(json!({"policyTypes": ["Egress"], "ingress": [{"ports": [{"port": 1}]}]}));
    assert!(only_egress.ingress("shop/web", API, "80/TCP"));
    assert!(!only_egress.egress("shop/web", API, "1/TCP"));
    let only_ingress =
        with(json!({"policyTypes": ["Ingress"], "egress": [{"ports": [{"port": 1}]}]}));
    assert!(only_ingress.egress("shop/web", API, "80/TCP"));
    assert!(!only_ingress.ingress("shop/web", API, "1/TCP"));
}

#[test]
fn s2_4_the_same_type_twice_is_accepted() {
    let cluster = with(json!({"policyTypes": ["Ingress", "Ingress"]}));
    assert!(!cluster.ingress("shop/web", API, "80/TCP"));
    assert!(cluster.egress("shop/web", API, "80/TCP"));
}

#[test]
fn s2_5_a_policy_without_a_spec_is_one_with_an_empty_spec() {
    let object = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "shop"}}));
    let policy = podgate_policy::convert::policy("dir", &object.unwrap()).unwrap();
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), None));
    assert!(policy.selector.is_everything());
}

#[test]
fn s3_1_pod_selector_missing_null_or_empty_selects_all_pods_of_the_namespace() {
    for spec in [
        json!({}),
        json!({"podSelector": null}),
        json!({"podSelector": {}}),
        json!({"podSelector": {"matchLabels": null, "matchExpressions": []}}),
    ] {
        let cluster = with(spec.clone());
        for pod in ["shop/web", "shop/api", "shop/db"] {
            assert!(!cluster.ingress(pod, STRANGER, "80/TCP"), "{spec}");
        }
        assert!(cluster.ingress("ops/probe", STRANGER, "80/TCP"), "{spec}");
    }
}

#[test]
fn s3_2_rules_missing_null_or_empty_allow_nothing() {
    let types = ["Ingress", "Egress"];
    for spec in [
        json!({"policyTypes": types}),
        json!({"policyTypes": types, "ingress": null, "egress": null}),
        json!({"policyTypes": types, "ingress": [], "egress": []}),
    ] {
        let cluster = with(spec.clone());
        for peer in [API, PROBE, STRANGER] {
            for l4 in ["80/TCP", "53/UDP", "1/SCTP", "ICMP"] {
                assert!(!cluster.ingress("shop/web", peer, l4), "{spec}");
                assert!(!cluster.egress("shop/web", peer, l4), "{spec}");
            }
        }
    }
}

#[test]
fn s3_3_rules_one_empty_item_allows_everything_external_peers_too() {
    let cluster =
        with(json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]}));
    for peer in [API, PROBE, STRANGER, "2001:db8::1"] {
        for l4 in ["80/TCP", "53/UDP", "1/SCTP", "ICMP"] {
            assert!(cluster.ingress("shop/web", peer, l4), "{peer} {l4}");
            assert!(cluster.egress("shop/web", peer, l4), "{peer} {l4}");
        }
    }
}

#[test]
fn s3_4_peers_missing_null_or_empty_mean_all_peers() {
    for peers in [None, Some(json!(null)), Some(json!([]))] {
        let mut rules = [json!({"ports": [{"port": 80}]}), json!({"ports": [{"port": 80}]})];
        if let Some(peers) = peers {
            rules[0]["from"] = peers.clone();
            rules[1]["to"] = peers;
        }
        let [ingress, egress] = rules;
        let cluster = with(json!({"ingress": [ingress], "egress": [egress]}));
        for peer in [API, PROBE, STRANGER, "2001:db8::1"] {
            assert!(cluster.ingress("shop/web", peer, "80/TCP"));
            assert!(cluster.egress("shop/web", peer, "80/TCP"));
            assert!(!cluster.ingress("shop/web", peer, "81/TCP"));
        }
    }
}

#[test]
fn s3_5_ports_missing_null_or_empty_mean_all_ports_of_all_protocols() {
    let from = json!([{"podSelector": {"matchLabels": {"app": "api"}}}]);
    for rule in [
        json!({"from": from}),
        json!({"from": from, "ports": null}),
        json!({"from": from, "ports": []}),
    ] {
        let cluster = with(json!({"ingress": [rule]}));
        for l4 in ["0/TCP", "65535/TCP", "53/UDP", "1/SCTP", "ICMP"] {
            assert!(cluster.ingress("shop/web", API, l4), "{rule} {l4}");
            assert!(!cluster.ingress("shop/web", PROBE, l4), "{rule} {l4}");
        }
    }
}

#[test]
fn s3_6_ports_one_empty_item_means_all_tcp() {
    let cluster = with(json!({"ingress": [{"ports": [{}]}]}));
    for (l4, expected) in [
        ("0/TCP", true),
        ("1/TCP", true),
        ("65535/TCP", true),
        ("80/UDP", false),
        ("80/SCTP", false),
        ("ICMP", false),
    ] {
        assert_eq!(cluster.ingress("shop/web", API, l4), expected, "{l4}");
    }
}

#[test]
fn s3_7_peer_pod_selector_empty_means_all_pods_of_the_policys_namespace() {
    let cluster = with(json!({"ingress": [{"from": [{"podSelector": {}}]}]}));
    assert!(cluster.ingress("shop/web", API, "80/TCP"));
    assert!(!cluster.ingress("shop/web", PROBE, "80/TCP"));
    assert!(!cluster.ingress("shop/web", STRANGER, "80/TCP"));
}

#[test]
fn s3_8_peer_namespace_selector_empty_means_all_namespaces() {
    for peer in [
        json!({"namespaceSelector": {}}),
        json!({"namespaceSelector": {}, "podSelector": {}}),
        json!({"namespaceSelector": {}, "podSelector": null}),
    ] {
        let cluster = with(json!({"ingress": [{"from": [peer]}]}));
        assert!(cluster.ingress("shop/web", API, "80/TCP"), "{peer}");
        assert!(cluster.ingress("shop/web", PROBE, "80/TCP"), "{peer}");
        assert!(!cluster.ingress("shop/web", STRANGER, "80/TCP"), "{peer}");
    }
}
