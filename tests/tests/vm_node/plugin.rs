//! ADD, CHECK and DEL by each kind of attachment.

use anyhow::{Context, Result, ensure};
use podgate_bpf::features::Feature;
use podgate_tests::runtime::outcome::{enforced, gated, nothing_left};
use podgate_tests::runtime::traffic::{SOON, Target, talk};
use podgate_tests::runtime::world::{World, ingress_only_from};
use podgate_tests::runtime::{Conflist, Node, Policyd};

use crate::REFUSED;
use crate::pod::ChainedPod;

fn attaches_and_leaves_nothing(mode: &str) -> Result<()> {
    let node = Node::bare()?;
    let world = World::of(&node)?;
    world.policy("server", ingress_only_from("server", &["client"]))?;
    let _policyd = Policyd::start(&node)?;
    let conflist = Conflist::default().with("attach", mode);
    let server = ChainedPod::run(&node, &world, "server", "server", &conflist)?;
    let client = ChainedPod::run(&node, &world, "client", "client", &conflist)?;
    let stranger = ChainedPod::run(&node, &world, "stranger", "other", &conflist)?;
    for pod in [&server, &client, &stranger] {
        enforced(&node, &pod.pod)?;
        pod.check()?;
    }
    let listening = Target::listen(&node, &server.netns)?;
    talk(&node, &client.netns, server.address()?, SOON)?.context("the client connects")?;
    let refused = talk(&node, &stranger.netns, server.address()?, REFUSED)?;
    ensure!(refused.is_err(), "a stranger connected");
    drop(listening);
    for pod in [server, client, stranger] {
        pod.end(&world)?;
    }
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn auto_attaches_and_leaves_nothing() -> Result<()> {
    attaches_and_leaves_nothing("auto")
}

#[test]
fn clsact_attaches_and_leaves_nothing() -> Result<()> {
    attaches_and_leaves_nothing("clsact")
}

#[test]
fn tcx_attaches_or_says_that_the_kernel_has_none() -> Result<()> {
    if Feature::Tcx.is_present() {
        return attaches_and_leaves_nothing("tcx");
    }
    let node = Node::bare()?;
    let mut pod = ChainedPod::new(&node, "pod", &Conflist::default().with("attach", "tcx"))?;
    let refusal = pod.add().err().context("ADD succeeded without TCX")?;
    ensure!(format!("{refusal:#}").contains("this kernel has none"), "{refusal:#}");
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn without_policyd_hold_isolates_and_fail_refuses() -> Result<()> {
    let node = Node::bare()?;
    let hold = Conflist::default().with("policydTimeoutMs", 300);
    let mut held = ChainedPod::new(&node, "held", &hold)?;
    held.add()?;
    gated(&node, &held.pod)?;
    held.check()?;
    let open = Conflist::default().with("startup", "open").with("policydTimeoutMs", 300);
    let mut peer = ChainedPod::new(&node, "peer", &open)?;
    peer.add()?;
    let listening = Target::listen(&node, &held.netns)?;
    let reached = talk(&node, &peer.netns, held.address()?, REFUSED)?;
    ensure!(reached.is_err(), "a pod in its startup state was reached");
    drop(listening);
    held.delete()?;
    peer.delete()?;

    let mut failed = ChainedPod::new(&node, "failed", &hold.with("onTimeout", "fail"))?;
    let refusal = failed.add().err().context("ADD succeeded without policyd")?;
    ensure!(format!("{refusal:#}").contains("\"code\":11"), "{refusal:#}");
    nothing_left(&node)?;
    node.finish()
}
