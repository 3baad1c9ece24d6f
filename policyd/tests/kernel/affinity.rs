//! Session affinity: which frontends share what the programs remember of their clients.

use podgate_bpf::services::{Affinity, Frontend};
use podgate_testkit::wait::eventually;

use crate::node::{Node, on_a_node};

/// A service of both families with two ports, an external address of each, and the endpoints of its slices.
fn service(name: &str, last: u8, affinity: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: {name}}}\n\
         spec:\n  clusterIP: 10.96.0.{last}\n  clusterIPs: [10.96.0.{last}, 'fd00:96::{last}']\n\
         \x20 ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n\
         \x20 externalIPs: [192.0.2.{last}, '2001:db8::{last}']\n\
         \x20 sessionAffinity: {affinity}\n\
         \x20 ports: [{{name: web, port: 80}}, {{name: admin, port: 81}}, {{name: web-udp, port: 80, protocol: UDP}}]\n---\n"
    )
}

fn slices(service: &str, endpoints: [&str; 2]) -> String {
    let slice = |family: &str, address: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
             metadata: {{namespace: shop, name: {service}-{}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             ports: [{{name: web, port: 8080}}, {{name: admin, port: 8081}}, {{name: web-udp, port: 8080, protocol: UDP}}]\n\
             endpoints: [{{addresses: ['{address}']}}]\n---\n",
            family.to_lowercase()
        )
    };
    slice("IPv4", endpoints[0]) + &slice("IPv6", endpoints[1])
}

fn affinity(node: &Node, address: &str, port: u16, protocol: u8) -> Option<Affinity> {
    let frontend = Frontend { address: address.parse().unwrap(), port, protocol };
    node.maps().services().services().unwrap().get(&frontend)?.affinity
}

/// The number of a frontend that must be there.
fn number(node: &Node, address: &str, port: u16, protocol: u8) -> u32 {
    let of = eventually(&format!("{address}:{port} is in the maps, with affinity"), || {
        affinity(node, address, port, protocol)
    });
    assert_eq!(of.seconds.get(), 10_800);
    of.number.unwrap().get()
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The numbers of a service, and that its addresses have them in common.
fn numbers(node: &Node, last: u8) -> [u32; 6] {
    let pairs = [
        (format!("10.96.0.{last}"), format!("192.0.2.{last}")),
        (format!("fd00:96::{last}"), format!("2001:db8::{last}")),
    ];
    let mut numbers = Vec::new();
    for (cluster, external) in &pairs {
        for (port, protocol) in [(80, TCP), (81, TCP), (80, UDP)] {
            let of = number(node, cluster, port, protocol);
            assert_eq!(number(node, external, port, protocol), of, "{external}:{port}/{protocol}");
            numbers.push(of);
        }
    }
    numbers.try_into().unwrap()
}

const ENDPOINTS: [&str; 2] = ["10.0.0.1", "fd00::1"];

#[test]
fn s10_5_a_service_ports_addresses_share_a_memory_that_outlives_policyd() {
    on_a_node(|node| {
        node.manifest("web.yaml", &service("web", 1, "ClientIP"));
        node.manifest("slices.yaml", &slices("web", ENDPOINTS));
        let policyd = node.policyd();
        node.ready();
        let first = numbers(node, 1);
        let apart: std::collections::BTreeSet<_> = first.into_iter().collect();
        assert_eq!(apart.len(), 6, "ports, protocols and families are apart: {first:?}");

        // endpoints go, and come back
        node.manifest("slices.yaml", "");
        eventually("it has no endpoints", || {
            affinity(node, "10.96.0.1", 80, TCP).is_none().then_some(())
        });
        node.manifest("slices.yaml", &slices("web", ENDPOINTS));
        assert_eq!(numbers(node, 1), first);

        // another service is there first for the policyd that comes next, and this one without endpoints
        policyd.kill();
        node.manifest("api.yaml", &service("api", 2, "ClientIP"));
        node.manifest("slices.yaml", &slices("api", ["10.0.0.2", "fd00::2"]));
        let policyd = node.policyd();
        node.ready();
        let api = numbers(node, 2);
        node.manifest("web-slices.yaml", &slices("web", ENDPOINTS));
        assert_eq!(numbers(node, 1), first);
        assert!(api.iter().all(|number| !first.contains(number)), "{api:?} {first:?}");

        // the address goes to another service while policyd is away: what clients had of the first is not for it
        policyd.kill();
        node.manifest("web.yaml", &service("heir", 1, "ClientIP"));
        node.manifest("web-slices.yaml", &slices("heir", ENDPOINTS));
        let _policyd = node.policyd();
        node.ready();
        eventually("the heir has its own", || {
            let of = affinity(node, "10.96.0.1", 80, TCP)?.number?.get();
            (of != first[0]).then_some(())
        });
        let heir = numbers(node, 1);
        assert!(heir.iter().all(|of| !first.contains(of) && !api.contains(of)), "{heir:?}");

        // no affinity, no number
        node.manifest("web.yaml", &service("heir", 1, "None"));
        eventually("affinity ends", || {
            let frontend = Frontend { address: [10, 96, 0, 1].into(), port: 80, protocol: TCP };
            let entry = *node.maps().services().services().unwrap().get(&frontend)?;
            entry.affinity.is_none().then_some(())
        });
        node.manifest("web.yaml", &service("heir", 1, "ClientIP"));
        assert_eq!(numbers(node, 1), heir);
    });
}
