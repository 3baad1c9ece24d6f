//! podgate comes to a node whose pods run already.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podgate_bpf::abi::Startup;
use podgate_testkit::wait::until;
use podgate_tests::runtime::cnitool::Cnitool;
use podgate_tests::runtime::outcome::{enforced, nothing_left};
use podgate_tests::runtime::recorder::{calls, wrap_podgate};
use podgate_tests::runtime::traffic::{CONNECT_TIMEOUT, Exchange, Target, talk};
use podgate_tests::runtime::world::{World, egress_only_to, ingress_only_from};
use podgate_tests::runtime::{Conflist, Node, Peer, Pod, Policyd};

/// Waits until policyd has adopted the pod.
fn adopted(node: &Node, pod: &Pod) -> Result<()> {
    until(Duration::from_secs(30), || {
        node.registration(pod).is_ok_and(|found| found.startup == Startup::Hold)
    });
    let found = node.registration(pod)?;
    ensure!(found.startup == Startup::Hold, "it is not enforced: {found:#?}");
    enforced(node, pod)
}

/// A server that may be reached by `trusted` and may reach nobody, and one pod of each kind, all without gates.
fn pods_of_before(node: &Node, world: &World) -> Result<[Peer; 3]> {
    let mut cri = node.cri()?;
    let server = Peer::run(world, &mut cri, "server", "server")?;
    let trusted = Peer::run(world, &mut cri, "trusted", "trusted")?;
    let stranger = Peer::run(world, &mut cri, "stranger", "stranger")?;
    world.policy("in", ingress_only_from("server", &["trusted"]))?;
    world.policy("out", egress_only_to("server", &[]))?;
    ensure!(node.registrations()?.is_empty(), "somebody has gated them");
    Ok([server, trusted, stranger])
}

#[test]
fn pods_of_before_are_adopted_under_traffic_and_end_as_others_do() -> Result<()> {
    let node = Node::start(&Conflist::ungated())?;
    let world = World::of(&node)?;
    let [server, trusted, stranger] = pods_of_before(&node, &world)?;
    let at_server = Target::listen(&node, &server.netns)?;
    let exchange = Exchange::start(&node, &trusted.netns, server.address)?;
    let limit = Duration::from_millis(500);
    talk(&node, &stranger.netns, server.address, CONNECT_TIMEOUT)?
        .context("nothing is enforced yet")?;

    // what `policyd install` does, and then policyd comes
    node.set_conflist(Some(&Conflist::default()))?;
    wrap_podgate(&node, "real")?;
    let _policyd = Policyd::start(&node)?;
    for peer in [&server, &trusted, &stranger] {
        adopted(&node, &peer.pod)?;
        let found = node.registration(&peer.pod)?;
        ensure!(
            (found.container_id.as_str(), found.interface.as_str(), found.network.as_str())
                == (peer.id.as_str(), "eth0", Conflist::NETWORK),
            "{found:#?}"
        );
        ensure!(found.addresses == [peer.address] && found.anti_spoofing, "{found:#?}");
        ensure!(found.netns == peer.netns && found.netns_cookie != 0, "{found:#?}");
    }
    ensure!(talk(&node, &stranger.netns, server.address, limit)?.is_err(), "a stranger connected");
    talk(&node, &trusted.netns, server.address, CONNECT_TIMEOUT)?
        .context("the trusted pod connects")?;
    let before = exchange.answered();
    until(CONNECT_TIMEOUT, || exchange.answered() > before + 50);
    let (answered, faults) = exchange.stop();
    ensure!(faults.is_empty() && answered > before + 50, "{answered} answers, {faults:?}");

    // a pod of after is gated by the plugin, beside those
    let mut cri = node.cri()?;
    let later = Peer::run(&world, &mut cri, "later", "trusted")?;
    enforced(&node, &later.pod)?;
    talk(&node, &later.netns, server.address, CONNECT_TIMEOUT)?
        .context("a later trusted pod connects")?;

    drop(at_server);
    for peer in [server, trusted, stranger, later] {
        peer.delete(&world, &mut cri)?;
    }
    let verbs: Vec<_> = calls(&node)?.into_iter().map(|call| call.verb).collect();
    let count = |verb: &str| verbs.iter().filter(|its| *its == verb).count();
    ensure!((count("ADD"), count("DEL")) == (1, 8), "{verbs:?}");
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn without_libcnis_cache_addresses_tell_who_they_are() -> Result<()> {
    let node = Node::start(&Conflist::ungated())?;
    let world = World::of(&node)?;
    let [server, trusted, stranger] = pods_of_before(&node, &world)?;
    fs::remove_dir_all(node.path("/var/lib/cni/results")).context("lose libcni's cache")?;
    let at_server = Target::listen(&node, &server.netns)?;
    let exchange = Exchange::start(&node, &trusted.netns, server.address)?;
    node.set_conflist(Some(&Conflist::default()))?;
    let _policyd = Policyd::start(&node)?;
    for peer in [&server, &trusted, &stranger] {
        adopted(&node, &peer.pod)?;
    }
    let limit = Duration::from_millis(500);
    ensure!(talk(&node, &stranger.netns, server.address, limit)?.is_err(), "a stranger connected");
    let (answered, faults) = exchange.stop();
    ensure!(faults.is_empty() && answered > 0, "{answered} answers, {faults:?}");
    drop(at_server);
    let mut cri = node.cri()?;
    for peer in [server, trusted, stranger] {
        peer.delete(&world, &mut cri)?;
    }
    // DEL does not know them by their container ids; their interfaces' end does
    nothing_left(&node)?;
    node.finish()
}

/// libcni 1.3 notes the network namespace too; CHECK and GC take an adopted pod for one that the plugin gated.
#[test]
fn an_adopted_attachment_is_checked_collected_and_deleted_as_any() -> Result<()> {
    let node = Node::bare()?;
    let configure = |conflist: Conflist| {
        node.write("conf/10-pods.conflist", conflist.json().to_string().as_bytes())
    };
    configure(Conflist::ungated())?;
    let tool = Cnitool::new(&node, "a", Conflist::NETWORK)?;
    tool.call("add")?;
    let pod = Pod { uid: String::new(), ..Pod::new("tool") };
    let address = node.inside_pod(tool.netns(), || {
        podgate_link::netns::Route::here().and_then(|route| {
            let eth0 = route.link_named("eth0")?.map_or(0, |link| link.index);
            route.addresses_of(eth0)
        })
    })??;
    let address = address.into_iter().find(|ip| ip.is_ipv4()).context("the pod has no address")?;
    let world = World::of(&node)?;
    world.pod(&pod, "tool", Some(address))?;
    let _policyd = Policyd::start(&node)?;
    adopted(&node, &pod)?;
    configure(Conflist::default())?;
    tool.call("check")?;
    let id = node.registration(&pod)?.container_id;
    tool.gc(&[format!("{id}/eth0")])?;
    adopted(&node, &pod)?;
    tool.call("del")?;
    nothing_left(&node)?;
    node.finish()
}
