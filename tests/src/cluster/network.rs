//! The wires between the nodes, and the cluster's addresses. The same in each cluster: each has namespaces of its own.
//!
//! The control plane's node has a bridge; each worker has one wire to it, and a route to each other worker's pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Primary;
use crate::runtime::Node;
use crate::runtime::program;

/// Where the API server listens.
pub const API: &str = "172.30.0.1:6443";

/// The control plane's own addresses, and those that the service `kubernetes` gets.
pub const CONTROL: [&str; 5] =
    ["172.30.0.1", "fd00:30::1", "127.0.0.1", "10.96.0.1", "fd00:10:96::1"];

/// Ranges of services, the first family first.
pub const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";

/// Ranges of all pods, the first family first.
pub const PODS: &str = "10.244.0.0/16,fd00:244::/48";

/// A worker's own addresses.
pub fn worker(number: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(172, 30, 0, 10 + number).into(),
        Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 10 + u16::from(number)).into(),
    ]
}

/// The pods of a worker: one range of each family.
pub fn pods(number: u8) -> [String; 2] {
    [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")]
}

/// Gives the control plane's node its bridge.
pub fn control(node: &Node) -> Result<()> {
    script(
        node,
        "ip link add net0 type bridge
         ip link set net0 up
         ip addr add 172.30.0.1/24 dev net0
         ip -6 addr add fd00:30::1/64 dev net0 nodad",
    )
    .context("make the bridge between the nodes")
}

/// Connects a worker to the control plane's bridge and adds routes to the pods of `others`.
pub fn attach(control: &Node, node: &Node, number: u8, others: &[u8]) -> Result<()> {
    let wire = format!("node{number}");
    let mut link = std::process::Command::new("ip");
    link.args(["link", "add", &wire, "netns", &control.pid().to_string(), "type", "veth"]);
    link.args(["peer", "name", "eth0", "netns", &node.pid().to_string()]);
    program::run(link).context("wire a worker")?;
    script(control, &format!("ip link set {wire} master net0 up"))?;
    let [v4, v6] = worker(number);
    let mut setup = format!(
        "ip link set eth0 up
         ip addr add {v4}/24 dev eth0
         ip -6 addr add {v6}/64 dev eth0 nodad
         ip route add default via 172.30.0.1
         ip -6 route add default via fd00:30::1
         echo 1 >/proc/sys/net/ipv4/ip_forward
         echo 1 >/proc/sys/net/ipv6/conf/all/forwarding\n"
    );
    for other in others {
        for (range, address) in pods(*other).iter().zip(worker(*other)) {
            setup += &format!("ip route add {range} via {address}\n");
        }
    }
    script(node, &setup).with_context(|| format!("give worker {number} its addresses"))
}

/// A worker's network configuration before podgate comes: one plugin, both families.
pub fn conflist(number: u8, primary: Primary) -> Value {
    let [v4, v6] = pods(number);
    let ipam = json!({
        "type": "host-local",
        "dataDir": "/run/node/addresses",
        "ranges": [[{ "subnet": v4 }], [{ "subnet": v6 }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
    });
    let plugin = match primary {
        Primary::Bridge => json!({
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "ipam": ipam,
        }),
        Primary::Ptp => json!({ "type": "ptp", "ipam": ipam }),
    };
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [plugin] })
}

/// Runs a few lines of shell in a node.
pub fn script(node: &Node, lines: &str) -> Result<()> {
    node.run("sh", &["-euc", lines]).map(|_| ())
}
