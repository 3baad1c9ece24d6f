//! What is written into packets that a pod may send: DSCP, priority and mark.

use podgate_bpf::abi::{LimitsFlag, LimitsRecord};
use podgate_bpf::testrun::Context;
use podgate_tests::kernel::{Lab, NEXT, REDIRECT};

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(dscp);
    tables.extend(both(in_the_node));
    tables.extend(both(by_rule));
    tables
}

/// The mark by which the gate knows its own answers.
const ANSWER: u32 = 0x7067_6174;

fn with_dscp(dscp: u8) -> LimitsRecord {
    LimitsRecord { dscp, flags: LimitsFlag::Dscp as u8, ..LimitsRecord::default() }
}

fn marking(mark: u32, mark_mask: u32) -> LimitsRecord {
    LimitsRecord { mark, mark_mask, ..LimitsRecord::default() }
}

fn with_priority(priority: u32) -> LimitsRecord {
    LimitsRecord { priority, flags: LimitsFlag::Priority as u8, ..LimitsRecord::default() }
}

fn limited(name: String, world: World, limits: LimitsRecord) -> Table {
    table(name, world).then("its limits", move |lab| lab.limit(0, &limits))
}

/// Mark and priority of a packet of the pod that had this mark before.
#[track_caller]
fn sent(lab: &Lab, packet: &Ip, mark: u32) -> (u32, u32) {
    let context = Context { ifindex: lab.ifindex, ingress_ifindex: 0 };
    let run = lab.datapath().test_run_marked(Egress, context, mark, &packet.frame()).unwrap();
    assert_eq!(run.action, NEXT);
    (run.mark, run.priority)
}

fn dscp(f: Family) -> Vec<Table> {
    const EF: u8 = 46;
    let ports = || tcp(40001, 80);
    let mut tables: Vec<_> = [0, 1, 2, 3]
        .into_iter()
        .map(|ecn| {
            let name = f.named(&format!("marks: DSCP, with ECN {ecn}"));
            let first = |t: Transport| f.out(t).traffic_class(0xa8 | ecn);
            let marked = |t: Transport| f.out(t).traffic_class(EF << 2 | ecn);
            limited(name, World::open(), with_dscp(EF))
                .from_pod_as(first(ports().syn()), AllowPolicy, marked(ports().syn()))
                .from_pod_as(first(ports().ack()), AllowFlow, marked(ports().ack()))
                .from_pod_as(first(ports().fin()), AllowFlow, marked(ports().fin()))
                // as it is
                .from_pod(marked(ports().ack()), AllowFlow)
                // only what the pod sends
                .to_pod(f.back(tcp(80, 40001).ack()).traffic_class(ecn), AllowFlow)
        })
        .collect();
    tables.push(
        limited(f.named("marks: DSCP 0 is one too"), World::open(), with_dscp(0)).from_pod_as(
            f.out(udp(40001, 53).payload(b"?")).traffic_class(0xb9),
            AllowPolicy,
            f.out(udp(40001, 53).payload(b"?")).traffic_class(1),
        ),
    );
    tables.push(
        limited(f.named("marks: DSCP of what policy denies"), client(), with_dscp(EF)).then(
            "a denied packet",
            move |lab| {
                let denied = f.out(tcp(40001, 81).syn()).frame();
                assert_eq!(lab.send(Egress, &denied, Via::Nothing).packet, denied);
            },
        ),
    );
    tables.push(
        limited(
            f.named("marks: DSCP through a service"),
            World::open().service(Service::new(f.service, 80, TCP, &[(f.peer, 8080)])),
            with_dscp(EF),
        )
        .from_pod_as(
            tcp(40001, 80).syn().between(f.pod, f.service),
            AllowPolicy,
            f.out(tcp(40001, 8080).syn()).traffic_class(EF << 2),
        )
        .from_pod_as(
            tcp(40001, 80).ack().between(f.pod, f.service).traffic_class(2),
            AllowFlow,
            f.out(tcp(40001, 8080).ack()).traffic_class(EF << 2 | 2),
        ),
    );
    tables.push(
        limited(
            f.named("marks: DSCP to itself"),
            World::open().service(Service::new(f.service, 80, TCP, &[(f.pod, 8080)])),
            with_dscp(EF),
        )
        .then("a SYN", move |lab| {
            let syn = tcp(40001, 80).syn().between(f.pod, f.service).frame();
            let met = lab.send(Egress, &syn, Via::Nothing);
            let back = tcp(40001, 8080).syn().between(f.service, f.pod).traffic_class(EF << 2);
            assert_eq!(met.action, REDIRECT);
            assert_eq!(met.packet[12..], back.frame()[12..]);
        }),
    );
    tables
}

fn in_the_node(f: Family) -> Vec<Table> {
    let packets =
        move || [f.out(tcp(40001, 80).syn()), f.out(tcp(40001, 80).ack()), f.out(f.ping(3))];
    vec![
        limited(f.named("marks: a mark"), World::open(), marking(0x0500, 0x0f00)).then(
            "the bits of the mask, and no others",
            move |lab| {
                for packet in packets() {
                    assert_eq!(sent(lab, &packet, 0).0, 0x0500);
                    assert_eq!(sent(lab, &packet, 0xffff_ffff).0, 0xffff_f5ff);
                    assert_eq!(sent(lab, &packet, 0x0000_4a00).0, 0x0000_4500);
                }
            },
        ),
        limited(f.named("marks: not the mark of the gate's answers"), World::open(), {
            marking(ANSWER, u32::MAX)
        })
        .then("it is left alone", move |lab| {
            for packet in packets() {
                assert_eq!(sent(lab, &packet, 7).0, 7);
            }
        }),
        limited(f.named("marks: a priority"), World::open(), with_priority(0x10_0003)).then(
            "of every packet",
            move |lab| {
                for packet in packets() {
                    assert_eq!(sent(lab, &packet, 9), (9, 0x10_0003));
                }
            },
        ),
    ]
}

fn by_rule(f: Family) -> Vec<Table> {
    let pod = LimitsRecord {
        flags: LimitsFlag::Rules as u8 | LimitsFlag::Dscp as u8 | LimitsFlag::Priority as u8,
        dscp: 10,
        priority: 1,
        ..marking(0x11, 0xff)
    };
    let with_rules = |name: &str, rule: LimitsRecord| {
        table(f.named(name), World::open()).then("its limits", move |lab| {
            lab.limit(1, &rule);
            lab.limit(0, &pod);
            lab.traffic_rules(&[
                (Egress, ANY, Ports::One(TCP, 443), 1),
                (Ingress, ANY, Ports::One(TCP, 80), 1),
            ]);
        })
    };
    let web = move |lab: &Lab| sent(lab, &f.out(tcp(40001, 443).syn()), 0);
    let other = move |lab: &Lab| sent(lab, &f.out(tcp(40001, 444).syn()), 0);
    vec![
        with_rules(
            "marks: a rule's own before the pod's",
            LimitsRecord {
                priority: 2,
                flags: LimitsFlag::Priority as u8 | LimitsFlag::Dscp as u8,
                dscp: 46,
                ..marking(0x0520, 0x0f30)
            },
        )
        .then("bit by bit", move |lab| {
            assert_eq!(web(lab), (0x0521, 2));
            assert_eq!(other(lab), (0x11, 1));
        })
        .from_pod_as(
            f.out(tcp(40001, 443).ack()),
            AllowFlow,
            f.out(tcp(40001, 443).ack()).traffic_class(46 << 2),
        )
        .from_pod_as(
            f.out(tcp(40001, 444).ack()),
            AllowFlow,
            f.out(tcp(40001, 444).ack()).traffic_class(10 << 2),
        ),
        with_rules("marks: what a rule does not say, the pod does", with_priority(2))
            .then("its mark", move |lab| assert_eq!(web(lab), (0x11, 2))),
        with_rules("marks: of answers, by the connection's rule", with_dscp(46))
            .to_pod(f.back(tcp(40001, 80).syn()), AllowPolicy)
            .from_pod_as(
                f.out(tcp(80, 40001).syn_ack()),
                AllowFlow,
                f.out(tcp(80, 40001).syn_ack()).traffic_class(46 << 2),
            )
            .from_pod_as(
                f.out(tcp(80, 40001).ack()),
                AllowFlow,
                f.out(tcp(80, 40001).ack()).traffic_class(46 << 2),
            ),
    ]
}
