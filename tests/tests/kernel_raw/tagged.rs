//! VLAN tags and other ethertypes: what policy cannot speak of passes only where everything may.

use podgate_bpf::abi::{Direction, Reason};
use podgate_bpf::attach::AttachMode;
use podgate_testkit::packet::wire::{arp, ethernet, vlan};
use podgate_testkit::packet::{tcp, udp};
use podgate_tests::netlab::Policy;

use crate::Test;
use crate::bench::*;

pub(crate) const TESTS: &[Test] = &[
    ("a_vlan_tag_hides_nothing_at_an_isolated_pod", tags),
    ("a_vlan_tag_passes_to_a_pod_where_everything_may", tags_at_an_open_pod),
    ("foreign_ethertypes_are_refused_at_an_isolated_pod", ethertypes),
    ("arp_always_passes", arp_passes),
];

fn frames(bench: &Bench, out: bool) -> Vec<Vec<u8>> {
    let of = |v6| {
        let (own, peer) = (bench.own(v6), peer(v6));
        let (from, to) = if out { (own.as_str(), peer) } else { (peer, own.as_str()) };
        [tcp(40000, 80).syn().between(from, to), udp(40000, 80).between(from, to)]
    };
    FAMILIES.into_iter().flat_map(of).map(|packet| packet.frame()).collect()
}

/// From the pod: what is behind the tag may be in any name, and a bridge or a neighbour takes the tag off.
fn refused(direction: Direction) -> Reason {
    if direction == Egress { DenySpoofed } else { DenyNotIp }
}

/// On the way the kernel takes the (outer) tag out of the frame and carries it beside: from the pod before the gate,
/// to the pod at the peer's end of the bridge. So the gate meets what looks like plain IP.
fn tags(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for direction in [Egress, Ingress] {
        for frame in frames(&bench, direction == Egress) {
            for id in [0, 5, 4094] {
                bench.expect(direction, &vlan(id, &frame), refused(direction));
            }
            bench.expect(direction, &vlan(5, &vlan(6, &frame)), refused(direction));
            bench.expect(direction, &frame, AllowPolicy);
        }
    }
}

fn tags_at_an_open_pod(kind: AttachMode) {
    let bench = Bench::new(kind, &Policy::open());
    for frame in frames(&bench, false) {
        bench.expect(Ingress, &vlan(5, &frame), AllowPolicy);
    }
    for frame in frames(&bench, true) {
        for id in [0, 5] {
            bench.expect(Egress, &vlan(id, &frame), DenySpoofed);
        }
    }
    for id in [0, 5] {
        bench.expect(Egress, &vlan(id, &arp("10.0.0.99", "10.0.0.10")), DenySpoofed);
    }
}

fn ethertypes(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    let ip = tcp(40000, 80).syn().between(&bench.own(false), peer(false)).packet();
    for direction in [Egress, Ingress] {
        // MPLS, PPPoE, MACsec, an experimental one, and a length (802.3 with LLC)
        for ethertype in [0x8847, 0x8864, 0x88e5, 0x88b5, 46] {
            bench.expect(direction, &ethernet(ethertype, &ip), DenyNotIp);
        }
    }
    // IPv6 by its ethertype, IPv4 by its version, and the reverse: no address stands where one should
    let wrong = ethernet(0x86dd, &[ip.clone(), vec![0; 40]].concat());
    bench.expect(Egress, &wrong, DenySpoofed);
    bench.expect(Ingress, &wrong, DenyMalformed);
    let ip6 = tcp(40000, 80).syn().between(&bench.own(true), peer(true)).packet();
    let wrong = ethernet(0x0800, &ip6);
    bench.expect(Egress, &wrong, DenySpoofed);
    bench.expect(Ingress, &wrong, DenyMalformed);
}

fn arp_passes(kind: AttachMode) {
    let bench = Bench::new(kind, &Policy::isolated());
    bench.expect(Egress, &arp("10.0.0.10", "10.0.0.99"), AllowControl);
    bench.expect(Ingress, &arp("10.0.0.99", "10.0.0.10"), AllowControl);
}
