//! What a frontend leads to: section 10 of docs/semantics.md, and kube-proxy's rules.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod locality;
mod vip_policy;

use std::collections::BTreeMap;

use podgate_policy::convert;
use podgate_policy::index::Index;
use podgate_policy::model::{ObjectKey, Protocol};
use podgate_policy::object::{Event, ObjectId};
use podgate_policy::services::{BackendState, Frontend, ServiceTable};
use proptest::prelude::*;
use serde_json::{Value, json};

const NODE: &str = "here";

fn service(name: &str, spec: Value) -> Event {
    let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
    Event::from(convert::service(&serde_json::from_value(object).unwrap()).unwrap())
}

/// (address, state, node), then (node, zone).
type HintedEndpoint<'a> = ((&'a str, &'a str, &'a str), (&'a str, &'a str));

/// `endpoints` are (address, "ready" | "draining" | "serving" | "unready", node).
fn slice(name: &str, service: &str, ports: Value, endpoints: &[(&str, &str, &str)]) -> Event {
    let endpoints: Vec<_> = endpoints.iter().map(|of| (*of, ("", ""))).collect();
    hinted_slice(name, service, ports, &endpoints)
}

/// The same with the node and the zone that each endpoint is hinted for; "": no such hint.
fn hinted_slice(
    name: &str,
    service: &str,
    ports: Value,
    endpoints: &[HintedEndpoint<'_>],
) -> Event {
    let hint = |name: &str| if name.is_empty() { json!([]) } else { json!([{"name": name}]) };
    let v4 = endpoints.first().is_none_or(|((address, ..), _)| !address.contains(':'));
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|((address, state, node), (for_node, for_zone))| {
            let conditions = match *state {
                "ready" => json!({}),
                "draining" => json!({"ready": false, "serving": true, "terminating": true}),
                "serving" => json!({"ready": false, "serving": true}),
                _ => json!({"ready": false, "serving": false, "terminating": true}),
            };
            let hints = json!({"forNodes": hint(for_node), "forZones": hint(for_zone)});
            json!({"addresses": [address], "conditions": conditions, "nodeName": node, "hints": hints})
        })
        .collect();
    let object = json!({
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": if v4 { "IPv4" } else { "IPv6" }, "ports": ports, "endpoints": endpoints,
    });
    Event::from(convert::endpoint_slice(&serde_json::from_value(object).unwrap()).unwrap())
}

fn table(changes: Vec<Event>) -> ServiceTable {
    let mut index = Index::new();
    for change in changes {
        index.apply(change);
    }
    ServiceTable::of(index.services(), NODE)
}

/// `10.96.0.1:80/TCP -> 10.0.0.1:8080 10.0.0.2:8080(serving)`, line by line.
fn spell(table: &ServiceTable) -> Vec<String> {
    let line =
        |(frontend, balance): (Frontend, &std::sync::Arc<podgate_policy::services::BackendSet>)| {
            let backends = balance.backends.iter().map(|(backend, state)| match state {
                BackendState::Ready => format!(" {backend}"),
                BackendState::Serving => format!(" {backend}(serving)"),
            });
            format!("{frontend} ->{}", backends.collect::<String>())
        };
    table.iter().map(line).collect()
}

fn http(number: u16) -> Value {
    json!([{"name": "", "protocol": "TCP", "port": number}])
}

#[test]
fn s10_2_ports_lead_to_the_numbers_of_each_slice_by_name_and_protocol() {
    let table = table(vec![
        service(
            "dns",
            json!({"clusterIP": "10.96.0.10", "ports": [
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns"},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": "dns"},
                {"name": "sctp", "protocol": "SCTP", "port": 9},
            ]}),
        ),
        slice(
            "dns-a",
            "dns",
            json!([
                {"name": "dns", "protocol": "UDP", "port": 5353}, {"name": "dns-tcp", "protocol": "TCP", "port": 5353},
                {"name": "sctp", "protocol": "UDP", "port": 9}, {"name": "other"},
            ]),
            &[("10.0.0.1", "ready", "there")],
        ),
        slice(
            "dns-b",
            "dns",
            json!([{"name": "dns", "protocol": "UDP", "port": 1053}]),
            &[("10.0.0.2", "ready", "there"), ("10.0.0.1", "ready", "there")],
        ),
    ]);
    assert_eq!(
        spell(&table),
        [
            "10.96.0.10:53/TCP -> 10.0.0.1:5353",
            "10.96.0.10:53/UDP -> 10.0.0.1:1053 10.0.0.1:5353 10.0.0.2:1053",
        ]
    );
}

#[test]
fn s10_3_ready_ones_are_picked_and_draining_ones_only_in_need() {
    let port = json!([{"port": 80}]);
    let with = |states: [&str; 3]| {
        table(vec![
            service("web", json!({"clusterIP": "10.96.0.1", "ports": port})),
            slice(
                "web-a",
                "web",
                http(80),
                &[
                    ("10.0.0.1", states[0], ""),
                    ("10.0.0.2", states[1], ""),
                    ("10.0.0.3", states[2], ""),
                ],
            ),
        ])
    };
    for (states, leads) in [
        (["ready", "draining", "unready"], "10.0.0.1:80 10.0.0.2:80(serving)"),
        (["serving", "draining", "unready"], "10.0.0.1:80(serving) 10.0.0.2:80"),
        (["ready", "serving", "ready"], "10.0.0.1:80 10.0.0.2:80(serving) 10.0.0.3:80"),
    ] {
        assert_eq!(spell(&with(states)), [format!("10.96.0.1:80/TCP -> {leads}")], "{states:?}");
    }
    for states in [["serving", "unready", "serving"], ["unready", "unready", "unready"]] {
        assert!(spell(&with(states)).is_empty(), "{states:?}");
    }
}

#[test]
fn one_endpoint_in_two_slices_has_the_better_word() {
    for states in [["ready", "unready"], ["unready", "ready"], ["draining", "ready"]] {
        let table = table(vec![
            service("web", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]})),
            slice("web-a", "web", http(80), &[("10.0.0.1", states[0], "")]),
            slice("web-b", "web", http(80), &[("10.0.0.1", states[1], "")]),
        ]);
        assert_eq!(spell(&table), ["10.96.0.1:80/TCP -> 10.0.0.1:80"]);
    }
}

#[test]
fn s10_6_what_has_no_virtual_address_or_no_endpoint_is_left_alone() {
    let endpoints = slice("s", "web", http(80), &[("10.0.0.1", "ready", "")]);
    let port = json!([{"port": 80}]);
    for spec in [
        json!({"clusterIP": "None", "ports": port, "externalIPs": ["1.2.3.4"]}),
        json!({"type": "ExternalName", "externalName": "example.com", "ports": port}),
        json!({"clusterIP": "", "ports": port}),
        json!({"clusterIP": "fd00::1", "ports": port}),
        json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "name": "other"}]}),
        json!({"clusterIP": "10.96.0.1"}),
    ] {
        assert!(
            spell(&table(vec![service("web", spec.clone()), endpoints.clone()])).is_empty(),
            "{spec}"
        );
    }
    // nor do slices of an unknown service, of none, or of a family nobody knows
    assert!(spell(&table(vec![endpoints])).is_empty());
}

#[test]
fn both_families_have_frontends_of_their_own() {
    let table = table(vec![
        service(
            "web",
            json!({
                "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:10:96::1"], "ports": [{"port": 80}],
            }),
        ),
        slice("web-4", "web", http(8080), &[("10.0.0.1", "ready", "")]),
        slice("web-6", "web", http(8081), &[("fd00::1", "ready", "")]),
    ]);
    assert_eq!(
        spell(&table),
        ["10.96.0.1:80/TCP -> 10.0.0.1:8080", "[fd00:10:96::1]:80/TCP -> [fd00::1]:8081",]
    );
}

#[test]
fn s10_4_local_means_this_node_for_the_cluster_address_and_any_for_external_ones() {
    let table = table(vec![
        service(
            "web",
            json!({
                "clusterIP": "10.96.0.1", "externalIPs": ["1.2.3.4"], "internalTrafficPolicy": "Local",
                "externalTrafficPolicy": "Local", "ports": [{"port": 80}],
            }),
        ),
        slice(
            "web-a",
            "web",
            http(80),
            &[
                ("10.0.0.1", "ready", "there"),
                ("10.0.0.2", "draining", NODE),
                ("10.0.0.3", "ready", ""),
            ],
        ),
    ]);
    assert_eq!(
        spell(&table),
        [
            "1.2.3.4:80/TCP -> 10.0.0.1:80 10.0.0.2:80(serving) 10.0.0.3:80",
            "10.96.0.1:80/TCP -> 10.0.0.2:80",
        ]
    );
}

#[test]
fn load_balancers_count_unless_packets_must_go_through_them() {
    let addresses = |spec: Value, ingress: Value| {
        let mut all = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": all,
            "status": {"loadBalancer": {"ingress": ingress}}});
        let service = convert::service(&serde_json::from_value(object).unwrap()).unwrap();
        service.external.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let balancer = json!({"type": "LoadBalancer"});
    assert_eq!(
        addresses(balancer.clone(), json!([{"ip": "1.2.3.4"}, {"hostname": "lb"}])),
        ["1.2.3.4"]
    );
    assert_eq!(
        addresses(balancer.clone(), json!([{"ip": "1.2.3.4", "ipMode": "VIP"}])),
        ["1.2.3.4"]
    );
    assert!(addresses(balancer, json!([{"ip": "1.2.3.4", "ipMode": "Proxy"}])).is_empty());
    let firewall = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"], "externalIPs": ["5.6.7.8"]});
    assert_eq!(addresses(firewall, json!([{"ip": "1.2.3.4"}])), ["5.6.7.8"]);
    assert!(addresses(json!({"type": "ClusterIP"}), json!([{"ip": "1.2.3.4"}])).is_empty());
}

#[test]
fn s10_5_affinity_has_the_api_servers_default() {
    let seconds = |spec: Value| {
        let object = json!({"metadata": {"name": "web"}, "spec": spec});
        let service = convert::service(&serde_json::from_value(object).unwrap()).unwrap();
        service.affinity.map(std::num::NonZeroU32::get)
    };
    assert_eq!(seconds(json!({})), None);
    assert_eq!(seconds(json!({"sessionAffinity": "None"})), None);
    assert_eq!(seconds(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
    let config = json!({"clientIP": {"timeoutSeconds": 60}});
    assert_eq!(
        seconds(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})),
        Some(60)
    );
}

#[test]
fn what_cannot_be_read_is_told_by_its_field() {
    for (spec, path) in [
        (json!({"clusterIP": "10.96.0"}), "spec.clusterIP"),
        (json!({"clusterIPs": ["10.96.0.1", "x"]}), "spec.clusterIPs[1]"),
        (json!({"externalIPs": ["x"]}), "spec.externalIPs[0]"),
        (json!({"type": "Clusterip"}), "spec.type"),
        (json!({"ports": [{"port": 80}, {"port": 0}]}), "spec.ports[1].port"),
        (json!({"ports": [{"port": 80, "targetPort": 65536}]}), "spec.ports[0].targetPort"),
        (json!({"ports": [{"port": 80, "targetPort": "80"}]}), "spec.ports[0].targetPort"),
        (json!({"ports": [{"port": 80, "protocol": "tcp"}]}), "spec.ports[0].protocol"),
        (json!({"sessionAffinity": "Client"}), "spec.sessionAffinity"),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        (json!({"internalTrafficPolicy": "Node"}), "spec.internalTrafficPolicy"),
    ] {
        let object = json!({"metadata": {"name": "web"}, "spec": spec});
        let error = convert::service(&serde_json::from_value(object).unwrap()).unwrap_err();
        assert_eq!(error.path, path);
        assert!(error.cause.starts_with("must be "), "{error}");
    }
    for (fields, path) in [
        (json!({"addressType": "IPv5", "endpoints": []}), "addressType"),
        (
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["x"]}]}),
            "endpoints[0].addresses[0]",
        ),
        (
            json!({"addressType": "IPv6", "endpoints": [{"addresses": ["10.0.0.1"]}]}),
            "endpoints[0].addresses[0]",
        ),
        (
            json!({"addressType": "IPv4", "endpoints": [], "ports": [{"port": 65536}]}),
            "ports[0].port",
        ),
        (
            json!({"addressType": "IPv4", "endpoints": [], "ports": [{"port": 1, "protocol": "X"}]}),
            "ports[0].protocol",
        ),
    ] {
        let mut object = json!({"metadata": {"name": "web-a"}});
        object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let error = convert::endpoint_slice(&serde_json::from_value(object).unwrap()).unwrap_err();
        assert_eq!(error.path, path);
    }
    // names of hosts are somebody else's
    let object = json!({"metadata": {"name": "x"}, "addressType": "FQDN", "endpoints": [{"addresses": ["a.b"]}]});
    let slice = convert::endpoint_slice(&serde_json::from_value(object).unwrap()).unwrap();
    assert!(slice.endpoints.is_empty());
}

#[test]
fn a_port_0_is_left_out_and_the_others_of_its_slice_are_used() {
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let table = table(vec![
        service("web", json!({"clusterIP": "10.96.0.1", "ports": ports})),
        slice(
            "web-a",
            "web",
            json!([{"name": "a", "port": 0}, {"name": "b", "port": 8081}]),
            &[("10.0.0.1", "ready", "")],
        ),
    ]);
    assert_eq!(spell(&table), ["10.96.0.1:81/TCP -> 10.0.0.1:8081"]);
}

#[test]
fn kube_proxys_two_selectors_are_two() {
    let labelled = |kind: &str, label: &str| {
        let label = format!("service.kubernetes.io/{label}");
        let of = |is: bool, own: Value| match is {
            true => json!({"kubernetes.io/service-name": "web", &label: ""}),
            false => own,
        };
        let service = json!({
            "metadata": {"namespace": "shop", "name": "web", "labels": of(kind == "service", json!({}))},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
        });
        let plain = json!({"kubernetes.io/service-name": "web"});
        let slice = json!({
            "metadata": {"namespace": "shop", "name": "web-a", "labels": of(kind == "slice", plain)},
            "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}],
        });
        spell(&table(vec![
            Event::from(convert::service(&serde_json::from_value(service).unwrap()).unwrap()),
            Event::from(convert::endpoint_slice(&serde_json::from_value(slice).unwrap()).unwrap()),
        ]))
    };
    let led = ["10.96.0.1:80/TCP -> 10.0.0.1:80"];
    assert_eq!(labelled("service", "headless"), led);
    assert_eq!(labelled("slice", "service-proxy-name"), led);
    assert!(labelled("slice", "headless").is_empty());
    assert!(labelled("service", "service-proxy-name").is_empty());
}

#[test]
fn the_first_by_name_has_a_disputed_frontend() {
    let mut index = Index::new();
    let one = |name| service(name, json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    for change in [
        one("b"),
        one("a"),
        slice("a-0", "a", http(1), &[("10.0.0.1", "ready", "")]),
        slice("b-0", "b", http(2), &[("10.0.0.2", "ready", "")]),
    ] {
        index.apply(change);
    }
    let mut table = ServiceTable::new(NODE);
    table.follow(index.services_mut());
    assert_eq!(spell(&table), ["10.96.0.1:80/TCP -> 10.0.0.1:1"]);
    let disputes: Vec<String> = table.disputes().map(|dispute| dispute.to_string()).collect();
    assert_eq!(disputes.len(), 1);
    assert!(
        disputes[0].starts_with("service shop/a: 10.96.0.1:80/TCP is also claimed by shop/b: "),
        "{disputes:?}"
    );
    assert_eq!(table.of_service(&ObjectKey::new("shop", "b")).count(), 0);

    assert_eq!(table.take_changes().len(), 1);
    index.apply(slice("b-0", "b", http(3), &[("10.0.0.2", "ready", "")]));
    table.follow(index.services_mut());
    assert!(table.take_changes().is_empty(), "the loser's endpoints are nobody's business");
    index.apply(Event::Gone(ObjectId::Service(ObjectKey::new("shop", "a"))));
    table.follow(index.services_mut());
    assert_eq!(table.take_changes().len(), 1);
    assert_eq!(spell(&table), ["10.96.0.1:80/TCP -> 10.0.0.2:3"]);
    assert_eq!(table.disputes().count(), 0);
}

/// The own node's zone.
type Zone = Option<&'static str>;

/// Objects of a small world, and where the node is after each, so that they collide: the same services, slices and addresses again and again.
fn changes() -> impl Strategy<Value = Vec<(Event, Zone)>> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let address = prop::sample::select(vec!["10.96.0.1", "10.96.0.2", "fd00:96::1", "None", ""]);
    let port =
        (prop::sample::select(vec!["", "x"]), prop::sample::select(vec!["TCP", "UDP"]), 80u16..82);
    let ports = prop::collection::vec(port, 0..3);
    let set = (name.clone(), address, ports, any::<bool>(), any::<bool>()).prop_map(
        |(name, address, ports, local, external)| {
            let ports: Vec<Value> = ports
                .iter()
                .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
                .collect();
            let policy = if local { "Local" } else { "Cluster" };
            let external = if external { vec!["1.2.3.4"] } else { Vec::new() };
            service(name, json!({
                "clusterIP": address, "ports": ports, "internalTrafficPolicy": policy, "externalIPs": external,
            }))
        },
    );
    let state = prop::sample::select(vec!["ready", "draining", "serving", "unready"]);
    let at = prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let endpoint = (at, state, prop::sample::select(vec![NODE, "there"]));
    // hints on few endpoints are as good as none
    let hints = (
        prop::sample::select(vec!["", NODE, "there", "there"]),
        prop::sample::select(vec!["", "z1", "z1", "z2", "z2"]),
    );
    let endpoints = prop::collection::vec((endpoint, hints), 0..4);
    let slices = prop::sample::select(vec!["s", "t", "u"]);
    let fill = (slices.clone(), name.clone(), endpoints, 1u16..3, any::<bool>()).prop_map(
        |(slice_name, of, endpoints, number, named)| {
            let ports = json!([
                {"name": if named { "x" } else { "" }, "protocol": "TCP", "port": number},
                {"name": "", "protocol": "UDP", "port": number},
            ]);
            hinted_slice(slice_name, of, ports, &endpoints)
        },
    );
    let gone = name.prop_map(|name| Event::Gone(ObjectId::Service(ObjectKey::new("shop", name))));
    let emptied =
        slices.prop_map(|name| Event::Gone(ObjectId::EndpointSlice(ObjectKey::new("shop", name))));
    let change = prop_oneof![4 => set, 5 => fill, 1 => gone, 1 => emptied];
    let zone = prop::sample::select(vec![None, Some("z1"), Some("z1"), Some("z2")]);
    prop::collection::vec((change, zone), 0..20)
}

/// The same, as naively as can be: for each address, port and protocol anybody could ask for.
fn naive(
    index: &Index,
    zone: Zone,
    frontend: Frontend,
) -> Option<BTreeMap<(std::net::IpAddr, u16), bool>> {
    use podgate_policy::model::{Condition, TopologyHints, TrafficPolicy};
    let catalog = index.services();
    let claims = |service: &&std::sync::Arc<podgate_policy::model::Service>| {
        let cluster = service.addressing.cluster();
        !cluster.is_empty()
            && (cluster.contains(&frontend.address) || service.external.contains(&frontend.address))
            && service
                .ports
                .iter()
                .any(|p| (p.port, p.protocol) == (frontend.port, frontend.protocol))
    };
    let service = catalog.services().find(claims)?;
    // of two ports with one number the last one counts
    let port = service
        .ports
        .iter()
        .rev()
        .find(|p| (p.port, p.protocol) == (frontend.port, frontend.protocol))?;
    let local = service.addressing.cluster().contains(&frontend.address)
        && service.internal == TrafficPolicy::Local;
    let mut found: BTreeMap<(std::net::IpAddr, u16), Vec<(Condition, &TopologyHints)>> =
        BTreeMap::new();
    for slice in catalog.slices().filter(|slice| slice.service_key().as_ref() == Some(&service.key))
    {
        for of in
            slice.ports.iter().filter(|of| of.name == port.name && of.protocol == port.protocol)
        {
            for endpoint in &slice.endpoints {
                let family = endpoint.address.is_ipv4() == frontend.address.is_ipv4();
                if family && (!local || endpoint.node.as_deref() == Some(NODE)) {
                    found
                        .entry((endpoint.address, of.number))
                        .or_default()
                        .push((endpoint.condition, &*endpoint.hints));
                }
            }
        }
    }
    let any = |of: Condition| found.values().flatten().any(|(condition, _)| *condition == of);
    let picked = match (any(Condition::Ready), any(Condition::Draining)) {
        (true, _) => Condition::Ready,
        (false, true) => Condition::Draining,
        _ => return None,
    };
    // whom the ready entries of each backend are for
    type Names = std::collections::BTreeSet<String>;
    let names = |of: fn(&TopologyHints) -> &Vec<std::sync::Arc<str>>| -> BTreeMap<_, Names> {
        let ready = |seen: &Vec<(Condition, &TopologyHints)>| {
            let ready = seen.iter().filter(|(condition, _)| *condition == Condition::Ready);
            ready.flat_map(|(_, hints)| of(hints)).map(ToString::to_string).collect::<Names>()
        };
        let is_ready = |seen: &Vec<(Condition, &TopologyHints)>| {
            seen.iter().any(|(condition, _)| *condition == Condition::Ready)
        };
        let backends = found.iter().filter(|(_, seen)| is_ready(seen));
        backends.map(|(backend, seen)| (*backend, ready(seen))).collect()
    };
    let kinds = [(names(|hints| &hints.nodes), Some(NODE)), (names(|hints| &hints.zones), zone)];
    let in_force = kinds.iter().find(|(names, here)| {
        let all = names.values().all(|names| !names.is_empty());
        let one = here.is_some_and(|here| names.values().any(|names| names.contains(here)));
        !local && all && one
    });
    let is_here = |backend: &(std::net::IpAddr, u16)| match in_force {
        Some((names, Some(here))) => names.get(backend).is_some_and(|names| names.contains(*here)),
        _ => true,
    };
    let mut all = BTreeMap::new();
    for (backend, seen) in &found {
        let is = |of: Condition| seen.iter().any(|(condition, _)| *condition == of);
        if is(Condition::Ready) || is(Condition::Draining) || is(Condition::Serving) {
            all.insert(*backend, is(picked) && is_here(backend));
        }
    }
    Some(all)
}

fn every_frontend() -> impl Iterator<Item = Frontend> {
    let addresses = ["10.96.0.1", "10.96.0.2", "fd00:96::1", "1.2.3.4"];
    let protocols = [Protocol::Tcp, Protocol::Udp];
    addresses.into_iter().flat_map(move |address| {
        let address = address.parse().unwrap();
        protocols.into_iter().flat_map(move |protocol| {
            (80..82).map(move |port| Frontend { address, port, protocol })
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Following events gives what a fresh build gives, which is what the naive reading gives; and the changes
    /// that are told, applied to what was known, are the new state.
    #[test]
    fn any_events_lead_to_what_a_fresh_build_and_a_naive_reading_say(changes in changes()) {
        let mut index = Index::new();
        let mut table = ServiceTable::new(NODE);
        let mut mirror = BTreeMap::new();
        for (change, zone) in changes {
            index.apply(change);
            table.set_zone(index.services(), zone.map(Into::into));
            table.follow(index.services_mut());
            for frontend in table.take_changes() {
                match table.get(&frontend) {
                    Some(balance) => mirror.insert(frontend, balance.clone()),
                    None => mirror.remove(&frontend),
                };
            }
            let mut fresh = ServiceTable::of(index.services(), NODE);
            fresh.set_zone(index.services(), zone.map(Into::into));
            prop_assert_eq!(spell(&table), spell(&fresh));
            let now: BTreeMap<_, _> = table.iter().map(|(frontend, of)| (frontend, of.clone())).collect();
            prop_assert_eq!(&mirror, &now);
            for frontend in every_frontend() {
                let found = table.get(&frontend).map(|balance| {
                    balance.backends.iter()
                        .map(|(b, state)| ((b.address, b.port), *state == BackendState::Ready))
                        .collect::<BTreeMap<_, _>>()
                });
                prop_assert_eq!(found, naive(&index, zone, frontend), "{}", frontend);
            }
        }
    }
}
