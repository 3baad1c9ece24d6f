//! Services and the addresses of nodes: node ports, and services' addresses that are on the node.

use podgate_bpf::abi::Direction;
use podgate_bpf::maps::Registration;
use podgate_bpf::services::Frontend;
use podgate_testkit::wait::eventually;

use crate::node::{Node, ip, never, on_a_node, pod};
use crate::untranslated_services::{allows, lets_to};

/// Everything but pods, which is 10.0.0.0/16 here.
const ALL_BUT_PODS: &str = "{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/16]}}";
const API: &str = "{podSelector: {matchLabels: {app: api}}}";
const NODE: &str = "172.30.0.1";
const DNS: &str = "10.96.0.10";
const UDP: u8 = 17;

fn egress(app: &str, to: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: {app}}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Egress], egress: [{{to: [{to}]}}]}}\n---\n"
    )
}

/// A service of the pods `api`, whose port 8080 it is.
fn service(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: api{metadata}}}\n\
         spec: {{selector: {{app: api}}, {spec}}}\n---\n"
    )
}

/// Two pods: `near` may reach everything but pods, `far` the pods `api` and nothing else.
fn pods(node: &Node) -> (Registration, Registration) {
    let api =
        pod("shop/api", "app: api", "10.0.0.3").replace("podIP:", "hostIP: 172.30.0.2, podIP:");
    let pods =
        [pod("shop/near", "app: near", "10.0.0.1"), pod("shop/far", "app: far", "10.0.0.2"), api];
    node.manifest("pods.yaml", &pods.concat());
    node.manifest("near.yaml", &egress("near", ALL_BUT_PODS));
    node.manifest("far.yaml", &egress("far", API));
    (node.endpoint("shop/near", "10.0.0.1"), node.endpoint("shop/far", "10.0.0.2"))
}

/// The API's verdict on a packet of one of the two.
fn explained(node: &Node, from: &str, to: &str, port: &str) -> String {
    let answer = node.get(&format!("/v1/explain?from=shop/{from}&to={to}&{port}"));
    answer["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn s10_16_hints_for_another_zone_leave_an_endpoint_out_until_the_node_is_there() {
    on_a_node(|node| {
        let hinted = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: hinted}\n\
            spec: {clusterIP: 10.96.0.3, ports: [{port: 80}], trafficDistribution: PreferClose}\n---\n\
            apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
            metadata: {namespace: shop, name: hinted-a, labels: {kubernetes.io/service-name: hinted}}\n\
            ports: [{port: 80}]\nendpoints:\n\
            - {addresses: [10.0.0.8], hints: {forZones: [{name: z1}]}}\n\
            - {addresses: [10.0.0.9], hints: {forZones: [{name: z2}]}}\n";
        let labelled = |zone: &str| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
            )
        };
        node.manifest("api.yaml", hinted);
        node.manifest("node.yaml", &labelled("z1"));
        pods(node);
        let _policyd = node.policyd();
        node.ready();
        let picked = || {
            let services = node.get("/v1/services");
            let endpoints = services[0]["endpoints"].as_array().unwrap().clone();
            let states = endpoints.iter().map(|of| of["state"].as_str().unwrap().to_owned());
            states.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(picked(), "ready serving");
        let note = "trafficDistribution PreferClose: the hints in the slices decide, which are made from it";
        assert_eq!(node.get("/v1/services")[0]["notes"][0], note);
        node.manifest("node.yaml", &labelled("z2"));
        eventually("the other zone's endpoint is picked", || picked() == "serving ready");
        node.manifest("node.yaml", &labelled("z3"));
        eventually("both endpoints are picked", || picked() == "ready ready");
    });
}

fn is_translated(node: &Node, address: &str, port: u16, protocol: u8) -> bool {
    let frontend = Frontend { address: address.parse().unwrap(), port, protocol };
    node.maps().services().services().unwrap().contains_key(&frontend)
}

#[test]
fn node_ports_are_judged_by_their_endpoints_at_every_nodes_address() {
    on_a_node(|node| {
        ip(&format!("address add {NODE}/24 dev lo"));
        let (near, far) = pods(node);
        let ports = |ports: &str| {
            node.manifest(
                "api.yaml",
                &service("", &format!("clusterIP: 10.96.0.1, type: NodePort, ports: [{ports}]")),
            );
        };
        ports("{name: a, port: 80, targetPort: 8080, nodePort: 30080}");
        // what policy says of nodes holds for all of their other ports, in both directions
        node.manifest(
            "nodes.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: nodes}\n\
             spec: {podSelector: {matchLabels: {app: far}}, policyTypes: [Ingress, Egress], \
             ingress: [{from: [{ipBlock: {cidr: 172.30.0.0/24}}]}], \
             egress: [{to: [{ipBlock: {cidr: 172.30.0.0/24}}], ports: [{port: 30000, endPort: 30090}]}]}\n",
        );
        let _policyd = node.policyd();
        node.ready();
        eventually("node ports are answered for", || {
            (!lets_to(node, &near, NODE, 6, 30080)).then_some(())
        });
        for node_address in [NODE, "172.30.0.2"] {
            assert!(!lets_to(node, &near, node_address, 6, 30080), "{node_address}");
            assert!(lets_to(node, &far, node_address, 6, 30080), "{node_address}");
            for (port, is_far) in [(30081, true), (30090, true), (30091, false)] {
                assert!(lets_to(node, &near, node_address, 6, port), "{node_address} {port}");
                assert_eq!(
                    lets_to(node, &far, node_address, 6, port),
                    is_far,
                    "{node_address} {port}"
                );
            }
            assert!(lets_to(node, &near, node_address, UDP, 30080));
            assert!(allows(node, &far, (Direction::Ingress, node_address), 6, 1));
            assert!(!allows(node, &far, (Direction::Ingress, "172.30.1.1"), 6, 1));
        }
        assert!(lets_to(node, &near, "172.30.0.3", 6, 30080), "it is no node's");
        for (from, to, verdict) in
            [("near", NODE, "deny"), ("far", NODE, "allow"), ("near", "172.30.0.3", "allow")]
        {
            assert_eq!(explained(node, from, to, "port=30080"), verdict, "{from} {to}");
        }
        let class = |address: &str| node.class(address.parse().unwrap());
        assert_eq!(class(NODE), class("172.30.0.2"), "nodes share their answers");

        ip("address add 192.0.2.9/32 dev lo");
        eventually("a new address of the node is answered for", || {
            (!lets_to(node, &near, "192.0.2.9", 6, 30080)).then_some(())
        });
        assert!(lets_to(node, &near, "192.0.2.9", 6, 30081));
        ip("address del 192.0.2.9/32 dev lo");
        eventually("it goes", || lets_to(node, &near, "192.0.2.9", 6, 30080).then_some(()));

        // a policy that comes later, and a port
        node.manifest("far.yaml", &egress("far", "{podSelector: {matchLabels: {app: none}}}"));
        eventually("the endpoint is denied, though the node's address is not", || {
            (!lets_to(node, &far, NODE, 6, 30080)).then_some(())
        });
        assert!(lets_to(node, &far, NODE, 6, 30081));
        ports("{name: a, port: 80, targetPort: 8080, nodePort: 30081}");
        eventually("the port moves", || (!lets_to(node, &near, NODE, 6, 30081)).then_some(()));
        eventually("and is the node's again", || {
            lets_to(node, &near, NODE, 6, 30080).then_some(())
        });

        let late = node.endpoint("shop/near", "10.0.0.1");
        node.add(&[&late]);
        assert!(!lets_to(node, &late, NODE, 6, 30081), "from its first policy on");

        node.manifest("api.yaml", "");
        eventually("nothing is left", || {
            let peers = node.maps().peers().unwrap();
            peers.values().all(|class| *class < 0xf800_0000).then_some(())
        });
        for endpoint in [&near, &far, &late] {
            let table = node.maps().policy_map(endpoint.ifindex).unwrap().unwrap();
            assert!(table.entries().unwrap().iter().all(|(key, _)| key.class < 0xf800_0000));
        }
    });
}

#[test]
fn what_another_proxy_or_a_range_keeps_from_the_gate_is_judged_by_its_endpoints() {
    on_a_node(|node| {
        let (near, far) = pods(node);
        let label = ", labels: {service.kubernetes.io/service-proxy-name: \"\"}";
        let ports = "ports: [{port: 80, targetPort: 8080}]";
        node.manifest("api.yaml", &service(label, &format!("clusterIP: 10.96.0.1, {ports}")));
        let ranged = |ranges: &str| {
            let spec = format!(
                "clusterIP: 10.96.0.2, type: LoadBalancer, loadBalancerSourceRanges: [{ranges}], {ports}"
            );
            let service = service("", &spec).replace("name: api}", "name: balanced}");
            let status = "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";
            node.manifest("balanced.yaml", &service.replace("---\n", status));
        };
        ranged("10.0.0.0/24");
        let _policyd = node.policyd();
        node.ready();
        for address in ["10.96.0.1", "192.0.2.1"] {
            assert!(!is_translated(node, address, 80, 6));
            assert!(
                !lets_to(node, &near, address, 6, 80) && lets_to(node, &far, address, 6, 80),
                "{address}"
            );
            assert!(lets_to(node, &near, address, 6, 81), "{address}: no service's port");
        }
        assert!(is_translated(node, "10.96.0.2", 80, 6));
        let services = node.get("/v1/services");
        let told = |address: &str| {
            let mut of = services.as_array().unwrap().iter();
            let found = of.find(|of| of["address"] == address).unwrap();
            let pod = found["endpoints"][0]["pod"].as_str().unwrap_or_default().to_owned();
            (found["state"].clone(), found["reason"].as_str().unwrap_or_default().to_owned(), pod)
        };
        let (state, reason, owner) = told("10.96.0.1");
        assert_eq!((state, owner), ("alone".into(), "shop/api".into()));
        assert!(
            reason.starts_with("label service-proxy-name: another proxy translates"),
            "{reason}"
        );
        let (state, reason, owner) = told("192.0.2.1");
        assert_eq!((state, owner), ("alone".into(), "shop/api".into()));
        assert!(reason.starts_with("loadBalancerSourceRanges: kube-proxy translates"), "{reason}");
        assert_eq!(told("10.96.0.2").0, "translated");
        for (from, to, verdict) in [
            ("near", "192.0.2.1", "deny"),
            ("far", "192.0.2.1", "allow"),
            ("near", "10.96.0.1", "deny"),
            ("far", "svc:shop/api", "allow"),
        ] {
            assert_eq!(explained(node, from, to, "port=80"), verdict, "{from} {to}");
        }
        ranged("10.0.1.0/24");
        eventually("who is in no range is denied", || {
            (!lets_to(node, &far, "192.0.2.1", 6, 80)).then_some(())
        });
        assert_eq!(explained(node, "far", "192.0.2.1", "port=80"), "deny");
        ranged("10.0.0.2/32");
        eventually("who is in one is not", || {
            lets_to(node, &far, "192.0.2.1", 6, 80).then_some(())
        });

        node.manifest("api.yaml", &service("", &format!("clusterIP: 10.96.0.1, {ports}")));
        eventually("without the label it is translated", || {
            is_translated(node, "10.96.0.1", 80, 6).then_some(())
        });
        eventually("and no more answered for", || {
            (node.class("10.96.0.1".parse().unwrap()) < 0xf800_0000).then_some(())
        });
        // the last endpoint goes: kube-proxy may not know that yet
        node.manifest("pods.yaml", &pod("shop/near", "app: near", "10.0.0.1"));
        eventually("it is not judged by its address", || {
            (!lets_to(node, &near, "10.96.0.1", 6, 80)).then_some(())
        });
        assert!(!is_translated(node, "10.96.0.1", 80, 6));
    });
}

fn dns() -> String {
    service("", "clusterIP: 10.96.0.10, ports: [{protocol: UDP, port: 53, targetPort: 5353}]")
}

#[test]
fn an_address_that_comes_to_the_node_and_goes_is_always_allowed_as_policy_says() {
    on_a_node(|node| {
        let (near, far) = pods(node);
        node.manifest("dns.yaml", &dns());
        let _policyd = node.policyd();
        node.ready();
        assert!(is_translated(node, DNS, 53, UDP));
        // translated, or answered for: never neither
        // the second look is for what has changed between the first two
        let translated = || is_translated(node, DNS, 53, UDP);
        let passes =
            |pod: &Registration| translated() || lets_to(node, pod, DNS, UDP, 53) || translated();
        for _ in 0..5 {
            never(
                || !passes(&far) || !passes(&near),
                || {
                    ip("link add nodelocaldns type bridge");
                    ip(&format!("address add {DNS}/32 dev nodelocaldns"));
                    eventually("it is not translated", || {
                        (!is_translated(node, DNS, 53, UDP)).then_some(())
                    });
                    assert!(lets_to(node, &near, DNS, UDP, 53), "by the address");
                    assert!(lets_to(node, &far, DNS, UDP, 53), "by the endpoints");
                    for from in ["near", "far"] {
                        assert_eq!(explained(node, from, DNS, "port=53&protocol=UDP"), "allow");
                    }
                    assert!(
                        !lets_to(node, &far, DNS, UDP, 54) && lets_to(node, &near, DNS, UDP, 54)
                    );
                    ip("link del nodelocaldns");
                    eventually("it is translated", || {
                        is_translated(node, DNS, 53, UDP).then_some(())
                    });
                    eventually("and no more answered for", || {
                        (node.class(DNS.parse().unwrap()) < 0xf800_0000).then_some(())
                    });
                },
            );
        }
    });
}

#[test]
fn a_restart_finds_the_services_addresses_on_the_node_before_it_translates() {
    on_a_node(|node| {
        let (_, far) = pods(node);
        node.manifest("dns.yaml", &dns());
        ip(&format!("address add {DNS}/32 dev lo"));
        for _ in 0..2 {
            let wrong = || is_translated(node, DNS, 53, UDP);
            never(wrong, || {
                let policyd = node.policyd();
                node.ready();
                assert!(lets_to(node, &far, DNS, UDP, 53));
                policyd.kill();
            });
        }
    });
}

#[test]
fn addresses_that_kube_proxy_has_on_an_interface_of_its_own_are_translated() {
    on_a_node(|node| {
        ip("link add kube-ipvs0 type bridge");
        ip(&format!("address add {DNS}/32 dev kube-ipvs0"));
        let (near, _) = pods(node);
        node.manifest("dns.yaml", &dns());
        node.manifest("api.yaml", "");
        let _policyd = node.policyd();
        node.ready();
        assert!(is_translated(node, DNS, 53, UDP));
        // also after the first look by netlink
        ip("address add 192.0.2.9/32 dev lo");
        eventually("the node's addresses are known", || {
            node.maps().node_addrs().unwrap().contains(&"192.0.2.9".parse().unwrap()).then_some(())
        });
        assert!(is_translated(node, DNS, 53, UDP) && lets_to(node, &near, "192.0.2.9", 6, 80));
    });
}
