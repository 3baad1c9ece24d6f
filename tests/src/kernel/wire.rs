//! Packets to the pod on kernels whose test runs take no `ingress_ifindex` (before 5.11): over a real bridge instead.
//!
//! ```text
//!   up1 --> up0 --\
//!                  bridge --> host0 (egress: to_pod) --> pod0
//!   pod0 -> host0 -/
//! ```
//!
//! The first way is a packet that the node received at another interface, the second one that the pod itself has sent.

use std::fmt;
use std::fs;
use std::panic::panic_any;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use podgate_testkit::sandbox::{Veth, command, ip};
use podgate_testkit::wait::eventually;

use super::Via;
use super::lab::must;
use crate::netlab::Tap;

/// How long a packet may take to be judged. The kernel does that before `send` returns unless it is busy.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a packet that was judged may take to the pod.
const ARRIVAL_TIMEOUT: Duration = Duration::from_millis(25);

/// As many bytes as a test run takes.
const MTU: u32 = 4096;

/// A pod's veth with the program `to_pod` at its host end, and a bridge over which it gets packets.
#[derive(Debug)]
pub(super) struct Wire {
    host: Veth,
    uplink: Tap,
    pod: Tap,
}

/// Ends a table that has a frame which is not the same one at the other end. Thrown as a panic.
#[derive(Debug)]
pub(super) struct NotCarried(&'static str);

impl fmt::Display for NotCarried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this kernel's test run takes no ingress_ifindex, and {}", self.0)
    }
}

impl Wire {
    /// Attaches the program that is pinned at `to_pod`.
    pub(super) fn new(to_pod: &Path) -> Self {
        let (host, uplink) = (must("make a veth", Veth::new()), must("make a veth", Veth::new()));
        // the firewall's hooks of a bridge drop what is malformed, and cut off what follows a packet
        for name in ["iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{name}");
            if Path::new(&path).exists() {
                must("leave bridged packets alone", fs::write(path, "0"));
            }
        }
        let bridge = format!("br-{}", host.host);
        let ip = |arguments: &str| must("run ip", ip(arguments));
        ip(&format!("link add {bridge} type bridge mcast_snooping 0"));
        for interface in [&host.host, &host.pod, &uplink.host, &uplink.pod, &bridge] {
            // a packet of the kernel's own would be counted as well
            let ipv6 = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            must("disable IPv6", fs::write(ipv6, "1"));
            ip(&format!("link set {interface} mtu {MTU} arp off up"));
        }
        for port in [&host.host, &uplink.host] {
            ip(&format!("link set {port} master {bridge}"));
            ip(&format!("link set {port} type bridge_slave learning off"));
        }
        ip(&format!("link set {} type bridge_slave hairpin on", host.host));
        for port in [&host.host, &uplink.host] {
            eventually("the bridge forwards", || is_forwarding(port).then_some(()));
        }
        let tc = |arguments: &str| must("run tc", command("tc", arguments));
        tc(&format!("qdisc add dev {} clsact", host.host));
        tc(&format!(
            "filter add dev {} egress bpf direct-action object-pinned {}",
            host.host,
            to_pod.display()
        ));
        let (uplink, pod) = (Tap::of_interface(&uplink.pod), Tap::of_interface(&host.pod));
        Self { host, uplink, pod }
    }

    /// The pod's interface.
    pub(super) fn ifindex(&self) -> u32 {
        self.host.ifindex
    }

    /// Sends a frame that the node received. What the pod receives, if anything; `is_judged` says whether the program has
    /// run.
    pub(super) fn send(
        &self,
        frame: &[u8],
        via: Via,
        is_judged: impl Fn() -> bool,
    ) -> Option<Vec<u8>> {
        if matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]) {
            panic_any(NotCarried("interfaces take the tag out of the frame"));
        }
        self.pod.drain();
        match via {
            Via::Uplink => self.uplink.send(frame),
            Via::Pod => self.pod.send(frame),
            Via::Nothing => panic!("a test run does that"),
        }
        let deadline = Instant::now() + VERDICT_TIMEOUT;
        while !is_judged() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.pod.next(Instant::now() + ARRIVAL_TIMEOUT)
    }
}

fn is_forwarding(port: &str) -> bool {
    let shown = Command::new("ip").args(["-d", "link", "show", "dev", port]).output();
    shown.is_ok_and(|shown| String::from_utf8_lossy(&shown.stdout).contains("state forwarding"))
}
