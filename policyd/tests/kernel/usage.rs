//! What accounted pods exchange with whom: real packets, the API, the metrics and `podgatectl`.

use std::collections::BTreeMap;

use podgate_bpf::attach::AttachMode;
use podgate_bpf::maps::Registration;
use podgate_contract::api::{Direction, Scope, Usage};
use podgate_testkit::wait::eventually;

use crate::node::{Node, ip, on_a_node, pod};
use crate::sandbox::Sandbox;

/// Bytes of an echo request, and of its reply: Ethernet, IPv4, ICMP, 56 bytes.
const ECHO: u64 = 14 + 20 + 8 + 56;

fn node_object(name: &str, zone: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n---\n"
    )
}

/// A pod of a node.
fn pod_of(node: &str, name: &str, address: &str) -> String {
    pod(name, "app: a", address).replace("spec: {", &format!("spec: {{nodeName: {node}, "))
}

fn web(accounting: bool) -> String {
    let annotated =
        format!("metadata: {{annotations: {{podgate.io/accounting: \"{accounting}\"}}, ");
    pod_of("n1", "shop/web", "10.7.0.2").replace("metadata: {", &annotated)
}

/// The other end of a link, with a route through the node, which has the first address of its network.
fn behind(link: &Registration) -> Sandbox {
    let gateway = match link.addresses[0] {
        std::net::IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.1")
        }
        std::net::IpAddr::V6(address) => panic!("{address} is no IPv4 address"),
    };
    let sandbox = Sandbox::of(link);
    // it would send what nobody counts on
    sandbox.run("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
    ip(&format!("addr add {gateway}/24 dev {}", link.host_interface));
    sandbox.run(&format!("ip route add default via {gateway}"));
    sandbox
}

fn usage(node: &Node, query: &str) -> Usage {
    serde_json::from_value(node.get(&format!("/v1/usage{query}"))).unwrap()
}

/// Packets, bytes and flows by scope and direction, of the only pod that is accounted.
fn counted(node: &Node) -> BTreeMap<(Scope, Direction), (u64, u64, u64)> {
    let Usage { pods, other } = usage(node, "");
    assert_eq!((pods.len(), &*pods[0].pod, other), (1, "shop/web", None));
    let of = pods[0].traffic.iter();
    of.map(|row| ((row.scope, row.direction), (row.packets, row.bytes, row.flows))).collect()
}

#[test]
fn what_an_accounted_pod_exchanges_is_counted_by_where_its_peers_are() {
    use Direction::{Egress, Ingress};
    on_a_node(|node| {
        let elsewhere = pod_of("n2", "shop/far", "10.9.0.3");
        let peers = [pod_of("n1", "shop/db", "10.8.0.2"), elsewhere];
        node.manifest("nodes.yaml", &(node_object("n1", "a") + &node_object("n2", "b")));
        node.manifest("peers.yaml", &peers.concat());
        node.manifest("web.yaml", &web(true));
        let (here, db) =
            (node.endpoint("shop/web", "10.7.0.2"), node.endpoint("shop/db", "10.8.0.2"));
        ip("link add outside type veth peer name outsidep");
        let addresses = vec!["10.9.0.2".parse().unwrap()];
        let outside = Registration { host_interface: "outside".into(), addresses, ..db.clone() };
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let [of_web, _of_db, of_outside] = [&here, &db, &outside].map(behind);
        of_outside.run("ip addr add 10.9.0.3/24 dev outsidep");
        for endpoint in [&here, &db] {
            node.datapath.attach(endpoint.ifindex, AttachMode::Auto).unwrap();
        }
        let policyd = node.policyd();
        node.ready();

        for (count, peer) in [(3, "10.8.0.2"), (4, "10.9.0.2"), (5, "10.9.0.3"), (1, "10.7.0.1")] {
            of_web.run(&format!("ping -q -c {count} -i 0.1 -s 56 {peer}"));
        }
        of_outside.run("ping -q -c 2 -i 0.1 -s 56 -I 10.9.0.2 10.7.0.2");
        let expected = BTreeMap::from([
            ((Scope::SameNode, Ingress), (3, 3 * ECHO, 0)),
            ((Scope::SameNode, Egress), (3, 3 * ECHO, 1)),
            ((Scope::OtherZone, Ingress), (5, 5 * ECHO, 0)),
            ((Scope::OtherZone, Egress), (5, 5 * ECHO, 1)),
            ((Scope::Node, Ingress), (1, ECHO, 0)),
            ((Scope::Node, Egress), (1, ECHO, 1)),
            // two of them it was asked for
            ((Scope::External, Ingress), (6, 6 * ECHO, 1)),
            ((Scope::External, Egress), (6, 6 * ECHO, 1)),
        ]);
        assert_eq!(counted(node), expected);

        let sample = format!(
            "podgate_pod_network_bytes_total{{k8s_namespace_name=\"shop\",k8s_pod_name=\"web\",\
             network_io_direction=\"transmit\",scope=\"other-zone\"}} {}",
            5 * ECHO
        );
        let metrics = node.metrics();
        assert!(metrics.contains(&sample), "{metrics}");
        let table = node.podgatectl(&["usage", "shop/web"]).unwrap();
        assert!(table.contains("other-zone") && table.contains("490 B"), "{table}");
        let rest = usage(node, "?top=0").other.expect("the pod as one of the others");
        assert_eq!((rest.pods, rest.traffic.len()), (1, expected.len()));
        assert_eq!(usage(node, "?pod=shop/db"), Usage::default());

        policyd.kill();
        let _policyd = node.policyd();
        node.ready();
        assert_eq!(counted(node), expected);
        assert!(!node.maps().limits().scopes().unwrap().is_empty());

        node.manifest("web.yaml", &web(false));
        eventually("nobody is accounted", || (usage(node, "") == Usage::default()).then_some(()));
        eventually("nothing is held for it", || {
            node.maps().limits().scopes().unwrap().is_empty().then_some(())
        });
    });
}
