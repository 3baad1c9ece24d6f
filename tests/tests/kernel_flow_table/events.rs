//! Denials of one pod without end, and a few of another.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use podgate_bpf::abi::Direction::Ingress;
use podgate_bpf::abi::Stat;
use podgate_bpf::events::{Event, Events};
use podgate_bpf::testrun::Context;
use podgate_testkit::packet::udp;

use crate::node::Node;

/// Reads as policyd does, now and then.
fn read(node: &Node, told: &Arc<Mutex<Vec<Event>>>) {
    let sink = told.clone();
    let tell = move |event| sink.lock().unwrap().push(event);
    Events::new(&node.datapath.maps, tell).unwrap().poll(Duration::ZERO).unwrap();
}

pub(crate) fn flood() {
    let node = Node::new(3);
    node.datapath.maps.control().set_event_limit(1000);
    let [hog, other, quiet] = &node.pods[..] else { unreachable!() };
    let told = Arc::new(Mutex::new(Vec::new()));
    let denied = |pod: &crate::node::Pod, times| {
        let frame = pod.from(0, udp(1, 2), "192.0.2.9").frame();
        let context = Context { ifindex: pod.ifindex, ingress_ifindex: 4242 };
        let outcome = node.datapath.test_run(Ingress, context, &frame, times).unwrap();
        assert_eq!(outcome.action, 2);
    };
    thread::scope(|scope| {
        // from before the first to after the last of the other's
        let flood = scope.spawn(|| (0..20).for_each(|_| denied(hog, 10_000)));
        denied(hog, 10_000);
        for _ in 0..100 {
            denied(other, 1);
        }
        flood.join().unwrap();
    });
    read(&node, &told);
    let told = told.lock().unwrap();
    let of = |ifindex| told.iter().filter(|event| event.ifindex == ifindex).count() as u64;
    assert_eq!(of(other.ifindex), 100);
    let shares = node.datapath.maps.flow_table().shares().unwrap();
    let held = |ifindex| shares[&ifindex].events_held;
    assert_eq!((held(other.ifindex), held(quiet.ifindex)), (0, 0));
    assert_eq!(of(hog.ifindex) + held(hog.ifindex), 210_000, "told, or counted");
    assert!(held(hog.ifindex) > 150_000);
    assert_eq!(node.stat(Stat::EventLimit), held(hog.ifindex));
    assert_eq!(node.stat(Stat::EventLost), 0);
}
