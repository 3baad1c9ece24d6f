//! A pod that reaches itself through a service, where its table has entries for that (`PG_CLASS_SELF4`, `PG_CLASS_SELF6`).

use podgate_bpf::abi::{CLASS_SELF4, CLASS_SELF6, Direction, Mode, Reason, Verdict};
use podgate_tests::kernel::{Lab, REDIRECT};

use crate::events::told;
use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(new_flows);
    tables.extend(both(known_flows));
    tables.extend(both(modes));
    tables.extend(both(told_of));
    tables
}

fn class(f: Family) -> u32 {
    if f.icmp == ICMP { CLASS_SELF4 } else { CLASS_SELF6 }
}

/// A pod behind a service of its own, port 80 for its 8080.
fn behind(f: Family, world: World) -> World {
    let service = |protocol| Service::new(f.service, 80, protocol, &[(f.pod, 8080)]);
    world.service(service(TCP)).service(service(UDP))
}

/// Entries for everything that it sends to itself, with an exception for TCP port 8080 in one direction.
fn world(f: Family, direction: Direction, rest: fn(World, Direction, u32) -> World) -> World {
    let world =
        World::open().allow(Egress, class(f), Ports::Every).allow(Ingress, class(f), Ports::Every);
    behind(f, rest(world, direction, class(f)))
}

fn denied(world: World, direction: Direction, class: u32) -> World {
    world.deny(direction, class, Ports::One(TCP, 8080))
}

fn audited(world: World, direction: Direction, class: u32) -> World {
    world.audit(direction, class, Ports::One(TCP, 8080))
}

fn unrestricted(world: World, _: Direction, _: u32) -> World {
    world
}

/// What the pod sends to the service, and as what it comes back to it.
fn ask(f: Family, make: impl Fn(u16, u16) -> Transport) -> (Ip, Ip) {
    (make(40000, 80).between(f.pod, f.service), make(40000, 8080).between(f.service, f.pod))
}

/// What the pod answers, and as what that comes back to it.
fn answer(f: Family, make: impl Fn(u16, u16) -> Transport) -> (Ip, Ip) {
    (make(8080, 40000).between(f.pod, f.service), make(80, 40000).between(f.service, f.pod))
}

fn syn(from: u16, to: u16) -> Transport {
    tcp(from, to).syn()
}

fn syn_ack(from: u16, to: u16) -> Transport {
    tcp(from, to).syn_ack()
}

fn ack(from: u16, to: u16) -> Transport {
    tcp(from, to).ack()
}

trait Steps: Sized {
    fn round(self, packets: (Ip, Ip), reason: Reason) -> Self;
    fn connects(self, f: Family, reason: Reason) -> Self;
}

impl Steps for Table {
    fn round(self, (sent, back): (Ip, Ip), reason: Reason) -> Self {
        self.comes_back_as(sent, reason, back)
    }

    fn connects(self, f: Family, reason: Reason) -> Self {
        self.round(ask(f, syn), reason)
            .round(answer(f, syn_ack), AllowFlow)
            .round(ask(f, ack), AllowFlow)
    }
}

fn new_flows(f: Family) -> Vec<Table> {
    let mut tables = vec![
        table(f.named("hairpin, judged: entries that allow"), world(f, Egress, unrestricted))
            .connects(f, AllowOwnAddress)
            .round(ask(f, udp), AllowOwnAddress),
        table(f.named("hairpin, judged: entries of the other family say nothing"), {
            let other = CLASS_SELF4 ^ CLASS_SELF6 ^ class(f);
            behind(f, World::open().deny(Egress, other, Ports::Every))
        })
        .connects(f, AllowOwnAddress),
        table(f.named("hairpin, judged: entries for every peer say nothing"), {
            behind(f, World::isolated().deny(Egress, ANY, Ports::Every))
        })
        .connects(f, AllowOwnAddress),
        table(f.named("hairpin, judged: the service's own port says nothing"), {
            behind(f, World::open().deny(Egress, class(f), Ports::One(TCP, 80)))
        })
        .connects(f, AllowOwnAddress),
        table(f.named("hairpin, judged: not what it sends to its address directly"), {
            world(f, Egress, denied)
        })
        .from_pod(tcp(40000, 8080).syn().between(f.pod, f.pod), AllowOwnAddress),
    ];
    for direction in [Egress, Ingress] {
        let named = |what: &str| f.named(&format!("hairpin, judged: {}, {what}", direction.name()));
        tables.push(
            table(named("denied"), world(f, direction, denied))
                .from_pod(ask(f, syn).0, DenyPolicy)
                .then("no flow", |lab| assert_eq!(lab.flows(), []))
                .from_pod(ask(f, syn).0, DenyPolicy)
                .round(ask(f, udp), AllowOwnAddress),
        );
        tables.push(
            table(named("audited"), world(f, direction, audited))
                .connects(f, AllowAudit)
                .change(|_| ())
                .round(ask(f, ack), AllowFlow)
                .round(answer(f, ack), AllowFlow)
                .then("one event", |lab| {
                    let told: Vec<_> =
                        told(lab).iter().map(|e| (e.reason, e.verdict, e.rule)).collect();
                    assert_eq!(told, [(DenyPolicy, Verdict::Allow, 5)]);
                }),
        );
    }
    tables
}

fn known_flows(f: Family) -> Vec<Table> {
    let mut tables = Vec::new();
    for direction in [Egress, Ingress] {
        let named = |what: &str| f.named(&format!("hairpin, judged: {}, {what}", direction.name()));
        let deny = move |lab: &mut Lab| lab.replace(&world(f, direction, denied));
        let allow = move |lab: &mut Lab| lab.replace(&world(f, direction, unrestricted));
        tables.push(
            table(named("a connection is cut at both ends, and allowed again"), {
                world(f, direction, unrestricted)
            })
            .connects(f, AllowOwnAddress)
            .change(deny)
            .from_pod(ask(f, ack).0, DenyPolicy)
            .from_pod(answer(f, ack).0, DenyPolicy)
            .pod_to_pod(ask(f, ack).1, DenyPolicy)
            .from_pod(ask(f, syn).0, DenyPolicy)
            .change(|_| ())
            .from_pod(answer(f, ack).0, DenyPolicy)
            .change(allow)
            .round(ask(f, ack), AllowFlow)
            .round(answer(f, ack), AllowFlow),
        );
        tables.push(
            table(named("a change that leaves it allowed"), world(f, direction, unrestricted))
                .connects(f, AllowOwnAddress)
                .change(move |lab| lab.replace(&behind(f, World::open())))
                .round(answer(f, ack), AllowFlow)
                .change(allow)
                .round(ask(f, ack), AllowFlow)
                .round(answer(f, ack), AllowFlow),
        );
    }
    let audit = move |lab: &mut Lab| lab.replace(&world(f, Egress, audited));
    let every = move |world: fn(World, Direction, u32, Ports) -> World| {
        behind(f, world(World::open(), Egress, class(f), Ports::Every))
    };
    tables.extend([
        table(f.named("hairpin, judged: audited, enforced, audited"), world(f, Egress, audited))
            .connects(f, AllowAudit)
            .change(move |lab| lab.replace(&world(f, Egress, denied)))
            .from_pod(ask(f, ack).0, DenyPolicy)
            .change(audit)
            .round(ask(f, ack), AllowFlow)
            .round(answer(f, ack), AllowFlow),
        table(f.named("hairpin, judged: datagrams, cut and in fragments"), every(World::allow))
            .round(ask(f, udp), AllowOwnAddress)
            .then("a datagram, of which policy changes between two fragments", move |lab| {
                let whole = udp(40000, 80).payload(&[3; 100]).between(f.pod, f.service);
                let parts = whole.in_fragments(1, 64);
                assert_eq!(lab.send(Egress, &parts[0], Via::Nothing).action, REDIRECT);
                lab.bump();
                assert_eq!(lab.send(Egress, &parts[1], Via::Nothing).action, REDIRECT);
                assert_eq!(lab.send(Egress, &parts[0], Via::Nothing).action, REDIRECT);
                lab.replace(&every(World::deny));
                lab.bump();
                let met = lab.send(Egress, &parts[1], Via::Nothing);
                assert_eq!(met.reason(), Some(DenyFragment));
                let met = lab.send(Egress, &parts[0], Via::Nothing);
                assert_eq!(met.reason(), Some(DenyPolicy));
                let met = lab.send(Egress, &parts[1], Via::Nothing);
                assert_eq!(met.reason(), Some(DenyFragment));
            })
            .from_pod(ask(f, udp).0, DenyPolicy)
            .from_pod(answer(f, udp).0, DenyPolicy),
        table(f.named("hairpin, judged: an error about a cut flow"), every(World::allow))
            .round(ask(f, udp), AllowOwnAddress)
            .change(move |lab| lab.replace(&every(World::deny)))
            .from_pod(ask(f, udp).0, DenyPolicy)
            .from_pod(answer(f, udp).0, DenyPolicy)
            .then("its error comes as one of no flow", move |lab| {
                let (kind, code) = if f.icmp == ICMP { (3, 3) } else { (1, 4) };
                let error = icmp(kind, code, [0; 4]).quoting(&ask(f, udp).1, 40);
                let met = lab.send(Egress, &error.between(f.pod, f.service).frame(), Via::Nothing);
                assert_ne!(met.reason(), Some(AllowRelated));
            }),
    ]);
    tables
}

/// Where denials pass, and after that.
fn modes(f: Family) -> Vec<Table> {
    let each = |mode: Mode| {
        table(f.named(&format!("hairpin, judged: in mode {}", mode.name())), {
            world(f, Egress, denied)
        })
        .then("mode", move |lab| lab.set_mode(mode))
        .then("it passes, and is told from a flow", move |lab| {
            for (sent, back) in [ask(f, syn), answer(f, syn_ack), ask(f, ack)] {
                let met = lab.send(Egress, &sent.frame(), Via::Nothing);
                assert_eq!((met.action, met.reason()), (REDIRECT, Some(AllowAudit)));
                assert_eq!(met.packet[12..], back.frame()[12..]);
                let came = lab.send(Ingress, &met.packet, Via::Pod);
                assert_eq!(came.reason(), Some(AllowAudit));
            }
        })
        .then("enforce", |lab| lab.set_mode(Mode::Enforce))
        .from_pod(ask(f, ack).0, DenyPolicy)
        .from_pod(answer(f, ack).0, DenyPolicy)
    };
    [Mode::Audit, Mode::Off].map(each).into()
}

fn told_of(f: Family) -> Vec<Table> {
    let logged = |world: World, direction, class| {
        world.allow(direction, class, Ports::One(TCP, 8080)).logged()
    };
    vec![
        table(
            f.named("hairpin, judged: a denial is told with its rule"),
            world(f, Ingress, denied),
        )
        .from_pod(ask(f, syn).0, DenyPolicy)
        .then("one event", move |lab| {
            let event = told(lab).remove(0);
            assert_eq!((event.reason, event.rule), (DenyPolicy, 5));
            let address = |text: &str| -> std::net::IpAddr { text.parse().unwrap() };
            assert_eq!(event.peer, (address(f.pod), 8080));
            assert_eq!(event.service, Some((address(f.service), 80)));
        }),
        table(f.named("hairpin, judged: a logged entry"), world(f, Egress, logged))
            .connects(f, AllowOwnAddress)
            .then("one event", |lab| {
                let told: Vec<_> = told(lab).iter().map(|e| (e.reason, e.logged)).collect();
                assert_eq!(told, [(AllowOwnAddress, true)]);
            }),
    ]
}
