//! What a limit does to an allowed packet: passes it, marks it, lets it wait or refuses it, and which packets it is not about.

use podgate_bpf::abi::{
    Counter, Direction, Limit, LimitsFlag, LimitsKey, LimitsRecord, Meter, RATE_SHIFT, Rate,
};
use podgate_testkit::packet::arp;
use podgate_tests::kernel::Lab;

use crate::events::told;
use crate::prelude::*;

/// Of the object that has set them.
const ORIGIN: u32 = 4711;

/// One unit a minute, which no machine is slow enough to see pass, and `burst` more at once.
fn slow(burst: u64) -> Rate {
    const MINUTE: u64 = 60_000_000_000;
    Rate { cost: MINUTE << RATE_SHIFT, burst: burst * MINUTE }
}

fn packets(direction: Direction, burst: u64) -> LimitsRecord {
    limited(direction, Limit::Packets, slow(burst))
}

/// In frames of the size that the tables send.
fn bytes(direction: Direction, frames: u64, length: usize) -> LimitsRecord {
    let Rate { cost, burst } = slow(frames);
    limited(direction, Limit::Bandwidth, Rate { cost: cost / length as u64, burst })
}

fn limited(direction: Direction, limit: Limit, rate: Rate) -> LimitsRecord {
    let mut limits = LimitsRecord::default();
    limits.set_rate(direction, limit, rate, ORIGIN);
    limits
}

fn set(limits: LimitsRecord) -> impl FnOnce(&mut Lab) + Send {
    move |lab| lab.limit(0, &limits)
}

fn meter(lab: &Lab) -> Meter {
    lab.meter(0)
}

pub(crate) fn tables() -> Vec<Table> {
    both(|f| {
        vec![
            packet_rate(f),
            bandwidth(f),
            marks(f),
            waits(f),
            not_charged(f),
            lifted(f),
            of_rules(f),
        ]
    })
}

fn world(f: Family) -> World {
    World::isolated().peer(f.peer, 17).allow(Egress, 17, Ports::All(UDP))
}

fn packet_rate(f: Family) -> Table {
    let frame = || f.out(udp(5000, 53));
    table(f.named("limits: so many packets at once, and no more"), world(f))
        .then("two at once", set(packets(Egress, 1)))
        .from_pod(frame(), AllowPolicy)
        .from_pod(frame(), AllowFlow)
        .from_pod(frame(), DenyPacketRate)
        // a flow that nobody knows yet
        .from_pod(f.out(udp(5001, 53)), DenyPacketRate)
        .node_to_pod(f.back(udp(53, 5000)), AllowFlow)
        .then("whose limit it was", |lab| {
            let events = told(lab).into_iter().filter(|event| event.reason == DenyPacketRate);
            assert_eq!(events.map(|event| event.rule).collect::<Vec<_>>(), [ORIGIN, ORIGIN]);
            let meter = meter(lab);
            assert_eq!(meter.refused[Egress as usize], [0, 2, 0, 0]);
            assert_eq!(meter.passed[Egress as usize].packets, 2);
            assert_eq!(meter.passed[Ingress as usize].packets, 1);
        })
}

fn bandwidth(f: Family) -> Table {
    let frame = move |size: usize| f.out(udp(5000, 53).payload(&vec![7; size]));
    let length = frame(100).frame().len();
    table(f.named("limits: a large packet passes on credit"), world(f))
        .then("two small packets at once", set(bytes(Egress, 1, length)))
        .from_pod(frame(100), AllowPolicy)
        .from_pod(frame(1400), AllowFlow)
        .from_pod(frame(0), DenyBandwidth)
        .then("what was charged", move |lab| {
            let meter = meter(lab);
            let bytes = (length + frame(1400).frame().len()) as u64;
            assert_eq!(meter.passed[Egress as usize], Counter { packets: 2, bytes });
            assert_eq!(meter.refused[Egress as usize], [1, 0, 0, 0]);
        })
}

/// From half a burst on, where the sender takes part; its other bits stay.
fn marks(f: Family) -> Table {
    let frame = |class: u8| f.out(udp(5000, 53)).traffic_class(class);
    let length = frame(0).frame().len();
    table(f.named("limits: packets are marked before any is dropped"), world(f))
        .then("five at once", set(bytes(Egress, 4, length)))
        .from_pod(frame(0b1011_1010), AllowPolicy)
        .from_pod(frame(0b1011_1010), AllowFlow)
        .from_pod(frame(0b1011_1010), AllowFlow)
        .from_pod_as(frame(0b1011_1010), AllowFlow, frame(0b1011_1011))
        .from_pod_as(frame(1), AllowFlow, frame(3))
        .from_pod(frame(2), DenyBandwidth)
        .then("how many", |lab| assert_eq!(meter(lab).marked[Egress as usize], 2))
}

/// Where the qdisc keeps packets: another flow, of which none waits, is not made to wait behind.
fn waits(f: Family) -> Table {
    let second = Rate::per_second(100, 0);
    let mut limits = limited(Ingress, Limit::Bandwidth, second);
    limits.flags = LimitsFlag::Shape as u8;
    let frame = |port| f.back(udp(port, 5000));
    let world = World::isolated().peer(f.peer, 17).allow(Ingress, 17, Ports::All(UDP));
    table(f.named("limits: to the pod, packets wait and few are dropped"), world)
        .then("a hundred bytes a second", set(limits))
        .node_to_pod(frame(53), AllowPolicy)
        // sparse
        .node_to_pod(frame(54), AllowPolicy)
        .node_to_pod(frame(53), AllowFlow)
        .then("which", |lab| assert_eq!(meter(lab).delayed[Ingress as usize], 1))
}

/// What is denied, and what keeps the link working.
fn not_charged(f: Family) -> Table {
    table(f.named("limits: not of what is denied, nor of ARP"), world(f))
        .then("one at once", set(packets(Egress, 0)))
        .from_pod(f.out(tcp(5000, 80).syn()), DenyPolicy)
        .from_pod(arp(POD, PEER), AllowControl)
        .from_pod(f.out(udp(5000, 53)), AllowPolicy)
        .from_pod(arp(POD, PEER), AllowControl)
        .from_pod(f.out(tcp(5000, 80).syn()), DenyPolicy)
        .from_pod(f.out(udp(5000, 53)), DenyPacketRate)
}

fn lifted(f: Family) -> Table {
    let frame = || f.out(udp(5000, 53));
    table(f.named("limits: changed and lifted, what was used stays so"), world(f))
        .then("one at once", set(packets(Egress, 0)))
        .from_pod(frame(), AllowPolicy)
        .from_pod(frame(), DenyPacketRate)
        .then("two at once", set(packets(Egress, 1)))
        .from_pod(frame(), DenyPacketRate)
        .then("no limit", set(LimitsRecord::default()))
        .from_pod(frame(), AllowFlow)
        .then("not metered", |lab| {
            let whole_pod = LimitsKey { owner: 0x5eed, rule: 0 };
            lab.datapath().maps.limits().remove(whole_pod).unwrap();
        })
        .from_pod(frame(), AllowFlow)
}

/// A packet of a traffic rule is charged to both or to neither.
fn of_rules(f: Family) -> Table {
    const RULE: u32 = 3;
    let of_rule = || f.out(udp(5000, 53));
    let passed = |rule| move |lab: &Lab| lab.meter(rule).passed[Egress as usize].packets;
    let both = move |wanted: [u64; 2]| {
        move |lab: &mut Lab| assert_eq!([passed(RULE)(lab), passed(0)(lab)], wanted)
    };
    table(f.named("limits: a traffic rule's and the pod's"), world(f))
        .then("three of the pod, two of the rule", |lab| {
            let of_pod = LimitsRecord { flags: LimitsFlag::Rules as u8, ..packets(Egress, 2) };
            lab.limit(0, &of_pod);
            lab.limit(RULE, &packets(Egress, 1));
            lab.traffic_rules(&[(Egress, ANY, Ports::One(UDP, 53), RULE)]);
        })
        .from_pod(of_rule(), AllowPolicy)
        .then("both are charged", both([1, 1]))
        .from_pod(of_rule(), AllowFlow)
        .from_pod(of_rule(), DenyPacketRate)
        .then("the rule refuses", both([2, 2]))
        .from_pod(f.out(udp(5000, 54)), AllowPolicy)
        .from_pod(f.out(udp(5000, 54)), DenyPacketRate)
        .then("the rule alone has room", |lab| lab.limit(RULE, &LimitsRecord::default()))
        .from_pod(of_rule(), DenyPacketRate)
        .then("the pod refuses, and the rule is not charged", both([2, 3]))
}
