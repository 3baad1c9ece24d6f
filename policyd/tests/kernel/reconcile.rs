//! What the kernel has, and what podgate holds.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podgate_bpf::attach::AttachMode;

use crate::node::{eventually, ip, on_a_node, pod};

#[test]
fn the_nodes_addresses_follow_the_links() {
    on_a_node(|node| {
        ip("link add br0 type veth peer name br0p");
        ip("addr add 10.0.0.254/24 dev br0");
        let _policyd = node.policyd();
        let known = |addresses: &[&str]| {
            let wanted: BTreeSet<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            eventually(&format!("the node has {addresses:?}"), || {
                let found = node.maps().node_addrs().unwrap();
                let found: BTreeSet<IpAddr> =
                    found.into_iter().filter(|a| !a.is_loopback()).collect();
                (found == wanted).then_some(())
            });
        };
        known(&["10.0.0.254"]);
        ip("addr add fd00::1/64 dev br0");
        ip("addr add 10.0.1.254/24 dev br0");
        known(&["10.0.0.254", "10.0.1.254", "fd00::1"]);
        ip("addr del 10.0.0.254/24 dev br0");
        known(&["10.0.1.254", "fd00::1"]);
        ip("link del br0");
        known(&[]);
    });
}

#[test]
fn an_interface_that_vanishes_takes_its_endpoint_along() {
    on_a_node(|node| {
        node.manifest("pods.yaml", &pod("shop/api", "app: api", "10.0.0.2"));
        let api = node.endpoint("shop/api", "10.0.0.2");
        node.gate.attach(api.ifindex, AttachMode::Auto).unwrap();
        let _policyd = node.policyd();
        node.ready();
        assert!(node.maps().policy_map(api.ifindex).unwrap().is_some());
        ip(&format!("link del {}", api.host_interface));
        eventually("the registration is gone", || {
            node.maps().registration(api.ifindex).unwrap().is_none().then_some(())
        });
        eventually("the policy map is gone", || {
            node.maps().policy_map(api.ifindex).unwrap().is_none().then_some(())
        });
        eventually("the API does not show it", || {
            node.get("/v1/endpoints").as_array().unwrap().is_empty().then_some(())
        });
    });
}

#[test]
fn an_interface_that_vanished_while_nobody_looked_is_found_at_the_start() {
    on_a_node(|node| {
        let api = node.endpoint("shop/api", "10.0.0.2");
        ip(&format!("link del {}", api.host_interface));
        let _policyd = node.policyd();
        eventually("the registration is gone", || {
            node.maps().registration(api.ifindex).unwrap().is_none().then_some(())
        });
    });
}

#[test]
fn a_gate_that_somebody_removed_is_attached_again() {
    on_a_node(|node| {
        let api = node.endpoint("shop/api", "10.0.0.2");
        node.gate.attach(api.ifindex, AttachMode::Auto).unwrap();
        let _policyd = node.policyd_with(&["--reconcile-seconds", "1"]);
        node.ready();
        node.gate.verify(api.ifindex).unwrap();
        node.gate.detach(api.ifindex).unwrap();
        node.gate.verify(api.ifindex).unwrap_err();
        eventually("the gate is back", || node.gate.verify(api.ifindex).ok());
    });
}
