//! Services, byte by byte: what leaves for the endpoint and what comes back from the service (docs/semantics.md 10). The
//! expected frames are built whole, with checksums computed from nothing.

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(transports);
    tables.extend(both(headers));
    tables.extend(both(in_fragments));
    tables.extend(both(s10_1_the_endpoint_is_judged));
    tables.extend(both(s10_6_what_is_not_translated));
    tables.extend(sums());
    tables
}

/// A TCP segment from the opener's side, with bytes whose sum is odd in every way.
fn segment(source: u16, destination: u16) -> Transport {
    tcp(source, destination).syn().payload(&[0xff, 0x01, 0xfe, 0x80, 0x7f])
}

/// Each transport with a service on the endpoint's port and on another one.
fn transports(f: Family) -> Vec<Table> {
    type Make = fn(u16, u16) -> Transport;
    let kinds: [(&str, u8, Make); 5] = [
        ("tcp", TCP, segment),
        ("udp", UDP, |from, to| udp(from, to).payload(b"question")),
        ("udp of odd length", UDP, |from, to| udp(from, to).payload(b"what?")),
        ("sctp", SCTP, |from, to| sctp(from, to).payload(&[7; 101]).crc()),
        ("sctp without a checksum", SCTP, |from, to| sctp(from, to).payload(&[7; 101])),
    ];
    let mut tables = Vec::new();
    for (name, protocol, make) in kinds {
        for (port, target) in [(53, 53), (53, 5353), (65535, 1), (1, 65535)] {
            let title = format!("services: {name} {port} to {target}");
            let answer = |from, to| {
                if protocol == TCP { tcp(from, to).syn_ack() } else { make(from, to) }
            };
            let later = |from, to| {
                if protocol == TCP { tcp(from, to).ack().payload(&[1; 33]) } else { make(from, to) }
            };
            let world = World::isolated()
                .allow(Egress, ANY, Ports::One(protocol, target))
                .service(Service::new(f.service, port, protocol, &[(f.peer, target)]));
            tables.push(
                table(f.named(&title), world)
                    .from_pod_as(
                        make(40000, port).between(f.pod, f.service),
                        AllowPolicy,
                        make(40000, target).between(f.pod, f.peer),
                    )
                    .to_pod_as(
                        answer(target, 40000).between(f.peer, f.pod),
                        AllowFlow,
                        answer(port, 40000).between(f.service, f.pod),
                    )
                    .from_pod_as(
                        later(40000, port).between(f.pod, f.service),
                        AllowFlow,
                        later(40000, target).between(f.pod, f.peer),
                    )
                    .to_pod_as(
                        later(target, 40000).between(f.peer, f.pod),
                        AllowFlow,
                        later(port, 40000).between(f.service, f.pod),
                    )
                    .then("two views", |lab| assert_eq!(lab.flows().len(), 2)),
            );
        }
    }
    tables
}

/// A service for UDP port 53 with one endpoint, on port 5353, which the pod may reach.
fn domain(f: Family) -> World {
    World::isolated().allow(Egress, ANY, Ports::One(UDP, 5353)).service(Service::new(
        f.service,
        53,
        UDP,
        &[(f.peer, 5353)],
    ))
}

fn headers(f: Family) -> Vec<Table> {
    let ask = |port| udp(40000, port).payload(b"what?");
    let answer = |port| udp(port, 40000).payload(b"that");
    let through = |name: String, dress: fn(Ip) -> Ip| {
        table(f.named(&format!("services: {name}")), domain(f))
            .from_pod_as(
                dress(ask(53).between(f.pod, f.service)),
                AllowPolicy,
                dress(ask(5353).between(f.pod, f.peer)),
            )
            .to_pod_as(
                dress(answer(5353).between(f.peer, f.pod)),
                AllowFlow,
                dress(answer(53).between(f.service, f.pod)),
            )
    };
    let mut tables = vec![through("hop limit 1".into(), |ip| ip.hop_limit(1))];
    if f.icmp == ICMP {
        tables.push(through("behind six words of header".into(), |ip| ip.header_words(6)));
        tables.push(through("behind fifteen words of header".into(), |ip| ip.header_words(15)));
        let plain = |from: &str, to: &str, ports: (u16, u16)| {
            udp(ports.0, ports.1).payload(b"x").unchecked().between(from, to)
        };
        tables.push(
            table("services: udp without a checksum stays without", domain(f))
                .from_pod_as(
                    plain(f.pod, f.service, (40000, 53)),
                    AllowPolicy,
                    plain(f.pod, f.peer, (40000, 5353)),
                )
                .to_pod_as(
                    plain(f.peer, f.pod, (5353, 40000)),
                    AllowFlow,
                    plain(f.service, f.pod, (53, 40000)),
                ),
        );
    } else {
        tables.push(through("behind hop-by-hop options".into(), |ip| {
            ip.extension(protocol::HOP_BY_HOP, 2)
        }));
        tables.push(through("behind three extension headers".into(), |ip| {
            ip.extension(protocol::HOP_BY_HOP, 1)
                .extension(protocol::DESTINATION, 3)
                .extension(protocol::AH, 2)
        }));
        tables.push(through("behind a fragment header of a whole datagram".into(), |ip| {
            ip.extension(protocol::FRAGMENT, 1)
        }));
    }
    tables
}

/// Checksums that come out as nothing: what is on the wire must still say that there is one.
fn sums() -> Vec<Table> {
    let mut tables = Vec::new();
    // the payload goes through every value, so the sum does too
    for high in [0_u8, 0x55, 0xff] {
        let mut world = table(format!("services: every checksum of udp ({high})"), domain(V4));
        let packet = |low: u8, to, port| {
            let odd = [high, low, !high, 3];
            udp(40000, port).payload(&odd).between(V4.pod, to)
        };
        for low in 0..=255 {
            let reason = if low == 0 { AllowPolicy } else { AllowFlow };
            world =
                world.from_pod_as(packet(low, V4.service, 53), reason, packet(low, V4.peer, 5353));
        }
        tables.push(world);
    }
    let zero = (0..=u16::MAX).find(|word| {
        let frame = udp(40000, 5353).payload(&word.to_be_bytes()).between(V4.pod, V4.peer).frame();
        frame[40..42] == [0xff, 0xff]
    });
    let payload = zero.expect("one of all words makes the sum nothing").to_be_bytes();
    tables.push(
        table("services: a checksum of udp that comes out as nothing", domain(V4)).from_pod_as(
            udp(40000, 53).payload(&payload).between(V4.pod, V4.service),
            AllowPolicy,
            udp(40000, 5353).payload(&payload).between(V4.pod, V4.peer),
        ),
    );
    tables
}

fn in_fragments(f: Family) -> Vec<Table> {
    let ask = |to, port| udp(40000, port).payload(&[5; 150]).between(f.pod, to).in_fragments(7, 64);
    let answer =
        |from, port| udp(port, 40000).payload(&[6; 150]).between(from, f.pod).in_fragments(9, 64);
    let (sent, left) = (ask(f.service, 53), ask(f.peer, 5353));
    let (came, received) = (answer(f.peer, 5353), answer(f.service, 53));
    assert_eq!(sent.len(), 3);
    let whole = udp(40000, 53).between(f.pod, f.service);
    let mut there = table(f.named("services: a datagram in fragments, and its answer"), domain(f));
    for (number, (sent, left)) in sent.iter().zip(&left).enumerate() {
        let reason = if number == 0 { AllowPolicy } else { AllowFlow };
        there = there.from_pod_as(sent.clone(), reason, left.clone());
    }
    for (came, received) in came.iter().zip(&received) {
        there = there.to_pod_as(came.clone(), AllowFlow, received.clone());
    }
    vec![
        there,
        table(f.named("services: fragments of a datagram to a denied endpoint"), domain(f))
            .change(|lab| lab.withdraw(Egress, ANY, Ports::One(UDP, 5353)))
            .from_pod(sent[0].clone(), DenyPolicy)
            .from_pod(sent[1].clone(), DenyFragment)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("services: fragments of a flow cut between them"), domain(f))
            .from_pod_as(sent[0].clone(), AllowPolicy, left[0].clone())
            .change(|lab| lab.withdraw(Egress, ANY, Ports::One(UDP, 5353)))
            .from_pod(sent[1].clone(), DenyFragment)
            .from_pod(whole, DenyPolicy),
    ]
}

/// What policy says of the endpoint, whatever it would say of the service.
fn s10_1_the_endpoint_is_judged(f: Family) -> Vec<Table> {
    let service = || Service::new(f.service, 80, TCP, &[(f.peer, 8080)]);
    let syn = |to, port| tcp(40000, port).syn().between(f.pod, to);
    let to_service = || syn(f.service, 80);
    let only = |ports| World::isolated().allow(Egress, ANY, ports).service(service());
    let class =
        |of: &str| World::isolated().peer(of, 5).allow(Egress, 5, Ports::Every).service(service());
    let bits = if f.icmp == ICMP { 24 } else { 120 };
    let block = |of: &str| {
        World::isolated().net(of, bits, 5).allow(Egress, 5, Ports::Every).service(service())
    };
    let allowed = |name: &str, world| {
        table(f.named(&format!("services: {name}")), world).from_pod_as(
            to_service(),
            AllowPolicy,
            syn(f.peer, 8080),
        )
    };
    let denied = |name: &str, world| {
        table(f.named(&format!("services: {name}")), world)
            .from_pod(to_service(), DenyPolicy)
            .then("no flow", |lab| assert_eq!(lab.flows(), []))
    };
    vec![
        allowed("the endpoint's port is allowed", only(Ports::One(TCP, 8080))),
        denied("the service's port is allowed", only(Ports::One(TCP, 80))),
        denied("the endpoint's port of another protocol", only(Ports::One(UDP, 8080))),
        allowed("the endpoint's class is allowed", class(f.peer)),
        denied("the service's class is allowed", class(f.service)),
        allowed("a block around the endpoint is allowed", block(f.peer)),
        denied("a block around the service is allowed", block(f.service)),
        allowed("nothing is isolated", World::open().service(service())),
        table(
            f.named("services: an endpoint that is the node"),
            World::isolated().node(f.peer).service(service()),
        )
        .from_pod(to_service(), DenyPolicy),
        table(f.named("services: with a false source address"), World::open().service(service()))
            .from_pod(tcp(40000, 80).syn().between(f.stranger, f.service), DenySpoofed)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(
            f.named("services: the answer of a denied one is no reply"),
            World::isolated().not_isolated(Ingress).service(service()),
        )
        .from_pod(to_service(), DenyPolicy)
        .to_pod(tcp(8080, 40000).syn_ack().between(f.peer, f.pod), AllowPolicy),
        table(f.named("services: one of two endpoints is allowed"), mixed(f)).then(
            "the verdict is the chosen one's",
            move |lab| {
                let (mut passed, mut refused) = (0, 0);
                for port in 1000..1200 {
                    let syn = tcp(port, 80).syn().between(f.pod, f.service).frame();
                    let met = lab.send(Egress, &syn, Via::Nothing);
                    let to_peer = tcp(port, 8080).syn().between(f.pod, f.peer).frame();
                    match met.reason() {
                        Some(AllowPolicy) if met.packet == to_peer => passed += 1,
                        Some(DenyPolicy) => refused += 1,
                        _ => panic!("{met:?}"),
                    }
                }
                // 200 throws of a fair coin: beyond six standard deviations
                assert!(passed > 57 && refused > 57, "{passed} passed, {refused} refused");
                assert_eq!(lab.flows().len(), 2 * passed);
            },
        ),
    ]
}

/// A service with an endpoint that the pod may reach and one that it may not.
fn mixed(f: Family) -> World {
    let endpoints = [(f.peer, 8080), (f.stranger, 8080)];
    World::isolated()
        .peer(f.peer, 5)
        .allow(Egress, 5, Ports::Every)
        .service(Service::new(f.service, 80, TCP, &endpoints))
}

/// What is left alone.
fn s10_6_what_is_not_translated(f: Family) -> Vec<Table> {
    let service = || Service::new(f.service, 53, UDP, &[(f.peer, 5353)]);
    let world = || World::open().service(service());
    let none = || World::open().service(Service::new(f.service, 53, UDP, &[]));
    vec![
        table(f.named("services: another port, another protocol, another address"), world())
            .from_pod(udp(40000, 54).between(f.pod, f.service), AllowPolicy)
            .from_pod(tcp(40000, 53).syn().between(f.pod, f.service), AllowPolicy)
            .from_pod(sctp(40000, 53).between(f.pod, f.service), AllowPolicy)
            .from_pod(udp(40000, 53).between(f.pod, f.stranger), AllowPolicy),
        table(f.named("services: no endpoints, judged as an address"), none())
            .from_pod(udp(40000, 53).between(f.pod, f.service), AllowPolicy)
            .to_pod(udp(53, 40000).between(f.service, f.pod), AllowFlow)
            .change(|lab| lab.replace(&World::isolated()))
            .from_pod(udp(40000, 53).between(f.pod, f.service), DenyPolicy),
        table(f.named("services: echo requests, errors, other protocols"), world())
            .from_pod(f.ping(1).between(f.pod, f.service), AllowPolicy)
            .from_pod(raw(protocol::GRE, &[0; 20]).between(f.pod, f.service), AllowPolicy)
            .from_pod(
                raw(136, &[0x9c, 0x40, 0, 53, 0, 8, 0, 0]).between(f.pod, f.service),
                AllowPolicy,
            ),
        table(f.named("services: packets to the pod, from and to a service's address"), world())
            .to_pod(udp(40000, 53).between(f.service, f.pod), AllowPolicy)
            .to_pod(udp(53, 40000).between(f.service, f.pod), AllowPolicy),
        table(
            f.named("services: the middle of a connection of which nothing is known"),
            World::open().service(Service::new(f.service, 80, TCP, &[(f.peer, 8080)])),
        )
        .from_pod(tcp(40000, 80).ack().between(f.pod, f.service), AllowPolicy)
        .to_pod(tcp(80, 40000).ack().between(f.service, f.pod), AllowFlow)
        .from_pod(tcp(40000, 80).rst().between(f.pod, f.service), AllowFlow)
        .from_pod(tcp(40001, 80).rst().between(f.pod, f.service), AllowPolicy)
        .from_pod_as(
            tcp(40000, 80).syn().between(f.pod, f.service),
            AllowPolicy,
            tcp(40000, 8080).syn().between(f.pod, f.peer),
        ),
    ]
}
