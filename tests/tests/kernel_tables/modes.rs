//! Audit and off: denials pass, and leave nothing behind that enforcing would have to obey.

use libbpf_rs::{MapCore, MapFlags};
use podgate_bpf::abi::Mode;
use podgate_tests::kernel::Lab;

use crate::prelude::*;

fn set(mode: Mode) -> impl FnOnce(&mut Lab) + Send {
    move |lab| lab.set_mode(mode)
}

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(|f| {
        let mut tables = Vec::new();
        for mode in [Mode::Audit, Mode::Off] {
            tables.extend(passing(f, mode));
        }
        tables
    });
    tables.push(
        table("modes: a number that no build knows enforces", World::isolated())
            .then("mode 7", |lab| write_mode(lab, 7))
            .to_pod(V4.back(udp(1, 2)), DenyPolicy)
            .then("it reads as that too", |lab| {
                assert_eq!(lab.datapath().maps.control().mode(), Mode::Enforce);
            }),
    );
    tables
}

/// As a newer build would.
fn write_mode(lab: &Lab, number: u32) {
    let map = lab.map("control");
    let mut record = map.lookup(&[0; 4], MapFlags::ANY).unwrap().unwrap();
    record[4..8].copy_from_slice(&number.to_ne_bytes());
    map.update(&[0; 4], &record, MapFlags::ANY).unwrap();
}

fn passing(f: Family, mode: Mode) -> Vec<Table> {
    let named = |what: &str| f.named(&format!("modes: {}, {what}", mode.name()));
    // the answers of a pod that may send anything
    let server = || World::isolated().not_isolated(Egress);
    vec![
        table(named("a denied connection passes, and not after it"), server())
            .then("mode", set(mode))
            .to_pod(f.back(tcp(40000, 80).syn()), AllowAudit)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowAudit)
            .to_pod(f.back(tcp(40000, 80).ack()), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .from_pod(f.out(tcp(80, 40000).ack()), DenyPolicy)
            .to_pod(f.back(tcp(40000, 80).ack()), DenyPolicy)
            .change(|_| ())
            .from_pod(f.out(tcp(80, 40000).ack()), DenyPolicy),
        table(named("a connection that is picked up"), server())
            .then("mode", set(mode))
            .to_pod(f.back(tcp(40000, 80).ack()), AllowAudit)
            .from_pod(f.out(tcp(80, 40000).ack()), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .from_pod(f.out(tcp(80, 40000).ack()), DenyPolicy),
        table(named("datagrams, and not after it"), server())
            .then("mode", set(mode))
            .to_pod(f.back(udp(1, 2)), AllowAudit)
            .from_pod(f.out(udp(2, 1)), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .to_pod(f.back(udp(1, 2)), DenyPolicy)
            .from_pod(f.out(udp(2, 1)), DenyPolicy),
        table(named("datagrams that go on for longer than a denial is remembered"), server())
            .then("mode", set(mode))
            .to_pod(f.back(udp(1, 2)), AllowAudit)
            .then("20 s pass", |lab| lab.age_flows(20))
            .to_pod(f.back(udp(1, 2)), AllowAudit)
            .then("20 s pass", |lab| lab.age_flows(20))
            .from_pod(f.out(udp(2, 1)), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .to_pod(f.back(udp(1, 2)), DenyPolicy),
        table(named("an echo, and not after it"), server())
            .then("mode", set(mode))
            .to_pod(f.back(f.ping(7)), AllowAudit)
            .from_pod(f.out(f.pong(7)), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .to_pod(f.back(f.ping(7)), DenyPolicy),
        table(named("what is allowed is allowed"), web())
            .then("mode", set(mode))
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 1).syn_ack()), AllowFlow)
            .then("enforce", set(Mode::Enforce))
            .to_pod(f.back(tcp(1, 80).ack()), AllowFlow),
        table(named("an allowed connection is cut, passes, and stays cut"), World::open())
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 1).syn_ack()), AllowFlow)
            .then("mode", set(mode))
            .change(|lab| lab.withdraw(Ingress, ANY, Ports::Every))
            .to_pod(f.back(tcp(1, 80).ack()), AllowAudit)
            .from_pod(f.out(tcp(80, 1).ack()), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .from_pod(f.out(tcp(80, 1).ack()), DenyPolicy),
        table(named("a denied connection that policy then allows"), server())
            .then("mode", set(mode))
            .to_pod(f.back(tcp(1, 80).syn()), AllowAudit)
            .change(|lab| lab.allow(Ingress, ANY, Ports::One(TCP, 80)))
            .to_pod(f.back(tcp(1, 80).ack()), AllowFlow)
            .then("enforce", set(Mode::Enforce))
            .from_pod(f.out(tcp(80, 1).ack()), AllowFlow),
        table(named("fragments of a denied datagram"), server())
            .then("mode", set(mode))
            .to_pod(f.back(udp(1, 2).payload(&[0; 56])).fragment(1, 0, true), AllowAudit)
            .to_pod(f.back(raw(UDP, &[0; 8])).fragment(1, 64, false), AllowAudit)
            .to_pod(f.back(raw(UDP, &[0; 8])).fragment(2, 64, false), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .to_pod(f.back(raw(UDP, &[0; 8])).fragment(1, 72, false), DenyPolicy)
            .to_pod(f.back(raw(UDP, &[0; 8])).fragment(2, 64, false), DenyFragment),
        table(named("fragments of a denied answer, and not after it"), server())
            .then("mode", set(mode))
            .to_pod(f.back(f.pong(7).payload(&[0; 56])).fragment(1, 0, true), AllowAudit)
            .to_pod(f.back(raw(f.icmp, &[0; 8])).fragment(1, 64, true), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .to_pod(f.back(raw(f.icmp, &[0; 8])).fragment(1, 72, true), DenyPolicy)
            .change(|lab| lab.allow(Ingress, ANY, Ports::Every))
            .to_pod(f.back(raw(f.icmp, &[0; 8])).fragment(1, 80, true), AllowPolicy)
            .change(|lab| lab.withdraw(Ingress, ANY, Ports::Every))
            .to_pod(f.back(raw(f.icmp, &[0; 8])).fragment(1, 88, false), DenyPolicy)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(named("cut, foreign and spoofed packets"), World::isolated())
            .then("mode", set(mode))
            .to_pod(f.back(tcp(1, 2).truncated(9)), AllowAudit)
            .to_pod(podgate_testkit::packet::ethernet(0x9999, &[0; 60]), AllowAudit)
            .from_pod(udp(1, 2).between(f.second, f.peer), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .to_pod(f.back(tcp(1, 2).truncated(9)), DenyMalformed),
        table(named("before policy is there"), {
            World::unprogrammed(podgate_bpf::abi::Startup::Hold)
        })
        .then("mode", set(mode))
        .to_pod(f.back(tcp(1, 80).syn()), AllowAudit)
        .from_pod(f.out(tcp(80, 1).syn_ack()), AllowAudit)
        .then("enforce", set(Mode::Enforce))
        .change(|lab| lab.replace(&web()))
        .from_pod(f.out(tcp(80, 1).ack()), AllowFlow)
        .to_pod(f.back(tcp(1, 80).ack()), AllowFlow),
        table(named("at an interface that nobody registered"), World::unregistered())
            .then("mode", set(mode))
            .to_pod(f.back(tcp(1, 80).syn()), AllowAudit)
            .from_pod(f.out(tcp(80, 1).syn_ack()), AllowAudit)
            .then("enforce", set(Mode::Enforce))
            .from_pod(f.out(tcp(80, 1).ack()), DenyPolicy)
            .from_pod(f.out(tcp(81, 1).ack()), DenyNoEndpoint),
    ]
}
