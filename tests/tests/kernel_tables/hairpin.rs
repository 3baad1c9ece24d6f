//! A pod that reaches itself through a service: "a pod to its own address", whatever policy says.

use podgate_tests::kernel::{Lab, REDIRECT};

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(s10_12_a_pod_picks_itself);
    tables.extend(both(lives));
    tables
}

/// A pod to which nothing is allowed, behind a service of its own.
fn world(f: Family, protocol: u8) -> World {
    World::isolated().service(Service::new(f.service, 80, protocol, &[(f.pod, 8080)]))
}

/// What the pod sends to the service, and as what it comes back to it.
fn ask(f: Family, make: fn(u16, u16) -> Transport) -> (Ip, Ip) {
    (make(40000, 80).between(f.pod, f.service), make(40000, 8080).between(f.service, f.pod))
}

/// What the pod answers, and as what that comes back to it.
fn answer(f: Family, make: fn(u16, u16) -> Transport) -> (Ip, Ip) {
    (make(8080, 40000).between(f.pod, f.service), make(80, 40000).between(f.service, f.pod))
}

fn syn(from: u16, to: u16) -> Transport {
    tcp(from, to).syn()
}

fn syn_ack(from: u16, to: u16) -> Transport {
    tcp(from, to).syn_ack()
}

fn data(from: u16, to: u16) -> Transport {
    tcp(from, to).ack().payload(b"to myself")
}

fn datagram(from: u16, to: u16) -> Transport {
    udp(from, to).payload(b"hm?")
}

fn association(from: u16, to: u16) -> Transport {
    sctp(from, to).payload(&[9; 30]).crc()
}

trait Steps: Sized {
    fn round(self, packets: (Ip, Ip), reason: podgate_bpf::abi::Reason) -> Self;
    fn connects(self, f: Family) -> Self;
}

impl Steps for Table {
    fn round(self, (sent, back): (Ip, Ip), reason: podgate_bpf::abi::Reason) -> Self {
        self.comes_back_as(sent, reason, back)
    }

    fn connects(self, f: Family) -> Self {
        self.round(ask(f, syn), AllowOwnAddress)
            .round(answer(f, syn_ack), AllowFlow)
            .round(ask(f, data), AllowFlow)
            .round(answer(f, data), AllowFlow)
    }
}

fn s10_12_a_pod_picks_itself(f: Family) -> Vec<Table> {
    vec![
        table(f.named("hairpin: tcp, both ways"), world(f, TCP))
            .connects(f)
            .then("two views", |lab| assert_eq!(lab.flows().len(), 2)),
        table(f.named("hairpin: udp, both ways"), world(f, UDP))
            .round(ask(f, datagram), AllowOwnAddress)
            .round(answer(f, datagram), AllowFlow)
            .round(ask(f, datagram), AllowFlow),
        table(f.named("hairpin: sctp, both ways"), world(f, SCTP))
            .round(ask(f, association), AllowOwnAddress)
            .round(answer(f, association), AllowFlow),
        table(f.named("hairpin: in fragments"), world(f, UDP)).then("a datagram", move |lab| {
            let make = |from: &str, to: &str, ports: (u16, u16), id| {
                let ask = udp(ports.0, ports.1).payload(&[3; 100]).between(from, to);
                ask.in_fragments(id, 64)
            };
            let rounds = [
                (make(f.pod, f.service, (40000, 80), 1), make(f.service, f.pod, (40000, 8080), 1)),
                (make(f.pod, f.service, (8080, 40000), 2), make(f.service, f.pod, (80, 40000), 2)),
            ];
            for (sent, back) in rounds {
                assert_eq!(sent.len(), 2);
                for (sent, back) in sent.iter().zip(&back) {
                    let met = lab.send(Egress, sent, Via::Nothing);
                    assert_eq!((met.action, &met.packet[12..]), (REDIRECT, &back[12..]), "{met:?}");
                    let came = lab.send(Ingress, &met.packet, Via::Pod);
                    assert_eq!((came.reason(), &came.packet), (Some(AllowFlow), &met.packet));
                }
            }
        }),
        table(f.named("hairpin: the same port everywhere"), {
            World::isolated().service(Service::new(f.service, 53, UDP, &[(f.pod, 53)]))
        })
        .comes_back_as(
            udp(53, 53).between(f.pod, f.service),
            AllowOwnAddress,
            udp(53, 53).between(f.service, f.pod),
        )
        .comes_back_as(
            udp(53, 53).between(f.pod, f.service),
            AllowFlow,
            udp(53, 53).between(f.service, f.pod),
        ),
        table(f.named("hairpin: to its other address"), {
            World::isolated().address(f.second).service(Service::new(
                f.service,
                80,
                TCP,
                &[(f.second, 8080)],
            ))
        })
        .comes_back_as(
            syn(40000, 80).between(f.pod, f.service),
            AllowOwnAddress,
            syn(40000, 8080).between(f.service, f.second),
        )
        .comes_back_as(
            syn_ack(8080, 40000).between(f.second, f.service),
            AllowFlow,
            syn_ack(80, 40000).between(f.service, f.pod),
        ),
        table(f.named("hairpin: errors about it come back, both ways"), world(f, UDP))
            .round(ask(f, datagram), AllowOwnAddress)
            .round(answer(f, datagram), AllowFlow)
            .then("the server's port is closed", move |lab| {
                error_comes_back(f, lab, (ask(f, datagram), f.pod, f.service));
            })
            .then("the client's port is closed", move |lab| {
                error_comes_back(f, lab, (answer(f, datagram), f.pod, f.service));
            }),
    ]
}

/// The pod refuses what came back to it; its error must reach its own other socket, about what that has sent.
fn error_comes_back(f: Family, lab: &Lab, (round, pod, service): ((Ip, Ip), &str, &str)) {
    let (sent, received) = round;
    let (kind, code) = if f.icmp == ICMP { (3, 3) } else { (1, 4) };
    let error = || icmp(kind, code, [0; 4]);
    let refused = error().quoting(&received, 40).between(pod, service).frame();
    let wanted = error().quoting(&sent, 40).between(service, pod).frame();
    let met = lab.send(Egress, &refused, Via::Nothing);
    assert_eq!((met.action, &met.packet[12..]), (REDIRECT, &wanted[12..]), "{met:?}");
    let came = lab.send(Ingress, &met.packet, Via::Pod);
    assert_eq!((came.reason(), &came.packet), (Some(AllowRelated), &met.packet));
}

fn lives(f: Family) -> Vec<Table> {
    let ends = |service: Service| {
        move |lab: &mut Lab| {
            lab.serve(1, &service);
            lab.bump();
        }
    };
    let other = move |protocol| Service::new(f.service, 80, protocol, &[(f.peer, 8080)]);
    vec![
        table(f.named("hairpin: goes on over changes of policy"), world(f, TCP))
            .connects(f)
            .then("a change", |lab| lab.bump())
            .round(answer(f, data), AllowFlow)
            .round(ask(f, data), AllowFlow)
            .then("a change", |lab| lab.bump())
            .round(ask(f, data), AllowFlow),
        table(f.named("hairpin: the pod leaves the service, the connection stays"), world(f, TCP))
            .connects(f)
            .then("it is gone", ends(other(TCP)))
            .round(ask(f, data), AllowFlow)
            .round(answer(f, data), AllowFlow)
            .from_pod(ask(f, syn).0, DenyPolicy),
        table(f.named("hairpin: the pod leaves the service, datagrams move on"), world(f, UDP))
            .round(ask(f, datagram), AllowOwnAddress)
            .then("it is gone", ends(other(UDP)))
            .change(|lab| lab.allow(Egress, ANY, Ports::Every))
            .from_pod_as(
                ask(f, datagram).0,
                AllowPolicy,
                datagram(40000, 8080).between(f.pod, f.peer),
            ),
        table(f.named("hairpin: a new connection from the same port"), world(f, TCP))
            .connects(f)
            .round(ask(f, |from, to| tcp(from, to).rst()), AllowFlow)
            .round(ask(f, syn), AllowOwnAddress)
            .round(answer(f, syn_ack), AllowFlow),
        table(f.named("hairpin: forgotten by the full maps"), world(f, TCP))
            .connects(f)
            .then("forgotten", |lab| lab.forget_flows())
            .round(ask(f, syn), AllowOwnAddress),
        table(f.named("hairpin: its counterpart's place is taken"), world(f, UDP))
            // the pod asks a service that is not there, from the port on which it serves
            .change(|lab| lab.allow(Egress, ANY, Ports::Every))
            .from_pod(udp(8080, 40000).between(f.pod, f.service), AllowPolicy)
            .then("it comes back from another port", move |lab| {
                let met = lab.send(Egress, &ask(f, datagram).0.frame(), Via::Nothing);
                assert_eq!((met.action, met.reason()), (REDIRECT, Some(AllowOwnAddress)));
                let l4 = if f.icmp == ICMP { 34 } else { 54 };
                let port = u16::from_be_bytes([met.packet[l4], met.packet[l4 + 1]]);
                assert!(port >= 32768 && port != 40000, "{port}");
                let wanted = datagram(port, 8080).between(f.service, f.pod).frame();
                assert_eq!(met.packet[12..], wanted[12..]);
                let back = datagram(8080, port).between(f.pod, f.service).frame();
                let met = lab.send(Egress, &back, Via::Nothing);
                assert_eq!(met.packet[12..], answer(f, datagram).1.frame()[12..]);
            }),
        table(f.named("hairpin: from a false address"), world(f, TCP))
            .from_pod(syn(40000, 80).between(f.stranger, f.service), DenySpoofed),
    ]
}
