//! Bodies of `PUT /v1/policies/{namespace}/{name}`, into the state file and out of it.

use podgate_policy::model::ObjectKey;
use podgate_tests::mutator::fuzz;
use policyd::sources::local::{LocalError, LocalPolicies};
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

#[test]
fn bodies_are_taken_or_refused_and_what_is_taken_can_be_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let key = ObjectKey::new("s", "p");
    let inputs = BODIES.map(|body| body.as_bytes().to_vec());
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
