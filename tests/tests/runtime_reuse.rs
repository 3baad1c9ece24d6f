//! An address that another pod had: its policy and its flows go with the old pod.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podgate_tests::runtime::outcome::enforced;
use podgate_tests::runtime::traffic::{PORT, SOON, Target, talk};
use podgate_tests::runtime::wait::until;
use podgate_tests::runtime::world::{World, ingress_only_from};
use podgate_tests::runtime::{Conflist, Node, Peer, Pod, Policyd};

/// Always the same five-tuple: a flow of the old pod would fit the new one's packets.
const SOURCE_PORT: u16 = 40_000;

/// Sends a datagram from the fixed port and waits for its echo.
fn ask(node: &Node, from: &Peer, to: IpAddr) -> Result<bool> {
    node.inside_pod(&from.netns, || -> std::io::Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SOURCE_PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        socket.connect(SocketAddr::new(to, PORT))?;
        socket.send(b"hello")?;
        Ok(socket.recv(&mut [0; 16]).is_ok())
    })?
    .context("ask")
}

#[test]
fn a_new_pod_with_an_old_address_has_its_own_policy_and_no_old_flows() -> Result<()> {
    let node = Node::start(&Conflist::default().with_addresses(2))?;
    let world = World::of(&node)?;
    world.policy("server", ingress_only_from("server", &["trusted"]))?;
    let _policyd = Policyd::start(&node)?;
    let mut cri = node.cri()?;
    let server = Peer::run(&world, &mut cri, "server", "server")?;
    let at_server = Target::listen(&node, &server.netns)?;

    for round in 0..3 {
        let old = Peer::run(&world, &mut cri, &format!("old-{round}"), "trusted")?;
        let answers = until(SOON, || ask(&node, &old, server.address).unwrap_or(false));
        ensure!(answers, "round {round}: the trusted pod gets no answer");
        let address = old.address;
        old.delete(&world, &mut cri)?;
        // counted by now, all of them
        let before = at_server.packets_from(address);

        let new = Peer::run(&world, &mut cri, &format!("new-{round}"), "stranger")?;
        ensure!(new.address == address, "the new pod has another address");
        enforced(&node, &new.pod)?;
        ensure!(!ask(&node, &new, server.address)?, "round {round}: the server answers a stranger");
        let limit = Duration::from_millis(300);
        ensure!(talk(&node, &new.netns, server.address, limit)?.is_err(), "the stranger connected");
        let through = at_server.packets_from(address) - before;
        ensure!(through == 0, "round {round}: {through} packets of the stranger got through");
        new.delete(&world, &mut cri)?;
    }
    drop(at_server);
    node.finish()
}

#[test]
fn a_pod_of_the_same_name_is_another_pod() -> Result<()> {
    let node = Node::start(&Conflist::default().with_addresses(2))?;
    let world = World::of(&node)?;
    world.policy("server", ingress_only_from("server", &["trusted"]))?;
    let _policyd = Policyd::start(&node)?;
    let mut cri = node.cri()?;
    let server = Peer::run(&world, &mut cri, "server", "server")?;
    let at_server = Target::listen(&node, &server.netns)?;
    // what a StatefulSet does: the name, here even the address, but another uid and other labels
    let first = Peer::run(&world, &mut cri, "web-0", "trusted")?;
    let answers = until(SOON, || ask(&node, &first, server.address).unwrap_or(false));
    ensure!(answers, "the trusted pod gets no answer");
    let (address, again) = (first.address, first.pod.reborn());
    first.delete(&world, &mut cri)?;
    let before = at_server.packets_from(address);
    let second = Peer::run_pod(&world, &mut cri, again, "stranger")?;
    enforced(&node, &second.pod)?;
    ensure!(!ask(&node, &second, server.address)?, "the server answers a stranger");
    ensure!(at_server.packets_from(second.address) == before, "packets got through");
    drop(at_server);
    node.finish()
}

#[test]
fn a_world_that_still_knows_the_old_pod_does_not_serve_the_new_one() -> Result<()> {
    let node = Node::start(&Conflist::default().with_addresses(2))?;
    let world = World::of(&node)?;
    world.policy("server", ingress_only_from("server", &["trusted"]))?;
    let _policyd = Policyd::start(&node)?;
    let mut cri = node.cri()?;
    let server = Peer::run(&world, &mut cri, "server", "server")?;
    let at_server = Target::listen(&node, &server.netns)?;
    let old = Peer::run(&world, &mut cri, "old", "trusted")?;
    let answers = until(SOON, || ask(&node, &old, server.address).unwrap_or(false));
    ensure!(answers, "the trusted pod gets no answer");

    // the pod is gone from the node; that it is gone from the cluster has not been heard here yet
    cri.delete(&old.id)?;
    let before = at_server.packets_from(old.address);
    let stranger = Pod::new("new");
    world.pod(&stranger, "stranger", None)?;
    let id = cri.run(&stranger)?;
    let new = Peer::of(&mut cri, stranger, id)?;
    ensure!(new.address == old.address, "the new pod has another address");
    enforced(&node, &new.pod)?;
    ensure!(!ask(&node, &new, server.address)?, "the server answers a stranger");
    ensure!(at_server.packets_from(new.address) == before, "packets got through");
    drop(at_server);
    node.finish()
}
