//! `policyd install` and `uninstall` on a node whose containerd goes on: the chain that install makes of the
//! primary's own configuration gates real pods, and after uninstall they go on without it.

use std::fs;
use std::io::Write;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podgate_testkit::wait::until;
use podgate_tests::runtime::holder::HOME;
use podgate_tests::runtime::node::built;
use podgate_tests::runtime::outcome::{enforced, nothing_left};
use podgate_tests::runtime::program::{Daemon, said};
use podgate_tests::runtime::traffic::{Exchange, Target, talk};
use podgate_tests::runtime::world::{World, egress_only_to, ingress_only_from};
use podgate_tests::runtime::{Conflist, Cri, Node, Peer, Pod, Policyd};
use serde_json::{Value, json};

const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
const DENIED_TIMEOUT: Duration = Duration::from_millis(500);

fn dirs() -> [String; 4] {
    ["--cni-conf-dir".into(), format!("{HOME}/conf"), "--cni-bin-dir".into(), format!("{HOME}/bin")]
}

/// `policyd install --watch`, as the DaemonSet's second container does it.
fn watch(node: &Node) -> Result<Daemon> {
    let mut command = node.command(built("policyd")?);
    command
        .args(["install", "--watch", "--wait-for", "/run/podgate/cni.sock", "--plugin"])
        .arg(built("podgate")?)
        .args(dirs());
    node.start_daemon("install", command)
}

fn uninstall(node: &Node) -> Result<Output> {
    let mut command = node.command(built("policyd")?);
    command.args(["uninstall", "--settle-ms", "500", "--wait-seconds", "5"]).args(dirs());
    let output = command.output().context("run policyd uninstall")?;
    ensure!(output.status.success(), "uninstall: {}", said(&output));
    Ok(output)
}

/// A node on which podgate has never been: no entry, no binary.
fn fresh(file: &str, text: &str) -> Result<Node> {
    let node = Node::start(&Conflist::ungated())?;
    node.set_conflist(None)?;
    node.write(&format!("conf/{file}"), text.as_bytes())?;
    fs::remove_file(node.home("bin/podgate"))?;
    Ok(node)
}

fn text(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Runs a pod; again and again until containerd has read the configuration that has just changed.
fn run_gated(world: &World, node: &Node, cri: &mut Cri, name: &str, app: &str) -> Result<Peer> {
    for _ in 0..20 {
        let peer = Peer::run(world, cri, name, app)?;
        if node.registrations()?.iter().any(|r| r.pod.as_ref().is_some_and(|p| p.name == name)) {
            return Ok(peer);
        }
        peer.delete(world, cri)?;
    }
    bail!("containerd goes on without podgate: {}", fs::read_to_string(node.home("install.log"))?)
}

/// Three pods behind gates; the client may only ask the friend, and the friend only be asked by it.
struct Three {
    client: Peer,
    friend: Peer,
    stranger: Peer,
}

impl Three {
    fn run(world: &World, node: &Node, cri: &mut Cri) -> Result<Self> {
        world.policy("client", egress_only_to("client", &["friend"]))?;
        world.policy("friend", ingress_only_from("friend", &["client"]))?;
        let three = Self {
            client: run_gated(world, node, cri, "client", "client")?,
            friend: run_gated(world, node, cri, "friend", "friend")?,
            stranger: run_gated(world, node, cri, "stranger", "stranger")?,
        };
        for peer in [&three.client, &three.friend, &three.stranger] {
            let settled = until(SETTLE_TIMEOUT, || enforced(node, &peer.pod).is_ok());
            ensure!(settled, "{}: {:?}", peer.pod.name, enforced(node, &peer.pod));
        }
        Ok(three)
    }

    fn delete(self, world: &World, cri: &mut Cri) -> Result<()> {
        for peer in [self.client, self.friend, self.stranger] {
            peer.delete(world, cri)?;
        }
        Ok(())
    }
}

fn in_and_out(file: &str, original: &str) -> Result<()> {
    let node = fresh(file, original)?;
    let world = World::of(&node)?;
    let policyd = Policyd::start(&node)?;
    let watch = watch(&node)?;
    let mut cri = node.cri()?;
    let three = Three::run(&world, &node, &mut cri)?;
    let binary = fs::read(built("podgate")?)?;
    ensure!(fs::read(node.home("bin/podgate"))? == binary, "another binary than ours");
    let targets = [&three.friend, &three.stranger].map(|peer| Target::listen(&node, &peer.netns));
    let [at_friend, at_stranger] = targets;
    let (at_friend, at_stranger) = (at_friend?, at_stranger?);
    let denied = talk(&node, &three.client.netns, three.stranger.address, DENIED_TIMEOUT)?;
    ensure!(denied.is_err(), "the client reached the stranger");
    let exchange = Exchange::start(&node, &three.client.netns, three.friend.address)?;

    watch.terminate()?;
    policyd.daemon.terminate()?;
    let told = said(&uninstall(&node)?);
    // libcni remembers the chain that the three were started with
    ensure!(told.contains("removed 3 gates") && told.contains("attachments=3"), "{told}");
    let files =
        fs::read_dir(node.home("conf"))?.flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    ensure!(files == [file], "{files:?}");
    ensure!(fs::read_to_string(node.home("conf").join(file))? == original, "not the old bytes");
    ensure!(!node.path("/sys/fs/bpf/podgate").exists(), "pins are left");
    let more = exchange.answered() + 50;
    ensure!(until(SETTLE_TIMEOUT, || exchange.answered() > more), "the exchange stands still");
    let (answered, losses) = exchange.stop();
    ensure!(losses.is_empty(), "{answered} were answered; lost: {losses:?}");
    talk(&node, &three.client.netns, three.stranger.address, SETTLE_TIMEOUT)?
        .context("still denied")?;
    drop((at_friend, at_stranger));

    // DEL of pods that podgate gated once, and a new pod that it never sees
    let late = Peer::run(&world, &mut cri, "late", "client")?;
    late.delete(&world, &mut cri)?;
    three.delete(&world, &mut cri)?;
    nothing_left(&node)?;
    let told = said(&uninstall(&node)?);
    ensure!(told.contains("removed") && !told.contains("attachments"), "{told}");
    ensure!(!node.home("bin/podgate").exists(), "the binary is left");
    node.finish()
}

#[test]
fn in_and_out_of_a_chain_of_bridge_and_host_local() -> Result<()> {
    in_and_out("10-pods.conflist", &text(&Conflist::ungated().json())?)
}

#[test]
fn in_and_out_beside_a_single_ptp_with_host_local() -> Result<()> {
    let ptp = json!({
        "cniVersion": "0.4.0", "name": "pods", "type": "ptp",
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.89.0.0/24" }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    in_and_out("10-pods.conf", &text(&ptp)?)
}

#[test]
fn in_and_out_beside_bandwidth_which_leaves_only_tcx() -> Result<()> {
    let mut list = Conflist::ungated().json();
    let plugins = list["plugins"].as_array_mut().context("plugins")?;
    // limits every pod, so that its qdisc is there
    plugins.push(json!({
        "type": "bandwidth",
        "ingressRate": 800_000_000, "ingressBurst": 80_000_000,
        "egressRate": 800_000_000, "egressBurst": 80_000_000,
    }));
    in_and_out("10-pods.conflist", &text(&list)?)
}

#[test]
fn static_addresses_are_registered() -> Result<()> {
    let list = json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": { "type": "static", "addresses": [{ "address": "10.88.0.9/24", "gateway": "10.88.0.1" }] },
        }],
    });
    let node = fresh("10-pods.conflist", &text(&list)?)?;
    let world = World::of(&node)?;
    let _policyd = Policyd::start(&node)?;
    let _watch = watch(&node)?;
    let mut cri = node.cri()?;
    let peer = run_gated(&world, &node, &mut cri, "fixed", "fixed")?;
    let registration = node.registration(&peer.pod)?;
    ensure!(registration.addresses == [peer.address], "{registration:?}");
    ensure!(peer.address.to_string() == "10.88.0.9", "{}", peer.address);
    peer.delete(&world, &mut cri)?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn the_primary_comes_later_and_writes_its_file_anew() -> Result<()> {
    let original = text(&Conflist::ungated().json())?;
    let node = fresh("10-pods.conflist", &original)?;
    node.set_conflist(None)?;
    let world = World::of(&node)?;
    let _policyd = Policyd::start(&node)?;
    let _watch = watch(&node)?;
    let mut cri = node.cri()?;
    ensure!(until(SETTLE_TIMEOUT, || node.home("bin/podgate").exists()), "no binary");
    ensure!(cri.network_fault()?.is_some(), "there is a network without a configuration");
    for (round, bridge) in ["cni0", "cni1"].into_iter().enumerate() {
        let written =
            original.replace("cni0", bridge).replace("10.88", &format!("10.{}", 88 + round));
        node.write("conf/10-pods.conflist", written.as_bytes())?;
        let gated = || fs::read_to_string(node.home("conf/10-pods.conflist")).unwrap_or_default();
        ensure!(
            until(SETTLE_TIMEOUT, || gated().contains("podgate") && gated().contains(bridge)),
            "{}",
            gated()
        );
        ensure!(
            until(SETTLE_TIMEOUT, || cri.network_fault().is_ok_and(|fault| fault.is_none())),
            "not ready"
        );
        let peer = run_gated(&world, &node, &mut cri, "a", "a")?;
        peer.delete(&world, &mut cri)?;
    }
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn upgrades_replace_the_binary_under_pods_that_come_and_go() -> Result<()> {
    let node = fresh("10-pods.conflist", &text(&Conflist::ungated().json())?)?;
    let real = built("podgate")?;
    // another build of the same: one byte more, at the end, where nothing reads it
    let other = node.home("other");
    fs::copy(&real, &other)?;
    fs::OpenOptions::new().append(true).open(&other)?.write_all(&[0])?;
    let plugins = [real.display().to_string(), format!("{HOME}/other")];
    let install = |plugin: &str| -> Result<()> {
        let mut command = node.command(built("policyd")?);
        command.args(["install", "--once", "--policyd-timeout-ms=0", "--plugin", plugin]);
        let output = command.args(dirs()).output().context("run policyd install")?;
        ensure!(output.status.success(), "install: {}", said(&output));
        Ok(())
    };
    install(&plugins[0])?;
    let mut cri = node.cri()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let upgrades = scope.spawn(|| -> Result<u32> {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                count += 1;
                install(&plugins[count as usize % 2])?;
            }
            Ok(count)
        });
        let pods = (0..6).try_for_each(|number| -> Result<()> {
            let id = cri.run(&Pod::new(&format!("pod-{number}")))?;
            cri.delete(&id)
        });
        done.store(true, Ordering::Relaxed);
        let upgrades = upgrades.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        ensure!(upgrades > 5, "only {upgrades} upgrades: this proves little");
        pods
    })?;
    nothing_left(&node)?;
    node.finish()
}
