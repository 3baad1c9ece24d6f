//! One source port, a service and one of its endpoints: what the pod sends to the endpoint itself leaves from another
//! port than what it sends there through the service, whichever came first.

use podgate_bpf::abi::{FLOW_REVNAT, Mode, Reason};
use podgate_tests::kernel::{Lab, NEXT};

use crate::prelude::*;
use crate::service_steps::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(datagrams);
    tables.extend(both(connections));
    tables.extend(both(pieces));
    tables.extend(both(limits));
    tables
}

type Make = fn(u16, u16) -> Transport;

/// The pod sends to the peer from port 40000. Gives the port that it leaves from.
#[track_caller]
fn sends(
    lab: &Lab,
    f: Family,
    make: &impl Fn(u16, u16) -> Transport,
    to: u16,
    reason: Reason,
) -> u16 {
    let met = lab.send(Egress, &make(40000, to).between(f.pod, f.peer).frame(), Via::Nothing);
    assert_eq!((met.action, met.reason()), (NEXT, Some(reason)), "{met:?}");
    let (port, left_to, address) = left(f, &met.packet);
    assert_eq!((left_to, address), (to, left(f, &make(1, to).between(f.pod, f.peer).frame()).2));
    assert_eq!(met.packet, make(port, to).between(f.pod, f.peer).frame(), "and its checksum");
    port
}

/// The peer answers to that port, and the pod gets it at port 40000, from the peer.
#[track_caller]
fn answers(lab: &Lab, f: Family, make: &impl Fn(u16, u16) -> Transport, from: u16, port: u16) {
    let met = lab.send(Ingress, &make(from, port).between(f.peer, f.pod).frame(), Via::Uplink);
    assert_eq!((met.action, met.reason()), (NEXT, Some(AllowFlow)), "{met:?}");
    assert_eq!(met.packet, make(from, 40000).between(f.peer, f.pod).frame());
}

fn moved(port: u16) -> u16 {
    assert!(port >= 32768 && port != 40000, "{port}");
    port
}

/// Isolated, so that an answer passes only as one; allowed to talk to the endpoint.
fn world(f: Family, protocol: u8, port: u16) -> World {
    let service = Service::new(f.service, 53, protocol, &[(f.peer, port)]);
    World::isolated().allow(Egress, ANY, Ports::One(protocol, port)).service(service)
}

fn datagrams(f: Family) -> Vec<Table> {
    let direct: Make = udp;
    let on = || world(f, UDP, 5353);
    vec![
        table(f.named("direct: after the service, datagrams"), on())
            .out(ask(f, f.peer), AllowPolicy)
            .then("both go on beside each other", move |lab| {
                let port = moved(sends(lab, f, &direct, 5353, AllowPolicy));
                for _ in 0..3 {
                    assert_eq!(sends(lab, f, &direct, 5353, AllowFlow), port);
                    answers(lab, f, &direct, 5353, port);
                }
            })
            .out(ask(f, f.peer), AllowFlow)
            .back(answer(f, f.peer))
            .then("185 s pass", |lab| lab.age_flows(185))
            .then("both have ended: the pod's own port is free", move |lab| {
                assert_eq!(sends(lab, f, &direct, 5353, AllowPolicy), 40000);
                let met = lab.send(
                    Ingress,
                    &udp(5353, 40000).between(f.peer, f.pod).frame(),
                    Via::Uplink,
                );
                assert_eq!(met.reason(), Some(AllowFlow));
            }),
        table(f.named("direct: outlives the service's flow, datagrams"), on())
            .out(ask(f, f.peer), AllowPolicy)
            .then("it alone goes on for long", move |lab| {
                let port = moved(sends(lab, f, &direct, 5353, AllowPolicy));
                answers(lab, f, &direct, 5353, port);
                for _ in 0..4 {
                    lab.age_flows(100);
                    assert_eq!(sends(lab, f, &direct, 5353, AllowFlow), port);
                    answers(lab, f, &direct, 5353, port);
                }
                for _ in 0..4 {
                    lab.age_flows(100);
                    answers(lab, f, &direct, 5353, port);
                }
                assert_eq!(sends(lab, f, &direct, 5353, AllowFlow), port);
            })
            // the service's begins again, and neither takes the other's
            .out(ask(f, f.peer), AllowPolicy)
            .back(answer(f, f.peer))
            .then("the direct one still has its port", move |lab| {
                let port = moved(sends(lab, f, &direct, 5353, AllowFlow));
                answers(lab, f, &direct, 5353, port);
            }),
        table(f.named("direct: before the service, datagrams"), on())
            .from_pod(udp(40000, 5353).between(f.pod, f.peer), AllowPolicy)
            .then("the service's leaves from another port", move |lab| {
                let met = lab.send(Egress, &ask(f, f.peer).0.frame(), Via::Nothing);
                let (port, _, _) = left(f, &met.packet);
                moved(port);
                let back =
                    lab.send(Ingress, &udp(5353, port).between(f.peer, f.pod).frame(), Via::Uplink);
                assert_eq!(back.packet, answer(f, f.peer).1.frame());
            })
            .from_pod(udp(40000, 5353).between(f.pod, f.peer), AllowFlow)
            .to_pod(udp(5353, 40000).between(f.peer, f.pod), AllowFlow),
        table(f.named("direct: a third socket has the port that the second was given"), on())
            .out(ask(f, f.peer), AllowPolicy)
            .then("it gets one more", move |lab| {
                let port = moved(sends(lab, f, &direct, 5353, AllowPolicy));
                let own = udp(port, 5353).between(f.pod, f.peer).frame();
                let met = lab.send(Egress, &own, Via::Nothing);
                let (other, _, _) = left(f, &met.packet);
                assert!(met.reason() == Some(AllowPolicy) && ![40000, port].contains(&other));
                answers(lab, f, &direct, 5353, port);
                let met = lab.send(
                    Ingress,
                    &udp(5353, other).between(f.peer, f.pod).frame(),
                    Via::Uplink,
                );
                assert_eq!(met.packet, udp(5353, port).between(f.peer, f.pod).frame());
            }),
        table(f.named("direct: policy is asked, and asked again"), on())
            .out(ask(f, f.peer), AllowPolicy)
            .then("it opens", move |lab| {
                moved(sends(lab, f, &direct, 5353, AllowPolicy));
            })
            .change(|lab| lab.withdraw(Egress, ANY, Ports::One(UDP, 5353)))
            .from_pod(udp(40000, 5353).between(f.pod, f.peer), DenyPolicy)
            .from_pod(ask(f, f.peer).0, DenyPolicy)
            .change(|lab| lab.allow(Egress, ANY, Ports::One(UDP, 5353)))
            .then("it goes on", move |lab| {
                let port = moved(sends(lab, f, &direct, 5353, AllowFlow));
                answers(lab, f, &direct, 5353, port);
            }),
    ]
}

fn connections(f: Family) -> Vec<Table> {
    let on = || world(f, TCP, 8080).service(web_service(f, &[f.peer]));
    let syn = |a, b| tcp(a, b).syn();
    let syn_ack = |a, b| tcp(a, b).syn_ack();
    let ack = |a, b| tcp(a, b).ack();
    let rst = |a, b| tcp(a, b).rst();
    let opens = move |lab: &Lab| {
        let port = moved(sends(lab, f, &syn, 8080, AllowPolicy));
        // a SYN that is sent again is of the same connection
        assert_eq!(sends(lab, f, &syn, 8080, AllowFlow), port);
        answers(lab, f, &syn_ack, 8080, port);
        assert_eq!(sends(lab, f, &ack, 8080, AllowFlow), port);
        port
    };
    vec![
        table(f.named("direct: after the service, connections"), on())
            .connects(f, f.peer)
            .then("a connection of its own", move |lab| {
                let port = opens(lab);
                answers(lab, f, &ack, 8080, port);
            })
            .out(to(f, f.peer, Transport::ack), AllowFlow)
            .back(from(f, f.peer, Transport::ack))
            // the service's ends, the direct one stays quiet and goes on
            .out(to(f, f.peer, Transport::rst), AllowFlow)
            .then("an hour passes", |lab| lab.age_flows(3600))
            .then("it goes on", move |lab| {
                let port = moved(sends(lab, f, &ack, 8080, AllowFlow));
                answers(lab, f, &ack, 8080, port);
            })
            .out(to(f, f.peer, Transport::syn), AllowPolicy)
            .then("beside the service's next one", move |lab| {
                let port = moved(sends(lab, f, &ack, 8080, AllowFlow));
                answers(lab, f, &ack, 8080, port);
            })
            .back(from(f, f.peer, Transport::syn_ack)),
        table(f.named("direct: again and again, connections"), on()).connects(f, f.peer).then(
            "ten connections, one after the other",
            move |lab| {
                for _ in 0..10 {
                    opens(lab);
                    sends(lab, f, &rst, 8080, AllowFlow);
                }
            },
        ),
        table(f.named("direct: in the place of the service's that has ended"), on())
            .connects(f, f.peer)
            .out(to(f, f.peer, Transport::rst), AllowFlow)
            .from_pod(tcp(40000, 8080).syn().between(f.pod, f.peer), AllowPolicy)
            .to_pod(tcp(8080, 40000).syn_ack().between(f.peer, f.pod), AllowFlow)
            .then("the service's leaves from another port", move |lab| {
                let syn = tcp(40000, 80).syn().between(f.pod, f.service).frame();
                let met = lab.send(Egress, &syn, Via::Nothing);
                let (port, _, _) = left(f, &met.packet);
                assert!(met.reason() == Some(AllowPolicy) && port != 40000, "{met:?}");
            }),
        table(
            f.named("direct: the end of a forgotten connection does not end the service's"),
            on(),
        )
        .connects(f, f.peer)
        .from_pod(tcp(40000, 8080).rst().between(f.pod, f.peer), DenyPortTaken)
        .out(to(f, f.peer, Transport::ack), AllowFlow),
        table(f.named("direct: the table forgets it, and it goes on"), on())
            .connects(f, f.peer)
            .then("it is found again from the same port", move |lab| {
                let port = opens(lab);
                let flows = lab.datapath().maps.flow_table();
                if f.icmp == ICMP {
                    let keys = flows.flows4().unwrap();
                    let its = keys.iter().find(|(key, flow)| {
                        key.pod_port == port.to_be_bytes() && flow.flags & FLOW_REVNAT != 0
                    });
                    flows.forget4(&its.unwrap().0).unwrap();
                    assert_eq!(sends(lab, f, &ack, 8080, AllowPolicy), port);
                    answers(lab, f, &ack, 8080, port);
                }
            }),
        table(f.named("direct: SCTP"), world(f, SCTP, 9000))
            .out(
                (
                    sctp(40000, 53).between(f.pod, f.service),
                    sctp(40000, 9000).between(f.pod, f.peer),
                ),
                AllowPolicy,
            )
            .then("both beside each other", move |lab| {
                let port = moved(sends(lab, f, &sctp, 9000, AllowPolicy));
                answers(lab, f, &sctp, 9000, port);
                assert_eq!(sends(lab, f, &sctp, 9000, AllowFlow), port);
            }),
    ]
}

/// Of a port, with all of what it quotes.
fn unreachable(f: Family, about: &Ip) -> Transport {
    let (kind, code) = if f.icmp == ICMP { (3, 3) } else { (1, 4) };
    icmp(kind, code, [0; 4]).quoting(about, 100)
}

/// Fragments, and errors about packets.
fn pieces(f: Family) -> Vec<Table> {
    let on = || world(f, UDP, 5353);
    let first =
        |port| udp(port, 5353).payload(&[1; 1016]).between(f.pod, f.peer).fragment(9, 0, true);
    let last = || raw(UDP, &[2; 64]).between(f.pod, f.peer).fragment(9, 1024, false);
    let direct: Make = udp;
    vec![
        table(f.named("direct: a datagram in fragments"), on())
            .out(ask(f, f.peer), AllowPolicy)
            .then("the first one leaves from the flow's port", move |lab| {
                let port = moved(sends(lab, f, &direct, 5353, AllowPolicy));
                let met = lab.send(Egress, &first(40000).frame(), Via::Nothing);
                assert_eq!(met.reason(), Some(AllowFlow));
                assert_eq!(met.packet, first(port).frame());
            })
            .from_pod(last(), AllowFlow),
        table(f.named("direct: an error about it reaches the pod as about what it sent"), on())
            .out(ask(f, f.peer), AllowPolicy)
            .then("the peer's port is closed", move |lab| {
                let port = moved(sends(lab, f, &direct, 5353, AllowPolicy));
                let error = |port| {
                    unreachable(f, &udp(port, 5353).between(f.pod, f.peer)).between(f.peer, f.pod)
                };
                let met = lab.send(Ingress, &error(port).frame(), Via::Uplink);
                assert_eq!((met.action, met.reason()), (NEXT, Some(AllowRelated)));
                assert_eq!(met.packet, error(40000).frame());
                // and the pod's own about what it got
                let error = |port| {
                    unreachable(f, &udp(5353, port).between(f.peer, f.pod)).between(f.pod, f.peer)
                };
                let met = lab.send(Egress, &error(40000).frame(), Via::Nothing);
                assert_eq!((met.action, met.reason()), (NEXT, Some(AllowRelated)));
                assert_eq!(met.packet, error(port).frame());
            }),
    ]
}

fn limits(f: Family) -> Vec<Table> {
    vec![
        table(f.named("direct: where denials pass"), world(f, UDP, 5353))
            .out(ask(f, f.peer), AllowPolicy)
            .then("audit", |lab| lab.set_mode(Mode::Audit))
            .change(|lab| lab.withdraw(Egress, ANY, Ports::One(UDP, 5353)))
            .then("it passes from another port", move |lab| {
                let port = moved(sends(lab, f, &udp, 5353, AllowAudit));
                assert_eq!(sends(lab, f, &udp, 5353, AllowAudit), port);
            }),
        table(f.named("direct: what the pod may not reach is no clash"), {
            World::isolated().service(domain_service(f, &[f.peer]))
        })
        .from_pod(ask(f, f.peer).0, DenyPolicy)
        .from_pod(udp(40000, 5353).between(f.pod, f.peer), DenyPolicy),
    ]
}
