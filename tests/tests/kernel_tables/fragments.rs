//! Fragments (docs/semantics.md 8.1 to 8.3): only the first has ports, the later ones follow its verdict.

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(s8_1_fragments_in_order);
    tables.extend(both(s8_2_fragments_out_of_order));
    tables.extend(both(s8_3_answers_out_of_order));
    tables.extend(both(special));
    tables.extend(v6_only());
    tables
}

/// A pod that serves UDP port 53 and nothing else.
fn domain() -> World {
    World::isolated().allow(Ingress, ANY, Ports::One(UDP, 53))
}

/// The first 64 bytes of a datagram to the pod's port.
fn first(f: Family, port: u16, id: u16) -> Ip {
    f.back(udp(5000, port).payload(&[1; 56])).fragment(id, 0, true)
}

/// What follows; its bytes look like a header with ports 5000 and 53.
fn later(f: Family, id: u16) -> Ip {
    f.back(raw(UDP, &[0x13, 0x88, 0, 53, 0, 8, 0, 0])).fragment(id, 64, false)
}

fn s8_1_fragments_in_order(f: Family) -> Vec<Table> {
    vec![
        table(f.named("fragments: of an allowed datagram"), domain())
            .to_pod(first(f, 53, 1), AllowPolicy)
            .to_pod(f.back(raw(UDP, &[0; 64])).fragment(1, 64, true), AllowFlow)
            .to_pod(f.back(raw(UDP, &[0; 64])).fragment(1, 128, false), AllowFlow)
            .from_pod(f.out(udp(53, 5000)), AllowFlow),
        table(f.named("fragments: of a denied datagram"), domain())
            .to_pod(first(f, 54, 1), DenyPolicy)
            .to_pod(later(f, 1), DenyFragment)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("fragments: of an established flow, both ways"), domain())
            .to_pod(f.back(udp(5000, 53)), AllowPolicy)
            .from_pod(f.out(udp(53, 5000).payload(&[0; 56])).fragment(9, 0, true), AllowFlow)
            .from_pod(f.out(raw(UDP, &[0; 8])).fragment(9, 64, false), AllowFlow)
            .to_pod(first(f, 53, 9), AllowFlow)
            .to_pod(later(f, 9), AllowFlow),
        table(f.named("fragments: an identification used again"), domain())
            .to_pod(first(f, 54, 1), DenyPolicy)
            .to_pod(later(f, 1), DenyFragment)
            .to_pod(first(f, 53, 1), AllowPolicy)
            .to_pod(later(f, 1), AllowFlow)
            .to_pod(first(f, 54, 1), DenyPolicy)
            .to_pod(later(f, 1), DenyFragment),
        table(f.named("fragments: of one datagram among others"), domain())
            .to_pod(first(f, 54, 1), DenyPolicy)
            .to_pod(first(f, 53, 2), AllowPolicy)
            .to_pod(later(f, 1), DenyFragment)
            .to_pod(later(f, 2), AllowFlow)
            .from_pod(f.out(raw(UDP, &[0; 8])).fragment(2, 64, false), DenyFragment),
        table(f.named("fragments: a flow cut between them"), domain())
            .to_pod(first(f, 53, 1), AllowPolicy)
            .change(|lab| lab.withdraw(Ingress, ANY, Ports::One(UDP, 53)))
            .to_pod(later(f, 1), DenyPolicy),
        table(f.named("fragments: atomic, offset 0 and none to follow"), domain())
            .to_pod(f.back(udp(5000, 54)).fragment(3, 0, false), DenyPolicy)
            .to_pod(f.back(udp(5000, 53)).fragment(3, 0, false), AllowPolicy)
            .from_pod(f.out(udp(53, 5000)).fragment(3, 0, false), AllowFlow),
    ]
}

fn s8_2_fragments_out_of_order(f: Family) -> Vec<Table> {
    let tcp_later = || f.back(raw(TCP, &[0x13, 0x88, 0, 53, 0, 8, 0, 0])).fragment(1, 64, false);
    let from_peer =
        |class| World::isolated().allow(Ingress, class, Ports::One(UDP, 53)).peer(f.peer, 1);
    vec![
        table(f.named("fragments: a later one first, where some port is allowed"), domain())
            .to_pod(later(f, 1), AllowFragment)
            .then("no flow", |lab| assert_eq!(lab.flows(), []))
            .to_pod(first(f, 53, 1), AllowPolicy)
            .to_pod(later(f, 1), AllowFlow),
        table(f.named("fragments: a later one first, of a protocol that is not"), domain())
            .to_pod(tcp_later(), DenyFragment),
        table(f.named("fragments: a later one first, in the direction that is not"), domain())
            .from_pod(f.out(raw(UDP, &[0; 8])).fragment(1, 64, false), DenyFragment),
        table(f.named("fragments: a later one first, whose first is then denied"), domain())
            .to_pod(later(f, 1), AllowFragment)
            .to_pod(first(f, 54, 1), DenyPolicy)
            .to_pod(later(f, 1), DenyFragment),
        table(f.named("fragments: a later one first, from the class that may"), from_peer(1))
            .to_pod(later(f, 1), AllowFragment)
            .to_pod(
                raw(UDP, &[0; 8]).between(f.stranger, f.pod).fragment(1, 64, false),
                DenyFragment,
            ),
        table(f.named("fragments: a later one first, from a class that may not"), from_peer(2))
            .to_pod(later(f, 1), DenyFragment),
        table(f.named("fragments: a later one first, where everything is allowed"), World::open())
            .to_pod(later(f, 1), AllowFragment)
            .to_pod(tcp_later(), AllowFragment),
        table(f.named("fragments: a later one alone opens nothing"), {
            World::isolated().not_isolated(Egress)
        })
        .from_pod(
            f.out(raw(UDP, &[0, 53, 0, 53, 0, 8, 0, 0])).fragment(1, 64, false),
            AllowFragment,
        )
        .to_pod(f.back(udp(53, 53)), DenyPolicy)
        .to_pod(later(f, 1), DenyFragment),
    ]
}

/// A pod that may ask UDP port 53 of others, and nobody may ask it.
fn asking() -> World {
    World::isolated().allow(Egress, ANY, Ports::One(UDP, 53))
}

fn s8_3_answers_out_of_order(f: Family) -> Vec<Table> {
    let ask = || f.out(udp(5000, 53));
    let first = || f.back(udp(53, 5000).payload(&[1; 56])).fragment(1, 0, true);
    let last = || f.back(raw(UDP, &[0; 8])).fragment(1, 64, false);
    let of_tcp = || f.back(raw(TCP, &[0; 8])).fragment(2, 64, false);
    let service = || asking().service(Service::new(f.service, 53, UDP, &[(f.peer, 5353)]));
    let through = service().allow(Egress, ANY, Ports::One(UDP, 5353));
    let unasked = || f.out(udp(5000, 54));
    vec![
        table(f.named("fragments: an answer whose last comes first"), asking())
            .to_pod(last(), DenyFragment)
            .from_pod(ask(), AllowPolicy)
            .to_pod(last(), AllowFragment)
            .to_pod(first(), AllowFlow)
            .to_pod(last(), AllowFlow),
        table(f.named("fragments: an answer whose last comes first, from another"), asking())
            .from_pod(ask(), AllowPolicy)
            .to_pod(
                raw(UDP, &[0; 8]).between(f.stranger, f.pod).fragment(1, 64, false),
                DenyFragment,
            )
            .to_pod(of_tcp(), DenyFragment)
            .from_pod(f.out(raw(UDP, &[0; 8])).fragment(3, 64, false), AllowFragment),
        table(
            f.named("fragments: an answer whose last comes first, to a denied question"),
            asking(),
        )
        .from_pod(unasked(), DenyPolicy)
        .to_pod(last(), DenyFragment)
        .then("audit", |lab| lab.set_mode(podgate_bpf::abi::Mode::Audit))
        .from_pod(unasked(), AllowAudit)
        .then("enforce", |lab| lab.set_mode(podgate_bpf::abi::Mode::Enforce))
        .to_pod(last(), DenyFragment),
        table(f.named("fragments: an answer whose last comes first, 10 minutes later"), asking())
            .from_pod(ask(), AllowPolicy)
            .then("599 s pass", |lab| lab.age_expected(599))
            .to_pod(last(), AllowFragment)
            // in order, which begins the ten minutes again
            .to_pod(first(), AllowFlow)
            .then("599 s pass", |lab| lab.age_expected(599))
            .to_pod(f.back(raw(UDP, &[0; 8])).fragment(7, 64, false), AllowFragment)
            .then("2 s more", |lab| lab.age_expected(2))
            .to_pod(f.back(raw(UDP, &[0; 8])).fragment(8, 64, false), DenyFragment),
        table(f.named("fragments: an answer whose last comes first, to a later pod"), asking())
            .from_pod(ask(), AllowPolicy)
            .then("another pod comes", |lab| lab.succeed(&asking()))
            .to_pod(last(), DenyFragment),
        table(f.named("fragments: a big echo's answer whose last comes first"), {
            World::isolated().not_isolated(Egress)
        })
        .from_pod(f.out(f.ping(7)), AllowPolicy)
        .to_pod(f.back(raw(f.icmp, &[0; 8])).fragment(1, 64, false), AllowFragment)
        .to_pod(f.back(f.pong(7).payload(&[0; 56])).fragment(1, 0, true), AllowFlow),
        table(f.named("fragments: a service's answer whose last comes first"), through.clone())
            .from_pod_as(
                udp(5000, 53).between(f.pod, f.service),
                AllowPolicy,
                udp(5000, 5353).between(f.pod, f.peer),
            )
            .to_pod_as(
                last(),
                AllowFragment,
                raw(UDP, &[0; 8]).between(f.service, f.pod).fragment(1, 64, false),
            ),
        table(f.named("fragments: a service's answer whose last comes first, not isolated"), {
            through.not_isolated(Ingress)
        })
        .from_pod_as(
            udp(5000, 53).between(f.pod, f.service),
            AllowPolicy,
            udp(5000, 5353).between(f.pod, f.peer),
        )
        .to_pod_as(
            last(),
            AllowFragment,
            raw(UDP, &[0; 8]).between(f.service, f.pod).fragment(1, 64, false),
        ),
    ]
}

fn special(f: Family) -> Vec<Table> {
    let tiny = || f.back(tcp(5000, 53).syn().truncated(8)).fragment(1, 0, true);
    let tcp_domain = || World::isolated().allow(Ingress, ANY, Ports::One(TCP, 53));
    let ping = f.ping(7).payload(&[0; 56]);
    let pong = f.pong(7).payload(&[0; 56]);
    let data = |f: Family| raw(f.icmp, &[0; 64]);
    let startup = podgate_bpf::abi::Startup::Hold;
    vec![
        table(f.named("fragments: a first one too small for its header"), tcp_domain())
            .to_pod(tiny(), DenyMalformed)
            .to_pod(f.back(raw(TCP, &[0; 64])).fragment(1, 8, false), AllowFragment)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("fragments: a big echo and its big reply"), {
            World::isolated().not_isolated(Egress)
        })
        .from_pod(f.out(ping.clone()).fragment(1, 0, true), AllowPolicy)
        .from_pod(f.out(data(f)).fragment(1, 64, false), AllowFlow)
        .to_pod(f.back(pong.clone()).fragment(5, 0, true), AllowFlow)
        .to_pod(f.back(data(f)).fragment(5, 64, false), AllowFlow)
        .to_pod(f.back(ping).fragment(6, 0, true), DenyPolicy)
        .to_pod(f.back(data(f)).fragment(6, 64, false), DenyFragment),
        table(f.named("fragments: of an allowed answer without a question"), World::open())
            .from_pod(f.out(pong).fragment(1, 0, true), AllowPolicy)
            .from_pod(f.out(data(f)).fragment(1, 64, false), AllowFragment)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("fragments: of a source that is not the pod's"), World::open())
            .from_pod(
                udp(1, 2).payload(&[0; 56]).between(f.second, f.peer).fragment(1, 0, true),
                DenySpoofed,
            )
            .from_pod(
                raw(UDP, &[0; 8]).between(f.second, f.peer).fragment(1, 64, false),
                DenyFragment,
            )
            .from_pod(
                raw(UDP, &[0; 8]).between(f.second, f.peer).fragment(2, 64, false),
                DenySpoofed,
            ),
        table(f.named("fragments: of the own node"), World::isolated().node(f.node))
            .node_to_pod(
                raw(UDP, &[0; 8]).between(f.node, f.pod).fragment(1, 64, false),
                AllowOwnNode,
            )
            .node_to_pod(
                udp(1, 2).payload(&[0; 56]).between(f.node, f.pod).fragment(1, 0, true),
                AllowOwnNode,
            )
            .node_to_pod(
                raw(UDP, &[0; 8]).between(f.node, f.pod).fragment(1, 64, false),
                AllowFlow,
            ),
        table(f.named("fragments: before policy is there"), World::unprogrammed(startup))
            .to_pod(later(f, 1), DenyStartup)
            .to_pod(first(f, 53, 1), DenyStartup)
            .to_pod(later(f, 1), DenyFragment),
        table(f.named("fragments: at an interface that nobody registered"), World::unregistered())
            .to_pod(later(f, 1), DenyNoEndpoint)
            .from_pod(f.out(raw(UDP, &[0; 8])).fragment(1, 64, false), DenyNoEndpoint),
    ]
}

fn v6_only() -> Vec<Table> {
    let f = V6;
    // behind the fragment header: destination options (8 bytes), then UDP
    let first = |port| {
        f.back(udp(5000, port).payload(&[0; 48]))
            .fragment(1, 0, true)
            .extension(protocol::DESTINATION, 1)
    };
    let later = || f.back(raw(protocol::DESTINATION, &[0; 16])).fragment(1, 64, false);
    vec![
        table("fragments: options in the fragmented part, allowed", domain())
            .to_pod(first(53), AllowPolicy)
            .to_pod(later(), AllowFlow)
            .from_pod(f.out(udp(53, 5000)), AllowFlow),
        table("fragments: options in the fragmented part, denied", domain())
            .to_pod(first(54), DenyPolicy)
            .to_pod(later(), DenyFragment),
        table("fragments: options in the fragmented part, a later one first", domain())
            .to_pod(later(), DenyFragment),
        table("fragments: options in front of the fragment header", domain())
            .to_pod(
                f.back(udp(5000, 53).payload(&[0; 56]))
                    .extension(protocol::HOP_BY_HOP, 1)
                    .extension(protocol::DESTINATION, 2)
                    .fragment(1, 0, true),
                AllowPolicy,
            )
            .to_pod(
                f.back(raw(UDP, &[0; 8])).extension(protocol::HOP_BY_HOP, 1).fragment(1, 64, false),
                AllowFlow,
            ),
        table("fragments: a first one without the whole chain of headers", domain())
            .to_pod(
                f.back(raw(protocol::DESTINATION, &[UDP, 7])).fragment(1, 0, true),
                DenyMalformed,
            )
            .to_pod(
                f.back(raw(protocol::DESTINATION, &[UDP, 7, 0, 0, 0, 0, 0, 0]))
                    .fragment(1, 0, true),
                DenyMalformed,
            ),
        table("fragments: all 32 bits of the identification count", domain())
            .to_pod(first(53), AllowPolicy)
            .to_pod(
                f.back(raw(protocol::DESTINATION, &[0; 16])).fragment(0x101, 64, false),
                DenyFragment,
            ),
        table("fragments: neighbour discovery in fragments is no control (RFC 6980)", domain())
            .to_pod(
                icmp(135, 0, [0; 4])
                    .payload(&[0; 56])
                    .between("fe80::9", POD6)
                    .hop_limit(255)
                    .fragment(1, 0, true),
                DenyPolicy,
            ),
    ]
}
