//! podgate comes to pods that run already and have connections open.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podgate_bpf::abi::Startup;
use podgate_testkit::wait::until;
use podgate_tests::runtime::outcome::enforced;
use podgate_tests::runtime::traffic::{Exchange, SOON, Target, talk};
use podgate_tests::runtime::world::{World, ingress_only_from};
use podgate_tests::runtime::{Conflist, Node, Policyd};

use crate::REFUSED;
use crate::pod::ChainedPod;

/// How long policyd may take to adopt a pod: its flows are read first, and it looks every few seconds.
const ADOPTION_TIMEOUT: Duration = Duration::from_secs(90);

#[test]
fn an_allowed_connection_goes_on_and_a_forbidden_one_ends() -> Result<()> {
    let node = Node::bare()?;
    let world = World::of(&node)?;
    world.policy("server", ingress_only_from("server", &["trusted"]))?;
    let ungated = Conflist::ungated();
    let run = |name: &str, app: &str| ChainedPod::run(&node, &world, name, app, &ungated);
    let (server, trusted, stranger) =
        (run("server", "server")?, run("trusted", "trusted")?, run("stranger", "stranger")?);
    let address = server.address()?;
    let listening = Target::listen(&node, &server.netns)?;
    let allowed = Exchange::start(&node, &trusted.netns, address)?;
    let forbidden = Exchange::start(&node, &stranger.netns, address)?;
    ensure!(until(SOON, || forbidden.answered() > 20), "nothing is enforced yet");

    let policyd = Policyd::start(&node)?;
    for pod in [&server, &trusted, &stranger] {
        let adopted = until(ADOPTION_TIMEOUT, || {
            node.registration(&pod.pod).is_ok_and(|found| found.startup == Startup::Hold)
        });
        ensure!(adopted, "{} is not adopted: {}", pod.pod.name, policyd.daemon.log());
        enforced(&node, &pod.pod)?;
    }
    let mut seen = forbidden.answered();
    let stopped = until(SOON, || {
        std::thread::sleep(REFUSED);
        std::mem::replace(&mut seen, forbidden.answered()) == forbidden.answered()
    });
    ensure!(stopped, "the forbidden connection goes on");
    let refused = talk(&node, &stranger.netns, address, REFUSED)?;
    ensure!(refused.is_err(), "a pod that may not connect did");
    talk(&node, &trusted.netns, address, SOON)?.context("the trusted pod connects")?;
    let before = allowed.answered();
    ensure!(until(SOON, || allowed.answered() > before + 20), "the allowed connection stopped");
    drop(forbidden);
    let (answered, mut faults) = allowed.stop();
    // Attaching a clsact qdisc makes the kernel take the interface's queue away for a moment, as long as a grace period: a
    // datagram may be lost in it, which a connection repairs.
    faults.retain(|fault| !fault.starts_with("UDP"));
    ensure!(faults.is_empty(), "after {answered} answers: {faults:?}");
    drop(listening);
    for pod in [server, trusted, stranger] {
        pod.end(&world)?;
    }
    policyd.daemon.terminate()?;
    node.finish()
}
