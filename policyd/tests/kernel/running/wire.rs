//! Datagrams, both families, the node itself, and connections with address translation.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use podgate_testkit::wait::eventually;

use super::pods::{Chain, Line, Pods, Questions};
use super::{API, DB, WEB, denied, nft, three, track};
use crate::node::on_a_node;

/// Keeps talking until policyd, started meanwhile, has adopted all; then for a moment more.
fn adopt_while_talking(pods: &Pods<'_>, lines: &mut [&mut Line], questions: &[&Questions]) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let talk = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                for (at, line) in lines.iter_mut().enumerate() {
                    assert!(line.passes(), "line {at} after {rounds} rounds");
                }
                for (at, questions) in questions.iter().enumerate() {
                    assert!(questions.pass(), "questions {at} after {rounds} rounds");
                }
                rounds += 1;
                thread::sleep(Duration::from_millis(2));
            }
            rounds
        });
        pods.enforced(&[WEB, API, DB]);
        thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::Relaxed);
        let rounds = talk.join().unwrap();
        assert!(rounds > 100, "only {rounds} rounds");
    });
}

/// `web` may reach `api` at UDP 53, and `api` may open no connection.
const DNS: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {namespace: shop, name: api}\n\
    spec:\n  podSelector: {matchLabels: {app: api}}\n  policyTypes: [Ingress, Egress]\n  ingress:\n  \
    - from: [{podSelector: {matchLabels: {app: web}}}]\n    ports: [{port: 53, protocol: UDP}]\n---\n";

fn datagrams(tracked: bool, chain: Chain) {
    on_a_node(|node| {
        if tracked {
            track();
        }
        let pods = three(node, chain, true);
        let ask = |from, to, port| {
            let at = SocketAddr::new(pods.of(to).address, port);
            pods.ask(from, to, at, at)
        };
        let (allowed, unconcerned) = (ask(WEB, API, 53), ask(WEB, DB, 54));
        let (forbidden, asks) = (ask(DB, API, 53000), ask(API, DB, 55));
        for each in [&allowed, &unconcerned, &forbidden, &asks] {
            assert!(each.pass());
        }
        // a long time to think: its answer is the first packet that the gates see of it
        let slow = ask(WEB, DB, 56);
        let asker = slow.question().unwrap();
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", DNS);
        let _policyd = pods.policyd(&[]);
        eventually("the pods are watched", || (node.registered().len() == 3).then_some(()));
        thread::sleep(Duration::from_millis(200));
        assert!(slow.answer(asker));
        adopt_while_talking(&pods, &mut [], &[&allowed, &unconcerned]);
        assert!(slow.pass());
        assert_eq!(denied(node), []);
        assert!(!forbidden.pass() && !asks.pass());
    });
}

#[test]
fn datagrams_go_on_or_are_cut() {
    datagrams(false, Chain::Bridge);
}

#[test]
fn tracked_datagrams_go_on_or_are_cut() {
    datagrams(true, Chain::Ptp);
}

#[test]
fn both_families() {
    on_a_node(|node| {
        let pods = [(WEB, "10.77.0.2,fd77::2"), (API, "10.77.0.3,fd77::3"), (DB, "10.77.0.4")];
        let pods = Pods::start(node, Chain::Bridge, true, &pods);
        let at = |port| SocketAddr::new(pods.of(API).addresses[1], port);
        let mut allowed = pods.connect_by(WEB, API, at(80), at(80));
        let mut forbidden = pods.connect_by(WEB, API, at(81), at(81));
        assert!(allowed.passes() && forbidden.passes());
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &super::policy());
        let _policyd = pods.policyd(&[]);
        adopt_while_talking(&pods, &mut [&mut allowed], &[]);
        assert_eq!(denied(node), []);
        assert!(!forbidden.passes());
    });
}

/// The node may reach its pods whatever policy says, also by a connection of long ago.
#[test]
fn the_node_itself() {
    for tracked in [false, true] {
        on_a_node(|node| {
            if tracked {
                track();
                nft("add chain inet t o { type filter hook output priority 0; }");
                nft("add rule inet t o ct state established,related counter accept");
            }
            let pods = three(node, Chain::Ptp, true);
            let at = SocketAddr::new(pods.of(API).address, 10250);
            let mut probe = pods.connect_with(API, at, || TcpStream::connect(at).unwrap());
            node.manifest("pods.yaml", &pods.manifests());
            node.manifest("policies.yaml", &super::policy());
            let _policyd = pods.policyd(&[]);
            adopt_while_talking(&pods, &mut [&mut probe], &[]);
            assert_eq!(denied(node), []);
        });
    }
}

/// `web` may speak to `api` at TCP 8080 and to `db` at UDP 5353, and to no other pod; no pod may reach it.
const CLIENT: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {namespace: shop, name: web}\n\
    spec:\n  podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress, Egress]\n  egress:\n  \
    - to: [{podSelector: {matchLabels: {app: api}}}]\n    ports: [{port: 8080}]\n  \
    - to: [{podSelector: {matchLabels: {app: db}}}]\n    ports: [{port: 5353, protocol: UDP}]\n---\n";

/// For podgate the service is at `api` alone: what has been going to `db` must go on to go there.
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: one}\n\
    spec:\n  clusterIP: 10.96.0.1\n  selector: {app: api}\n  ports:\n  \
    - {name: http, port: 80, targetPort: 8080}\n  \
    - {name: dns, port: 53, targetPort: 5353, protocol: UDP}\n---\n";

/// What kube-proxy has translated goes on being translated by it, and is judged by where it goes.
#[test]
fn connections_through_a_service() {
    on_a_node(|node| {
        track();
        nft("add chain inet t p { type nat hook prerouting priority -100; }");
        nft("add chain inet t s { type nat hook postrouting priority 100; }");
        for (seen, to) in [
            ("ip daddr 10.96.0.1 tcp dport 80", "10.77.0.3:8080"),
            ("ip daddr 10.96.0.1 udp dport 53", "10.77.0.4:5353"),
            ("ip daddr 10.96.0.2 tcp dport 80", "10.77.0.4:9000"),
        ] {
            nft(&format!("add rule inet t p {seen} dnat ip to {to}"));
        }
        // one of them masqueraded too, as from outside the cluster's range
        nft("add rule inet t s ip daddr 10.77.0.3 tcp dport 8080 masquerade");
        let pods = three(node, Chain::Ptp, true);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut allowed = pods.connect_by(WEB, API, at("10.96.0.1:80"), at("10.77.0.3:8080"));
        let mut forbidden = pods.connect_by(WEB, DB, at("10.96.0.2:80"), at("10.77.0.4:9000"));
        let asked = pods.ask(WEB, DB, at("10.96.0.1:53"), at("10.77.0.4:5353"));
        assert!(allowed.passes() && forbidden.passes() && asked.pass());
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", CLIENT);
        node.manifest("services.yaml", SERVICE);
        let _policyd = pods.policyd(&[]);
        adopt_while_talking(&pods, &mut [&mut allowed], &[&asked]);
        assert_eq!(denied(node), []);
        assert!(!forbidden.passes());
    });
}
