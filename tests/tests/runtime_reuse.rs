//! An address that another pod had: its policy and its flows go with the old pod.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podgate_testkit::wait::until;
use podgate_tests::runtime::outcome::enforced;
use podgate_tests::runtime::traffic::{CONNECT_TIMEOUT, PORT, Target, talk};
use podgate_tests::runtime::world::{World, ingress_only_from};
use podgate_tests::runtime::{Conflist, Cri, Node, Peer, Pod, Policyd};

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

/// A server that answers pods of `trusted` alone, and one more address for all the others to come.
struct Stage {
    node: Node,
    world: World,
    _policyd: Policyd,
    cri: Cri,
    server: Peer,
    at_server: Target,
}

impl Stage {
    fn new() -> Result<Self> {
        let node = Node::start(&Conflist::default().with_addresses(2))?;
        let world = World::of(&node)?;
        world.policy("server", ingress_only_from("server", &["trusted"]))?;
        let policyd = Policyd::start(&node)?;
        let mut cri = node.cri()?;
        let server = Peer::run(&world, &mut cri, "server", "server")?;
        let at_server = Target::listen(&node, &server.netns)?;
        Ok(Self { node, world, _policyd: policyd, cri, server, at_server })
    }

    /// A pod that gets answers.
    fn trusted(&mut self, name: &str) -> Result<Peer> {
        let pod = Peer::run(&self.world, &mut self.cri, name, "trusted")?;
        let answers = until(CONNECT_TIMEOUT, || self.answers(&pod).unwrap_or(false));
        ensure!(answers, "the trusted pod {name} gets no answer");
        Ok(pod)
    }

    fn answers(&self, pod: &Peer) -> Result<bool> {
        ask(&self.node, pod, self.server.address)
    }

    /// Packets of this address that have come to the server.
    fn seen(&self, address: IpAddr) -> u64 {
        self.at_server.packets_from(address)
    }

    fn finish(self) -> Result<()> {
        drop(self.at_server);
        self.node.finish()
    }
}

#[test]
fn a_new_pod_with_an_old_address_has_its_own_policy_and_no_old_flows() -> Result<()> {
    let mut stage = Stage::new()?;
    for round in 0..3 {
        let old = stage.trusted(&format!("old-{round}"))?;
        let address = old.address;
        old.delete(&stage.world, &mut stage.cri)?;
        // counted by now, all of them
        let before = stage.seen(address);

        let name = format!("new-{round}");
        let new = Peer::run(&stage.world, &mut stage.cri, &name, "stranger")?;
        ensure!(new.address == address, "the new pod has another address");
        enforced(&stage.node, &new.pod)?;
        ensure!(!stage.answers(&new)?, "round {round}: the server answers a stranger");
        let limit = Duration::from_millis(300);
        let talked = talk(&stage.node, &new.netns, stage.server.address, limit)?;
        ensure!(talked.is_err(), "the stranger connected");
        let through = stage.seen(address) - before;
        ensure!(through == 0, "round {round}: {through} packets of the stranger got through");
        new.delete(&stage.world, &mut stage.cri)?;
    }
    stage.finish()
}

#[test]
fn a_pod_of_the_same_name_is_another_pod() -> Result<()> {
    let mut stage = Stage::new()?;
    // what a StatefulSet does: the name, here even the address, but another uid and other labels
    let first = stage.trusted("web-0")?;
    let (address, again) = (first.address, first.pod.reborn());
    first.delete(&stage.world, &mut stage.cri)?;
    let before = stage.seen(address);
    let second = Peer::run_pod(&stage.world, &mut stage.cri, again, "stranger")?;
    ensure!(second.address == address, "the new pod has another address");
    enforced(&stage.node, &second.pod)?;
    ensure!(!stage.answers(&second)?, "the server answers a stranger");
    ensure!(stage.seen(address) == before, "packets got through");
    stage.finish()
}

#[test]
fn a_world_that_still_knows_the_old_pod_does_not_serve_the_new_one() -> Result<()> {
    let mut stage = Stage::new()?;
    let old = stage.trusted("old")?;
    // the pod is gone from the node; that it is gone from the cluster has not been heard here yet
    stage.cri.delete(&old.id)?;
    let before = stage.seen(old.address);
    let stranger = Pod::new("new");
    stage.world.pod(&stranger, "stranger", None)?;
    let id = stage.cri.run(&stranger)?;
    let new = Peer::of(&mut stage.cri, stranger, id)?;
    ensure!(new.address == old.address, "the new pod has another address");
    enforced(&stage.node, &new.pod)?;
    ensure!(!stage.answers(&new)?, "the server answers a stranger");
    ensure!(stage.seen(new.address) == before, "packets got through");
    stage.finish()
}
