//! Bodies of `PUT /v1/policies/{namespace}/{name}`, `PUT /v1/cluster-policies/{name}` and
//! `PUT /v1/endpoints/{namespace}/{pod}/rules`, into the state files and out of them.

use std::time::UNIX_EPOCH;

use podgate_contract::api::NewRule;
use podgate_policy::model::ObjectKey;
use podgate_tests::mutator::fuzz;
use policyd::local_rules::{LocalRuleBook, LocalRulesError};
use policyd::sources::local::{LocalError, LocalKey, LocalPolicies};
use serde_json::Value;

use super::JSON;

const BODIES: [&str; 4] = [
    r#"{"spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}}"#,
    r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "s", "labels": {"a": "b"}},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
        "ports": [{"port": 80, "endPort": 90}, {"protocol": "UDP", "port": "dns"}]}], "egress": []}}"#,
    r#"{"spec": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
        "egress": [{"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"x": null}}}]}]}}"#,
    r#"{"status": {"conditions": []}, "metadata": {"managedFields": [{"fieldsV1": {"f:spec": {}}}]}}"#,
];

const CLUSTER_BODIES: [&str; 3] = [
    r#"{"spec": {"tier": "Admin", "priority": 5, "subject": {"namespaces": {"matchLabels": {"a": null}}}, "ingress": [
        {"name": "a", "action": "Deny", "from": [{"pods": {"podSelector": {}}}], "protocols": [{"tcp": {}},
        {"udp": {"destinationPort": {"range": {"start": 1, "end": 9}}}}, {"destinationNamedPort": "dns"}]}]}}"#,
    r#"{"metadata": {"name": "p", "annotations": {"podgate.io/mode": "audit"}}, "spec": {"tier": "Baseline", "priority": 0,
        "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}},
        "egress": [{"action": "Accept", "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"nodes": {}}, {"domainNames": ["a.b"]}]}]}}"#,
    r#"{"spec": {"tier": "Tenant", "priority": 5, "subject": {"namespaces": {}}, "ingress": [{"action": "Pass", "from": [{"new": {}}]}]}}"#,
];

const TRAFFIC_BODIES: [&str; 3] = [
    r#"{"spec": {"podSelector": {}, "order": 7, "bandwidth": {"ingress": {"rate": "10M", "burst": "1.5Mi"}, "egress": {"rate": 1000}},
        "packets": {"egress": {"rate": 9, "burst": 1}}, "dscp": "AF11", "priority": 6, "mark": "0x10/0xf0", "accounting": true}}"#,
    r#"{"spec": {"podSelector": {"matchLabels": {"a": null}}, "connections": {"ingress": {"max": 4294967294, "newPerSecond": 1,
        "burst": 1, "onExceed": "Reject"}}, "rules": []}}"#,
    r#"{"spec": {"podSelector": {}, "rules": [{"name": "a", "direction": "Egress", "dscp": 63, "mark": "1/1",
        "peers": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}, {"namespaceSelector": {}}],
        "ports": [{"port": 80, "endPort": 90}, {"port": "http", "protocol": "UDP"}], "bandwidth": {"egress": {"rate": "1e6"}}}]}}"#,
];

#[test]
fn bodies_are_taken_or_refused_and_what_is_taken_can_be_read_again() {
    for (key, bodies) in [
        (LocalKey::Policy(ObjectKey::new("s", "p")), &BODIES[..]),
        (LocalKey::ClusterPolicy("p".into()), &CLUSTER_BODIES),
        (LocalKey::PodTrafficPolicy(ObjectKey::new("s", "p")), &TRAFFIC_BODIES),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let inputs: Vec<_> = bodies.iter().map(|body| body.as_bytes().to_vec()).collect();
        fuzz(1500, JSON, &inputs, |body| {
            let Ok(body) = serde_json::from_slice::<Value>(body) else { return };
            let local = LocalPolicies::open(dir.path(), |_| {}).unwrap();
            match local.set(&key, body) {
                Ok(_) => drop(LocalPolicies::open(dir.path(), |_| {}).unwrap()),
                Err(LocalError::Invalid { key: of, field }) => {
                    assert_eq!(of, key);
                    assert!(!field.cause.is_empty());
                }
                Err(error) => panic!("{error}"),
            }
        });
    }
}

const RULES: [&str; 4] = [
    r#"{"direction": "ingress", "action": "allow", "peer": "10.0.0.0/8", "protocol": "TCP", "ports": "80-90", "comment": "a"}"#,
    r#"{"direction": "egress", "action": "reject", "peer": "shop/web", "protocol": "47", "lifetime": 60}"#,
    r#"{"direction": "egress", "action": "deny", "peer": "fd00::1", "protocol": "icmpv6"}"#,
    r#"{"direction": "ingress", "action": "deny", "lifetime": 18446744073709551615, "before": 1}"#,
];

#[test]
fn rules_are_taken_or_refused_and_what_is_taken_can_be_read_again() {
    let inputs: Vec<_> = RULES.iter().map(|body| body.as_bytes().to_vec()).collect();
    fuzz(1500, JSON, &inputs, |body| {
        let Ok(rule) = serde_json::from_slice::<NewRule>(body) else { return };
        let dir = tempfile::tempdir().unwrap();
        let open = || LocalRuleBook::open(dir.path(), UNIX_EPOCH, |_| {}).unwrap();
        match open().add(&ObjectKey::new("s", "p"), rule, UNIX_EPOCH) {
            Ok((added, _)) => assert_eq!(open().all()[0].rules, [added]),
            Err(LocalRulesError::Invalid { field, .. }) => {
                assert!(!field.path.is_empty() && !field.cause.is_empty());
            }
            Err(error) => panic!("{error}"),
        }
    });
}
