//! What the gate leaves alone, and to what it may lead behind it.

use std::net::IpAddr;
use std::sync::Arc;

use podgate_policy::compile::Engine;
use podgate_policy::convert;
use podgate_policy::index::Index;
use podgate_policy::model::{ClusterPolicy, ObjectKey, Protocol};
use podgate_policy::object::{Event, Resource};
use podgate_policy::services::{
    Frontend, NodeContext, ServiceTable, UntranslatedSet, VipVerdict, vip_verdict,
};
use podgate_policy::tables::{Endpoint, EndpointId};
use serde_json::{Value, json};

use crate::{NODE, http, service, slice};

fn addresses(all: &[&str]) -> Arc<std::collections::BTreeSet<IpAddr>> {
    Arc::new(all.iter().map(|address| address.parse().unwrap()).collect())
}

fn index(changes: Vec<Event>) -> Index {
    let mut index = Index::new();
    for change in changes {
        index.apply(change);
    }
    index
}

fn table(index: &Index, own: &[&str], nodes: &[&str]) -> ServiceTable {
    let mut table = ServiceTable::of(index.services(), NODE);
    table.set_node_context(NodeContext {
        translation_off: false,
        own: addresses(own),
        nodes: addresses(nodes),
    });
    table
}

/// `10.96.0.1:80/TCP NoEndpoint ->`, port by port and claim by claim; node ports have `*` for an address.
fn spell(set: &UntranslatedSet) -> Vec<String> {
    let mut lines = Vec::new();
    let single = set.ports.iter().map(|(address, ports)| (address.to_string(), ports));
    let nodes =
        set.node_ports.iter().map(|(v4, ports)| (format!("*{}", if *v4 { 4 } else { 6 }), ports));
    for (at, ports) in single.chain(nodes) {
        for ((protocol, port), claims) in ports {
            for left in claims {
                let backends: String = left.backends.iter().map(|of| format!(" {of}")).collect();
                let sources = match &left.sources {
                    Some(sources) => format!(" from {sources:?}"),
                    None => String::new(),
                };
                lines.push(format!(
                    "{at} {port}/{protocol} {:?} ->{backends}{sources}",
                    left.reason
                ));
            }
        }
    }
    lines
}

fn labelled(label: &str, spec: Value) -> Event {
    let object = json!({
        "metadata": {"namespace": "shop", "name": "web", "labels": {label: ""}}, "spec": spec,
    });
    Event::from(convert::service(&serde_json::from_value(object).unwrap()).unwrap())
}

fn balancer(ranges: Value, ingress: Value) -> Event {
    let object = json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00:10:96::1"], "ports": [{"port": 80}],
            "loadBalancerSourceRanges": ranges,
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    Event::from(convert::service(&serde_json::from_value(object).unwrap()).unwrap())
}

fn endpoints() -> Event {
    slice(
        "web-a",
        "web",
        http(8080),
        &[
            ("10.0.0.1", "ready", NODE),
            ("10.0.0.2", "draining", "there"),
            ("10.0.0.3", "unready", "there"),
        ],
    )
}

#[test]
fn s10_7_another_proxys_service_may_lead_to_any_endpoint_whatever_its_condition() {
    let spec = json!({
        "clusterIP": "10.96.0.1", "externalIPs": ["1.2.3.4"], "ports": [{"port": 80, "nodePort": 30080}],
    });
    let label = "service.kubernetes.io/service-proxy-name";
    let index = index(vec![labelled(label, spec), endpoints()]);
    let table = table(&index, &[], &["172.30.0.1"]);
    let all = "10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080";
    assert_eq!(
        spell(&table.untranslated()),
        [
            format!("1.2.3.4 80/TCP OtherProxy -> {all}"),
            format!("10.96.0.1 80/TCP OtherProxy -> {all}"),
            format!("*4 30080/TCP NodePort -> {all}"),
        ]
    );
    assert_eq!(table.iter().count(), 0);
}

#[test]
fn s10_9_source_ranges_hold_for_the_balancers_address_of_their_family_only() {
    let ingress =
        json!([{"ip": "1.2.3.4"}, {"ip": "fd01::4"}, {"ip": "5.6.7.8", "ipMode": "Proxy"}]);
    let index = index(vec![balancer(json!(["10.0.0.0/24 "]), ingress), endpoints()]);
    let table = table(&index, &[], &[]);
    assert_eq!(
        spell(&table.untranslated()),
        [
            "1.2.3.4 80/TCP SourceRanges -> 10.0.0.1:8080 from [10.0.0.0/24]",
            "fd00:10:96::1 80/TCP NoEndpoint ->",
            "fd01::4 80/TCP NoEndpoint ->",
        ]
    );
}

#[test]
fn s10_8_node_ports_of_either_policy_lead_to_all_that_some_nodes_proxy_may_pick() {
    let with = |policy: &str| {
        let spec = json!({
            "type": "NodePort", "clusterIP": "10.96.0.1", "externalTrafficPolicy": policy,
            "ports": [{"port": 80, "nodePort": 30080}],
        });
        let index = index(vec![service("web", spec), endpoints()]);
        let table = table(&index, &[], &["172.30.0.1", "fd00:30::1"]);
        let set = table.untranslated();
        let at: IpAddr = "172.30.0.1".parse().unwrap();
        assert_eq!(set.addresses().into_iter().collect::<Vec<_>>(), [at], "of its family");
        spell(&set)
    };
    assert_eq!(with("Cluster"), ["*4 30080/TCP NodePort -> 10.0.0.1:8080"]);
    // there it is the only one of its node
    assert_eq!(with("Local"), ["*4 30080/TCP NodePort -> 10.0.0.1:8080 10.0.0.2:8080"]);
}

#[test]
fn a_frontend_without_endpoints_is_left_until_it_has_one() {
    let mut index = index(vec![
        service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})),
        service(
            "xeb",
            json!({"clusterIP": "10.96.0.2", "externalIPs": ["10.96.0.1"], "ports": [{"port": 80}]}),
        ),
    ]);
    let mut table = ServiceTable::new(NODE);
    table.follow(index.services_mut());
    assert!(table.take_untranslated_changed() && !table.take_untranslated_changed());
    let nowhere = "10.96.0.1 80/TCP NoEndpoint ->";
    assert_eq!(spell(&table.untranslated()), [nowhere, nowhere, "10.96.0.2 80/TCP NoEndpoint ->"]);

    // of two that claim it the first one has it; behind the gate it may be the other
    index.apply(slice("xeb-a", "xeb", http(1), &[("10.0.0.9", "ready", "")]));
    table.follow(index.services_mut());
    assert_eq!(spell(&table.untranslated()), [nowhere, "10.96.0.1 80/TCP Disputed -> 10.0.0.9:1"]);

    index.apply(endpoints());
    table.follow(index.services_mut());
    assert!(table.take_untranslated_changed());
    assert_eq!(table.untranslated(), UntranslatedSet::default());
    assert_eq!(table.iter().count(), 2);
}

#[test]
fn s10_10_a_services_own_address_on_the_node_is_not_translated_and_an_external_one_is() {
    let spec =
        json!({"clusterIP": "10.96.0.10", "externalIPs": ["172.30.0.1"], "ports": [{"port": 80}]});
    let index = index(vec![service("web", spec), endpoints()]);
    let mut table = table(&index, &["10.96.0.10", "172.30.0.1"], &[]);
    let at = |address: &str| Frontend {
        address: address.parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
    };
    assert!(table.translated(&at("10.96.0.10")).is_none());
    assert!(table.translated(&at("172.30.0.1")).is_some());
    assert_eq!(spell(&table.untranslated()), ["10.96.0.10 80/TCP NodeLocal -> 10.0.0.1:8080"]);
    table.take_changes();
    // the interface goes
    table.set_node_context(NodeContext {
        own: addresses(&["172.30.0.1"]),
        ..NodeContext::default()
    });
    assert_eq!(table.take_changes().into_iter().collect::<Vec<_>>(), [at("10.96.0.10")]);
    assert!(table.translated(&at("10.96.0.10")).is_some());
    assert_eq!(table.untranslated(), UntranslatedSet::default());
}

/// What the gate of a pod at 10.0.1.1 says, whose policy has these egress rules.
fn answers(egress: Value, changes: Vec<Event>, own: &[&str], to: (&str, u16)) -> VipVerdict {
    let policy = json!({
        "metadata": {"namespace": "shop", "name": "p"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": egress},
    });
    let pod = json!({
        "metadata": {"namespace": "shop", "name": "client"}, "spec": {"containers": []},
        "status": {"podIP": "10.0.1.1", "hostIP": "172.30.0.1"},
    });
    let mut index = index(changes);
    let policy = convert::policy("test", &serde_json::from_value(policy).unwrap()).unwrap();
    index.apply(Event::from(policy));
    index.apply(Event::from(convert::pod(&serde_json::from_value(pod).unwrap()).unwrap()));
    let endpoint = Endpoint {
        id: EndpointId(1),
        pod: Some(ObjectKey::new("shop", "client")),
        uid: "".into(),
        addresses: vec!["10.0.1.1".parse().unwrap()],
    };
    let engine = Engine::of(&index, [endpoint.clone()]);
    let mut table = ServiceTable::of(index.services(), NODE);
    let nodes = index.host_addresses();
    table.set_node_context(NodeContext { translation_off: false, own: addresses(own), nodes });
    let frontend = Frontend { address: to.0.parse().unwrap(), port: to.1, protocol: Protocol::Tcp };
    let claims = table.untranslated_at(&frontend);
    assert!(!claims.is_empty(), "{to:?}");
    vip_verdict(engine.compiled(), &endpoint, &frontend, &claims).unwrap()
}

fn is_allowed(answer: VipVerdict) -> bool {
    matches!(answer, VipVerdict::Allow(_))
}

#[test]
fn s10_8_egress_to_everything_but_pods_reaches_no_pod_through_a_node_port() {
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
    let all = || vec![service("web", spec.clone()), endpoints()];
    let block = |cidr: &str, except: Value| json!([{"to": [{"ipBlock": {"cidr": cidr, "except": except}}]}]);
    let node = ("172.30.0.1", 30080);
    assert!(!is_allowed(answers(block("0.0.0.0/0", json!(["10.0.0.0/16"])), all(), &[], node)));
    assert!(is_allowed(answers(block("10.0.0.1/32", json!([])), all(), &[], node)));
    assert!(!is_allowed(answers(block("172.30.0.0/24", json!([])), all(), &[], node)));
}

#[test]
fn s10_9_a_pod_outside_the_source_ranges_is_denied_and_one_inside_as_its_endpoints_are() {
    let to = ("1.2.3.4", 80);
    let with = |range: &str, cidr: &str| {
        let all = vec![balancer(json!([range]), json!([{"ip": "1.2.3.4"}])), endpoints()];
        is_allowed(answers(json!([{"to": [{"ipBlock": {"cidr": cidr}}]}]), all, &[], to))
    };
    assert!(with("10.0.1.0/24", "10.0.0.1/32"));
    assert!(!with("10.0.1.0/24", "1.2.3.4/32"));
    assert!(!with("10.0.2.0/24", "10.0.0.1/32"));
    assert!(with("0.0.0.0/0", "0.0.0.0/0"));
}

#[test]
fn s10_10_at_the_nodes_own_address_either_the_address_or_the_endpoints_suffice() {
    let spec = json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]});
    let with = |cidr: &str| {
        let all = vec![service("web", spec.clone()), endpoints()];
        let egress = json!([{"to": [{"ipBlock": {"cidr": cidr}}]}]);
        is_allowed(answers(egress, all, &["10.96.0.10"], ("10.96.0.10", 80)))
    };
    assert!(with("10.96.0.10/32"));
    assert!(with("10.0.0.1/32"));
    assert!(!with("169.254.20.10/32"));
}

#[test]
fn s10_11_without_an_endpoint_only_who_may_reach_anything_passes() {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let with = |egress: Value| {
        is_allowed(answers(egress, vec![service("web", spec.clone())], &[], ("10.96.0.1", 80)))
    };
    assert!(with(json!([{}])));
    assert!(!with(
        json!([{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/16"]}}]}])
    ));
    // which port an endpoint would have is not known
    assert!(!with(json!([{"ports": [{"port": 80}]}])));
}

/// An Admin policy whose egress rule denies what goes to `app: APP` of any namespace.
fn denying(app: &str) -> Event {
    let object = json!({
        "metadata": {"name": "deny"},
        "spec": {
            "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "egress": [{"action": "Deny", "to": [{"pods": {"podSelector": {"matchLabels": {"app": app}}}}]}],
        },
    });
    let object = serde_json::from_value(object).unwrap();
    Event::from(<ClusterPolicy as Resource>::convert("test", &object).unwrap())
}

#[test]
fn s10_11_nor_does_who_is_denied_anybody() {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let all = |more: Vec<Event>| [vec![service("web", spec.clone())], more].concat();
    let to = ("10.96.0.1", 80);
    assert!(is_allowed(answers(json!([{}]), all(vec![]), &[], to)));
    assert!(!is_allowed(answers(json!([{}]), all(vec![denying("web")]), &[], to)));
}

#[test]
fn s15_15_a_pod_that_is_its_own_endpoint_behind_a_node_port_is_judged() {
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
    let all = |more: Vec<Event>| {
        let web = vec![
            service("web", spec.clone()),
            slice("web-1", "web", http(8080), &[("10.0.1.1", "ready", NODE)]),
        ];
        [web, more].concat()
    };
    let everybody = json!({
        "metadata": {"name": "deny"},
        "spec": {
            "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "egress": [{"action": "Deny", "to": [{"networks": ["10.0.1.1/32"]}]}],
        },
    });
    let object = serde_json::from_value(everybody).unwrap();
    let denied = Event::from(<ClusterPolicy as Resource>::convert("test", &object).unwrap());
    let to = ("172.30.0.1", 30080);
    assert!(is_allowed(answers(json!([{}]), all(vec![]), &[], to)));
    assert!(!is_allowed(answers(json!([{}]), all(vec![denied]), &[], to)));
}

/// The service that has the address leads nowhere: for a proxy any of the others may have it, and what they lead to counts.
#[test]
fn the_endpoints_of_a_service_that_lost_an_address_count_while_the_winner_has_none() {
    let claimed = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let endpoint = |address| slice("b-0", "b", http(2), &[(address, "ready", "")]);
    let mut index = index(vec![
        service("a", claimed.clone()),
        service("b", claimed),
        service("c", json!({"clusterIP": "10.96.0.3", "ports": [{"port": 80}]})),
        slice("c-0", "c", http(3), &[("10.0.0.3", "ready", "")]),
        endpoint("10.0.0.1"),
    ]);
    let mut table = ServiceTable::new(NODE);
    let mut follow = |index: &mut Index| {
        table.follow(index.services_mut());
        (table.take_untranslated_changed(), spell(&table.untranslated()))
    };
    let lines = |second: &str| {
        ["10.96.0.1 80/TCP NoEndpoint ->", &format!("10.96.0.1 80/TCP Disputed -> {second}")]
            .map(str::to_owned)
    };
    assert_eq!(follow(&mut index), (true, lines("10.0.0.1:2").to_vec()));
    index.apply(endpoint("10.0.0.9"));
    assert_eq!(follow(&mut index), (true, lines("10.0.0.9:2").to_vec()));
    // of a service that has its address nothing is left alone
    index.apply(slice("c-0", "c", http(3), &[("10.0.0.4", "ready", "")]));
    assert_eq!(follow(&mut index), (false, lines("10.0.0.9:2").to_vec()));
    // nor where the winner leads somewhere
    index.apply(slice("a-0", "a", http(1), &[("10.0.0.5", "ready", "")]));
    assert_eq!(follow(&mut index), (true, Vec::new()));
    index.apply(endpoint("10.0.0.1"));
    assert_eq!(follow(&mut index), (false, Vec::new()));
}
