//! Everything a runtime does to a plugin beside one ADD and one DEL.

use std::fs;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podgate_testkit::wait::until;
use podgate_tests::runtime::outcome::{enforced, gated, nothing_left};
use podgate_tests::runtime::recorder::{Call, calls, install_script, unwrap_podgate, wrap_podgate};
use podgate_tests::runtime::traffic::{Exchange, Hammer, Target, talk};
use podgate_tests::runtime::world::{World, egress_only_to};
use podgate_tests::runtime::{Conflist, Node, Peer, Pod, Policyd};
use tonic::Code;

/// No policyd: what these tests are about must not depend on it, and ADD must not wait for it.
fn hold() -> Conflist {
    Conflist::default().with("policydTimeoutMs", 50)
}

/// A node whose podgate plugin notes its calls.
fn recording_node() -> Result<Node> {
    let node = Node::start(&hold())?;
    wrap_podgate(&node, "real")?;
    Ok(node)
}

fn verbs(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call.verb.as_str()).collect()
}

#[test]
fn every_pod_gets_two_dels_the_second_without_netns_and_result() -> Result<()> {
    let node = recording_node()?;
    let mut cri = node.cri()?;
    let pod = Pod::new("a");
    let id = cri.run(&pod)?;
    gated(&node, &pod)?;
    cri.stop(&id)?;
    nothing_left(&node)?;
    cri.remove(&id)?;
    nothing_left(&node)?;
    let calls = calls(&node)?;
    ensure!(verbs(&calls) == ["ADD", "DEL", "DEL"], "{calls:#?}");
    ensure!(calls[1].has_prev_result() && !calls[1].var("CNI_NETNS").is_empty());
    ensure!(!calls[2].has_prev_result() && calls[2].var("CNI_NETNS").is_empty());
    node.finish()
}

#[test]
fn add_failing_in_podgate_is_told_to_the_caller_and_undone() -> Result<()> {
    let node = Node::start(&hold().with("bpfRoot", "/run/nowhere"))?;
    wrap_podgate(&node, "real")?;
    let mut cri = node.cri()?;
    let Err(refused) = cri.run(&Pod::new("a")) else { bail!("the pod runs without a bpffs") };
    let told = refused.message();
    ensure!(
        told.contains("plugin type=\"podgate\" failed (add)")
            && told.contains("not on a BPF file system (mount one"),
        "the reason is unclear: {told}"
    );
    let calls = calls(&node)?;
    ensure!(verbs(&calls) == ["ADD", "DEL"], "{calls:#?}");
    ensure!(!calls[1].has_prev_result() && !calls[1].var("CNI_NETNS").is_empty());
    ensure!(!node.path("/run/nowhere").exists(), "ADD has left /run/nowhere");
    nothing_left(&node)?;

    // and it works once the configuration is mended
    node.set_conflist(Some(&hold()))?;
    let pod = Pod::new("a");
    let mut id = String::new();
    let works = until(Duration::from_secs(10), || {
        cri.run(&pod).map(|run| id = run).is_ok() && gated(&node, &pod).is_ok()
    });
    ensure!(works, "the mended configuration does not work");
    cri.delete(&id)?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn an_earlier_plugins_failure_brings_a_del_without_an_add() -> Result<()> {
    let node = Node::start(&hold().before("broken"))?;
    install_script(
        &node,
        "broken",
        r#"[ "$CNI_COMMAND" = ADD ] || exit 0
           printf '{"cniVersion":"1.0.0","code":999,"msg":"broken on purpose"}'; exit 1"#,
    )?;
    wrap_podgate(&node, "real")?;
    let mut cri = node.cri()?;
    let Err(refused) = cri.run(&Pod::new("a")) else { bail!("the pod runs") };
    ensure!(refused.message().contains("broken on purpose"), "{refused}");
    let calls = calls(&node)?;
    ensure!(verbs(&calls) == ["DEL"], "{calls:#?}");
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn a_later_plugins_failure_takes_the_gate_away_again() -> Result<()> {
    let node = Node::start(&hold().after("broken"))?;
    install_script(
        &node,
        "broken",
        // what it finds at the host end when its turn comes
        r#"[ "$CNI_COMMAND" = ADD ] || exit 0
           veth=$(ip -o link show type veth | sed 's/^[0-9]*: \([^@]*\)@.*/\1/')
           tc filter show dev "$veth" ingress >/run/node/seen
           printf '{"cniVersion":"1.0.0","code":999,"msg":"broken on purpose"}'; exit 1"#,
    )?;
    wrap_podgate(&node, "real")?;
    let mut cri = node.cri()?;
    ensure!(cri.run(&Pod::new("a")).is_err(), "the pod runs");
    let calls = calls(&node)?;
    ensure!(verbs(&calls) == ["ADD", "DEL"], "{calls:#?}");
    let seen = fs::read_to_string(node.home("seen")).context("read what the plugin saw")?;
    ensure!(seen.contains("from_pod"), "no gate stood: {seen}");
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn del_works_without_libcnis_cache() -> Result<()> {
    let node = recording_node()?;
    let mut cri = node.cri()?;
    let pod = Pod::new("a");
    let id = cri.run(&pod)?;
    gated(&node, &pod)?;
    fs::remove_dir_all(node.path("/var/lib/cni/results")).context("lose libcni's cache")?;
    cri.stop(&id)?;
    nothing_left(&node)?;
    cri.remove(&id)?;
    let calls = calls(&node)?;
    ensure!(verbs(&calls) == ["ADD", "DEL", "DEL"], "{calls:#?}");
    ensure!(!calls[1].has_prev_result(), "the cache was not lost");
    node.finish()
}

#[test]
fn a_pod_whose_pause_was_killed_is_gated_until_it_is_stopped() -> Result<()> {
    let node = Node::start(&hold())?;
    let mut cri = node.cri()?;
    let pod = Pod::new("a");
    let id = cri.run(&pod)?;
    let (pause, _) = cri.pause(&id)?;
    node.run("sh", &["-c", &format!("kill -9 {pause}")])?;
    ensure!(until(Duration::from_secs(20), || cri.pause(&id).is_ok_and(|(pid, _)| pid != pause)));
    gated(&node, &pod)?;
    cri.delete(&id)?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn a_policyd_that_hangs_fails_neither_add_nor_del() -> Result<()> {
    let node = Node::start(&Conflist::default().with("policydTimeoutMs", 300))?;
    let _world = World::of(&node)?;
    let policyd = Policyd::start(&node)?;
    policyd.daemon.freeze()?;
    let mut cri = node.cri()?;
    let pod = Pod::new("a");
    let id = cri.run(&pod)?;
    gated(&node, &pod)?;
    let started = Instant::now();
    cri.delete(&id)?;
    ensure!(started.elapsed() < Duration::from_secs(10), "DEL took {:?}", started.elapsed());
    ensure!(node.registrations()?.is_empty(), "the registration is still there");
    policyd.daemon.thaw()?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn a_del_that_failed_is_repeated_until_nothing_is_left() -> Result<()> {
    let node = recording_node()?;
    let mut cri = node.cri()?;
    let pod = Pod::new("a");
    let id = cri.run(&pod)?;
    wrap_podgate(&node, r#"if [ "$command" = DEL ]; then fail "not today"; fi; real"#)?;
    for _ in 0..2 {
        let Err(refused) = cri.stop(&id) else { bail!("stopping succeeds although DEL fails") };
        ensure!(refused.message().contains("not today"), "{refused}");
        gated(&node, &pod).context("the pod is there, and so is its gate")?;
    }
    unwrap_podgate(&node)?;
    cri.delete(&id)?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn a_caller_that_gave_up_during_add_leaves_nothing() -> Result<()> {
    let node = Node::start(&Conflist::default().with("policydTimeoutMs", 5000))?;
    let _world = World::of(&node)?;
    let policyd = Policyd::start(&node)?;
    policyd.daemon.freeze()?;
    let mut cri = node.cri()?;
    let Err(refused) = cri.run_within(&Pod::new("a"), Duration::from_secs(2)) else {
        bail!("the pod runs although policyd is frozen and the caller gone")
    };
    ensure!(matches!(refused.code(), Code::DeadlineExceeded | Code::Cancelled), "{refused}");
    // ADD may still be waiting; its end, or the DEL that follows, takes the gate away
    let gone = until(Duration::from_secs(15), || {
        node.registrations().is_ok_and(|registrations| registrations.is_empty())
    });
    ensure!(gone, "still registered: {:#?}", node.registrations()?);
    policyd.daemon.thaw()?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn pods_are_recognised_in_whatever_order_the_runtime_names_them() -> Result<()> {
    let node = recording_node()?;
    let mut cri = node.cri()?;
    let mut orders = std::collections::BTreeSet::new();
    for number in 0..12 {
        let pod = Pod { namespace: format!("ns{number}"), ..Pod::new(&format!("p{number}")) };
        let id = cri.run(&pod)?;
        // finds it by namespace, name and uid
        let registration = node.registration(&pod)?;
        ensure!(registration.container_id == id && registration.interface == "eth0");
        ensure!(registration.network == Conflist::NETWORK);
        ensure!(registration.addresses == [cri.address(&id)?]);
        cri.delete(&id)?;
    }
    for call in calls(&node)?.iter().filter(|call| call.verb == "ADD") {
        let keys: Vec<_> = call.var("CNI_ARGS").split(';').map(|a| a.split('=').next()).collect();
        orders.insert(format!("{keys:?}"));
    }
    ensure!(
        orders.len() > 1,
        "the order of CNI_ARGS never changed: this proves nothing: {orders:?}"
    );
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn eight_pods_at_once_are_all_enforced() -> Result<()> {
    let node = Node::start(&Conflist::default())?;
    let world = World::of(&node)?;
    world.policy("deny", egress_only_to("app", &[]))?;
    let _policyd = Policyd::start(&node)?;
    let pods: Vec<_> = (0..8).map(|number| Pod::new(&format!("p{number}"))).collect();
    for pod in &pods {
        world.pod(pod, "app", None)?;
    }
    let ids = at_once(&pods, |pod| {
        let id = node.cri()?.run(pod)?;
        enforced(&node, pod)?;
        Ok(id)
    })?;
    let owners: std::collections::BTreeSet<_> =
        node.registrations()?.iter().map(|registration| registration.owner).collect();
    ensure!(owners.len() == 8, "owners: {owners:?}");
    at_once(&ids, |id| node.cri()?.delete(id))?;
    nothing_left(&node)?;
    node.finish()
}

/// Does the same to all, each on its own thread.
fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| work(item))).collect();
        let join = |thread: ScopedJoinHandle<'_, Result<R>>| {
            thread.join().unwrap_or_else(|_| bail!("a thread panicked"))
        };
        threads.into_iter().map(join).collect()
    })
}

#[test]
fn containerds_death_leaves_pods_enforced() -> Result<()> {
    let mut node = Node::start(&Conflist::default())?;
    let world = World::of(&node)?;
    world.policy("client", egress_only_to("client", &["friend"]))?;
    let _policyd = Policyd::start(&node)?;
    let mut cri = node.cri()?;
    let friend = Peer::run(&world, &mut cri, "friend", "friend")?;
    let stranger = Peer::run(&world, &mut cri, "stranger", "stranger")?;
    let client = Peer::run(&world, &mut cri, "client", "client")?;
    let at_friend = Target::listen(&node, &friend.netns)?;
    let at_stranger = Target::listen(&node, &stranger.netns)?;
    let exchange = Exchange::start(&node, &client.netns, friend.address)?;
    let hammer = Hammer::start(&node, &client.netns, stranger.address)?;

    node.kill_containerd()?;
    thread::sleep(Duration::from_millis(300));
    node.start_containerd()?;
    let mut cri = node.cri()?;
    enforced(&node, &client.pod)?;
    let (answered, sent) = (exchange.answered(), hammer.sent());
    let goes_on = until(Duration::from_secs(20), || {
        exchange.answered() > answered + 50 && hammer.sent() > sent + 50
    });
    let (_, losses) = exchange.stop();
    ensure!(goes_on && losses.is_empty(), "lost: {losses:?}");
    ensure!(at_stranger.packets_from(client.address) == 0, "the stranger saw a packet");
    drop((hammer, at_friend, at_stranger));
    for peer in [client, friend, stranger] {
        peer.delete(&world, &mut cri)?;
    }
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn pods_stay_enforced_while_the_conflist_is_away() -> Result<()> {
    let node = Node::start(&Conflist::default())?;
    let world = World::of(&node)?;
    world.policy("client", egress_only_to("client", &[]))?;
    let _policyd = Policyd::start(&node)?;
    let mut cri = node.cri()?;
    let server = Peer::run(&world, &mut cri, "server", "server")?;
    let client = Peer::run(&world, &mut cri, "client", "client")?;
    let at_server = Target::listen(&node, &server.netns)?;

    node.set_conflist(None)?;
    ensure!(
        until(Duration::from_secs(10), || matches!(cri.network_fault(), Ok(Some(_)))),
        "containerd has not noticed that the conflist is gone"
    );
    // its sandbox stays, stopped, until a kubelet removes it
    ensure!(cri.run(&Pod::new("early")).is_err(), "a pod runs without a network");
    let limit = Duration::from_millis(200);
    ensure!(talk(&node, &client.netns, server.address, limit)?.is_err(), "the server answered");
    ensure!(at_server.packets_from(client.address) == 0, "the server saw a packet");
    enforced(&node, &client.pod)?;

    node.set_conflist(Some(&Conflist::default()))?;
    ensure!(
        until(Duration::from_secs(10), || matches!(cri.network_fault(), Ok(None))),
        "containerd has not noticed that the conflist is back"
    );
    let late = Peer::run(&world, &mut cri, "late", "late")?;
    enforced(&node, &late.pod)?;
    drop(at_server);
    for id in cri.sandboxes()? {
        cri.delete(&id)?;
    }
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn a_missing_plugin_is_named_and_no_pod_runs_without_it() -> Result<()> {
    let node = Node::start(&hold())?;
    let mut cri = node.cri()?;
    let before = Pod::new("before");
    let id = cri.run(&before)?;
    fs::remove_file(node.home("bin/podgate")).context("take the plugin away")?;
    let Err(refused) = cri.run(&Pod::new("early")) else { bail!("a pod runs without its gate") };
    ensure!(refused.message().contains("failed to find plugin \"podgate\""), "{refused}");
    gated(&node, &before)?;
    ensure!(cri.stop(&id).is_err(), "stopping succeeds although the gate cannot be taken away");

    unwrap_podgate(&node)?;
    let late = Pod::new("late");
    cri.run(&late)?;
    gated(&node, &late)?;
    for id in cri.sandboxes()? {
        cri.delete(&id)?;
    }
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn a_node_leaves_nothing_behind_however_its_test_ends() -> Result<()> {
    use podgate_tests::runtime::cgroup;
    use podgate_tests::runtime::node::processes_of;

    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let before = mounts();
    let mut marks = Vec::new();
    // a test that panics in the middle
    let ended = std::panic::catch_unwind(|| -> Result<()> {
        let node = Node::start(&hold())?;
        let mut cri = node.cri()?;
        let pod = Pod::new("a");
        let id = cri.run(&pod)?;
        cri.start(&pod, &id, "sleeper", "sleep 1000")?;
        ensure!(!processes_of(node.mark()).is_empty() && !cgroup::find(node.mark()).is_empty());
        std::panic::panic_any(node.mark().to_owned())
    });
    match ended {
        Err(panic) => marks.extend(panic.downcast::<String>().ok().map(|mark| *mark)),
        Ok(ended) => ended?,
    }
    // a node whose first process is killed from outside
    let node = Node::start(&hold())?;
    let mut cri = node.cri()?;
    cri.run(&Pod::new("a"))?;
    marks.push(node.mark().to_owned());
    kill(Pid::from_raw(node.pid().as_raw()), Signal::SIGKILL)?;
    drop(node);
    ensure!(marks.len() == 2, "{marks:?}");
    for mark in marks {
        ensure!(processes_of(&mark).is_empty(), "processes: {:?}", processes_of(&mark));
        ensure!(cgroup::find(&mark).is_empty(), "cgroups: {:?}", cgroup::find(&mark));
    }
    ensure!(mounts() == before, "mounts have changed");
    Ok(())
}
