//! SIGKILL at any moment: what is allowed goes on, what is denied stays so, and nothing of the dead is left.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podgate_testkit::wait::until;
use podgate_tests::runtime::outcome::{enforced, nothing_left};
use podgate_tests::runtime::recorder::{unwrap_podgate, wrap_podgate};
use podgate_tests::runtime::traffic::{CONNECT_TIMEOUT, Exchange, Hammer, Target, talk};
use podgate_tests::runtime::world::{World, egress_only_to, ingress_only_from};
use podgate_tests::runtime::{Conflist, Node, Peer, Pod, Policyd};

/// Milliseconds that a policyd lives: while it reads the world, while it commits, long after.
const LIVES: [u64; 12] = [3, 40, 8, 150, 20, 60, 12, 250, 5, 90, 30, 15];

#[test]
fn policyd_killed_at_any_moment_neither_opens_nor_cuts() -> Result<()> {
    let node = Node::start(&Conflist::default().with("policydTimeoutMs", 200))?;
    let world = World::of(&node)?;
    world.policy("client", egress_only_to("client", &["friend"]))?;
    world.policy("vault", ingress_only_from("vault", &["friend"]))?;
    let policyd = Policyd::start(&node)?;
    let mut cri = node.cri()?;
    let [client, friend, stranger, vault] = ["client", "friend", "stranger", "vault"]
        .map(|name| Peer::run(&world, &mut cri, name, name));
    let (client, friend, stranger, vault) = (client?, friend?, stranger?, vault?);
    let at_friend = Target::listen(&node, &friend.netns)?;
    let at_stranger = Target::listen(&node, &stranger.netns)?;
    let at_vault = Target::listen(&node, &vault.netns)?;
    let reached = until(Duration::from_secs(20), || {
        let limit = Duration::from_millis(500);
        talk(&node, &client.netns, friend.address, limit).is_ok_and(|talked| talked.is_ok())
    });
    ensure!(reached, "the friend is out of reach before anything has happened");
    let allowed = Exchange::start(&node, &client.netns, friend.address)?;
    let out = Hammer::start(&node, &client.netns, stranger.address)?;
    let into = Hammer::start(&node, &stranger.netns, vault.address)?;

    policyd.daemon.kill()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let churn = scope.spawn(|| churn(&node, &world, &done));
        let lives = live_and_die(&node, &world);
        done.store(true, Ordering::Relaxed);
        churn.join().map_err(|_| anyhow::anyhow!("the churning thread panicked"))??;
        lives
    })?;
    // the last word: the client may also reach the vault, and the vault lets it in
    world.policy("client", egress_only_to("client", &["friend", "vault"]))?;
    world.policy("vault", ingress_only_from("vault", &["friend", "client"]))?;
    let policyd = Policyd::start(&node)?;

    let (answered, losses) = allowed.stop();
    ensure!(losses.is_empty() && answered > 500, "{answered} were answered; lost: {losses:?}");
    ensure!(out.sent() > 500 && into.sent() > 500, "the hammers stood still");
    let through =
        at_stranger.packets_from(client.address) + at_vault.packets_from(stranger.address);
    ensure!(through == 0, "{through} packets got through");

    let settled = until(Duration::from_secs(30), || {
        policyd
            .endpoint_states()
            .is_ok_and(|s| s.len() == 4 && s.iter().all(|(_, s)| s == "enforced"))
    });
    ensure!(settled, "endpoints: {:?}", policyd.endpoint_states()?);
    for (from, to, allowed) in [
        (&client, &friend, true),
        (&client, &vault, true),
        (&client, &stranger, false),
        (&friend, &vault, true),
        (&friend, &stranger, true),
        (&stranger, &vault, false),
        (&stranger, &friend, true),
    ] {
        let limit = if allowed { CONNECT_TIMEOUT } else { Duration::from_millis(500) };
        let talked = talk(&node, &from.netns, to.address, limit)?;
        let (from, to) = (&from.pod.name, &to.pod.name);
        ensure!(
            talked.is_ok() == allowed,
            "{from} to {to}: {talked:?}, policy allows it: {allowed}"
        );
    }
    for peer in [&client, &friend, &stranger, &vault] {
        enforced(&node, &peer.pod)?;
    }
    drop((out, into, at_friend, at_stranger, at_vault));
    for peer in [client, friend, stranger, vault] {
        peer.delete(&world, &mut cri)?;
    }
    nothing_left(&node)?;
    node.finish()
}

/// Starts policyd and kills it, over and over, in the middle of changes that concern the client and the vault but
/// neither what is exchanged nor what is refused.
fn live_and_die(node: &Node, world: &World) -> Result<()> {
    let mut ready = 0;
    for (number, life) in LIVES.iter().enumerate() {
        let policyd = Policyd::launch(node)?;
        // every other one is killed in the midst of starting
        if number % 2 == 0 {
            ready += usize::from(until(Duration::from_secs(5), || policyd.is_ready()));
        }
        let more: &[&str] = if number % 4 < 2 { &["friend", "churn"] } else { &["friend"] };
        world.policy("client", egress_only_to("client", more))?;
        world.policy("vault", ingress_only_from("vault", more))?;
        thread::sleep(Duration::from_millis(*life));
        policyd.daemon.kill()?;
    }
    ensure!(ready >= 2, "policyd was ready {ready} times before it was killed: this proves little");
    Ok(())
}

/// Pods that come and go meanwhile.
fn churn(node: &Node, world: &World, done: &AtomicBool) -> Result<()> {
    let mut cri = node.cri()?;
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let peer = Peer::run(world, &mut cri, &format!("churn-{number}"), "churn")?;
        peer.delete(world, &mut cri)?;
        // as fast as it can it would keep the kernel from everything else
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Runs podgate's ADD and kills it after `$1` seconds, unless it is done by then; DEL is left alone.
fn kill_add_after(node: &Node, seconds: &str) -> Result<()> {
    wrap_podgate(
        node,
        &format!(
            r#"[ "$command" = ADD ] || {{ real; exit; }}
/run/node/real/podgate <"$call.json" >"$call.out" &
plugin=$!
(sleep {seconds}; kill -9 $plugin) 2>/dev/null &
wait $plugin || fail "killed after {seconds}"
cat "$call.out""#
        ),
    )
}

#[test]
fn a_plugin_killed_during_add_leaves_nothing_to_the_next_pod() -> Result<()> {
    // beside the server only one address, so that each pod takes over the one of its killed predecessor
    let node = Node::start(&Conflist::default().with_addresses(2))?;
    let world = World::of(&node)?;
    world.policy("server", ingress_only_from("server", &["trusted"]))?;
    world.policy("untrusted", egress_only_to("untrusted", &[]))?;
    let policyd = Policyd::start(&node)?;
    let mut cri = node.cri()?;
    let server = Peer::run(&world, &mut cri, "server", "server")?;
    let at_server = Target::listen(&node, &server.netns)?;
    let mut killed = 0;
    for (number, (seconds, frozen)) in [
        ("0", false),
        ("0.001", false),
        ("0.002", false),
        ("0.003", false),
        ("0.004", false),
        ("0.006", false),
        ("0.008", false),
        ("0.012", false),
        ("0.016", false),
        ("0.025", false),
        ("0.2", true),
    ]
    .into_iter()
    .enumerate()
    {
        kill_add_after(&node, seconds)?;
        if frozen {
            policyd.daemon.freeze()?;
        }
        let victim = Pod::new(&format!("trusted-{number}"));
        world.pod(&victim, "trusted", None)?;
        match cri.run(&victim) {
            Err(refused) => {
                ensure!(refused.message().contains("killed after"), "{refused}");
                killed += 1;
            }
            Ok(id) => cri.delete(&id)?,
        }
        world.remove_pod(&victim)?;
        if frozen {
            policyd.daemon.thaw()?;
        }
        unwrap_podgate(&node)?;
        let only_server = until(Duration::from_secs(20), || {
            node.registrations().is_ok_and(|r| r.len() == 1)
                && node
                    .datapath()
                    .and_then(|datapath| Ok(datapath.maps.installed_policy_maps()?))
                    .is_ok_and(|maps| maps.len() == 1)
        });
        ensure!(only_server, "killed after {seconds} s: {:#?}", node.registrations()?);

        let next = Peer::run(&world, &mut cri, &format!("next-{number}"), "untrusted")?;
        enforced(&node, &next.pod)?;
        let limit = Duration::from_millis(100);
        ensure!(talk(&node, &next.netns, server.address, limit)?.is_err(), "the server answered");
        ensure!(at_server.packets_from(next.address) == 0, "the server saw packets");
        next.delete(&world, &mut cri)?;
    }
    ensure!(killed >= 4, "only {killed} plugins were killed in time: this proves little");
    drop(at_server);
    server.delete(&world, &mut cri)?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn a_plugin_killed_while_it_loads_the_programs_is_no_trouble_for_the_next() -> Result<()> {
    let node = Node::start(&Conflist::default().with("policydTimeoutMs", 50))?;
    let mut cri = node.cri()?;
    let mut killed = 0;
    let moments = ["0.01", "0.02", "0.03", "0.04", "0.05", "0.06", "0.08", "0.1", "0.13"];
    for (number, seconds) in moments.into_iter().enumerate() {
        if node.pins().root().exists() {
            std::fs::remove_dir_all(node.pins().root()).context("remove the pins")?;
        }
        kill_add_after(&node, seconds)?;
        match cri.run(&Pod::new(&format!("victim-{number}"))) {
            Err(refused) if refused.message().contains("killed after") => killed += 1,
            Err(refused) => bail!("{refused}"),
            Ok(id) => cri.delete(&id)?,
        }
        unwrap_podgate(&node)?;
        let next = Pod::new(&format!("next-{number}"));
        let id =
            cri.run(&next).with_context(|| format!("after a plugin's death at {seconds} s"))?;
        podgate_tests::runtime::outcome::gated(&node, &next)?;
        cri.delete(&id)?;
        nothing_left(&node)?;
    }
    ensure!(killed >= 2, "only {killed} plugins were killed in time: this proves little");
    node.finish()
}
