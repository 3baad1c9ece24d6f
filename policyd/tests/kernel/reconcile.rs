//! What the kernel has, and what podgate holds.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use podgate_bpf::attach::AttachMode;
use podgate_contract::handshake::EndpointRef;
use podgate_testkit::wait::eventually;
use policyd::reconcile::Reconciler;
use policyd::writer::Message;

use crate::node::{ip, on_a_node, pod, policy};
use crate::writing::{Writing, objects};

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
        node.datapath.attach(api.ifindex, AttachMode::Auto).unwrap();
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
        node.datapath.attach(api.ifindex, AttachMode::Auto).unwrap();
        let _policyd = node.policyd_with(&["--reconcile-seconds", "1"]);
        node.ready();
        node.datapath.verify(api.ifindex).unwrap();
        node.datapath.detach(api.ifindex).unwrap();
        node.datapath.verify(api.ifindex).unwrap_err();
        eventually("the gate is back", || node.datapath.verify(api.ifindex).ok());
    });
}

/// The kernel says that an interface is gone, and before the writer hears of it another has its number, and a gate.
#[test]
fn a_late_word_of_an_interface_takes_nothing_from_the_next_with_its_number() {
    on_a_node(|node| {
        let text = pod("shop/web", "app: web", "10.0.0.1")
            + &pod("shop/api", "app: api", "10.0.0.2")
            + &policy("shop/api", "app: api", "app: web", 80);
        let api = node.endpoint("shop/api", "10.0.0.2");
        node.datapath.attach(api.ifindex, AttachMode::Auto).unwrap();
        let writing = Writing::on(node);
        writing.replace(objects(&text));
        let gone = || {
            writing.writer.handle().send(Message::LinkGone(api.ifindex)).unwrap();
            writing.settle();
        };
        gone();
        node.datapath.verify(api.ifindex).expect("its gate stands");
        assert_eq!(node.maps().registration(api.ifindex).unwrap().as_ref(), Some(&api));
        assert!(node.allows(&api, "10.0.0.1", 6, 80) && !node.allows(&api, "10.0.0.9", 6, 80));

        ip(&format!("link del {}", api.host_interface));
        gone();
        assert_eq!(node.maps().registration(api.ifindex).unwrap(), None);
    });
}

/// What the writer published last is late: the endpoint has been removed. A gate without a registration passes
/// nothing, and the interface may be of a pod that runs.
#[test]
fn no_gate_is_attached_again_where_nobody_is_registered_any_more() {
    on_a_node(|node| {
        let api = node.endpoint("shop/api", "10.0.0.2");
        let other = node.endpoint("shop/other", "10.0.0.3");
        for each in [&api, &other] {
            node.datapath.attach(each.ifindex, AttachMode::Auto).unwrap();
        }
        let writing = Writing::on(node);
        writing.replace(objects(&pod("shop/api", "app: api", "10.0.0.2")));
        let release = writing.hold_up();
        let (ifindex, owner) = (api.ifindex, api.owner);
        node.datapath.remove_endpoint(EndpointRef { ifindex, owner }).unwrap();
        node.datapath.detach(other.ifindex).unwrap();

        let reconciler = Reconciler {
            shared: writing.shared.clone(),
            writer: writing.writer.handle(),
            attach: AttachMode::Auto,
            named: BTreeSet::new(),
            every: Duration::from_secs(1),
            reattached: Default::default(),
        };
        let reattached = reconciler.reattached.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::pause();
            let reconciling = tokio::spawn(reconciler.run());
            tokio::time::sleep(Duration::from_secs(12)).await;
            reconciling.abort();
            assert!(reconciling.await.unwrap_err().is_cancelled());
        });
        assert!(writing.shared.snapshot().endpoints.len() == 2, "the writer is still busy");
        node.datapath.verify(other.ifindex).expect("where somebody is, it is attached again");
        assert!(!node.datapath.is_attached(ifindex));
        assert_eq!(reattached.load(Ordering::Relaxed), 1);
        drop(release);
        writing.settle();
    });
}
