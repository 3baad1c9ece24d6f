//! The gate stands before the first container starts: what a pod's very first packet meets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podgate_bpf::abi::{Direction, Reason};
use podgate_testkit::wait::until;
use podgate_tests::runtime::outcome::{enforced, gated, nothing_left};
use podgate_tests::runtime::peer::exit_code;
use podgate_tests::runtime::traffic::{CONNECT_TIMEOUT, Hammer, PORT, Target, talk};
use podgate_tests::runtime::world::{World, egress_only_to, ingress_only_from};
use podgate_tests::runtime::{Conflist, Node, Peer, Pod, Policyd};

/// What a workload does before anything else: one connection, for which it has so many seconds.
fn first_act(to: std::net::IpAddr, seconds: u64) -> String {
    format!("echo hello | nc -w {seconds} {to} {PORT} | grep -q hello")
}

#[test]
fn the_first_connection_of_a_pod_is_judged() -> Result<()> {
    let node = Node::start(&Conflist::default())?;
    let world = World::of(&node)?;
    world.policy("client", egress_only_to("client", &["friend"]))?;
    let _policyd = Policyd::start(&node)?;
    let mut cri = node.cri()?;
    let friend = Peer::run(&world, &mut cri, "friend", "friend")?;
    let stranger = Peer::run(&world, &mut cri, "stranger", "stranger")?;
    let at_friend = Target::listen(&node, &friend.netns)?;
    let at_stranger = Target::listen(&node, &stranger.netns)?;

    for round in 0..3 {
        let client = Pod::new(&format!("client-{round}"));
        world.pod(&client, "client", None)?;
        let id = cri.run(&client)?;
        enforced(&node, &client)?;
        let source = cri.address(&id)?;
        let denied = cri.start(&client, &id, "denied", &first_act(stranger.address, 1))?;
        let allowed = cri.start(
            &client,
            &id,
            "allowed",
            &first_act(friend.address, CONNECT_TIMEOUT.as_secs()),
        )?;
        ensure!(exit_code(&mut cri, &allowed)? == 0, "the friend is out of reach");
        ensure!(exit_code(&mut cri, &denied)? != 0, "the stranger answered");
        ensure!(at_friend.packets_from(source) > 0, "the friend saw no packet of {source}");
        ensure!(at_stranger.packets_from(source) == 0, "the stranger saw packets of {source}");
        cri.delete(&id)?;
        world.remove_pod(&client)?;
    }
    ensure!(at_friend.accepted() == 3, "the friend accepted {}", at_friend.accepted());
    ensure!(at_stranger.accepted() == 0, "the stranger accepted {}", at_stranger.accepted());
    drop((at_friend, at_stranger));
    node.finish()
}

#[test]
fn without_policyd_a_pod_is_held_and_freed_as_policy_says() -> Result<()> {
    let node = Node::start(&Conflist::default().with("policydTimeoutMs", 100))?;
    let world = World::of(&node)?;
    world.policy("client", egress_only_to("client", &["friend"]))?;
    let mut cri = node.cri()?;
    let friend = Peer::run(&world, &mut cri, "friend", "friend")?;
    let stranger = Peer::run(&world, &mut cri, "stranger", "stranger")?;
    let client = Peer::run(&world, &mut cri, "client", "client")?;
    let at_friend = Target::listen(&node, &friend.netns)?;
    let at_stranger = Target::listen(&node, &stranger.netns)?;
    gated(&node, &client.pod)?;

    let limit = Duration::from_millis(300);
    for to in [friend.address, stranger.address] {
        ensure!(talk(&node, &client.netns, to, limit)?.is_err(), "a held pod reached {to}");
    }
    for at in [&at_friend, &at_stranger] {
        ensure!(at.packets_from(client.address) == 0, "a packet of a held pod got through");
    }
    // its own node may always reach it
    let at_client = Target::listen(&node, &client.netns)?;
    node.inside(|| podgate_tests::runtime::traffic::talk_here(client.address, CONNECT_TIMEOUT))?
        .context("the node itself reaches a held pod")?;

    let _policyd = Policyd::start(&node)?;
    let reached = until(Duration::from_secs(20), || {
        talk(&node, &client.netns, friend.address, limit).is_ok_and(|talked| talked.is_ok())
    });
    ensure!(reached, "policyd has started, and the friend is still out of reach");
    ensure!(talk(&node, &client.netns, stranger.address, limit)?.is_err(), "the stranger answered");
    ensure!(at_stranger.packets_from(client.address) == 0, "the stranger saw a packet");
    // the friend is not isolated, and the client is for egress only
    talk(&node, &friend.netns, client.address, CONNECT_TIMEOUT)?.context("reach the client")?;
    drop((at_friend, at_stranger, at_client));
    node.finish()
}

#[test]
fn on_timeout_fail_refuses_the_pod_and_leaves_nothing() -> Result<()> {
    let conflist = Conflist::default().with("policydTimeoutMs", 100).with("onTimeout", "fail");
    let node = Node::start(&conflist)?;
    let mut cri = node.cri()?;
    for attempt in 0..3 {
        let Err(refused) = cri.run(&Pod::new("a")) else {
            anyhow::bail!("attempt {attempt}: the pod runs without a policyd");
        };
        let told = refused.message();
        ensure!(
            told.contains("plugin type=\"podgate\" failed (add)")
                && told.contains("wait for the pod's policy to be in force")
                && told.contains("policyd does not listen on /run/podgate/cni.sock"),
            "the reason is unclear: {told}"
        );
        nothing_left(&node)?;
    }
    // as the kubelet does: again and again, until policyd is there
    let world = World::of(&node)?;
    let pod = Pod::new("a");
    world.pod(&pod, "a", None)?;
    let _policyd = Policyd::start(&node)?;
    let id = cri.run(&pod)?;
    enforced(&node, &pod)?;
    cri.delete(&id)?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn startup_open_lets_a_pod_talk_until_its_policy_is_there() -> Result<()> {
    let conflist = Conflist::default().with("policydTimeoutMs", 100).with("startup", "open");
    let node = Node::start(&conflist)?;
    let world = World::of(&node)?;
    world.policy("client", egress_only_to("client", &["friend"]))?;
    let mut cri = node.cri()?;
    let friend = Peer::run(&world, &mut cri, "friend", "friend")?;
    let stranger = Peer::run(&world, &mut cri, "stranger", "stranger")?;
    let client = Peer::run(&world, &mut cri, "client", "client")?;
    let at_friend = Target::listen(&node, &friend.netns)?;
    let at_stranger = Target::listen(&node, &stranger.netns)?;
    for to in [friend.address, stranger.address] {
        talk(&node, &client.netns, to, CONNECT_TIMEOUT)?.with_context(|| format!("reach {to}"))?;
    }

    let _policyd = Policyd::start(&node)?;
    let cut = until(Duration::from_secs(10), || {
        talk(&node, &client.netns, stranger.address, Duration::from_millis(300))
            .is_ok_and(|talked| talked.is_err())
    });
    ensure!(cut, "policyd has started, and the stranger is still in reach");
    talk(&node, &client.netns, friend.address, CONNECT_TIMEOUT)?.context("reach the friend")?;
    drop((at_friend, at_stranger));
    node.finish()
}

/// Packets to pods that policy has refused.
fn refused(node: &Node) -> u64 {
    let counters = node.datapath().and_then(|datapath| Ok(datapath.maps.counters()?));
    counters.map_or(0, |counters| counters.get(Direction::Ingress, Reason::DenyPolicy).packets)
}

#[test]
fn nobody_gets_through_to_a_pod_that_is_being_made() -> Result<()> {
    // three addresses: the attacker and the friend have two, so the victim will have the third
    let node = Node::start(&Conflist::default().with_addresses(3))?;
    let world = World::of(&node)?;
    world.policy("victim", ingress_only_from("victim", &["friend"]))?;
    let _policyd = Policyd::start(&node)?;
    let mut cri = node.cri()?;
    let attacker = Peer::run(&world, &mut cri, "attacker", "attacker")?;
    let friend = Peer::run(&world, &mut cri, "friend", "friend")?;
    let last: std::net::IpAddr = "10.88.0.12".parse()?;
    let hammer = Hammer::start(&node, &attacker.netns, last)?;

    for round in 0..3 {
        let victim = Pod::new(&format!("victim-{round}"));
        world.pod(&victim, "victim", None)?;
        let before = refused(&node);
        let id = cri.run(&victim)?;
        ensure!(cri.address(&id)? == last, "the victim has another address");
        let (_, netns) = cri.pause(&id)?;
        // ADD has returned: from here on nothing may come in, whatever had been under way
        let at_victim = Target::listen(&node, &netns)?;
        talk(&node, &friend.netns, last, CONNECT_TIMEOUT)?
            .with_context(|| format!("round {round}: the friend's first try"))?;
        // else this would prove nothing
        let arrives = until(Duration::from_secs(20), || refused(&node) > before + 100);
        ensure!(arrives, "round {round}: the hammering does not reach the victim's gate");
        let through = at_victim.packets_from(attacker.address);
        ensure!(through == 0, "round {round}: {through} packets got through");
        ensure!(at_victim.packets_from(friend.address) > 0, "the friend's packets were not seen");
        drop(at_victim);
        cri.delete(&id)?;
        world.remove_pod(&victim)?;
    }
    drop(hammer);
    node.finish()
}
