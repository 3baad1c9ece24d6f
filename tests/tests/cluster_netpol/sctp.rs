//! 46-48: the suite's scenarios by SCTP. A kernel need not have SCTP's sockets for podgate to judge its packets, and the
//! one that tests usually run on has none: INIT packets are sent and received on raw sockets, by pod address.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podgate_testkit::packet::protocol;
use podgate_tests::cluster::pods::Workload;
use podgate_tests::runtime::node::in_namespace;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::Bench;
use super::reach::{Reach, all, ingress, ns, pod};

/// How long packets are waited for.
const LISTEN: Duration = Duration::from_millis(500);

/// Longest that a policy may take to be in force.
const SETTLE: Duration = Duration::from_secs(20);

pub(crate) struct Scenario {
    pub(crate) title: &'static str,
    policy: fn() -> Value,
    port: u16,
    reach: fn() -> Reach,
}

pub(crate) fn every_scenario() -> [Scenario; 3] {
    [
        Scenario {
            title: "46 using SCTP: should support a 'default-deny-ingress' policy",
            policy: || ingress("x", "deny-all", json!({}), json!([])),
            port: 80,
            reach: || all().no("*", "x/*"),
        },
        Scenario {
            title: "47 using SCTP: should enforce policy based on Ports",
            policy: || {
                let rules = json!([{
                    "from": [{ "namespaceSelector": ns("y") }],
                    "ports": [{ "port": 81, "protocol": "SCTP" }],
                }]);
                ingress("x", "sctp-81", pod("a"), rules)
            },
            port: 81,
            reach: || all().no("x/*", "x/a").no("z/*", "x/a"),
        },
        Scenario {
            title: "48 using SCTP: should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
            policy: || {
                let from = json!([{ "namespaceSelector": ns("y"), "podSelector": pod("a") }]);
                ingress("x", "only-ya", pod("a"), json!([{ "from": from }]))
            },
            port: 80,
            reach: || all().no("*", "x/a").yes("y/a", "x/a"),
        },
    ]
}

pub(crate) fn play(bench: &Bench, scenario: &Scenario) -> Result<()> {
    let check = |reach: Reach, when: &str| {
        let started = Instant::now();
        loop {
            let reached = reached(&bench.matrix.pods, scenario.port)?;
            let wrong: Vec<_> = pairs(&bench.matrix.pods)
                .filter(|(from, to)| {
                    let arrived = reached.contains(&(from.id(), to.id()));
                    arrived != reach.allows(&from.id(), &to.id())
                })
                .map(|(from, to)| format!("{} -> {}", from.id(), to.id()))
                .collect();
            if wrong.is_empty() {
                return Ok(());
            }
            if started.elapsed() > SETTLE {
                bail!("{when}: these are not as expected: {wrong:?}");
            }
        }
    };
    check(all(), "before any policy")?;
    bench.cluster.apply(&[(scenario.policy)()])?;
    bench.cluster.await_policies()?;
    let played = check((scenario.reach)(), "with the policy");
    bench.delete_policies()?;
    bench.cluster.await_policies()?;
    played
}

fn pairs(pods: &[Workload]) -> impl Iterator<Item = (&Workload, &Workload)> {
    let of = |from| pods.iter().map(move |to| (from, to));
    pods.iter().flat_map(of).filter(|(from, to)| from.id() != to.id())
}

/// Who has seen an INIT of whom: everybody sends one to everybody.
fn reached(pods: &[Workload], port: u16) -> Result<BTreeSet<(String, String)>> {
    let receivers = pods.iter().map(open).collect::<Result<Vec<_>>>()?;
    for (index, (from, to)) in pairs(pods).enumerate() {
        let source = 20_000 + u16::try_from(index).context("too many pairs")?;
        let packet = init(source, port);
        let sender = open(from)?;
        let to = SocketAddr::new(to.addresses[0], 0);
        sender.send_to(&packet, &to.into()).context("send an INIT")?;
    }
    thread::sleep(LISTEN);
    let mut seen = BTreeSet::new();
    for (to, receiver) in pods.iter().zip(&receivers) {
        let mut packet = [0; 256];
        while let Ok(length) = (&mut &*receiver).read(&mut packet) {
            // an IPv4 header without options, then the ports
            if length < 24 || u16::from_be_bytes([packet[22], packet[23]]) != port {
                continue;
            }
            let source = IpAddr::from([packet[12], packet[13], packet[14], packet[15]]);
            let sender = pods.iter().find(|pod| pod.addresses[0] == source);
            seen.extend(sender.map(|sender| (sender.id(), to.id())));
        }
    }
    Ok(seen)
}

/// The beginning of an association. Whole and with its checksum: the nodes' connection tracking looks at it too, and
/// kube-proxy has what is not understood there dropped.
fn init(source: u16, port: u16) -> Vec<u8> {
    let mut packet = [source.to_be_bytes(), port.to_be_bytes()].concat();
    packet.extend([0; 8]);
    // type, flags, length; initiate tag, window, streams each way, first number
    packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0x20, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let checksum = crc32c::crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

/// A raw socket in a pod for everything of SCTP.
fn open(pod: &Workload) -> Result<Socket> {
    let opened = in_namespace(&pod.netns_path, || {
        let kind = Protocol::from(i32::from(protocol::SCTP));
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(kind))?;
        socket.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(socket)
    })?;
    opened.with_context(|| format!("open a raw socket in {}", pod.id()))
}
