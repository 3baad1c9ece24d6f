//! policyd is killed, started again and given other policies under connections that are open.

use anyhow::{Context, Result, ensure};
use podgate_testkit::wait::until;
use podgate_tests::runtime::outcome::nothing_left;
use podgate_tests::runtime::traffic::{Exchange, SOON, Target, talk};
use podgate_tests::runtime::world::{World, ingress_only_from};
use podgate_tests::runtime::{Conflist, Node, Policyd};

use crate::REFUSED;
use crate::pod::ChainedPod;

#[test]
fn connections_outlive_policyd_and_end_with_their_permission() -> Result<()> {
    let node = Node::bare()?;
    let world = World::of(&node)?;
    world.policy("server", ingress_only_from("server", &["client"]))?;
    let policyd = Policyd::start(&node)?;
    let conflist = Conflist::default();
    let run = |name: &str, app: &str| ChainedPod::run(&node, &world, name, app, &conflist);
    let (server, client, other) =
        (run("server", "server")?, run("client", "client")?, run("other", "other")?);
    let address = server.address()?;
    let listening = Target::listen(&node, &server.netns)?;
    let exchange = Exchange::start(&node, &client.netns, address)?;
    let goes_on = |what: &str| {
        let before = exchange.answered();
        let answered = until(SOON, || exchange.answered() > before + 20);
        ensure!(answered, "{what}: the open connection stopped at {before} answers");
        Ok(())
    };
    goes_on("policyd runs")?;
    let refused = talk(&node, &other.netns, address, REFUSED)?;
    ensure!(refused.is_err(), "a pod that may not connect did");

    policyd.daemon.kill()?;
    goes_on("policyd was killed")?;
    talk(&node, &client.netns, address, SOON)?.context("a new connection without policyd")?;
    let refused = talk(&node, &other.netns, address, REFUSED)?;
    ensure!(refused.is_err(), "a pod that may not connect did, without policyd");

    let policyd = Policyd::start(&node)?;
    goes_on("policyd runs again")?;
    let refused = talk(&node, &other.netns, address, REFUSED)?;
    ensure!(refused.is_err(), "a pod that may not connect did, after the restart");

    // the other one may now, and this one may not any more
    world.policy("server", ingress_only_from("server", &["other"]))?;
    let swapped = until(SOON, || {
        talk(&node, &other.netns, address, REFUSED).is_ok_and(|talked| talked.is_ok())
    });
    ensure!(swapped, "the change is not in force after {SOON:?}");
    let mut seen = exchange.answered();
    let stopped = until(SOON, || {
        std::thread::sleep(REFUSED);
        std::mem::replace(&mut seen, exchange.answered()) == exchange.answered()
    });
    ensure!(stopped, "the open connection goes on without its permission");
    let refused = talk(&node, &client.netns, address, REFUSED)?;
    ensure!(refused.is_err(), "a pod that may not connect any more did");

    drop(exchange);
    drop(listening);
    for pod in [server, client, other] {
        pod.check()?;
        pod.end(&world)?;
    }
    nothing_left(&node)?;
    policyd.daemon.terminate()?;
    node.finish()
}
