//! docs/semantics.md 15: ClusterNetworkPolicy, as the engine evaluates it.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use cluster::{Cluster, STRANGER, transport, with_ports};
use podgate_policy::model::{Direction, IpProtocol};
use podgate_policy::tables::{Class, Transport};
use serde_json::{Value, json};

const WEB: &str = "10.0.0.1";
const API: &str = "10.0.0.2";
const DB: &str = "10.0.0.3";
const PROBE: &str = "10.0.0.4";

/// The spec of a policy whose subject are all pods.
fn spec(tier: &str, priority: u16, rules: &Value) -> Value {
    let mut spec = json!({"tier": tier, "priority": priority, "subject": {"namespaces": {}}});
    for (direction, rules) in rules.as_object().unwrap() {
        spec[direction] = rules.clone();
    }
    spec
}

fn admin(priority: u16, rules: &Value) -> Value {
    spec("Admin", priority, rules)
}

fn baseline(priority: u16, rules: &Value) -> Value {
    spec("Baseline", priority, rules)
}

/// Pods of every namespace with this label `app`.
fn app(name: &str) -> Value {
    json!({"pods": {"podSelector": {"matchLabels": {"app": name}}}})
}

fn from(action: &str, peer: &Value) -> Value {
    json!({"action": action, "from": [peer]})
}

fn to(action: &str, peer: &Value) -> Value {
    json!({"action": action, "to": [peer]})
}

fn everyone() -> Value {
    json!({"namespaces": {}})
}

fn everything() -> Value {
    json!({"networks": ["0.0.0.0/0", "::/0"]})
}

/// A NetworkPolicy for `shop/web` that lets in this app of `shop`.
fn web_from(name: &str) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": name}}}]}],
    })
}

/// What reaches `shop/web` at 80/TCP, of the pods of the cluster and of the outside.
fn reach_web(cluster: &Cluster) -> Vec<&'static str> {
    [("api", API), ("db", DB), ("probe", PROBE), ("stranger", STRANGER)]
        .into_iter()
        .filter(|(_, peer)| cluster.ingress("shop/web", peer, "80/TCP"))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn s15_1_admin_then_network_policy_then_baseline_then_allowed() {
    let mut cluster = Cluster::shop();
    assert_eq!(reach_web(&cluster), ["api", "db", "probe", "stranger"]);
    cluster.cluster_policy("base", baseline(0, &json!({"ingress": [from("Deny", &everyone())]})));
    assert_eq!(reach_web(&cluster), ["stranger"], "no policy says anything of it");
    cluster.policy("shop/web", web_from("api"));
    assert_eq!(reach_web(&cluster), ["api"]);
    cluster.cluster_policy("top", admin(9, &json!({"ingress": [from("Accept", &app("probe"))]})));
    assert_eq!(reach_web(&cluster), ["api", "probe"]);
    cluster.cluster_policy("upper", admin(8, &json!({"ingress": [from("Deny", &app("api"))]})));
    assert_eq!(reach_web(&cluster), ["probe"]);
}

#[test]
fn s15_2_the_first_rule_that_matches_decides_by_priority_then_in_order() {
    let mut cluster = Cluster::shop();
    cluster.cluster_policy("a", admin(500, &json!({"ingress": [from("Accept", &app("api"))]})));
    cluster.cluster_policy(
        "z",
        admin(1000, &json!({"ingress": [from("Deny", &everyone()), from("Accept", &app("db"))]})),
    );
    assert_eq!(reach_web(&cluster), ["api", "stranger"]);
    cluster.cluster_policy("y", admin(0, &json!({"ingress": [from("Deny", &app("api"))]})));
    assert_eq!(reach_web(&cluster), ["stranger"]);
    cluster.cluster_policy(
        "z",
        admin(1000, &json!({"ingress": [from("Accept", &app("db")), from("Deny", &everyone())]})),
    );
    assert_eq!(reach_web(&cluster), ["db", "stranger"]);
}

#[test]
fn s15_3_accept_and_deny_are_final() {
    let mut cluster = Cluster::shop();
    cluster.policy("shop/web", web_from("api"));
    let rules = json!({"ingress": [from("Accept", &app("db")), from("Deny", &app("api"))]});
    cluster.cluster_policy("top", admin(1, &rules));
    assert_eq!(reach_web(&cluster), ["db"]);
    // nor does a later tier take it back
    let rules = json!({"ingress": [from("Deny", &app("db")), from("Accept", &app("api"))]});
    cluster.cluster_policy("base", baseline(1, &rules));
    assert_eq!(reach_web(&cluster), ["db"]);
}

#[test]
fn s15_4_pass_leaves_the_tier() {
    let mut cluster = Cluster::shop();
    cluster.cluster_policy("first", admin(1, &json!({"ingress": [from("Pass", &app("api"))]})));
    cluster.cluster_policy("second", admin(2, &json!({"ingress": [from("Deny", &everyone())]})));
    assert_eq!(reach_web(&cluster), ["api", "stranger"]);
    cluster.policy("shop/web", web_from("db"));
    assert_eq!(reach_web(&cluster), [""; 0], "what has passed is judged by NetworkPolicies");
    cluster.policy("shop/web", web_from("api"));
    assert_eq!(reach_web(&cluster), ["api"]);

    let mut cluster = Cluster::shop();
    let rules = json!({"ingress": [from("Pass", &app("api")), from("Deny", &everyone())]});
    cluster.cluster_policy("base", baseline(1, &rules));
    assert_eq!(reach_web(&cluster), ["api", "stranger"], "from the last tier to the default");
}

#[test]
fn s15_5_no_rule_that_matches_leaves_it_to_what_comes_after() {
    let mut cluster = Cluster::shop();
    cluster.cluster_policy("none", admin(1, &json!({})));
    cluster.cluster_policy("one", admin(2, &json!({"ingress": [from("Accept", &app("api"))]})));
    assert_eq!(reach_web(&cluster), ["api", "db", "probe", "stranger"], "it isolates nothing");
    assert!(cluster.egress("shop/web", STRANGER, "80/TCP"));
    cluster.policy("shop/web", web_from("db"));
    assert_eq!(reach_web(&cluster), ["api", "db"]);
}

#[test]
fn s15_6_the_first_name_of_equal_priorities_decides() {
    for (name, expected) in [("a", vec!["stranger"]), ("c", vec!["api", "stranger"])] {
        let mut cluster = Cluster::shop();
        cluster.cluster_policy("b", admin(5, &json!({"ingress": [from("Accept", &app("api"))]})));
        cluster.cluster_policy(name, admin(5, &json!({"ingress": [from("Deny", &everyone())]})));
        assert_eq!(reach_web(&cluster), expected, "{name}");
        assert_eq!(cluster.index.problems().len(), 1);
    }
}

#[test]
fn s15_7_the_baseline_tier_is_for_directions_that_no_network_policy_isolates() {
    let mut cluster = Cluster::shop();
    let rules = json!({"ingress": [from("Accept", &app("db")), from("Deny", &everyone())],
                       "egress": [to("Deny", &everyone())]});
    cluster.cluster_policy("base", baseline(1, &rules));
    assert_eq!(reach_web(&cluster), ["db", "stranger"]);
    cluster.policy("shop/web", web_from("api"));
    assert_eq!(reach_web(&cluster), ["api"], "neither its Accept nor its Deny counts");
    assert!(!cluster.egress("shop/web", API, "80/TCP"), "the other direction is not isolated");
    assert!(!cluster.ingress("shop/api", WEB, "80/TCP"), "nor is another pod");
}

#[test]
fn s15_8_subjects_are_pods_of_their_own_network() {
    let rules = json!({"ingress": [from("Deny", &everyone())]});
    for (subject, governed) in [
        (json!({"namespaces": {}}), [true, true, true]),
        (json!({"namespaces": {"matchLabels": {"team": "shop"}}}), [true, true, false]),
        (json!({"pods": {"podSelector": {}}}), [true, true, true]),
        (
            json!({"pods": {"namespaceSelector": {"matchLabels": {"team": "shop"}},
                            "podSelector": {"matchLabels": {"app": "web"}}}}),
            [true, false, false],
        ),
        (json!({"pods": {"podSelector": {"matchLabels": {"app": "probe"}}}}), [false, false, true]),
    ] {
        let mut cluster = Cluster::shop();
        let mut policy = admin(1, &rules);
        policy["subject"] = subject.clone();
        cluster.cluster_policy("p", policy);
        let found =
            ["shop/web", "shop/api", "ops/probe"].map(|pod| !cluster.ingress(pod, DB, "80/TCP"));
        assert_eq!(found, governed, "{subject}");
    }
    let mut cluster = Cluster::shop();
    cluster.cluster_policy("p", admin(1, &rules));
    let host = json!({"spec": {"hostNetwork": true}});
    cluster.pod_with("shop/agent", &["192.168.7.2"], json!({"app": "agent"}), host);
    assert!(cluster.ingress("shop/agent", DB, "80/TCP"));
    assert!(cluster.ingress("shop/web", "192.168.7.2", "80/TCP"), "and no peer of `namespaces`");
}

#[test]
fn s15_9_namespaces_and_pods_are_pods_of_any_namespace() {
    for (peer, denied) in [
        (json!({"namespaces": {}}), [true, true, false]),
        (json!({"namespaces": {"matchLabels": {"team": "ops"}}}), [false, true, false]),
        (json!({"pods": {"podSelector": {}}}), [true, true, false]),
        (app("api"), [true, false, false]),
        (
            json!({"pods": {"namespaceSelector": {"matchLabels": {"team": "ops"}}, "podSelector": {}}}),
            [false, true, false],
        ),
    ] {
        let mut cluster = Cluster::shop();
        let rules = json!({"ingress": [from("Deny", &peer)], "egress": [to("Deny", &peer)]});
        cluster.cluster_policy("p", admin(1, &rules));
        let of = [API, PROBE, STRANGER];
        let ingress = of.map(|address| !cluster.ingress("shop/web", address, "80/TCP"));
        let egress = of.map(|address| !cluster.egress("shop/web", address, "80/TCP"));
        assert_eq!((ingress, egress), (denied, denied), "{peer}");
    }
}

#[test]
fn s15_10_networks_match_addresses_whatever_has_them() {
    let mut cluster = Cluster::shop();
    let deny = json!({"egress": [to("Deny", &json!({"networks": ["10.0.0.0/30"]}))]});
    cluster.cluster_policy("p", admin(5, &deny));
    assert!(!cluster.egress("shop/web", API, "80/TCP"));
    assert!(!cluster.egress("shop/web", API, "ICMP"), "every protocol");
    assert!(!cluster.egress("shop/web", "10.0.0.0", "80/TCP"), "no pod has it");
    assert!(cluster.egress("shop/web", PROBE, "80/TCP"));
    assert!(cluster.egress("shop/web", "fd00::1", "80/TCP"));
    cluster.cluster_policy("q", admin(4, &json!({"egress": [to("Pass", &app("api"))]})));
    assert!(cluster.egress("shop/web", API, "80/TCP"));
    // a rule for a larger network that comes first decides on a smaller one in it
    cluster.cluster_policy(
        "r",
        admin(3, &json!({"egress": [to("Deny", &json!({"networks": ["10.0.0.0/8"]}))]})),
    );
    assert!(!cluster.egress("shop/web", API, "80/TCP"));
}

#[test]
fn s15_11_nodes_match_every_address_of_their_status() {
    let mut cluster = Cluster::shop();
    cluster.node("n1", json!({"gpu": "yes"}), &["192.168.7.1", "fd00:7::1"]);
    cluster.node("n2", json!({}), &["192.168.7.2"]);
    let gpu = json!({"nodes": {"matchLabels": {"gpu": "yes"}}});
    cluster.cluster_policy("p", admin(1, &json!({"egress": [to("Deny", &gpu)]})));
    for (address, allowed) in
        [("192.168.7.1", false), ("fd00:7::1", false), ("192.168.7.2", true), (API, true)]
    {
        assert_eq!(cluster.egress("shop/web", address, "443/TCP"), allowed, "{address}");
    }
    cluster.node("n1", json!({}), &["192.168.7.1", "fd00:7::1"]);
    assert!(cluster.egress("shop/web", "192.168.7.1", "443/TCP"));
    cluster.node("n2", json!({"gpu": "yes"}), &["192.168.7.3"]);
    assert!(cluster.egress("shop/web", "192.168.7.2", "443/TCP"));
    assert!(!cluster.egress("shop/web", "192.168.7.3", "443/TCP"));
}

#[test]
fn s15_12_without_protocols_a_rule_is_for_all_of_them() {
    let rule = |protocols: Value| {
        let mut rule = from("Deny", &everyone());
        if !protocols.is_null() {
            rule["protocols"] = protocols;
        }
        let mut cluster = Cluster::shop();
        cluster.cluster_policy("p", admin(1, &json!({"ingress": [rule]})));
        let all = ["80/TCP", "85/TCP", "80/UDP", "80/SCTP", "ICMP"];
        all.map(|l4| !cluster.ingress("shop/web", API, l4))
    };
    assert_eq!(rule(Value::Null), [true; 5]);
    assert_eq!(rule(json!([{"tcp": {}}])), [true, true, false, false, false]);
    assert_eq!(
        rule(json!([{"tcp": {"destinationPort": {"number": 80}}}, {"sctp": {}}])),
        [true, false, false, true, false]
    );
    assert_eq!(
        rule(json!([{"udp": {"destinationPort": {"range": {"start": 79, "end": 81}}}}])),
        [false, false, true, false, false]
    );
}

#[test]
fn s15_13_a_named_port_is_that_of_the_receiving_pod_of_any_protocol() {
    let mut cluster = Cluster::shop();
    let ports = with_ports(&[("dns", "UDP", 5353), ("dns", "TCP", 5300)]);
    cluster.pod_with("shop/dns", &["10.0.0.9"], json!({"app": "dns"}), ports);
    let named = |mut rule: Value| {
        rule["protocols"] = json!([{"destinationNamedPort": "dns"}]);
        rule
    };
    let rules = json!({"ingress": [named(from("Deny", &app("api")))],
                       "egress": [named(to("Deny", &everyone())), named(to("Deny", &everything()))]});
    cluster.cluster_policy("p", admin(1, &rules));
    for (l4, denied) in
        [("5353/UDP", true), ("5300/TCP", true), ("5353/TCP", false), ("5300/SCTP", false)]
    {
        assert_eq!(!cluster.ingress("shop/dns", API, l4), denied, "{l4}");
        assert_eq!(!cluster.egress("shop/web", "10.0.0.9", l4), denied, "{l4}");
        assert!(cluster.ingress("shop/web", API, l4), "it has no such port: {l4}");
        assert!(cluster.egress("shop/web", STRANGER, l4), "networks have none: {l4}");
    }
}

#[test]
fn s15_13_the_other_items_of_a_rule_with_a_named_port_hold() {
    let mut cluster = Cluster::shop();
    cluster.pod_with(
        "shop/dns",
        &["10.0.0.9"],
        json!({"app": "dns"}),
        with_ports(&[("dns", "UDP", 5353)]),
    );
    let rule = json!({
        "action": "Deny",
        "to": [app("dns"), {"networks": ["8.0.0.0/8"]}],
        "protocols": [{"destinationNamedPort": "dns"}, {"tcp": {"destinationPort": {"number": 443}}}],
    });
    cluster.cluster_policy("p", admin(1, &json!({"egress": [rule]})));
    for (address, l4, allowed) in [
        ("10.0.0.9", "5353/UDP", false),
        ("10.0.0.9", "443/TCP", false),
        (STRANGER, "443/TCP", false),
        (STRANGER, "5353/UDP", true),
    ] {
        assert_eq!(cluster.egress("shop/web", address, l4), allowed, "{address} {l4}");
    }
}

#[test]
fn s15_15_what_a_pod_sends_to_itself_through_a_service_is_judged_with_itself_as_peer() {
    let mut cluster = Cluster::shop();
    let itself = |cluster: &Cluster, direction| {
        let compiled = cluster.compile();
        let endpoint = &cluster.endpoints[0];
        let lookup =
            compiled.tables[&endpoint.id].lookup(direction, Class::SELF_V4, transport("80/TCP"));
        lookup.is_none_or(|decision| decision.effect.passes())
    };
    // under NetworkPolicies it is its own address (10.12)
    cluster.policy("shop/deny-all", json!({"policyTypes": ["Ingress", "Egress"]}));
    assert!(itself(&cluster, Direction::Ingress) && itself(&cluster, Direction::Egress));
    cluster.cluster_policy("p", admin(1, &json!({"ingress": [from("Deny", &app("web"))]})));
    assert!(!itself(&cluster, Direction::Ingress));
    assert!(itself(&cluster, Direction::Egress));
    assert!(cluster.connects("shop/web", "shop/web", "80/TCP"), "to its own address it passes");
}

#[test]
fn s15_16_both_ends_have_to_let_it_pass() {
    let mut cluster = Cluster::shop();
    cluster.policy("shop/web", web_from("db"));
    cluster.cluster_policy("p", admin(1, &json!({"egress": [to("Accept", &app("web"))]})));
    assert!(cluster.egress("shop/api", WEB, "80/TCP"));
    assert!(!cluster.connects("shop/api", "shop/web", "80/TCP"));
    cluster.cluster_policy("q", admin(1, &json!({"ingress": [from("Accept", &app("api"))]})));
    assert!(cluster.connects("shop/api", "shop/web", "80/TCP"));
}

#[test]
fn s15_17_policies_of_one_name_from_two_sources_both_apply() {
    let mut cluster = Cluster::shop();
    cluster.cluster_policy_of(
        "dir",
        "p",
        admin(1, &json!({"ingress": [from("Deny", &app("db"))]})),
    );
    cluster.cluster_policy_of(
        "local",
        "p",
        admin(2, &json!({"ingress": [from("Deny", &app("api"))]})),
    );
    assert_eq!(reach_web(&cluster), ["probe", "stranger"]);
}

#[test]
fn s15_18_a_rule_that_fails_closed_holds_at_its_place() {
    let mut cluster = Cluster::shop();
    let closed =
        |action: &str| json!({"action": action, "from": [app("api"), {"serviceAccounts": {}}]});
    let before = from("Accept", &app("db"));
    for (action, expected) in [
        ("Accept", vec!["api", "db", "probe", "stranger"]),
        ("Deny", vec!["db"]),
        ("Pass", vec!["db"]),
    ] {
        let rules = json!({"ingress": [before, closed(action), from("Accept", &app("probe"))]});
        cluster.cluster_policy("p", admin(1, &rules));
        assert_eq!(reach_web(&cluster), expected, "{action}");
        assert_eq!(cluster.ingress("shop/web", API, "ICMP"), action == "Accept");
        assert!(cluster.egress("shop/web", API, "80/TCP"), "the other direction");
    }
    // an Accept that matches nothing opens nothing
    cluster.policy("shop/deny-all", json!({}));
    cluster.cluster_policy("p", admin(1, &json!({"ingress": [closed("Accept")]})));
    assert_eq!(reach_web(&cluster), [""; 0]);
}

/// The programs look a packet that cannot be judged up as protocol 255 of every peer.
#[test]
fn s8_6_what_cannot_be_judged_passes_only_where_nobody_is_denied_anything() {
    let unreadable = |cluster: &Cluster, direction| {
        let compiled = cluster.compile();
        let (_, table) = compiled.tables.first_key_value().unwrap();
        let found = table.lookup(direction, Class::ANY, Transport::Number(IpProtocol(255)));
        found.is_some_and(|decision| decision.effect.passes())
    };
    let mut cluster = Cluster::shop();
    assert!(unreadable(&cluster, Direction::Ingress));
    let one_port = json!([{"tcp": {"destinationPort": {"number": 22}}}]);
    for rule in [
        from("Deny", &app("db")),
        json!({"action": "Deny", "from": [app("db")], "protocols": one_port}),
    ] {
        cluster.cluster_policy(
            "p",
            admin(1, &json!({"ingress": [from("Accept", &app("api")), rule]})),
        );
        assert!(!unreadable(&cluster, Direction::Ingress), "it may be of what is denied");
        assert!(unreadable(&cluster, Direction::Egress), "the other direction");
    }
    cluster.cluster_policy("p", admin(1, &json!({"ingress": [from("Pass", &app("db"))]})));
    assert!(unreadable(&cluster, Direction::Ingress));
    cluster.policy("shop/deny-all", json!({}));
    assert!(!unreadable(&cluster, Direction::Ingress), "isolated");
}
