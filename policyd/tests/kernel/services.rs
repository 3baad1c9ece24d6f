//! Services reach the maps, and what cannot be written is reported.

use std::collections::{BTreeMap, BTreeSet};

use podgate_bpf::abi::BackendState;
use podgate_bpf::loader::Sizes;
use podgate_bpf::services::{Frontend, ServiceEntry};
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use serde_json::Value;

use crate::node::{Node, on_a_node, on_a_node_of, pod};
use crate::untranslated_services::lets;

fn service(name: &str, address: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: {name}}}\n\
         spec: {{clusterIP: {address}, ports: [{{port: 80, targetPort: 8080}}]{more}}}\n---\n"
    )
}

/// `endpoints`: an address and its conditions, as in "10.0.0.1 {ready: false}".
fn slice(service: &str, endpoints: &[&str]) -> String {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|endpoint| {
            let (address, conditions) = endpoint.split_once(' ').unwrap_or((endpoint, "{}"));
            format!("{{addresses: [{address}], conditions: {conditions}}}")
        })
        .collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{namespace: shop, name: {service}-x, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         ports: [{{port: 8080}}]\nendpoints: [{}]\n---\n",
        endpoints.join(", ")
    )
}

fn frontend(address: &str) -> Frontend {
    Frontend { address: address.parse().unwrap(), port: 80, protocol: 6 }
}

fn entry(node: &Node, address: &str) -> Option<ServiceEntry> {
    node.maps().services().services().unwrap().get(&frontend(address)).copied()
}

/// What may be picked, and what keeps the flows it has.
fn endpoints(node: &Node, address: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let Some(entry) = entry(node, address) else { return Default::default() };
    let slots = node.maps().services().slots().unwrap();
    let picked = (0..entry.count).map(|slot| slots[&(entry.id, slot)].address.to_string());
    let backends = node.maps().services().backends().unwrap();
    let serving = backends
        .iter()
        .filter(|((id, _), state)| *id == entry.id && **state == BackendState::Serving)
        .map(|((_, backend), _)| backend.address.to_string());
    (picked.collect(), serving.collect())
}

fn becomes(node: &Node, address: &str, picked: &[&str], serving: &[&str]) {
    let set = |of: &[&str]| of.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    eventually(&format!("{address} leads to {picked:?} and {serving:?}"), || {
        (endpoints(node, address) == (set(picked), set(serving))).then_some(())
    });
}

#[test]
fn slices_fill_the_maps_and_nothing_is_left_behind() {
    on_a_node(|node| {
        node.manifest("web.yaml", &service("web", "10.96.0.1", ", sessionAffinity: ClientIP"));
        node.manifest("slice.yaml", &slice("web", &["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
        let _policyd = node.policyd();
        node.ready();
        becomes(node, "10.96.0.1", &["10.0.0.1", "10.0.0.2", "10.0.0.3"], &[]);
        let first = entry(node, "10.96.0.1").unwrap();
        assert_eq!(first.count, 3);
        assert_eq!(first.affinity.map(|of| of.seconds.get()), Some(10_800));
        let epoch = node.maps().control().epoch();

        let draining = "10.0.0.1 {ready: false, serving: true, terminating: true}";
        node.manifest("slice.yaml", &slice("web", &[draining, "10.0.0.3"]));
        becomes(node, "10.96.0.1", &["10.0.0.3"], &["10.0.0.1"]);
        assert_eq!(entry(node, "10.96.0.1").unwrap().id, first.id);
        eventually("flows are told", || (node.maps().control().epoch() > epoch).then_some(()));
        // what no count takes in goes at an idle moment
        eventually("old slots are gone", || {
            (node.maps().services().slots().unwrap().len() == 1).then_some(())
        });

        node.manifest("slice.yaml", &slice("web", &["10.0.0.3 {ready: false, serving: false}"]));
        eventually("it is left alone", || entry(node, "10.96.0.1").is_none().then_some(()));
        node.manifest("slice.yaml", &slice("web", &["10.0.0.4"]));
        becomes(node, "10.96.0.1", &["10.0.0.4"], &[]);
        assert!(entry(node, "10.96.0.1").unwrap().id > first.id, "an id is of one life");

        node.manifest("web.yaml", "");
        node.manifest("slice.yaml", "");
        let maps = node.maps().services();
        eventually("nothing is left", || {
            let left = maps.services().unwrap().len()
                + maps.slots().unwrap().len()
                + maps.backends().unwrap().len();
            (left == 0).then_some(())
        });
    });
}

#[test]
fn a_restart_keeps_ids_and_removes_what_has_gone_meanwhile() {
    on_a_node(|node| {
        let both = service("api", "10.96.0.2", "") + &service("web", "10.96.0.1", "");
        node.manifest("services.yaml", &both);
        node.manifest("slice.yaml", &(slice("web", &["10.0.0.1"]) + &slice("api", &["10.0.0.2"])));
        let policyd = node.policyd();
        node.ready();
        becomes(node, "10.96.0.2", &["10.0.0.2"], &[]);
        let kept = entry(node, "10.96.0.1").unwrap();
        policyd.kill();

        node.manifest("services.yaml", &service("web", "10.96.0.1", ""));
        node.manifest("slice.yaml", &slice("web", &["10.0.0.1", "10.0.0.9"]));
        let _policyd = node.policyd();
        node.ready();
        becomes(node, "10.96.0.1", &["10.0.0.1", "10.0.0.9"], &[]);
        assert_eq!(entry(node, "10.96.0.1").unwrap().id, kept.id);
        assert_eq!(entry(node, "10.96.0.2"), None);
        eventually("the other's endpoints are gone", || {
            (node.maps().services().backends().unwrap().len() == 2).then_some(())
        });
    });
}

#[test]
fn a_full_map_leaves_the_service_as_it_was_and_is_told() {
    let sizes = Sizes { backends: 4, flows4: 1024, flows6: 1024, ..Sizes::default() };
    on_a_node_of(&sizes, |node| {
        node.manifest(
            "web.yaml",
            &(service("web", "10.96.0.1", "") + &slice("web", &["10.0.0.1"])),
        );
        let _policyd = node.policyd();
        node.ready();
        becomes(node, "10.96.0.1", &["10.0.0.1"], &[]);
        let many: Vec<_> = (1..=6).map(|n| format!("10.0.1.{n}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        node.manifest("big.yaml", &(service("big", "10.96.0.9", "") + &slice("big", &many)));
        let problem = eventually("it is told", || {
            let problems = node.get("/v1/status")["problems"].to_string();
            problems.contains("shop/big on 10.96.0.9:80/TCP").then_some(problems)
        });
        assert!(problem.contains("it stays as it was, retrying"), "{problem}");
        assert_eq!(entry(node, "10.96.0.9"), None);
        assert_eq!(endpoints(node, "10.96.0.1").0.len(), 1);
        let listed = node.get("/v1/services");
        assert_eq!((&listed[0]["name"], &listed[0]["state"]), (&"big".into(), &"degraded".into()));
        // room again
        node.manifest("big.yaml", &(service("big", "10.96.0.9", "") + &slice("big", &many[..2])));
        becomes(node, "10.96.0.9", &many[..2], &[]);
        eventually("nothing is told any more", || {
            let problems = node.get("/v1/status")["problems"].to_string();
            (!problems.contains("shop/big")).then_some(())
        });
    });
}

#[test]
fn the_api_tells_what_pods_reach_by_a_service() {
    on_a_node(|node| {
        let pods = [
            pod("shop/web", "app: web", "10.0.0.1"),
            pod("shop/api-1", "app: api", "10.0.0.2"),
            pod("shop/api-2", "app: api, sealed: 'yes'", "10.0.0.3"),
        ];
        node.manifest("pods.yaml", &pods.concat());
        node.manifest("api.yaml", &service("api", "10.96.0.1", ", selector: {app: api}"));
        node.manifest("none.yaml", &service("none", "10.96.0.2", ""));
        node.manifest(
            "policy.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: sealed}\n\
             spec: {podSelector: {matchLabels: {sealed: 'yes'}}}\n",
        );
        let _web = node.endpoint("shop/web", "10.0.0.1");
        let _policyd = node.policyd();
        node.ready();
        becomes(node, "10.96.0.1", &["10.0.0.2", "10.0.0.3"], &[]);
        let listed = node.get("/v1/services");
        let states: BTreeMap<&str, &str> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|item| (item["name"].as_str().unwrap(), item["state"].as_str().unwrap()))
            .collect();
        assert_eq!(states, [("api", "translated"), ("none", "alone")].into());
        assert_eq!(listed[0]["endpoints"][1]["pod"], "shop/api-2");
        assert_eq!(listed[0]["endpoints"][1]["port"], 8080);

        let ask = |to: &str, port: u16| {
            node.http("GET", &format!("/v1/explain?from=shop/web&to={to}&port={port}"), "")
        };
        for to in ["svc:shop/api", "10.96.0.1"] {
            let (status, answer) = ask(to, 80);
            assert_eq!((status, &answer["verdict"]), (200, &Value::from("mixed")), "{answer}");
            let why = answer["why"].as_str().unwrap();
            assert!(
                why.starts_with("it depends on the endpoint: allowed to shop/api-1 (10.0.0.2:8080); to shop/api-2 (10.0.0.3:8080): denied at "),
                "{answer}"
            );
            assert_eq!(answer["endpoints"].as_array().unwrap().len(), 2);
        }
        assert_eq!(ask("svc:shop/none", 80).1["verdict"], "deny");
        let (status, answer) = ask("svc:shop/api", 81);
        assert_eq!((status, &answer["field"]), (422, &Value::from("port")), "{answer}");
        assert_eq!(ask("svc:shop/nobody", 80).0, 422);
        // an address that is no frontend is an address
        assert_eq!(ask("10.96.0.1", 81).1["verdict"], "allow");

        let metrics = metrics();
        for line in ["{kind=\"service\"} 2", "{kind=\"frontend\"} 1", "{kind=\"backend\"} 2"] {
            assert!(metrics.contains(&format!("podgate_services{line}")), "{metrics}");
        }
    });
}

#[test]
fn services_left_alone_are_allowed_if_every_endpoint_is() {
    on_a_node(|node| {
        let pods = [
            pod("shop/web", "app: web", "10.0.0.1"),
            pod("shop/free", "app: free", "10.0.0.9"),
            pod("shop/api-1", "app: api", "10.0.0.2"),
            pod("shop/api-2", "app: api, old: 'yes'", "10.0.0.3"),
        ];
        node.manifest("pods.yaml", &pods.concat());
        node.manifest("api.yaml", &service("api", "10.96.0.1", ", selector: {app: api}"));
        let egress = |rule: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: web}}\n\
                 spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{rule}]}}\n"
            )
        };
        // the port of the pods, not of the service; and everybody on port 80, which is the service's alone
        let pods_of = |label: &str| {
            format!(
                "{{to: [{{podSelector: {{matchLabels: {{{label}}}}}}}], ports: [{{port: 8080}}]}}"
            )
        };
        node.manifest("policy.yaml", &egress(&pods_of("app: api")));
        let (web, free) =
            (node.endpoint("shop/web", "10.0.0.1"), node.endpoint("shop/free", "10.0.0.9"));
        let translating = node.policyd();
        node.ready();
        assert!(entry(node, "10.96.0.1").is_some() && !lets(node, &web, 80));
        translating.kill();

        let leaving = node.policyd_with(&["--services", "leave"]);
        node.ready();
        eventually("its maps are emptied", || entry(node, "10.96.0.1").is_none().then_some(()));
        assert!(lets(node, &web, 80) && lets(node, &free, 80));
        assert!(!lets(node, &web, 8080), "that is the pods' port");
        assert_eq!(node.get("/v1/services")[0]["state"], "alone");

        // one of the two endpoints: not the service, whatever a rule for everybody says of its port
        for rule in [pods_of("old: 'yes'"), "{ports: [{port: 80}]}".to_owned()] {
            node.manifest("policy.yaml", &egress(&rule));
            eventually(&format!("{rule} denies"), || (!lets(node, &web, 80)).then_some(()));
            node.manifest("policy.yaml", &egress(&pods_of("app: api")));
            eventually("both are allowed", || lets(node, &web, 80).then_some(()));
        }
        // the other endpoint goes away, and what is left is allowed
        node.manifest("policy.yaml", &egress(&pods_of("old: 'yes'")));
        eventually("one is not allowed", || (!lets(node, &web, 80)).then_some(()));
        node.manifest("pods.yaml", &[&pods[0..2], &pods[3..]].concat().concat());
        eventually("the other is", || lets(node, &web, 80).then_some(()));
        leaving.kill();

        let _again = node.policyd();
        node.ready();
        becomes(node, "10.96.0.1", &["10.0.0.3"], &[]);
        assert!(!lets(node, &web, 80) && lets(node, &free, 80));
        let left = node
            .maps()
            .peers()
            .unwrap()
            .into_values()
            .filter(|class| podgate_policy::tables::Class(*class).is_vip());
        assert_eq!(left.count(), 0);
    });
}

fn metrics() -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect("127.0.0.1:9898").unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
