//! Section 13 of docs/semantics.md: what the API server would reject is an error that names the field, and never
//! a policy that allows more, or less, than its author wrote.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use podgate_policy::convert;
use serde_json::{Value, json};

fn rejected(spec: Value) -> String {
    let object = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec});
    let object = serde_json::from_value(object).unwrap();
    let error = convert::policy("dir", &object).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: {}", error.path, error.cause));
    error.path
}

fn rejected_port(port: Value) -> String {
    let path = rejected(json!({"ingress": [{"ports": [{"port": 1}, port]}]}));
    path.strip_prefix("spec.ingress[0].ports[1].").unwrap().to_owned()
}

fn rejected_peer(peer: Value) -> String {
    let path = rejected(json!({"egress": [{}, {"to": [{"podSelector": {}}, peer]}]}));
    path.strip_prefix("spec.egress[1].to[1]").unwrap().to_owned()
}

#[test]
fn s13_1_end_port_without_port_with_a_name_or_less_than_port() {
    assert_eq!(rejected_port(json!({"endPort": 80})), "endPort");
    assert_eq!(rejected_port(json!({"port": "http", "endPort": 80})), "endPort");
    assert_eq!(rejected_port(json!({"port": 80, "endPort": 79})), "endPort");
    assert_eq!(rejected_port(json!({"port": 80, "endPort": 65536})), "endPort");
    assert_eq!(rejected_port(json!({"port": 80, "endPort": -1})), "endPort");
}

#[test]
fn s13_2_protocol_other_than_tcp_udp_sctp() {
    for protocol in ["ICMP", "tcp", "", "6"] {
        assert_eq!(rejected_port(json!({"port": 80, "protocol": protocol})), "protocol");
    }
}

#[test]
fn s13_3_numeric_strings_and_other_bad_names_as_port() {
    for name in ["80", "", "-a", "a-", "a--b", "A", "a_b", "sixteen-letters-"] {
        assert_eq!(rejected_port(json!({"port": name})), "port", "{name:?}");
    }
    let good = json!({"ingress": [{"ports": [{"port": "a"}, {"port": "80-http"}, {"port": "abcdefghijklmno"}]}]});
    let object = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": good})).unwrap();
    convert::policy("dir", &object).unwrap();
}

#[test]
fn s13_4_port_zero_or_too_high() {
    for port in [0, -1, 65536, i32::MIN, i32::MAX] {
        assert_eq!(rejected_port(json!({"port": port})), "port");
    }
}

#[test]
fn s13_5_empty_peer() {
    assert_eq!(rejected_peer(json!({})), "");
    assert_eq!(rejected_peer(json!({"podSelector": null, "ipBlock": null})), "");
}

#[test]
fn s13_6_ip_block_with_a_selector() {
    let block = json!({"cidr": "10.0.0.0/8"});
    assert_eq!(rejected_peer(json!({"ipBlock": block, "podSelector": {}})), ".ipBlock");
    assert_eq!(rejected_peer(json!({"ipBlock": block, "namespaceSelector": {}})), ".ipBlock");
}

#[test]
fn s13_7_except_that_is_no_strict_subset() {
    for except in ["10.0.0.0/8", "10.0.0.0/7", "11.0.0.0/16", "0.0.0.0/0", "fd00::/64", "10.0.0.1"]
    {
        let block = json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", except]});
        assert_eq!(rejected_peer(json!({"ipBlock": block})), ".ipBlock.except[1]", "{except}");
    }
    let block = json!({"cidr": "::/0", "except": ["0.0.0.0/1"]});
    assert_eq!(rejected_peer(json!({"ipBlock": block})), ".ipBlock.except[0]");
}

#[test]
fn s13_8_bad_cidr() {
    for cidr in ["", "10.0.0.0", "10.0.0.0/33", "pod", "fd00::/129", "300.0.0.0/8"] {
        assert_eq!(rejected_peer(json!({"ipBlock": {"cidr": cidr}})), ".ipBlock.cidr", "{cidr:?}");
    }
}

#[test]
fn s13_9_unknown_operators_and_missing_values() {
    for (operator, values, field) in [
        ("Gt", json!(["1"]), "operator"),
        ("In", json!([]), "values"),
        ("NotIn", json!(null), "values"),
    ] {
        let expression = json!({"key": "a", "operator": operator, "values": values});
        let selector = json!({"matchExpressions": [expression]});
        let path = format!("matchExpressions[0].{field}");
        let of_spec = rejected(json!({"podSelector": selector}));
        assert_eq!(of_spec, format!("spec.podSelector.{path}"));
        let of_pods = rejected_peer(json!({"podSelector": selector}));
        assert_eq!(of_pods, format!(".podSelector.{path}"));
        let of_namespaces = rejected_peer(json!({"namespaceSelector": selector}));
        assert_eq!(of_namespaces, format!(".namespaceSelector.{path}"));
    }
}

#[test]
fn s13_10_policy_types() {
    let three = json!({"policyTypes": ["Ingress", "Egress", "Ingress"]});
    assert_eq!(rejected(three), "spec.policyTypes");
    assert_eq!(rejected(json!({"policyTypes": ["Ingress", "egress"]})), "spec.policyTypes[1]");
}

#[test]
fn s13_11_rules_of_a_direction_that_is_not_in_types_are_checked_too() {
    let spec = json!({"policyTypes": ["Ingress"], "egress": [{"ports": [{"port": 0}]}]});
    assert_eq!(rejected(spec), "spec.egress[0].ports[0].port");
}

#[test]
fn s13_12_objects_without_a_name_or_with_unreadable_addresses_are_rejected() {
    let object = serde_json::from_value(json!({"metadata": {"namespace": "shop"}})).unwrap();
    assert_eq!(convert::policy("dir", &object).unwrap_err().path, "metadata.name");
    let object = serde_json::from_value(json!({"metadata": {}})).unwrap();
    assert_eq!(convert::namespace("kubernetes", &object).unwrap_err().path, "metadata.name");
    for (pod, path) in [
        (json!({"metadata": {}}), "metadata.name"),
        (
            json!({"metadata": {"name": "p"}, "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "x"}]}}),
            "status.podIPs[1].ip",
        ),
        (json!({"metadata": {"name": "p"}, "status": {"podIP": "x"}}), "status.podIP"),
        (
            json!({"metadata": {"name": "p"}, "spec": {"containers": [
                {"name": "c", "ports": [{"name": "a", "containerPort": 0}]},
            ]}}),
            "spec.containers[0].ports[0].containerPort",
        ),
        (
            json!({"metadata": {"name": "p"}, "spec": {"containers": [], "initContainers": [
                {"name": "c", "restartPolicy": "Always",
                 "ports": [{"name": "a", "containerPort": 1, "protocol": "X"}]},
            ]}}),
            "spec.initContainers[0].ports[0].protocol",
        ),
    ] {
        let object = serde_json::from_value(pod).unwrap();
        assert_eq!(convert::pod(&object).unwrap_err().path, path);
    }
}

#[test]
fn pods_are_read_whole() {
    let object = json!({
        "metadata": {"name": "p", "uid": "u", "creationTimestamp": "1970-01-01T00:01:00Z"},
        "spec": {"nodeName": "n", "containers": []},
        "status": {
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "010.0.0.1"}, {"ip": "FD00::01"}, {"ip": "::ffff:10.0.0.1"}],
        },
    });
    let pod = convert::pod(&serde_json::from_value(object).unwrap()).unwrap();
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
    assert_eq!((pod.key.to_string().as_str(), &*pod.uid, pod.created), ("default/p", "u", 60));
    assert_eq!(pod.node.as_deref(), Some("n"));
}
