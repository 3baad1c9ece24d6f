//! A commit that had to stop in its midst, and those that come after it.

use std::net::IpAddr;

use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::Registration;
use podgate_policy::tables::Class;
use policyd::sources::Update;

use crate::node::{Node, on_a_node_of, pod};
use crate::writing::{Writing, objects};

const FIRST: &str = "10.1.0.1";
const SECOND: &str = "10.1.0.2";

/// `api` may be reached by `web` at these ports, and from these blocks at 80.
fn policy(ports: &str, blocks: &[&str]) -> String {
    let blocks: String =
        blocks.iter().map(|block| format!("{{ipBlock: {{cidr: {block}}}}}, ")).collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: api}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: api}}}}\n  policyTypes: [Ingress]\n  ingress:\n  \
         - {{from: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{ports}]}}\n  \
         - {{from: [{blocks}], ports: [{{port: 80}}]}}\n---\n"
    )
}

/// Two pods that may reach `api` at 80. Then one of them is no longer one that may, the other may reach 443 too, and a
/// block comes for which there is no room: when that is seen, the other waits in a transient class.
fn stranded(node: &Node) -> (Writing, Registration) {
    let endpoint = node.endpoint("shop/api", "10.0.0.1");
    let writing = Writing::on(node);
    let api = pod("shop/api", "app: api", "10.0.0.1");
    let webs = [pod("shop/web1", "app: web", FIRST), pod("shop/web2", "app: web", SECOND)];
    let policies = policy("{port: 80}", &["192.0.2.0/24"]);
    writing.replace(objects(&[api, webs.concat(), policies].concat()));
    assert!(node.allows(&endpoint, FIRST, 6, 80) && node.allows(&endpoint, SECOND, 6, 80));

    let set = [
        pod("shop/web1", "app: other", FIRST),
        policy("{port: 80}, {port: 443}", &["192.0.2.0/24", "198.51.100.0/24"]),
    ];
    writing.send(Update::Change { set: objects(&set.concat()), gone: Vec::new() });
    writing.settle();
    let stopped = writing.shared.snapshot().stopped.clone();
    assert!(stopped.is_some_and(|reason| reason.contains("nets4")));
    assert!(class(node, SECOND).is_transient(), "{:?}", class(node, SECOND));
    assert!(node.allows(&endpoint, SECOND, 6, 80));
    (writing, endpoint)
}

fn class(node: &Node, peer: &str) -> Class {
    Class(node.maps().peer(peer.parse::<IpAddr>().unwrap()).unwrap().unwrap())
}

/// The new policy is in force, and no address is in a transient class.
fn settled(node: &Node, endpoint: &Registration) {
    for (peer, port, expected) in
        [(SECOND, 80, true), (SECOND, 443, true), (FIRST, 80, false), ("192.0.2.1", 80, true)]
    {
        assert_eq!(node.allows(endpoint, peer, 6, port), expected, "{peer} at {port}");
    }
    assert!(!class(node, SECOND).is_transient());
    let entries = node.maps().policy_map(endpoint.ifindex).unwrap().unwrap().entries().unwrap();
    assert!(entries.iter().all(|(key, _)| !Class(key.class).is_transient()), "{entries:?}");
}

fn with_room_for_one_block(test: impl FnOnce(&Node) + Send) {
    let sizes = Sizes { nets: 1, flows4: 1024, flows6: 1024, ..Sizes::default() };
    on_a_node_of(&sizes, test);
}

/// The change that makes room says nothing of who waits: nothing is different about it.
#[test]
fn who_waits_in_a_transient_class_is_moved_on_by_the_next_commit() {
    with_room_for_one_block(|node| {
        let (writing, endpoint) = stranded(node);
        let mended = policy("{port: 80}, {port: 443}", &["192.0.2.0/24"]);
        writing.send(Update::Change { set: objects(&mended), gone: Vec::new() });
        writing.settle();
        assert_eq!(writing.shared.snapshot().stopped, None);
        settled(node, &endpoint);
    });
}

/// The numbers of such classes mean nothing to the next policyd, and are none that it begins above.
#[test]
fn who_waits_in_a_transient_class_is_moved_on_by_the_next_policyd() {
    with_room_for_one_block(|node| {
        let (writing, endpoint) = stranded(node);
        drop(writing);
        assert!(node.allows(&endpoint, SECOND, 6, 80));
        let writing = Writing::on(node);
        let pods = [
            pod("shop/api", "app: api", "10.0.0.1"),
            pod("shop/web1", "app: other", FIRST),
            pod("shop/web2", "app: web", SECOND),
        ];
        let mended = policy("{port: 80}, {port: 443}", &["192.0.2.0/24"]);
        writing.replace(objects(&[pods.concat(), mended].concat()));
        settled(node, &endpoint);
    });
}
