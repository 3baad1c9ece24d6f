//! Finding the real transport header (docs/semantics.md 8.4 to 8.6): IPv4 options, IPv6 extension headers, cut packets.

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = s8_4_ipv4_options();
    tables.extend(s8_5_extension_headers());
    tables.extend(both(s8_6_headers_that_are_cut));
    tables
}

fn s8_4_ipv4_options() -> Vec<Table> {
    let f = V4;
    let mut tables: Vec<Table> = (5..=15)
        .map(|words| {
            table(format!("options: a header of {words} words"), web())
                .to_pod(f.back(tcp(40000, 81).syn()).header_words(words), DenyPolicy)
                .to_pod(f.back(tcp(40000, 80).syn()).header_words(words), AllowPolicy)
                .from_pod(f.out(tcp(80, 40000).syn_ack()).header_words(words), AllowFlow)
        })
        .collect();
    // what a parser with fixed offsets would take for "port 40000 to port 80"
    let spelled = [0x9c, 0x40, 0, 80];
    tables.extend([
        table("options: bytes that look like ports are not", web())
            .to_pod(f.back(tcp(40000, 81).syn()).options(&spelled), DenyPolicy)
            .to_pod(f.back(udp(40000, 81)).options(&spelled), DenyPolicy),
        table("options: a header shorter than a header", web())
            .to_pod(f.back(tcp(40000, 80).syn()).claim_header_words(4), DenyMalformed)
            .to_pod(f.back(tcp(40000, 80).syn()).claim_header_words(0), DenyMalformed),
        table("options: a header longer than the packet", web())
            .to_pod(f.back(tcp(40000, 80).syn()).claim_header_words(15), DenyMalformed)
            .to_pod(f.back(udp(40000, 80)).claim_header_words(15), DenyMalformed),
        table("options: a header longer than the frame, of a protocol without one", {
            World::isolated().allow(Ingress, ANY, Ports::All(protocol::GRE))
        })
        .to_pod(
            f.back(raw(protocol::GRE, &[])).claim_header_words(12).claim_length(225),
            DenyMalformed,
        ),
        table("headers: IPv4 addresses in an IPv6 packet", {
            web().node(NODE).peer(PEER, 1).allow(Ingress, 1, Ports::Every)
        })
        .to_pod(tcp(40000, 80).syn().between("::ffff:10.0.0.9", POD6), DenyMalformed)
        .node_to_pod(udp(1, 2).between("::ffff:10.0.0.1", POD6), DenyMalformed)
        .from_pod(udp(1, 2).between(POD6, "::ffff:10.0.0.9"), DenyMalformed)
        .from_pod(udp(1, 2).between("::ffff:10.0.0.5", PEER6), DenySpoofed),
        table("headers: IPv6 bytes in an IPv4 frame", web()).to_pod(
            podgate_testkit::packet::ethernet(0x0800, &V6.back(tcp(40000, 80).syn()).packet()),
            DenyMalformed,
        ),
        table("headers: IPv4 bytes in an IPv6 frame", web()).to_pod(
            podgate_testkit::packet::ethernet(
                0x86dd,
                &V4.back(tcp(40000, 80).syn().payload(&[0; 40])).packet(),
            ),
            DenyMalformed,
        ),
        table("headers: a packet longer than its header can say (BIG TCP)", web())
            .to_pod(f.back(tcp(40000, 80).syn()).claim_length(0), AllowPolicy)
            .to_pod(V6.back(tcp(40000, 80).syn()).claim_length(0), AllowPolicy),
    ]);
    tables
}

fn s8_5_extension_headers() -> Vec<Table> {
    let f = V6;
    let domain = || World::isolated().allow(Ingress, ANY, Ports::One(UDP, 53));
    let asked = |port| f.back(udp(5000, port));
    let mut tables = Vec::new();
    for (number, name) in [
        (protocol::HOP_BY_HOP, "hop-by-hop options"),
        (protocol::DESTINATION, "destination options"),
        (protocol::AH, "an authentication header"),
        (protocol::MOBILITY, "a mobility header"),
        (139, "a host identity header"),
        (140, "a shim6 header"),
    ] {
        for units in [1, 2, 31] {
            // an authentication header has 12 bytes at least
            if number == protocol::AH && units == 1 {
                continue;
            }
            tables.push(
                table(format!("extensions: {name}, {} bytes", 8 * u16::from(units)), domain())
                    .to_pod(asked(54).extension(number, units), DenyPolicy)
                    .to_pod(asked(53).extension(number, units), AllowPolicy)
                    .from_pod(f.out(udp(53, 5000)).extension(number, units), AllowFlow)
                    .to_pod(asked(53), AllowFlow),
            );
        }
    }
    let chain = |mut packet: Ip, length: usize| {
        for _ in 0..length {
            packet = packet.extension(protocol::DESTINATION, 1);
        }
        packet
    };
    for length in 1..=8 {
        tables.push(
            table(format!("extensions: {length} in a row"), domain())
                .to_pod(chain(asked(54), length), DenyPolicy)
                .to_pod(chain(asked(53), length), AllowPolicy),
        );
    }
    // the next header inside says UDP, the length reaches beyond the packet
    let endless =
        || f.back(raw(protocol::DESTINATION, &[UDP, 255, 0, 0, 0, 0, 0, 0, 0, 80, 0, 53]));
    tables.extend([
        table("extensions: 9 in a row", domain())
            .to_pod(chain(asked(53), 9), DenyMalformed)
            .to_pod(chain(asked(53), 20), DenyMalformed),
        table("extensions: a routing header that has been followed", domain())
            .to_pod(asked(54).routing(0), DenyPolicy)
            .to_pod(asked(53).routing(0), AllowPolicy),
        table("extensions: a routing header with a way to go", domain())
            .to_pod(asked(53).routing(1), DenyMalformed)
            .to_pod(asked(53).routing(255), DenyMalformed)
            .to_pod(asked(53).extension(protocol::DESTINATION, 1).routing(1), DenyMalformed),
        table("extensions: one longer than the packet", domain()).to_pod(endless(), DenyMalformed),
        table("extensions: one cut in its first bytes", domain())
            .to_pod(f.back(raw(protocol::HOP_BY_HOP, &[UDP, 0, 0, 0])), DenyMalformed)
            .to_pod(f.back(raw(protocol::FRAGMENT, &[UDP, 0, 0, 0])), DenyMalformed),
        table("extensions: bytes of one that look like ports are not", domain()).to_pod(
            f.back(raw(
                protocol::DESTINATION,
                &[UDP, 0, 0x13, 0x88, 0, 53, 0, 8, 0x13, 0x88, 0, 54, 0, 8, 0, 0],
            )),
            DenyPolicy,
        ),
        table("extensions: no next header", domain())
            .to_pod(f.back(raw(59, &[0x13, 0x88, 0, 53, 0, 8, 0, 0])), DenyPolicy),
        table("extensions: no next header, where everything is allowed", World::open())
            .to_pod(f.back(raw(59, &[])), AllowPolicy),
        table("extensions: TCP, SCTP and ICMPv6 behind them", {
            World::isolated().not_isolated(Egress)
        })
        .from_pod(chain(f.out(tcp(40000, 80).syn()), 3), AllowPolicy)
        .to_pod(f.back(tcp(80, 40000).syn_ack()), AllowFlow)
        .from_pod(chain(f.out(sctp(40000, 80)), 3), AllowPolicy)
        .to_pod(f.back(sctp(80, 40000)), AllowFlow)
        .from_pod(chain(f.out(f.ping(7)), 3), AllowPolicy)
        .to_pod(chain(f.back(f.pong(7)), 2), AllowFlow)
        .to_pod(chain(f.back(f.ping(7)), 2), DenyPolicy),
    ]);
    tables
}

fn s8_6_headers_that_are_cut(f: Family) -> Vec<Table> {
    let all = || {
        World::isolated()
            .allow(Ingress, ANY, Ports::All(TCP))
            .allow(Ingress, ANY, Ports::All(UDP))
            .allow(Ingress, ANY, Ports::All(SCTP))
            .allow(Ingress, ANY, Ports::All(f.icmp))
    };
    let ip = if f.icmp == ICMP { 20 } else { 0 };
    let mut tables = Vec::new();
    for (name, whole, least) in [
        ("TCP", tcp(40000, 80).syn(), 20_u16),
        ("UDP", udp(40000, 80), 8),
        ("SCTP", sctp(40000, 80), 12),
        ("ICMP", f.ping(7), 8),
    ] {
        let short = whole.clone().truncated(usize::from(least) - 1);
        // IPv6 with an empty payload reads as a jumbo packet: no fewer than one byte here
        let few = whole.clone().truncated(4);
        tables.extend([
            table(f.named(&format!("cut: {name} header, isolated")), all())
                .to_pod(f.back(short.clone()), DenyMalformed)
                .to_pod(f.back(few.clone()), DenyMalformed)
                .to_pod(f.back(whole.clone()).claim_length(ip + least - 1), DenyMalformed)
                .then("no flow", |lab| assert_eq!(lab.flows(), [])),
            table(f.named(&format!("cut: {name} header, not isolated")), World::open())
                .to_pod(f.back(short), AllowPolicy)
                .from_pod(f.out(few), AllowPolicy)
                .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        ]);
        tables.push(
            table(f.named(&format!("cut: {name} header, frame shorter than it says")), all())
                .to_pod(f.back(whole.clone().truncated(4)).claim_length(ip + least), DenyMalformed),
        );
    }
    tables
}
