//! What policyd says of itself decides whether the entry goes in.

use std::sync::atomic::Ordering;

use podgate_contract::api::NewPods;
use podgate_testkit::wait::eventually;

use crate::node::{CANNOT, LIST, Node, PENDING, Policyd, READY, SINGLE, gated_by, told};

#[test]
fn the_entry_waits_for_a_policyd_that_is_ready() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let socket = node.path("cni.sock");
    let watch = node.watch(&["--wait-for", socket.to_str().unwrap()]);
    watch.says("policyd has not answered yet");
    assert!(node.path("bin/podgate").exists());
    let policyd = Policyd::listen(&socket);
    eventually("it is asked", || policyd.asked.load(Ordering::SeqCst));
    assert_eq!(node.read("10-pods.conflist"), LIST);
    policyd.answers(READY);
    eventually("the entry is put in", || node.read("10-pods.conflist").contains("podgate"));
    // policyd may stop again: the entry stays, and is corrected
    drop(policyd);
    node.write("10-pods.conflist", LIST);
    eventually("the entry is put back", || node.read("10-pods.conflist").contains("podgate"));
    watch.stop();
}

#[test]
fn on_a_node_that_cannot_enforce_the_entry_is_there_so_that_pods_are_refused() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    let socket = node.path("cni.sock");
    let policyd = Policyd::listen(&socket);
    policyd.answers(CANNOT);
    let wait_for = ["--wait-for", socket.to_str().unwrap()];
    let refused = NewPods::Refused { reason: "policyd cannot enforce: kernel 4.19".into() };

    let once = node.once(&wait_for);
    assert_eq!(once.status.code(), Some(1));
    assert!(told(&once).contains("new pods are refused") && told(&once).contains("kernel 4.19"));
    assert!(node.read("10-pods.conflist").contains("podgate"));
    assert_eq!(node.new_pods(), refused);

    node.write("10-pods.conflist", LIST);
    let watch = node.watch(&wait_for);
    watch.says("new pods are refused, or held where the plugin can load the programs: policyd cannot enforce: kernel 4.19");
    assert!(node.read("10-pods.conflist").contains("podgate"));
    assert_eq!(node.new_pods(), refused);
    // repaired, it reads its sources first: the entry stays
    policyd.answers(PENDING);
    eventually("the state is the usual one", || {
        node.new_pods() == gated_by(vec!["10-pods.conflist".into()])
    });
    policyd.answers(READY);
    watch.says("new pods get a gate: 10-pods.conflist");
    watch.stop();
}

#[test]
fn on_a_node_that_cannot_enforce_pods_start_without_a_gate_if_that_is_asked_for() {
    let node = Node::new();
    node.write("10-pods.conflist", LIST);
    node.write("20-other.conf", SINGLE);
    let socket = node.path("cni.sock");
    let policyd = Policyd::listen(&socket);
    policyd.answers(CANNOT);
    let allow = [
        "--wait-for",
        socket.to_str().unwrap(),
        "--on-cannot-enforce",
        "allow",
        "--max-conf-num",
        "0",
    ];
    let watch = node.watch(&allow);
    watch.says("policyd cannot enforce: kernel 4.19");
    watch.says("new pods get no gate: policyd cannot enforce on this node, and --on-cannot-enforce is allow");
    assert!(matches!(node.new_pods(), NewPods::No { .. }));
    assert_eq!(
        (node.read("10-pods.conflist"), node.read("20-other.conf")),
        (LIST.into(), SINGLE.into())
    );
    // repaired, and broken again: new pods get no gate, as configured
    policyd.answers(READY);
    watch.says("added podgate to 10-pods.conflist");
    eventually("the single one has it too", || node.read("20-other.conflist").contains("podgate"));
    policyd.answers(CANNOT);
    watch.says("removed podgate from 10-pods.conflist");
    watch.says("removed podgate from 20-other.conflist");
    assert_eq!(node.read("10-pods.conflist"), LIST);
    assert!(!node.read("20-other.conflist").contains("podgate"));
    eventually("policyd's status says so", || matches!(node.new_pods(), NewPods::No { .. }));
    watch.stop();
}
