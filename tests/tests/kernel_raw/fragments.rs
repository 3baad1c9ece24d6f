//! Fragments of both families: in order and not, long and short.

use podgate_bpf::abi::Direction;
use podgate_bpf::attach::AttachMode;
use podgate_testkit::packet::{Ip, Transport, protocol, raw, udp};
use podgate_tests::netlab::Policy;

use crate::Test;
use crate::bench::*;

pub(crate) const TESTS: &[Test] = &[
    ("fragments_in_order_follow_the_first", in_order),
    ("fragments_of_a_denied_datagram_are_denied", denied),
    ("a_fragment_ahead_of_the_first_passes_where_some_port_may", out_of_order),
    ("a_fragment_ahead_of_the_first_is_denied_where_no_port_may", out_of_order_and_nothing_allowed),
    ("long_fragments_are_judged_alike", long),
    ("a_first_fragment_without_ports_is_malformed", tiny),
    ("an_atomic_fragment_is_a_whole_packet", atomic),
    ("two_datagrams_of_the_same_number_and_other_ends_are_told_apart", same_number),
];

fn between(bench: &Bench, direction: Direction, v6: bool, transport: Transport) -> Ip {
    let own = bench.own(v6);
    match direction {
        Egress => transport.between(&own, peer(v6)),
        Ingress => transport.between(peer(v6), &own),
    }
}

/// A first fragment that opens a UDP datagram.
fn first(bench: &Bench, direction: Direction, v6: bool, port: u16, id: u16) -> Ip {
    let transport = udp(40000, port).payload(&[1; 1016]);
    between(bench, direction, v6, transport).fragment(id, 0, true)
}

/// A later one; its bytes would be an allowed packet's if somebody took them for a header.
fn later(bench: &Bench, direction: Direction, v6: bool, id: u16, offset: u16, more: bool) -> Ip {
    let mut data = vec![0x9c, 0x40, 0, 80, 0, 8, 0, 0];
    data.resize(512, 0);
    between(bench, direction, v6, raw(protocol::UDP, &data)).fragment(id, offset, more)
}

fn in_order(kind: AttachMode) {
    let bench = Bench::new(kind, &udp_80());
    for direction in [Egress, Ingress] {
        for v6 in FAMILIES {
            bench.expect(direction, &first(&bench, direction, v6, 80, 7).frame(), AllowPolicy);
            let middle = later(&bench, direction, v6, 7, 1024, true);
            bench.expect(direction, &middle.frame(), AllowFlow);
            bench.expect(
                direction,
                &later(&bench, direction, v6, 7, 1536, false).frame(),
                AllowFlow,
            );
        }
    }
}

fn denied(kind: AttachMode) {
    let bench = Bench::new(kind, &udp_80());
    for direction in [Egress, Ingress] {
        for v6 in FAMILIES {
            bench.expect(direction, &first(&bench, direction, v6, 81, 7).frame(), DenyPolicy);
            let middle = later(&bench, direction, v6, 7, 1024, true);
            bench.expect(direction, &middle.frame(), DenyFragment);
            bench.expect(
                direction,
                &later(&bench, direction, v6, 7, 1536, false).frame(),
                DenyFragment,
            );
        }
    }
}

fn out_of_order(kind: AttachMode) {
    let bench = Bench::new(kind, &udp_80());
    for direction in [Egress, Ingress] {
        for v6 in FAMILIES {
            let last = later(&bench, direction, v6, 8, 1536, false);
            bench.expect(direction, &last.frame(), AllowFragment);
            let middle = later(&bench, direction, v6, 8, 1024, true);
            bench.expect(direction, &middle.frame(), AllowFragment);
            // harmless, because what makes the datagram whole is judged
            bench.expect(direction, &first(&bench, direction, v6, 81, 8).frame(), DenyPolicy);
            bench.expect(direction, &middle.frame(), DenyFragment);
        }
    }
}

fn out_of_order_and_nothing_allowed(kind: AttachMode) {
    let tcp_only = Policy::isolated().allow(Policed::Ingress, Protocol::Tcp, 80).allow(
        Policed::Egress,
        Protocol::Tcp,
        80,
    );
    let bench = Bench::new(kind, &tcp_only);
    for direction in [Egress, Ingress] {
        for v6 in FAMILIES {
            let last = later(&bench, direction, v6, 9, 1536, false);
            bench.expect(direction, &last.frame(), DenyFragment);
        }
    }
}

/// Fragments of more than a page, of which nothing is linear.
fn long(kind: AttachMode) {
    let bench = Bench::new(kind, &udp_80());
    for direction in [Egress, Ingress] {
        for v6 in FAMILIES {
            for (id, port) in [(20, 80), (21, 81)] {
                let opening = udp(40000, port).payload(&[1; 5104]);
                let opening = between(&bench, direction, v6, opening).fragment(id, 0, true);
                let rest = between(&bench, direction, v6, raw(protocol::UDP, &[2; 5000]));
                let rest = rest.fragment(id, 5112, false);
                let (open, follow) =
                    if port == 80 { (AllowPolicy, AllowFlow) } else { (DenyPolicy, DenyFragment) };
                bench.expect(direction, &opening.frame(), open);
                bench.expect(direction, &rest.frame(), follow);
            }
        }
    }
}

/// RFC 1858: ports in the second fragment.
fn tiny(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for direction in [Egress, Ingress] {
        for v6 in FAMILIES {
            let tiny = between(
                &bench,
                direction,
                v6,
                raw(protocol::TCP, &[0x9c, 0x40, 0, 80, 0, 0, 0, 1]),
            );
            bench.expect(direction, &tiny.fragment(3, 0, true).frame(), DenyMalformed);
        }
    }
}

fn atomic(kind: AttachMode) {
    let bench = Bench::new(kind, &udp_80());
    for direction in [Egress, Ingress] {
        for (port, expected) in [(80, AllowPolicy), (81, DenyPolicy)] {
            let packet = between(&bench, direction, true, udp(40000, port).payload(&[3; 64]));
            bench.expect(direction, &packet.fragment(4, 0, false).frame(), expected);
        }
    }
}

fn same_number(kind: AttachMode) {
    let bench = Bench::new(kind, &udp_80());
    for v6 in FAMILIES {
        let (own, other) = (bench.own(v6), if v6 { "fd00::98" } else { "10.0.0.98" });
        bench.expect(Ingress, &first(&bench, Ingress, v6, 80, 5).frame(), AllowPolicy);
        // the same number from somebody else: his first one was refused
        let refused = udp(40000, 81).payload(&[1; 1016]).between(other, &own).fragment(5, 0, true);
        bench.expect(Ingress, &refused.frame(), DenyPolicy);
        let rest = raw(protocol::UDP, &[2; 512]).between(other, &own).fragment(5, 1024, false);
        bench.expect(Ingress, &rest.frame(), DenyFragment);
        bench.expect(Ingress, &later(&bench, Ingress, v6, 5, 1024, false).frame(), AllowFlow);
    }
}
