//! Frames that end before the header does which they announce.

use podgate_bpf::attach::AttachMode;
use podgate_testkit::packet::{Transport, icmp, sctp, tcp, udp};
use podgate_tests::netlab::Policy;

use crate::Test;
use crate::bench::*;

pub(crate) const TESTS: &[Test] = &[
    ("an_ip_header_cut_short_is_malformed_at_an_isolated_pod", ip_header),
    ("a_cut_ip_header_passes_only_to_a_pod_where_everything_may", ip_header_at_an_open_pod),
    ("a_transport_header_cut_short_is_malformed", transport_header),
    ("ports_behind_the_claimed_end_of_the_packet_are_not_read", ports_behind_the_end),
    ("a_length_beyond_the_frame_is_malformed_where_the_header_is_missing", length_beyond_the_frame),
    ("padding_of_a_short_frame_is_not_part_of_it", padding),
];

fn whole(bench: &Bench, direction: podgate_bpf::abi::Direction, v6: bool) -> Vec<u8> {
    between(bench, direction, v6, tcp(40000, 80).syn()).frame()
}

fn between(
    bench: &Bench,
    direction: podgate_bpf::abi::Direction,
    v6: bool,
    transport: Transport,
) -> podgate_testkit::packet::Ip {
    let own = bench.own(v6);
    match direction {
        Egress => transport.between(&own, peer(v6)),
        Ingress => transport.between(peer(v6), &own),
    }
}

/// Every length from the Ethernet header alone up to one byte less than the IP header. What a pod sends
/// without its address is not in its own name.
fn ip_header(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for (direction, reason) in [(Egress, DenySpoofed), (Ingress, DenyMalformed)] {
        for (v6, header) in [(false, 20), (true, 40)] {
            let frame = whole(&bench, direction, v6);
            // an AF_PACKET socket sends no frame without anything behind the Ethernet header
            for length in 15..14 + header {
                bench.expect(direction, &frame[..length], reason);
            }
            bench.expect(direction, &frame, AllowPolicy);
        }
    }
}

fn ip_header_at_an_open_pod(kind: AttachMode) {
    let bench = Bench::new(kind, &Policy::open());
    for (direction, reason) in [(Egress, DenySpoofed), (Ingress, AllowPolicy)] {
        for (v6, header) in [(false, 20), (true, 40)] {
            let frame = whole(&bench, direction, v6);
            for length in [15, 14 + header / 2, 14 + header - 1] {
                bench.expect(direction, &frame[..length], reason);
            }
        }
    }
}

/// The IP header's length is right; it is the transport header that is not all there.
fn transport_header(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for direction in [Egress, Ingress] {
        for v6 in FAMILIES {
            for length in [0, 1, 3, 4, 8, 13, 14, 19] {
                let cut = tcp(40000, 80).syn().truncated(length);
                bench.expect(
                    direction,
                    &between(&bench, direction, v6, cut).frame(),
                    DenyMalformed,
                );
            }
            for length in [0, 4, 7] {
                let cut = udp(40000, 80).truncated(length);
                bench.expect(
                    direction,
                    &between(&bench, direction, v6, cut).frame(),
                    DenyMalformed,
                );
                let cut = icmp(8, 0, [0, 1, 0, 1]).truncated(length);
                bench.expect(
                    direction,
                    &between(&bench, direction, v6, cut).frame(),
                    DenyMalformed,
                );
            }
            let cut = sctp(40000, 80).truncated(11);
            bench.expect(direction, &between(&bench, direction, v6, cut).frame(), DenyMalformed);
        }
    }
}

/// Everything is in the frame, but the IP header says that it ends earlier: what lies behind is padding,
/// that somebody filled with the ports of an allowed packet.
fn ports_behind_the_end(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for direction in [Egress, Ingress] {
        for v6 in FAMILIES {
            for room in [0, 2, 4, 19] {
                // of an IPv6 packet without a length one would have to look for a jumbo option
                if v6 && room == 0 {
                    continue;
                }
                let claimed = if v6 { room } else { 20 + room };
                let packet =
                    between(&bench, direction, v6, tcp(40000, 80).syn()).claim_length(claimed);
                bench.expect(direction, &packet.frame(), DenyMalformed);
            }
        }
    }
}

/// The IP header promises a whole packet, and the frame ends within the transport header.
fn length_beyond_the_frame(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for direction in [Egress, Ingress] {
        for (v6, header) in [(false, 20), (true, 40)] {
            let frame = whole(&bench, direction, v6);
            for transport in [0, 3, 4, 13] {
                bench.expect(direction, &frame[..14 + header + transport], DenyMalformed);
            }
        }
    }
}

/// Ethernet frames have 60 bytes at least: the rest is nobody's.
fn padding(kind: AttachMode) {
    let bench = Bench::new(kind, &port_80());
    for direction in [Egress, Ingress] {
        for (port, expected) in [(80, AllowPolicy), (81, DenyPolicy)] {
            let mut frame = between(&bench, direction, false, udp(40000, port)).frame();
            frame.resize(60, 0);
            bench.expect(direction, &frame, expected);
        }
    }
}
