//! The pod, the peer, the gate between them, and one frame at a time.

use std::thread;
use std::time::{Duration, Instant};

use podgate_bpf::abi::{Direction, Reason};
use podgate_bpf::attach::AttachMode;
use podgate_testkit::net::Net;
use podgate_testkit::wait::WAIT_TIMEOUT;
use podgate_tests::netlab::{Lab, Pod, Policy, Tap};

pub(crate) use podgate_bpf::abi::Direction::{Egress, Ingress};
pub(crate) use podgate_bpf::abi::Reason::*;
pub(crate) use podgate_policy::model::Direction as Policed;
pub(crate) use podgate_policy::model::Protocol;

pub(crate) struct Bench {
    pub(crate) lab: Lab,
    pub(crate) pod: Pod,
    at_pod: Tap,
    at_peer: Tap,
    _peer: Net,
}

impl Bench {
    /// A pod with this policy.
    pub(crate) fn new(kind: AttachMode, policy: &Policy) -> Self {
        let lab = Lab::new(kind);
        let (pod, peer) = (lab.pod(), lab.pod());
        // A bridge that looks into packets drops the broken ones and trims the padded ones itself.
        for family in ["arp", "ip", "ip6"] {
            lab.node.sysctl(&format!("bridge/bridge-nf-call-{family}tables"), "0");
        }
        // Neighbour discovery would be counted too.
        for (net, link) in [(&lab.node, "br0"), (&pod.net, "eth0"), (&peer.net, "eth0")] {
            net.sysctl("ipv6/conf/all/disable_ipv6", "1");
            net.ip(&format!("address flush dev {link}\nlink set {link} arp off"));
        }
        for host in [&pod.host, &peer.host] {
            lab.node.ip(&format!("link set {host} mtu 9000"));
        }
        pod.net.ip("link set eth0 mtu 9000");
        peer.net.ip("link set eth0 mtu 9000");
        lab.node.ip("link set br0 mtu 9000");
        lab.register(&pod, podgate_bpf::abi::Startup::Hold);
        lab.set_policy(&pod, policy);
        // What was under way when IPv6 went off has arrived by then.
        thread::sleep(Duration::from_millis(20));
        let (at_pod, at_peer) = (Tap::new(&pod.net, "eth0"), Tap::new(&peer.net, "eth0"));
        Self { lab, pod, at_pod, at_peer, _peer: peer.net }
    }

    /// The pod's address of the family of `like`.
    pub(crate) fn own(&self, v6: bool) -> String {
        if v6 { self.pod.v6.to_string() } else { self.pod.v4.to_string() }
    }

    /// Sends a frame towards or from the pod and asserts what it meets: exactly that counter, and that it
    /// comes out on the other side, unchanged, or does not.
    #[track_caller]
    pub(crate) fn expect(&self, direction: Direction, frame: &[u8], reason: Reason) {
        let (from, to) = match direction {
            Direction::Egress => (&self.at_pod, &self.at_peer),
            Direction::Ingress => (&self.at_peer, &self.at_pod),
        };
        from.drain();
        to.drain();
        let before = self.lab.counted();
        from.send(frame);
        let counted = self.counted_since(&before);
        assert_eq!(
            counted,
            [(direction, reason, 1)],
            "what a frame of {} bytes met: {}",
            frame.len(),
            hex(frame)
        );
        // The kernel takes the tag of a VLAN out of the frame.
        let untagged = if frame[12..14] == [0x81, 0] {
            [&frame[..12], &frame[16..]].concat()
        } else {
            frame.to_vec()
        };
        let is_it = |seen: &[u8]| seen == frame || seen == untagged;
        if reason.is_denial() {
            let arrived = to.sees(Duration::from_millis(5), is_it);
            assert!(!arrived, "denied ({reason:?}) and arrived: {}", hex(frame));
        } else {
            let arrived = to.sees(WAIT_TIMEOUT, is_it);
            assert!(arrived, "allowed ({reason:?}) and did not arrive: {}", hex(frame));
        }
    }

    /// What was counted for the one frame that is under way.
    fn counted_since(&self, before: &[(Direction, Reason, u64)]) -> Vec<(Direction, Reason, u64)> {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let now = self.lab.counted();
            if now != before || Instant::now() > deadline {
                let old = |what: (Direction, Reason)| {
                    let found = before.iter().find(|(way, why, _)| (*way, *why) == what);
                    found.map_or(0, |(.., packets)| *packets)
                };
                return now
                    .into_iter()
                    .map(|(way, why, packets)| (way, why, packets - old((way, why))))
                    .filter(|(.., packets)| *packets > 0)
                    .collect();
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Somebody outside, of either family.
pub(crate) fn peer(v6: bool) -> &'static str {
    if v6 { "fd00::99" } else { "10.0.0.99" }
}

/// Both families, for loops.
pub(crate) const FAMILIES: [bool; 2] = [false, true];

/// Isolated, but for TCP and UDP port 80 in both directions.
pub(crate) fn port_80() -> Policy {
    [Policed::Ingress, Policed::Egress].into_iter().fold(Policy::isolated(), |policy, direction| {
        policy.allow(direction, Protocol::Tcp, 80).allow(direction, Protocol::Udp, 80)
    })
}

/// Isolated, and UDP port 80 allowed in both directions; no port of any other protocol.
pub(crate) fn udp_80() -> Policy {
    Policy::isolated().allow(Policed::Ingress, Protocol::Udp, 80).allow(
        Policed::Egress,
        Protocol::Udp,
        80,
    )
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(96)];
    shown.iter().map(|byte| format!("{byte:02x}")).collect()
}
