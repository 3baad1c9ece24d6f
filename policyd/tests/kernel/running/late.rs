//! A writer that says nothing for long.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use podgate_bpf::abi::Startup;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::maps::Registration;
use policyd::adopt::Adopter;
use policyd::writer::{Answers, Message};

use super::pods::Chain;
use super::{API, DB, WEB, policy, three};
use crate::node::{Node, on_a_node};
use crate::writing::{Writing, objects};

fn registered(node: &Node, name: &str) -> Option<Registration> {
    node.registered().into_iter().find_map(|(its, each)| (its == name).then_some(each))
}

/// Waits until `found` finds something; meanwhile the runtime goes on with its tasks.
async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..4000 {
        if let Some(found) = found() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never happened that {what}");
}

/// A pod has just been adopted, and the writer is busy: what it last published is that the pod is still watched. The
/// next round takes it up again, and gives up when the writer does not answer in time. The pod is enforced all the
/// same, and that may not be taken back.
#[test]
fn a_round_that_the_writer_does_not_answer_takes_no_gate_from_an_enforced_pod() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        let mut allowed = pods.connect(WEB, API, 80);
        let mut forbidden = pods.connect(DB, API, 8080);
        let writing = Writing::on(node);
        writing.replace(objects(&[pods.manifests(), policy()].concat()));
        let adopter = Adopter {
            shared: writing.shared.clone(),
            writer: writing.writer.handle(),
            attach: AttachMode::Auto,
            places: pods.places(),
            anti_spoofing: true,
        };
        let view = Arc::clone(&writing.shared);
        let watched = || {
            let view = view.view();
            view.endpoints.values().filter(|e| e.registration.startup == Startup::Watch).count()
        };
        let (release, held) = mpsc::channel::<()>();
        let handle = writing.writer.handle();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let adopting = tokio::spawn(adopter.run());
            until("the policies are in force", || {
                let all = node.registered();
                let in_force = |(_, each): &(String, Registration)| {
                    node.maps().policy_map(each.ifindex).unwrap().is_some()
                };
                (all.len() == 3 && all.iter().all(in_force)).then_some(())
            })
            .await;
            // the writer has answered for them, and now it is kept busy until the end
            let busy = move |_: &Answers<'_>| {
                let _ = held.recv();
            };
            handle.send(Message::Ask(Box::new(busy))).unwrap();
            until("the pods are enforced", || {
                node.registered().iter().all(|(_, e)| e.startup == Startup::Hold).then_some(())
            })
            .await;
            assert_eq!(watched(), 3, "so it was published last");
            // telling the writer takes ten seconds, the next round begins two later, and its ten seconds pass too
            tokio::time::pause();
            tokio::time::sleep(Duration::from_secs(60)).await;
            tokio::time::resume();
            adopting.abort();
            assert!(adopting.await.unwrap_err().is_cancelled());
        });
        assert_eq!(watched(), 3, "the writer is still busy");
        for name in [WEB, API, DB] {
            let registration = registered(node, name).expect("it is registered");
            assert_eq!(registration.startup, Startup::Hold);
            node.gate.verify(registration.ifindex).unwrap();
        }
        assert!(allowed.passes() && !forbidden.passes());
        release.send(()).unwrap();
        writing.settle();
    });
}
