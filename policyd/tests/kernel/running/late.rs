//! A writer that says nothing for long: what it published last is not how things are.

use std::time::Duration;

use podgate_bpf::abi::Startup;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::maps::Registration;
use policyd::adopt::Adopter;
use tokio::runtime::Runtime;

use super::pods::{Chain, Pods};
use super::{API, DB, WEB, denied, policy, three};
use crate::node::{Node, on_a_node};
use crate::writing::{Writing, objects};

/// The writer over these pods, which knows them and what policy says of them.
fn writing(node: &Node, pods: &Pods<'_>) -> Writing {
    // no reconciler runs here to follow the node's addresses, and the node sends to multicast groups of its bridge
    node.maps().add_node_addr([10, 77, 0, 254].into()).unwrap();
    let writing = Writing::on(node);
    writing.replace(objects(&[pods.manifests(), policy()].concat()));
    writing
}

fn adopter(writing: &Writing, pods: &Pods<'_>) -> Adopter {
    Adopter {
        shared: writing.shared.clone(),
        writer: writing.writer.handle(),
        attach: AttachMode::Auto,
        paths: pods.search_paths(),
        root: writing.root.clone(),
        anti_spoofing: true,
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// How many are watched, by what the writer published.
fn watched(writing: &Writing) -> usize {
    let snapshot = writing.shared.snapshot();
    snapshot.endpoints.values().filter(|each| each.registration.startup == Startup::Learn).count()
}

/// Waits until this is true of each of the three; meanwhile the runtime goes on with its tasks.
async fn all(node: &Node, what: &str, is: impl Fn(&Registration) -> bool) {
    for _ in 0..4000 {
        let registered = node.registered();
        if registered.len() == 3 && registered.iter().all(|(_, each)| is(each)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never happened that all {what}");
}

fn in_force(node: &Node, endpoint: &Registration) -> bool {
    node.maps().policy_map(endpoint.ifindex).unwrap().is_some()
}

/// Time passes at once, but for what is done on threads.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

/// Pods have just been adopted, and what the writer published last is that they are still watched. A round that takes
/// them up again gives up when the writer does not answer in time. They are enforced nevertheless, and that may not be
/// taken back.
#[test]
fn a_round_that_the_writer_does_not_answer_takes_no_gate_from_an_enforced_pod() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        let mut allowed = pods.connect(WEB, API, 80);
        let mut forbidden = pods.connect(DB, API, 8080);
        let writing = writing(node, &pods);
        runtime().block_on(async {
            let adopting = tokio::spawn(adopter(&writing, &pods).run());
            all(node, "have their policy", |each| in_force(node, each)).await;
            // the writer has answered for them, and now it is kept busy until the end
            let release = writing.hold_up();
            all(node, "are enforced", |each| each.startup == Startup::Hold).await;
            assert_eq!(watched(&writing), 3, "so it was published last");
            // telling the writer takes ten seconds, the next round begins two later, and its ten seconds pass too
            later(60).await;
            assert_eq!(watched(&writing), 3, "the writer is still busy");
            adopting.abort();
            assert!(adopting.await.unwrap_err().is_cancelled());
            drop(release);
        });
        for (_, registration) in node.registered() {
            assert_eq!(registration.startup, Startup::Hold);
            node.datapath.verify(registration.ifindex).unwrap();
        }
        assert_eq!(node.registered().len(), 3);
        assert!(allowed.passes() && !forbidden.passes());
        writing.settle();
    });
}

/// An earlier policyd was killed while it watched pods whose policy was in force, and the next one's writer is busy: the
/// adoption is given up, and their tables go. When it is tried again the writer may not take them for being there.
#[test]
fn an_adoption_that_was_given_up_begins_anew_with_the_writer_too() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        let mut allowed = pods.connect(WEB, API, 80);
        let mut forbidden = pods.connect(DB, API, 8080);
        let killed = writing(node, &pods);
        runtime().block_on(async {
            let adopting = tokio::spawn(adopter(&killed, &pods).run());
            all(node, "have their policy", |each| in_force(node, each)).await;
            adopting.abort();
            assert!(adopting.await.unwrap_err().is_cancelled());
        });
        drop(killed);
        all_watched(node);

        let writing = writing(node, &pods);
        runtime().block_on(async {
            let release = writing.hold_up();
            let adopting = tokio::spawn(adopter(&writing, &pods).run());
            // its ten seconds, and where the next round would have taken them up again
            later(25).await;
            drop(release);
            all(node, "are enforced", |each| each.startup == Startup::Hold).await;
            adopting.abort();
            assert!(adopting.await.unwrap_err().is_cancelled());
        });
        writing.settle();
        for (name, registration) in node.registered() {
            assert!(in_force(node, &registration), "{name} is enforced without its policy");
        }
        // an acknowledgement of the forbidden connection may have come late, on a busy machine
        let before = denied(node);
        assert!(allowed.passes());
        assert_eq!(denied(node), before);
        assert!(!forbidden.passes());
    });
}

fn all_watched(node: &Node) {
    let registered = node.registered();
    assert_eq!(registered.len(), 3);
    assert!(registered.iter().all(|(_, each)| each.startup == Startup::Learn), "killed too late");
}
