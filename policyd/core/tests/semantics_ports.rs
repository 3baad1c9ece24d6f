//! Sections 6 (ports) and 7 (other protocols) of docs/semantics.md, and lines 5.9 and 9.6.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use cluster::{Cluster, STRANGER, with_ports};
use serde_json::{Value, json};

const API: &str = "10.0.0.2";
const DB: &str = "10.0.0.3";

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

/// The shop, whose web lets in these ports.
fn web_allows(ports: Value) -> Cluster {
    let mut cluster = Cluster::shop();
    let spec = json!({"podSelector": app("web"), "ingress": [{"ports": ports}]});
    cluster.policy("shop/web", spec);
    cluster
}

/// The shop, whose web may go out by these rules.
fn web_may(egress: Value) -> Cluster {
    let mut cluster = Cluster::shop();
    let spec = json!({"podSelector": app("web"), "policyTypes": ["Egress"], "egress": egress});
    cluster.policy("shop/web", spec);
    cluster
}

fn ingress(cluster: &Cluster, ports: &[(&str, bool)]) {
    for (l4, expected) in ports {
        assert_eq!(cluster.ingress("shop/web", API, l4), *expected, "{l4}");
    }
}

fn egress(cluster: &Cluster, probes: &[(&str, &str, bool)]) {
    for (peer, l4, expected) in probes {
        assert_eq!(cluster.egress("shop/web", peer, l4), *expected, "{peer} {l4}");
    }
}

/// Gives `shop/web` ports.
fn web_has(cluster: &mut Cluster, ports: &[(&str, &str, u16)]) {
    cluster.pod_with("shop/web", &["10.0.0.1"], json!({"app": "web"}), with_ports(ports));
}

fn pod_has(cluster: &mut Cluster, app: &str, address: &str, ports: &[(&str, &str, u16)]) {
    let name = format!("shop/{app}");
    cluster.pod_with(&name, &[address], json!({"app": app}), with_ports(ports));
}

#[test]
fn s6_1_protocol_defaults_to_tcp() {
    let cluster = web_allows(json!([{"port": 80}]));
    ingress(
        &cluster,
        &[("80/TCP", true), ("80/UDP", false), ("80/SCTP", false), ("81/TCP", false)],
    );
    let cluster = web_allows(json!([{"port": 80, "protocol": null}]));
    ingress(&cluster, &[("80/TCP", true), ("80/UDP", false)]);
}

#[test]
fn s6_2_protocols_are_told_apart() {
    let cluster = web_allows(json!([
        {"port": 53, "protocol": "UDP"}, {"port": 7, "protocol": "SCTP"}, {"port": 80},
    ]));
    ingress(&cluster, &[("53/UDP", true), ("53/TCP", false), ("7/SCTP", true), ("7/UDP", false)]);
}

#[test]
fn s6_3_port_missing_means_all_ports_of_the_protocol() {
    let cluster = web_allows(json!([{"protocol": "UDP"}]));
    ingress(&cluster, &[("0/UDP", true), ("65535/UDP", true), ("80/TCP", false), ("ICMP", false)]);
    let cluster = web_allows(json!([{"protocol": "UDP", "port": null}]));
    ingress(&cluster, &[("53/UDP", true), ("80/TCP", false)]);
}

#[test]
fn s6_4_a_number_need_not_be_a_container_port() {
    let mut cluster = web_allows(json!([{"port": 9999}]));
    web_has(&mut cluster, &[("http", "", 80)]);
    ingress(&cluster, &[("9999/TCP", true), ("80/TCP", false)]);
}

#[test]
fn s6_5_end_port_is_inclusive() {
    let cluster = web_allows(json!([{"port": 80, "endPort": 90}]));
    ingress(&cluster, &[("79/TCP", false), ("80/TCP", true), ("90/TCP", true), ("91/TCP", false)]);
    ingress(&cluster, &[("85/UDP", false)]);
    let cluster = web_allows(json!([{"port": 65535, "endPort": 65535}]));
    ingress(&cluster, &[("65535/TCP", true), ("65534/TCP", false)]);
    let cluster = web_allows(json!([{"port": 1, "endPort": 65535, "protocol": "SCTP"}]));
    ingress(&cluster, &[("0/SCTP", false), ("1/SCTP", true), ("65535/SCTP", true)]);
}

#[test]
fn s6_6_ingress_named_port_is_the_selected_pods_own_number() {
    let mut cluster = web_allows(json!([{"port": "http"}]));
    web_has(&mut cluster, &[("http", "", 8080)]);
    pod_has(&mut cluster, "api", API, &[("http", "", 9090)]);
    ingress(&cluster, &[("8080/TCP", true), ("9090/TCP", false), ("80/TCP", false)]);
}

#[test]
fn s6_7_pods_of_one_policy_get_only_their_own_number() {
    let mut cluster = Cluster::shop();
    cluster.policy("shop/all", json!({"ingress": [{"ports": [{"port": "http"}]}]}));
    web_has(&mut cluster, &[("http", "", 80)]);
    pod_has(&mut cluster, "api", API, &[("http", "", 81)]);
    for (pod, port, expected) in [
        ("shop/web", "80/TCP", true),
        ("shop/web", "81/TCP", false),
        ("shop/api", "80/TCP", false),
        ("shop/api", "81/TCP", true),
        ("shop/db", "80/TCP", false),
    ] {
        assert_eq!(cluster.ingress(pod, "10.0.0.4", port), expected, "{pod} {port}");
    }
}

#[test]
fn s6_8_egress_named_port_is_the_peers_number() {
    let to = json!([{"podSelector": {}}]);
    let mut cluster = web_may(json!([{"to": to, "ports": [{"port": "http"}]}]));
    web_has(&mut cluster, &[("http", "", 80)]); // the source's own is of no account
    pod_has(&mut cluster, "api", API, &[("http", "", 8080)]);
    pod_has(&mut cluster, "db", DB, &[("http", "", 9090)]);
    egress(&cluster, &[(API, "8080/TCP", true), (API, "9090/TCP", false), (API, "80/TCP", false)]);
    egress(
        &cluster,
        &[(DB, "9090/TCP", true), (DB, "8080/TCP", false), ("10.0.0.4", "80/TCP", false)],
    );
}

#[test]
fn s6_9_egress_named_port_needs_the_peer_too() {
    let to = json!([{"podSelector": app("api")}]);
    let mut cluster = web_may(json!([{"to": to, "ports": [{"port": "http"}, {"port": 1}]}]));
    pod_has(&mut cluster, "api", API, &[("http", "", 8080)]);
    pod_has(&mut cluster, "db", DB, &[("http", "", 8080)]);
    egress(&cluster, &[(API, "8080/TCP", true), (API, "1/TCP", true)]);
    egress(&cluster, &[(DB, "8080/TCP", false), (DB, "1/TCP", false)]);
}

#[test]
fn s6_10_a_named_ports_protocol_must_match() {
    let mut cluster = web_allows(json!([{"port": "dns"}]));
    web_has(&mut cluster, &[("dns", "UDP", 53)]);
    ingress(&cluster, &[("53/TCP", false), ("53/UDP", false)]);
    let mut cluster = web_allows(json!([{"port": "dns", "protocol": "UDP"}]));
    web_has(&mut cluster, &[("dns", "UDP", 53)]);
    ingress(&cluster, &[("53/TCP", false), ("53/UDP", true)]);
}

#[test]
fn s6_11_one_name_may_exist_for_tcp_and_udp() {
    let mut cluster =
        web_allows(json!([{"port": "dns", "protocol": "UDP"}, {"port": "dns", "protocol": "TCP"}]));
    web_has(&mut cluster, &[("dns", "UDP", 53), ("dns", "TCP", 5353)]);
    ingress(
        &cluster,
        &[("53/UDP", true), ("5353/TCP", true), ("53/TCP", false), ("5353/UDP", false)],
    );
}

#[test]
fn s6_12_a_name_nobody_has_matches_nothing() {
    let cluster = web_allows(json!([{"port": "nobody"}]));
    ingress(&cluster, &[("80/TCP", false), ("0/TCP", false), ("ICMP", false)]);
    let cluster = web_may(json!([{"ports": [{"port": "nobody"}]}]));
    egress(&cluster, &[(API, "80/TCP", false), (STRANGER, "80/TCP", false), (API, "ICMP", false)]);
}

#[test]
fn s6_13_egress_named_port_without_to_is_every_pod_having_the_name() {
    let mut cluster = web_may(json!([{"ports": [{"port": "http"}]}]));
    pod_has(&mut cluster, "api", API, &[("http", "", 8080)]);
    cluster.pod_with("ops/far", &["10.0.0.9"], json!({}), with_ports(&[("http", "", 81)]));
    egress(&cluster, &[(API, "8080/TCP", true), ("10.0.0.9", "81/TCP", true)]);
    egress(&cluster, &[(API, "81/TCP", false), (DB, "8080/TCP", false)]);
    egress(&cluster, &[(STRANGER, "8080/TCP", false), (STRANGER, "81/TCP", false)]);
}

#[test]
fn s6_14_sidecars_ports_count() {
    let sidecar = json!({"spec": {"containers": [], "initContainers": [{
        "name": "sidecar", "restartPolicy": "Always",
        "ports": [{"name": "http", "containerPort": 15000}],
    }]}});
    let mut cluster = web_allows(json!([{"port": "http"}]));
    cluster.pod_with("shop/web", &["10.0.0.1"], json!({"app": "web"}), sidecar.clone());
    ingress(&cluster, &[("15000/TCP", true), ("80/TCP", false)]);
    let mut cluster = web_may(json!([{"ports": [{"port": "http"}]}]));
    cluster.pod_with("shop/api", &[API], json!({"app": "api"}), sidecar);
    egress(&cluster, &[(API, "15000/TCP", true), (DB, "15000/TCP", false)]);
}

#[test]
fn s6_17_an_empty_port_item_stays_all_tcp_beside_others() {
    for ports in [json!([{}, {"port": 80}]), json!([{"port": 80}, {}])] {
        let cluster = web_allows(ports);
        ingress(&cluster, &[("80/TCP", true), ("81/TCP", true), ("80/UDP", false)]);
    }
}

#[test]
fn s7_1_icmp_is_matched_by_rules_without_ports_only() {
    ingress(&web_allows(json!([])), &[("ICMP", true), ("80/TCP", true)]);
    let all = json!([{}, {"protocol": "UDP"}, {"protocol": "SCTP"}]);
    ingress(&web_allows(all), &[("ICMP", false), ("80/TCP", true), ("80/SCTP", true)]);
    let to = json!([{"podSelector": app("api")}]);
    egress(&web_may(json!([{"to": to}])), &[(API, "ICMP", true), (DB, "ICMP", false)]);
}

#[test]
fn s7_2_sctp_in_a_policy_isolates_and_allows_only_sctp() {
    let cluster = web_allows(json!([{"protocol": "SCTP", "port": 80}]));
    ingress(
        &cluster,
        &[("80/SCTP", true), ("81/SCTP", false), ("80/TCP", false), ("80/UDP", false)],
    );
}

#[test]
fn s6_18_egress_named_port_with_ip_block_is_resolved_on_the_pod_inside_the_block() {
    let to = json!([{"ipBlock": {"cidr": "10.0.0.0/30", "except": ["10.0.0.3/32"]}}]);
    let mut cluster = web_may(json!([{"to": to, "ports": [{"port": "http"}]}]));
    pod_has(&mut cluster, "api", API, &[("http", "", 8080)]);
    pod_has(&mut cluster, "db", DB, &[("http", "", 8080)]);
    pod_has(&mut cluster, "out", "10.0.0.7", &[("http", "", 8080)]);
    egress(&cluster, &[(API, "8080/TCP", true), (API, "80/TCP", false)]);
    egress(&cluster, &[(DB, "8080/TCP", false), ("10.0.0.7", "8080/TCP", false)]);
    egress(&cluster, &[("10.0.0.0", "8080/TCP", false)]); // in the block, but no pod
}

#[test]
fn s6_15_the_port_of_a_plain_init_container_is_no_match() {
    for policy in [json!(null), json!("OnFailure")] {
        let init = json!({"spec": {"containers": [], "initContainers": [{
            "name": "init", "restartPolicy": policy,
            "ports": [{"name": "http", "containerPort": 80}],
        }]}});
        let mut cluster = web_allows(json!([{"port": "http"}]));
        cluster.pod_with("shop/web", &["10.0.0.1"], json!({"app": "web"}), init);
        ingress(&cluster, &[("80/TCP", false)]);
    }
}

#[test]
fn s6_16_one_name_and_protocol_twice_in_a_pod_matches_either_number() {
    let twice = [("http", "", 80), ("http", "TCP", 81)];
    let mut cluster = web_allows(json!([{"port": "http"}]));
    web_has(&mut cluster, &twice);
    ingress(&cluster, &[("80/TCP", true), ("81/TCP", true), ("82/TCP", false)]);
    let mut cluster = web_may(json!([{"ports": [{"port": "http"}]}]));
    pod_has(&mut cluster, "api", API, &twice);
    egress(&cluster, &[(API, "80/TCP", true), (API, "81/TCP", true), (API, "82/TCP", false)]);
}

#[test]
fn s5_9_cidr_with_host_bits_is_masked() {
    let to = json!([{"ipBlock": {"cidr": "10.0.0.3/30", "except": ["10.0.0.3/31"]}}]);
    let cluster = web_may(json!([{"to": to}]));
    egress(&cluster, &[("10.0.0.0", "1/TCP", true), (API, "1/TCP", false), (DB, "1/TCP", false)]);
}

#[test]
fn s9_6_egress_policy_applies_to_the_own_node() {
    let node = "10.0.0.254";
    egress(&web_may(json!([])), &[(node, "10250/TCP", false)]);
    let to = json!([{"ipBlock": {"cidr": "10.0.0.254/32"}}]);
    egress(&web_may(json!([{"to": to}])), &[(node, "10250/TCP", true)]);
}
