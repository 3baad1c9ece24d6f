//! Frames longer than a page: an AF_PACKET socket leaves only their Ethernet header in the linear part of the
//! buffer, so that whoever reads headers in place finds nothing there.

use podgate_bpf::abi::Direction;
use podgate_bpf::attach::AttachMode;
use podgate_testkit::packet::{Ip, Transport, icmp, protocol, sctp, tcp, udp};

use crate::Test;
use crate::bench::*;

pub(crate) const TESTS: &[Test] = &[
    ("non_linear_packets_are_judged_by_their_ports", ports),
    ("non_linear_packets_of_a_known_flow_pass", known_flow),
    ("non_linear_ipv4_options_are_stepped_over", options),
    ("non_linear_ipv6_extension_headers_are_walked", extensions),
    ("non_linear_icmp_errors_are_related_to_what_they_quote", errors),
    ("non_linear_spoofed_sources_are_refused", spoofed),
];

/// So that the frame is longer than a page, and all of it sent at once.
fn body() -> Vec<u8> {
    vec![0x55; 5000]
}

fn between(bench: &Bench, direction: Direction, v6: bool, transport: Transport) -> Ip {
    let own = bench.own(v6);
    match direction {
        Egress => transport.between(&own, peer(v6)),
        Ingress => transport.between(peer(v6), &own),
    }
}

fn ports(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for direction in [Egress, Ingress] {
        for v6 in FAMILIES {
            for (port, expected) in [(80, AllowPolicy), (81, DenyPolicy)] {
                for transport in [tcp(40000, port).ack(), udp(40000, port)] {
                    let packet = between(&bench, direction, v6, transport.payload(&body()));
                    bench.expect(direction, &packet.frame(), expected);
                }
            }
            let packet = between(&bench, direction, v6, sctp(40000, 80).payload(&body()));
            bench.expect(direction, &packet.frame(), DenyPolicy);
            let packet = between(&bench, direction, v6, icmp(8, 0, [0, 1, 0, 1]).payload(&body()));
            bench.expect(direction, &packet.frame(), DenyPolicy);
        }
    }
}

fn known_flow(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for v6 in FAMILIES {
        let syn = between(&bench, Ingress, v6, tcp(40000, 80).syn());
        bench.expect(Ingress, &syn.frame(), AllowPolicy);
        let syn_ack = between(&bench, Egress, v6, tcp(80, 40000).syn_ack());
        bench.expect(Egress, &syn_ack.frame(), AllowFlow);
        for (direction, source, destination) in [(Ingress, 40000, 80), (Egress, 80, 40000)] {
            let data = tcp(source, destination).ack().payload(&body());
            bench.expect(direction, &between(&bench, direction, v6, data).frame(), AllowFlow);
        }
        let fin = between(&bench, Ingress, v6, tcp(40000, 80).fin().payload(&body()));
        bench.expect(Ingress, &fin.frame(), AllowFlow);
    }
}

fn options(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for direction in [Egress, Ingress] {
        for words in [6, 10, 15] {
            for (port, expected) in [(80, AllowPolicy), (81, DenyPolicy)] {
                // a source port of its own: a new flow each
                let transport = udp(40000 + u16::from(words), port).payload(&body());
                let packet = between(&bench, direction, false, transport).header_words(words);
                bench.expect(direction, &packet.frame(), expected);
            }
        }
    }
}

fn extensions(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for direction in [Egress, Ingress] {
        for (port, expected) in [(80, AllowPolicy), (81, DenyPolicy)] {
            let transport = udp(40000, port).payload(&body());
            let packet = between(&bench, direction, true, transport)
                .extension(protocol::HOP_BY_HOP, 1)
                .extension(protocol::DESTINATION, 3);
            bench.expect(direction, &packet.frame(), expected);
        }
        // more headers than anybody needs
        let transport = udp(40000, 80).payload(&body());
        let chain = (0..9).fold(between(&bench, direction, true, transport), |packet, _| {
            packet.extension(protocol::DESTINATION, 1)
        });
        bench.expect(direction, &chain.frame(), DenyMalformed);
    }
}

fn errors(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for v6 in FAMILIES {
        // the pod asks, and a router far away has something to say about it
        let sent = between(&bench, Egress, v6, udp(40000, 80).payload(&body()));
        bench.expect(Egress, &sent.frame(), AllowPolicy);
        let router = if v6 { "fd55::1" } else { "192.0.2.1" };
        let unreachable = |v6| if v6 { icmp(1, 4, [0; 4]) } else { icmp(3, 3, [0; 4]) };
        let error = unreachable(v6).quoting(&sent, 4900).between(router, &bench.own(v6));
        bench.expect(Ingress, &error.frame(), AllowRelated);

        let unsent = between(&bench, Egress, v6, udp(40001, 80).payload(&body()));
        let error = unreachable(v6).quoting(&unsent, 4900).between(router, &bench.own(v6));
        bench.expect(Ingress, &error.frame(), DenyPolicy);
    }
}

fn spoofed(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for v6 in FAMILIES {
        let foreign = if v6 { "fd00::77" } else { "10.0.0.77" };
        let packet = tcp(40000, 80).ack().payload(&body()).between(foreign, peer(v6));
        bench.expect(Egress, &packet.frame(), DenySpoofed);
    }
}
