//! Pods that ran before policyd came: they are gated, what policy allows of their open connections goes on without
//! a lost packet, and the rest is cut.

mod audit;
mod late;
mod life;
mod pods;
mod ranked;
mod ready;
mod rules;
mod top;
mod wire;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use podgate_bpf::abi::{Direction, Reason};
use pods::{Chain, Pods};

use crate::node::{Node, on_a_node};

const WEB: &str = "shop/web";
const API: &str = "shop/api";
const DB: &str = "shop/db";

/// `api` is isolated both ways: `web` may reach its port 80, and it may open no connection.
fn policy() -> String {
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
     metadata: {namespace: shop, name: api}\n\
     spec:\n  podSelector: {matchLabels: {app: api}}\n  policyTypes: [Ingress, Egress]\n  ingress:\n  \
     - from: [{podSelector: {matchLabels: {app: web}}}]\n    ports: [{port: 80}]\n---\n"
        .to_owned()
}

fn three(node: &Node, chain: Chain, noted: bool) -> Pods<'_> {
    let pods = [(WEB, "10.77.0.2"), (API, "10.77.0.3"), (DB, "10.77.0.4")];
    Pods::start(node, chain, noted, &pods)
}

/// Has the kernel track connections, as kube-proxy's rules do.
fn track() {
    nft("add table inet t");
    nft("add chain inet t f { type filter hook forward priority 0; }");
    nft("add rule inet t f ct state established,related counter accept");
}

fn nft(rule: &str) {
    let run = Command::new("nft").arg(rule).output();
    let output = run.expect("run nft (Debian: apt-get install nftables)");
    assert!(output.status.success(), "nft {rule}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What has been denied so far, and how often.
fn denied(node: &Node) -> Vec<(Direction, Reason, u64)> {
    let counters = node.maps().counters().unwrap();
    let each = |direction: &Direction| {
        let of = |reason: &Reason| (*direction, *reason, counters.get(*direction, *reason).packets);
        Reason::ALL.iter().filter(|reason| reason.is_denial()).map(of).collect::<Vec<_>>()
    };
    Direction::ALL.iter().flat_map(each).filter(|(_, _, packets)| *packets > 0).collect()
}

/// Connections in all relations to the policy, opened before policyd comes.
fn open_connections_meet_policy(chain: Chain, noted: bool, tracked: bool, more: &[&str]) {
    on_a_node(|node| {
        if tracked {
            track();
        }
        let pods = three(node, chain, noted);
        let mut allowed = pods.connect(WEB, API, 80);
        let mut unconcerned = pods.connect(WEB, DB, 5432);
        let mut from_outside = pods.connect(DB, API, 8080);
        let mut to_outside = pods.connect(API, DB, 5433);
        for line in [&mut allowed, &mut unconcerned, &mut from_outside, &mut to_outside] {
            assert!(line.passes());
        }
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &policy());
        let done = AtomicBool::new(false);
        let rounds = thread::scope(|scope| {
            let talk = scope.spawn(|| {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) {
                    assert!(allowed.passes(), "after {rounds} rounds");
                    assert!(unconcerned.passes(), "after {rounds} rounds");
                    rounds += 1;
                    thread::sleep(Duration::from_millis(2));
                }
                rounds
            });
            let _policyd = pods.policyd(more);
            pods.enforced(&[WEB, API, DB]);
            // not even a packet that TCP would make up for
            thread::sleep(Duration::from_millis(300));
            assert_eq!(denied(node), []);
            assert!(!from_outside.passes(), "no policy allows it");
            assert!(!to_outside.passes(), "no policy allows it");
            done.store(true, Ordering::Relaxed);
            talk.join().unwrap()
        });
        assert!(rounds > 100, "only {rounds} rounds");
        for (name, endpoint) in node.registered() {
            let pod = pods.of(&name);
            assert_eq!(endpoint.host_interface, pod.host_interface);
            assert_eq!(endpoint.addresses, [pod.address]);
            let id = if noted { pod.container_id.as_str() } else { "" };
            assert_eq!((endpoint.container_id.as_str(), endpoint.interface.as_str()), (id, "eth0"));
        }
    });
}

#[test]
fn on_a_bridge_with_notes_by_tcx() {
    open_connections_meet_policy(Chain::Bridge, true, false, &["--attach", "tcx"]);
}

#[test]
fn routed_without_notes_by_clsact() {
    open_connections_meet_policy(Chain::Ptp, false, false, &["--attach", "clsact"]);
}

/// With rules that match connections the kernel tracks them, and conntrack has the direction of each.
#[test]
fn routed_and_tracked() {
    open_connections_meet_policy(Chain::Ptp, true, true, &[]);
}
