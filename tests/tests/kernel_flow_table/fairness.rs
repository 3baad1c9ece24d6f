//! How the table is shared, and what becomes of what a pod has had.

use std::collections::BTreeSet;
use std::thread;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};
use podgate_bpf::abi::Direction::{Egress, Ingress};
use podgate_bpf::abi::{Flow, Stat};
use podgate_testkit::packet::udp;
use zerocopy::IntoBytes as _;

use crate::node::{Node, Pod, peer, table};

/// The pod opens datagram flows number `from` to `to`, answered.
fn open(node: &Node, pod: &Pod, from: u32, to: u32) {
    for n in from..to {
        let (port, peer) = (1024 + (n % 60_000) as u16, peer(0, n / 60_000));
        node.passes(pod, Egress, &pod.to(0, udp(port, 7), &peer));
        node.passes(pod, Ingress, &pod.from(0, udp(7, port), &peer));
    }
}

/// Every pod of the node may do everything.
fn node(pods: usize) -> Node {
    let node = Node::new(pods);
    node.pods.iter().for_each(|pod| node.open(pod));
    node.datapath.maps.control().bump_epoch();
    node
}

fn total(node: &Node) -> u64 {
    node.pods.iter().map(|pod| u64::from(node.ring(pod, 0).high)).sum()
}

pub(crate) fn equal_parts() {
    const HOGS: usize = 12;
    let node = node(HOGS + 1);
    let (late, hogs) = node.pods.split_last().unwrap();
    for round in 0..table() / 200 {
        for hog in hogs {
            open(&node, hog, round * 200, (round + 1) * 200);
        }
    }
    // of what is not kept for pods with few flows
    let part = (table() - table() / 32 - table() / 8) / (HOGS as u32 + 1);
    for hog in hogs {
        let ring = node.ring(hog, 0);
        assert!((part * 9 / 10..=part * 11 / 10).contains(&ring.high), "{part}: {ring:?}");
    }
    assert_eq!(node.taken(0), total(&node));
    // one part is free: it gets half of it at once, and the rest as the others give back
    open(&node, late, 0, part * 4 / 10);
    assert_eq!(node.ring(late, 0).evicted, 0, "there is room for one more");
    assert_eq!(node.stat(Stat::FlowLost), 0);
}

pub(crate) fn gives_back() {
    let node = node(2);
    let [first, second] = &node.pods[..] else { unreachable!() };
    open(&node, first, 0, table());
    let before = node.ring(first, 0).high;
    open(&node, second, 0, table());
    // both want more and more
    for round in 1..20 {
        open(&node, first, round * 1000, (round + 1) * 1000);
        open(&node, second, round * 1000, (round + 1) * 1000);
    }
    let (one, two) = (node.ring(first, 0).high, node.ring(second, 0).high);
    assert!(one < before * 8 / 10 && one.abs_diff(two) < before / 20, "{before}: {one} {two}");
    assert_eq!(node.taken(0), total(&node));
}

pub(crate) fn goes_with_its_pod() {
    let node = node(2);
    let [gone, stays] = &node.pods[..] else { unreachable!() };
    open(&node, gone, 0, 2000);
    open(&node, stays, 0, 100);
    node.datapath.maps.unregister(gone.ifindex).unwrap();
    let flows = node.datapath.maps.flow_table();
    assert_eq!(flows.flows4().unwrap().len(), 100);
    assert_eq!((node.taken(0), flows.shares().unwrap().len()), (100, 1));
    // the interface's next one begins with nothing
    let next = Pod { owner: 7, addresses: gone.addresses.clone(), ..*gone };
    node.register(&next);
    node.open(&next);
    open(&node, &next, 0, 10);
    assert_eq!((node.ring(&next, 0).high, node.taken(0)), (10, 110));
    open(&node, stays, 0, 100);
    assert_eq!(node.ring(stays, 0).high, 100);
}

pub(crate) fn repaired() {
    let node = node(3);
    let [lost, forgotten, stays] = &node.pods[..] else { unreachable!() };
    for pod in &node.pods {
        open(&node, pod, 0, 500);
    }
    let flows = node.datapath.maps.flow_table();
    // a process that was killed has removed one half
    let map = |name: &str| MapHandle::from_pinned_path(node.path(name)).unwrap();
    map("endpoints").delete(lost.ifindex.as_bytes()).unwrap();
    map("endpoints").delete(forgotten.ifindex.as_bytes()).unwrap();
    map("shares").delete(forgotten.ifindex.as_bytes()).unwrap();
    map("flow_use").update(&[0; 4], 77_u64.as_bytes(), MapFlags::ANY).unwrap();
    node.datapath.maps.repair_flow_table().unwrap();
    node.datapath.maps.repair_flow_table().unwrap();
    assert_eq!(flows.flows4().unwrap().len(), 500);
    assert!(flows.flows4().unwrap().iter().all(|(_, flow)| flow.owner == stays.owner));
    assert_eq!((node.taken(0), map("flow_slots4").keys().count()), (500, 500));
    assert_eq!(node.ring(stays, 0).evicted, 0);
    open(&node, stays, 0, 500);
    assert_eq!(node.ring(stays, 0).high, 500, "it still has them");
}

pub(crate) fn trimmed() {
    let node = node(1);
    let pod = &node.pods[0];
    open(&node, pod, 0, 2000);
    let flows = MapHandle::from_pinned_path(node.path("flows4")).unwrap();
    for (key, mut flow) in node.datapath.maps.flow_table().flows4().unwrap() {
        flow.expires -= 1000;
        let flow: Flow = flow;
        flows.update(key.as_bytes(), flow.as_bytes(), MapFlags::EXIST).unwrap();
    }
    // what it was like at the last look tells whether the pod is quiet
    assert_eq!(node.datapath.maps.repair_flow_table().unwrap().slots, 0);
    let repaired = node.datapath.maps.repair_flow_table().unwrap();
    assert!(repaired.slots > 1900, "{repaired:?}");
    assert_eq!(node.taken(0), u64::from(node.ring(pod, 0).high));
    assert!(node.datapath.maps.flow_table().flows4().unwrap().len() < 100);
    open(&node, pod, 5000, 5500);
    assert_eq!(node.ring(pod, 0).evicted, 0);
}

pub(crate) fn at_once() {
    let node = node(1);
    let pod = &node.pods[0];
    thread::scope(|scope| {
        for n in 0..4 {
            let node = &node;
            scope.spawn(move || open(node, pod, n * 60_000, n * 60_000 + 5000));
        }
    });
    let high = node.ring(pod, 0).high;
    assert_eq!(node.taken(0), u64::from(high));
    let flows = node.datapath.maps.flow_table().flows4().unwrap();
    let slots = MapHandle::from_pinned_path(node.path("flow_slots4")).unwrap();
    let placed: BTreeSet<Vec<u8>> =
        slots.keys().filter_map(|at| slots.lookup(&at, MapFlags::ANY).unwrap()).collect();
    let lost = flows.iter().filter(|(key, _)| !placed.contains(key.as_bytes())).count();
    println!("{} flows, {high} places, {lost} flows without one", flows.len());
    assert!(lost <= 8, "{lost}");
    assert_eq!(node.stat(Stat::FlowLost), 0);
}
