//! The verbs that containerd does not call, through the real libcni.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podgate_tests::runtime::cnitool::Cnitool;
use podgate_tests::runtime::outcome::{gated, nothing_left};
use podgate_tests::runtime::recorder::{calls, install_script, wrap_podgate};
use podgate_tests::runtime::traffic::{CONNECT_TIMEOUT, Target, talk, talk_here};
use podgate_tests::runtime::world::World;
use podgate_tests::runtime::{Conflist, Node, Pod, Policyd};
use serde_json::{Value, json};

/// What cnitool calls the pod; it gives no UID.
fn tool() -> Pod {
    Pod { uid: String::new(), ..Pod::new("tool") }
}

/// A network configuration of any version, as a file.
fn configure(node: &Node, version: &str, plugins: &Value) -> Result<()> {
    let conflist = json!({ "cniVersion": version, "name": Conflist::NETWORK, "plugins": plugins });
    node.write("conf/10-pods.conflist", conflist.to_string().as_bytes())
}

/// A primary plugin that knows version 1.1.0, which Debian 12's do not: one veth, one address.
const VETH: &str = r#"
ns=$(basename "$CNI_NETNS")
case $CNI_COMMAND in
VERSION) printf '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}' ;;
ADD)
    {
        ip link add "v$ns" type veth peer name "$CNI_IFNAME" netns "$ns"
        ip link set "v$ns" up
        ip -n "$ns" addr add 10.99.0.2/24 dev "$CNI_IFNAME"
        ip -n "$ns" link set "$CNI_IFNAME" up
    } >&2 || exit 1
    printf '{"cniVersion":"1.1.0","interfaces":[{"name":"%s"},{"name":"%s","sandbox":"%s"}],' \
        "v$ns" "$CNI_IFNAME" "$CNI_NETNS"
    printf '"ips":[{"address":"10.99.0.2/24","interface":1}]}'
    ;;
DEL) ip -n "$ns" link del "$CNI_IFNAME" 2>/dev/null || true ;;
esac"#;

fn node_1_1() -> Result<Node> {
    let node = Node::bare()?;
    install_script(&node, "oneveth", VETH)?;
    let podgate = json!({ "type": "podgate", "policydTimeoutMs": 50 });
    configure(&node, "1.1.0", &json!([{ "type": "oneveth" }, podgate]))?;
    wrap_podgate(&node, "real")?;
    Ok(node)
}

#[test]
fn add_check_and_del_of_version_1_0_0() -> Result<()> {
    let node = Node::bare()?;
    let conflist = Conflist::default().with("policydTimeoutMs", 50);
    node.write("conf/10-pods.conflist", conflist.json().to_string().as_bytes())?;
    let tool = Cnitool::new(&node, "a", Conflist::NETWORK)?;
    let result: Value = serde_json::from_str(&tool.call("add")?).context("read the result")?;
    ensure!(result["cniVersion"] == "1.0.0" && result["interfaces"].is_array(), "{result}");
    gated(&node, &self::tool())?;
    tool.call("check")?;

    // somebody takes the programs away
    let host = node.registration(&self::tool())?.host_interface;
    node.run("tc", &["qdisc", "del", "dev", &host, "clsact"])?;
    let told = tool.refused("check")?;
    ensure!(told.contains("gate of interface eth0") && told.contains(&host), "unclear: {told}");

    tool.call("del")?;
    nothing_left(&node)?;
    tool.call("del").context("DEL once more")?;
    // what is gone does not check
    tool.refused("check")?;
    node.finish()
}

#[test]
fn add_check_and_del_of_version_1_1_0() -> Result<()> {
    let node = node_1_1()?;
    let tool = Cnitool::new(&node, "a", Conflist::NETWORK)?;
    let result: Value = serde_json::from_str(&tool.call("add")?).context("read the result")?;
    ensure!(result["cniVersion"] == "1.1.0", "{result}");
    gated(&node, &self::tool())?;
    tool.call("check")?;
    tool.call("del")?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn a_container_of_a_runtime_without_namespaces_is_no_pod_that_a_policy_selects() -> Result<()> {
    let node = Node::bare()?;
    let conflist = Conflist::default();
    node.write("conf/10-pods.conflist", conflist.json().to_string().as_bytes())?;
    let world = World::of(&node)?;
    // selects every pod of the namespace, and one that has the container's name is there
    world.policy("deny", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }))?;
    world.pod(&self::tool(), "tool", None)?;
    let _policyd = Policyd::start(&node)?;
    let container = Cnitool::new(&node, "a", Conflist::NETWORK)?.like_podman();
    let pod = Cnitool::new(&node, "b", Conflist::NETWORK)?;
    let address = |result: String| -> Result<IpAddr> {
        let result: Value = serde_json::from_str(&result)?;
        let text = result["ips"][0]["address"].as_str().unwrap_or_default();
        text.split('/').next().unwrap_or_default().parse().context("read the address")
    };
    let at = address(container.call("add")?)?;
    let registration = node.registrations()?.pop().context("the container is not registered")?;
    ensure!(registration.pod.is_none(), "{registration:?}");
    let isolated = address(pod.call("add")?)?;
    gated(&node, &self::tool())?;

    let listener = Target::listen(&node, container.netns())?;
    let limit = Duration::from_millis(500);
    node.inside(|| talk_here(at, CONNECT_TIMEOUT))?.context("the node reaches the container")?;
    ensure!(talk(&node, pod.netns(), at, limit)?.is_err(), "the isolated pod got out");
    let listener_of_pod = Target::listen(&node, pod.netns())?;
    ensure!(
        talk(&node, container.netns(), isolated, limit)?.is_err(),
        "the isolated pod was reached"
    );
    drop((listener, listener_of_pod));
    container.call("check")?;
    container.call("del")?;
    pod.call("del")?;
    nothing_left(&node)?;
    node.finish()
}

#[test]
fn status_says_whether_policyd_is_ready() -> Result<()> {
    let node = node_1_1()?;
    let tool = Cnitool::new(&node, "a", Conflist::NETWORK)?;
    let told = tool.refused("status")?;
    ensure!(
        told.contains("podgate is not ready") && told.contains("policyd does not listen"),
        "unclear: {told}"
    );
    let _world = World::of(&node)?;
    let policyd = Policyd::start(&node)?;
    tool.call("status")?;
    policyd.daemon.kill()?;
    tool.refused("status")?;
    node.finish()
}

/// A pod whose attachment libcni has forgotten, so that it calls no DEL before GC. Returns its name in GC's list.
fn forgotten(node: &Node, tool: &Cnitool<'_>) -> Result<String> {
    tool.call("add")?;
    fs::remove_dir_all(node.path("/var/lib/cni/results")).context("lose libcni's cache")?;
    Ok(format!("{}/eth0", node.registration(&self::tool())?.container_id))
}

#[test]
fn gc_takes_away_what_is_not_among_the_valid() -> Result<()> {
    let node = node_1_1()?;
    let tool = Cnitool::new(&node, "a", Conflist::NETWORK)?;
    let attachment = forgotten(&node, &tool)?;
    tool.gc(&[attachment.clone(), "another/eth0".into()])?;
    gated(&node, &self::tool()).context("it is valid")?;
    tool.gc(&[attachment.replace("/eth0", "/eth1")])?;
    ensure!(node.registrations()?.is_empty(), "still registered: {:#?}", node.registrations()?);
    tool.gc(&[]).context("GC once more")?;
    node.finish()
}

#[test]
fn gc_with_an_empty_list_takes_everything_of_its_network_away() -> Result<()> {
    let node = node_1_1()?;
    let tool = Cnitool::new(&node, "a", Conflist::NETWORK)?;
    forgotten(&node, &tool)?;
    tool.gc(&[])?;
    ensure!(node.registrations()?.is_empty(), "still registered: {:#?}", node.registrations()?);
    let calls = calls(&node)?;
    let gc = calls.iter().find(|call| call.verb == "GC").context("GC was not called")?;
    // how libcni spells the empty list
    ensure!(gc.stdin.get("cni.dev/valid-attachments") == Some(&Value::Null), "{}", gc.stdin);
    ensure!(calls.iter().all(|call| call.verb != "DEL"), "DEL was called: {calls:#?}");
    node.finish()
}

#[test]
fn gc_without_a_list_is_refused_and_gates_stay() -> Result<()> {
    let node = node_1_1()?;
    let tool = Cnitool::new(&node, "a", Conflist::NETWORK)?;
    forgotten(&node, &tool)?;
    // cnitool gives none
    let told = tool.refused("gc")?;
    ensure!(told.contains("\"cni.dev/valid-attachments\" is missing"), "unclear: {told}");
    gated(&node, &self::tool())?;
    node.finish()
}

#[test]
fn gc_leaves_other_networks_alone() -> Result<()> {
    let node = node_1_1()?;
    let tool = Cnitool::new(&node, "a", Conflist::NETWORK)?;
    forgotten(&node, &tool)?;
    let podgate = json!({ "type": "podgate", "policydTimeoutMs": 50 });
    let other = json!({
        "cniVersion": "1.1.0",
        "name": "other",
        "plugins": [{ "type": "oneveth" }, podgate],
    });
    node.write("conf/20-other.conflist", other.to_string().as_bytes())?;
    Cnitool::new(&node, "b", "other")?.gc(&[])?;
    gated(&node, &self::tool())?;
    node.finish()
}
