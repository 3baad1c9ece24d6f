//! Entries that reject: who is told, and with which packet.

use podgate_bpf::abi::{CLASS_SELF4, CLASS_SELF6, Direction, Mode};
use podgate_tests::kernel::{DROP, Lab, NEXT, REDIRECT};

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(s17_7_the_sender_is_told);
    tables.extend(both(elsewhere));
    tables.extend(both(silence));
    tables.extend(both(own_answers));
    tables.push(limit());
    tables
}

/// A pod that nobody may reach and that may reach nobody, and every sender is told.
fn world() -> World {
    World::isolated().reject(Ingress, ANY, Ports::Every).reject(Egress, ANY, Ports::Every)
}

/// A port of a segment's sender and one of its receiver.
type Ends = (u16, u16);

/// The RST to a segment from the first port, which began with `sequence` and took up `length` of the sequence.
fn reset((from, to): Ends, sequence: u32, length: u32) -> Transport {
    tcp(to, from).flags(0x14).window(0).sequence(0, sequence + length)
}

/// The RST to a segment that acknowledges.
fn reset_of_ack((from, to): Ends, acknowledged: u32) -> Transport {
    tcp(to, from).rst().window(0).sequence(acknowledged, 0)
}

/// "Administratively prohibited", about this packet.
fn prohibited(f: Family, about: &Ip) -> Transport {
    let (kind, code) = if f.icmp == ICMP { (3, 13) } else { (1, 1) };
    icmp(kind, code, [0; 4]).quoting(about, 8)
}

fn s17_7_the_sender_is_told(f: Family) -> Vec<Table> {
    let ends = (40000, 80);
    let segment = || tcp(40000, 80).sequence(1000, 0);
    let segments = [
        ("a SYN", segment().syn(), reset(ends, 1000, 1)),
        ("a SYN with data", segment().syn().payload(b"fast"), reset(ends, 1000, 5)),
        ("a segment", segment().sequence(1000, 77).ack().payload(b"data"), reset_of_ack(ends, 77)),
        ("an end", segment().sequence(1000, 78).fin(), reset_of_ack(ends, 78)),
        ("neither SYN nor ACK", segment().flags(0x01), reset(ends, 1000, 1)),
    ];
    let mut tables = Vec::new();
    for (what, segment, answer) in segments {
        let named = |to: &str| f.named(&format!("rejects: {what} {to} the pod"));
        tables.push(
            table(named("from"), world())
                .answered_as(
                    Egress,
                    f.out(segment.clone()),
                    f.back(answer.clone()).unfragmentable(),
                )
                .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        );
        tables.push(table(named("to"), world()).answered_as(
            Ingress,
            f.back(segment),
            f.out(answer).unfragmentable(),
        ));
    }
    let others = [
        ("a datagram", udp(40000, 53).payload(b"what is the address of a name?")),
        ("a short datagram", udp(40000, 53)),
        ("a query", f.ping(7).payload(&[9; 30])),
        ("an association", sctp(40000, 80).crc()),
        ("another protocol", raw(136, &[5; 90])),
    ];
    for (what, sent) in others {
        let named = |to: &str| f.named(&format!("rejects: {what} {to} the pod"));
        let (out, back) = (f.out(sent.clone()), f.back(sent));
        let (of_out, of_back) = (prohibited(f, &out), prohibited(f, &back));
        tables.push(table(named("from"), world()).answered_as(
            Egress,
            out,
            f.back(of_out).unfragmentable(),
        ));
        tables.push(table(named("to"), world()).answered_as(
            Ingress,
            back,
            f.out(of_back).unfragmentable(),
        ));
    }
    tables
}

/// Where a denial comes from other places than the pod's look-up alone.
fn elsewhere(f: Family) -> Vec<Table> {
    let ends = (40000, 80);
    let syn = || tcp(40000, 80).sequence(1000, 0).syn();
    let to_service = |transport: Transport| transport.between(f.pod, f.service);
    let of_service = |transport: Transport| transport.between(f.service, f.pod);
    let behind =
        |world: World, backend| world.service(Service::new(f.service, 80, TCP, &[(backend, 8080)]));
    let class = if f.icmp == ICMP { CLASS_SELF4 } else { CLASS_SELF6 };
    vec![
        table(f.named("rejects: through a service, by the service's address"), {
            behind(world(), f.peer)
        })
        .answered_as(
            Egress,
            to_service(syn()),
            of_service(reset(ends, 1000, 1)).unfragmentable(),
        ),
        table(f.named("rejects: of a pod to itself through a service"), {
            behind(World::open().reject(Ingress, class, Ports::One(TCP, 8080)), f.pod)
        })
        .answered_as(
            Egress,
            to_service(syn()),
            of_service(reset(ends, 1000, 1)).unfragmentable(),
        ),
        table(f.named("rejects: a connection that is cut, once at its next packet"), World::open())
            .to_pod(f.back(tcp(40000, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowFlow)
            .change(|lab| lab.replace(&world()))
            .answered_as(
                Ingress,
                f.back(tcp(40000, 80).sequence(5, 77).ack()),
                f.out(reset_of_ack(ends, 77)).unfragmentable(),
            )
            .from_pod(f.out(tcp(80, 40000).ack()), DenyPolicy),
        table(f.named("rejects: one port of all"), {
            World::open().reject(Ingress, ANY, Ports::One(TCP, 80))
        })
        .to_pod(f.back(tcp(40000, 81).syn()), AllowPolicy)
        .answered_as(Ingress, f.back(syn()), f.out(reset(ends, 1000, 1)).unfragmentable())
        .to_pod(f.back(udp(40000, 80)), AllowPolicy),
    ]
}

fn silence(f: Family) -> Vec<Table> {
    let group = if f.icmp == ICMP { "239.1.2.3" } else { "ff05::7" };
    let nobody = if f.icmp == ICMP { "0.0.0.0" } else { "::" };
    let (kind, code) = if f.icmp == ICMP { (3, 3) } else { (1, 4) };
    let error = icmp(kind, code, [0; 4]).quoting(&f.out(udp(1, 2)), 8);
    let mut broadcast = f.back(udp(1, 2)).frame();
    broadcast[..6].fill(0xff);
    let mut tables = vec![
        table(f.named("rejects: not a RST"), world())
            .to_pod(f.back(tcp(40000, 80).rst()), DenyPolicy)
            .from_pod(f.out(tcp(40000, 80).flags(0x14)), DenyPolicy),
        table(f.named("rejects: not an ICMP error"), world()).to_pod(f.back(error), DenyPolicy),
        table(f.named("rejects: not an answer without its query"), world())
            .to_pod(f.back(f.pong(7)), DenyPolicy),
        table(f.named("rejects: not a fragment"), world())
            .to_pod(f.back(udp(1, 2).payload(&[0; 56])).fragment(1, 0, true), DenyPolicy)
            .to_pod(f.back(raw(UDP, &[0; 8])).fragment(1, 64, false), DenyFragment)
            .to_pod(f.back(raw(UDP, &[0; 8])).fragment(2, 64, false), DenyFragment),
        table(f.named("rejects: not what is cut short"), world())
            .to_pod(f.back(tcp(1, 80).truncated(9)), DenyMalformed),
        table(f.named("rejects: not what goes to a group, or comes from one"), world())
            .from_pod(udp(1, 2).between(f.pod, group), DenyPolicy)
            .to_pod(udp(1, 2).between(f.peer, group), DenyPolicy)
            .to_pod(udp(1, 2).between(group, f.pod), DenyPolicy)
            .to_pod(udp(1, 2).between(nobody, f.pod), DenyPolicy)
            .to_pod(broadcast, DenyPolicy),
        table(f.named("rejects: not a packet from a false address"), world())
            .from_pod(tcp(1, 80).syn().between(f.stranger, f.peer), DenySpoofed)
            .to_pod(tcp(1, 80).syn().between(f.peer, f.stranger), DenySpoofed),
    ];
    for mode in [Mode::Audit, Mode::Off] {
        tables.push(
            table(f.named(&format!("rejects: nothing in mode {}", mode.name())), world())
                .then("mode", move |lab| lab.set_mode(mode))
                .to_pod(f.back(tcp(40000, 80).syn()), AllowAudit),
        );
    }
    tables
}

/// What the gate sends in the pod's place meets it again on its way out, and nothing else does.
fn own_answers(f: Family) -> Vec<Table> {
    let unmarked = f.out(tcp(80, 40000).flags(0x14));
    vec![
        table(f.named("rejects: the pod's own RST is judged"), world())
            .from_pod(unmarked, DenyPolicy),
    ]
}

/// Denied all the same, but not told.
fn limit() -> Table {
    let send = |lab: &Lab, direction: Direction| {
        let sent = V4.out(udp(1, 2)).frame();
        lab.send(direction, &sent, Via::Nothing).action
    };
    table("rejects: no more than a number of answers in a second", world()).then(
        "many",
        move |lab| {
            let begun = std::time::Instant::now();
            let actions: Vec<_> = (0..1000).map(|_| send(lab, Egress)).collect();
            assert!(!actions.contains(&NEXT));
            let answered = actions.iter().filter(|action| **action == REDIRECT).count();
            let dropped = actions.iter().filter(|action| **action == DROP).count();
            assert_eq!(answered + dropped, 1000);
            // a coarse second is not shorter than 850 ms
            let seconds = begun.elapsed().as_millis() / 850 + 2;
            assert!((100..=100 * seconds as usize).contains(&answered), "{answered}");
            let denied = lab.datapath().maps.counters().unwrap().get(Egress, DenyPolicy);
            assert_eq!(denied.packets, 1000);
        },
    )
}
