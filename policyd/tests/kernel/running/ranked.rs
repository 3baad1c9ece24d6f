//! ClusterNetworkPolicies come and go under live connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use podgate_testkit::wait::eventually;

use super::pods::Chain;
use super::{API, DB, WEB, denied, policy, three};
use crate::node::on_a_node;

/// A ClusterNetworkPolicy about ingress to `app: api`, with rules in YAML's flow style.
fn tier(name: &str, tier: &str, priority: u16, rules: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
         metadata: {{name: {name}}}\n\
         spec:\n  tier: {tier}\n  priority: {priority}\n  subject: {{pods: {{podSelector: {{matchLabels: {{app: api}}}}}}}}\n  \
         ingress: {rules}\n---\n"
    )
}

const FROM_WEB: &str = "from: [{pods: {podSelector: {matchLabels: {app: web}}}}]";
const FROM_ALL: &str = "from: [{namespaces: {}}]";

#[test]
fn a_deny_that_comes_above_ends_what_a_network_policy_allows() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        let mut line = pods.connect(WEB, API, 80);
        let mut beside = pods.connect(WEB, DB, 5432);
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &policy());
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        assert!(line.passes());

        let deny = tier("stop", "Admin", 5, &format!("[{{action: Deny, {FROM_WEB}}}]"));
        node.manifest("cluster.yaml", &deny);
        eventually("the deny reaches the open connection", || (!line.passes()).then_some(()));
        assert!(beside.passes(), "another pod's is another matter");

        // a Pass of higher precedence leaves the decision to the NetworkPolicy again
        let pass = tier("let", "Admin", 4, &format!("[{{action: Pass, {FROM_WEB}}}]"));
        node.manifest("cluster.yaml", &(pass + &deny));
        eventually("the connection goes on", || line.passes().then_some(()));
        node.manifest("cluster.yaml", &deny);
        eventually("it is denied again", || (!line.passes()).then_some(()));
        node.manifest("cluster.yaml", "");
        eventually("and goes on when the deny is gone", || line.passes().then_some(()));
    });
}

/// While rules are reordered, split over tiers and named anew, what every state allows never meets a denial, and what every
/// state denies never passes.
#[test]
fn what_every_state_allows_is_never_dropped_while_tiers_change() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        let mut line = pods.connect(WEB, API, 80);
        let mut forbidden = pods.connect(DB, API, 8080);
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &policy());
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        assert!(line.passes());

        let http = "protocols: [{tcp: {destinationPort: {number: 80}}}]";
        let range = "protocols: [{tcp: {destinationPort: {range: {start: 79, end: 81}}}}]";
        let states = [
            tier(
                "a",
                "Admin",
                1,
                &format!("[{{action: Accept, {FROM_WEB}, {http}}}, {{action: Deny, {FROM_ALL}}}]"),
            ),
            tier(
                "a",
                "Admin",
                1,
                &format!("[{{action: Accept, {FROM_WEB}, {range}}}, {{action: Deny, {FROM_ALL}}}]"),
            ),
            tier("b", "Admin", 9, &format!("[{{action: Deny, {FROM_ALL}}}]"))
                + &tier("a", "Admin", 2, &format!("[{{action: Accept, {FROM_WEB}}}]")),
            tier("b", "Baseline", 9, &format!("[{{action: Deny, {FROM_ALL}}}]")),
            String::new(),
            tier(
                "c",
                "Admin",
                3,
                &format!("[{{action: Pass, {FROM_ALL}, {range}}}, {{action: Deny, {FROM_ALL}}}]"),
            ),
        ];
        let change_to = |state: &String| {
            let epoch = node.get("/v1/status")["epoch"].as_u64();
            node.manifest("cluster.yaml", state);
            eventually("the change is in the maps", || {
                (node.get("/v1/status")["epoch"].as_u64() != epoch).then_some(())
            });
        };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let talk = scope.spawn(|| {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) {
                    assert!(line.passes(), "after {rounds} rounds");
                    rounds += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                rounds
            });
            states.iter().cycle().take(3 * states.len()).for_each(change_to);
            done.store(true, Ordering::Relaxed);
            let rounds: u32 = talk.join().unwrap();
            assert!(rounds > 100, "only {rounds} rounds");
        });
        // not even a packet that TCP would make up for
        assert_eq!(denied(node), []);

        for state in &states {
            forbidden.client.write_all(b"x").unwrap();
            change_to(state);
        }
        assert!(forbidden.server.read_exact(&mut [0]).is_err(), "a state let it pass");
        assert_ne!(denied(node), []);
    });
}

/// A rule whose peer cannot be read denies everybody, every protocol. The kubelet's probes are not everybody's; what the pod
/// sends to its node is.
#[test]
fn the_own_node_gets_in_whatever_the_tiers_say_and_is_judged_as_a_destination() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        let mut from_pod = pods.connect(WEB, API, 80);
        node.manifest("pods.yaml", &pods.manifests());
        let unreadable = "[{action: Deny, from: [{somethingNew: {}}]}]";
        let mut cluster =
            tier("first", "Admin", 0, unreadable) + &tier("last", "Baseline", 0, unreadable);
        cluster += "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
                    metadata: {name: out}\nspec:\n  tier: Admin\n  priority: 1\n  subject: {namespaces: {}}\n  \
                    egress: [{action: Deny, to: [{networks: [\"10.77.0.254/32\"]}]}]\n";
        node.manifest("cluster.yaml", &cluster);
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        assert!(!from_pod.passes(), "what cannot be read denies");

        let at = SocketAddr::new(pods.of(API).address, 8081);
        let probe = || TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap();
        assert!(pods.connect_with(API, at, probe).passes(), "a probe of the node");

        let listener = TcpListener::bind("10.77.0.254:9000").unwrap();
        let to = listener.local_addr().unwrap();
        let dial = || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok();
        assert!(!pods.of(WEB).inside(dial), "the node is a destination like others");
    });
}
