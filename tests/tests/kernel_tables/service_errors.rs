//! ICMP errors about flows through services: what they quote must be what their receiver has sent.

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(s10_15_errors_to_the_pod);
    tables.extend(both(s10_15_errors_from_the_pod));
    tables
}

/// Unreachable, and "too big" with its number: the ones that a flow lives by.
fn errors(f: Family) -> [Transport; 2] {
    if f.icmp == ICMP {
        [icmp(3, 3, [0; 4]), icmp(3, 4, [0, 0, 5, 0])]
    } else {
        [icmp(1, 4, [0; 4]), icmp(2, 0, [0, 0, 5, 0])]
    }
}

type Make = fn(u16, u16) -> Transport;

/// Every kind of quoted packet, and how many bytes of its transport header are quoted.
fn quoted(f: Family) -> Vec<(&'static str, u8, Make, usize)> {
    let mut kinds: Vec<(&str, u8, Make, usize)> = vec![
        ("tcp, eight bytes", TCP, |from, to| tcp(from, to).ack().payload(&[7; 9]), 8),
        ("tcp, whole", TCP, |from, to| tcp(from, to).ack().payload(&[7; 9]), 100),
        ("udp, eight bytes", UDP, |from, to| udp(from, to).payload(&[8; 9]), 8),
        ("udp, whole", UDP, |from, to| udp(from, to).payload(&[8; 9]), 100),
        ("sctp", SCTP, sctp, 8),
    ];
    if f.icmp == ICMP {
        kinds.push(("udp without a checksum", UDP, |from, to| udp(from, to).unchecked(), 8));
    }
    kinds
}

fn open(f: Family, protocol: u8, port: u16) -> World {
    World::open().service(Service::new(f.service, 53, protocol, &[(f.peer, port)]))
}

/// A flow's first packet; TCP's is no SYN in the quotes.
fn opening(protocol: u8, make: Make, from: u16, to: u16) -> Transport {
    if protocol == TCP { tcp(from, to).syn() } else { make(from, to) }
}

fn s10_15_errors_to_the_pod(f: Family) -> Vec<Table> {
    let mut tables = Vec::new();
    for (name, protocol, make, bytes) in quoted(f) {
        for port in [53, 5353] {
            for (error, what) in errors(f).into_iter().zip(["unreachable", "too big"]) {
                let sent = make(40000, 53).between(f.pod, f.service);
                let left = make(40000, port).between(f.pod, f.peer);
                let title =
                    format!("service errors: {what} to the pod, quoting {name} to port {port}");
                tables.push(
                    table(f.named(&title), open(f, protocol, port))
                        .from_pod_as(
                            opening(protocol, make, 40000, 53).between(f.pod, f.service),
                            AllowPolicy,
                            opening(protocol, make, 40000, port).between(f.pod, f.peer),
                        )
                        // from a router on the way, which stays what it is
                        .to_pod_as(
                            error.clone().quoting(&left, bytes).between(f.stranger, f.pod),
                            AllowRelated,
                            error.clone().quoting(&sent, bytes).between(f.stranger, f.pod),
                        )
                        // from the endpoint, which the pod knows as the service
                        .to_pod_as(
                            error.clone().quoting(&left, bytes).between(f.peer, f.pod),
                            AllowRelated,
                            error.quoting(&sent, bytes).between(f.service, f.pod),
                        ),
                );
            }
        }
    }
    let error = || errors(f)[0].clone();
    let through = |title: &str, dress: fn(Ip) -> Ip| {
        let sent = dress(udp(40000, 53).between(f.pod, f.service));
        let left = dress(udp(40000, 5353).between(f.pod, f.peer));
        table(f.named(title), open(f, UDP, 5353))
            .from_pod_as(sent.clone(), AllowPolicy, left.clone())
            .to_pod_as(
                error().quoting(&left, 8).between(f.peer, f.pod),
                AllowRelated,
                error().quoting(&sent, 8).between(f.service, f.pod),
            )
    };
    if f.icmp == ICMP {
        let title = "service errors: quoting a header of nine words";
        tables.push(through(title, |ip| ip.header_words(9)));
    } else {
        let title = "service errors: quoting extension headers";
        tables.push(through(title, |ip| ip.extension(protocol::HOP_BY_HOP, 2)));
    }
    let sent = || udp(40000, 53).between(f.pod, f.service);
    let left = || udp(40000, 5353).between(f.pod, f.peer);
    let isolated = || {
        World::isolated().allow(Egress, ANY, Ports::One(UDP, 5353)).service(Service::new(
            f.service,
            53,
            UDP,
            &[(f.peer, 5353)],
        ))
    };
    tables.push(
        table(f.named("service errors: none about what nobody sent"), isolated())
            .to_pod(error().quoting(&left(), 8).between(f.peer, f.pod), DenyPolicy)
            .to_pod(error().quoting(&sent(), 8).between(f.service, f.pod), DenyPolicy),
    );
    tables.push(
        table(f.named("service errors: none about a flow that was cut"), isolated())
            .from_pod_as(sent(), AllowPolicy, left())
            .change(|lab| lab.withdraw(Egress, ANY, Ports::One(UDP, 5353)))
            .to_pod(error().quoting(&left(), 8).between(f.peer, f.pod), DenyPolicy)
            .to_pod(error().quoting(&sent(), 8).between(f.service, f.pod), DenyPolicy),
    );
    tables.push(
        table(
            f.named("service errors: about the service itself, by whoever translated"),
            isolated(),
        )
        .from_pod_as(sent(), AllowPolicy, left())
        .to_pod(error().quoting(&sent(), 8).between(f.stranger, f.pod), AllowRelated),
    );
    tables
}

fn s10_15_errors_from_the_pod(f: Family) -> Vec<Table> {
    let mut tables = Vec::new();
    for (name, protocol, make, bytes) in quoted(f) {
        for port in [53, 5353] {
            let received = make(53, 40000).between(f.service, f.pod);
            let came = make(port, 40000).between(f.peer, f.pod);
            let error = || errors(f)[0].clone();
            let title = format!("service errors: the pod's own, quoting {name} from port {port}");
            tables.push(
                table(f.named(&title), open(f, protocol, port))
                    .from_pod_as(
                        opening(protocol, make, 40000, 53).between(f.pod, f.service),
                        AllowPolicy,
                        opening(protocol, make, 40000, port).between(f.pod, f.peer),
                    )
                    .to_pod_as(came.clone(), AllowFlow, received.clone())
                    .from_pod_as(
                        error().quoting(&received, bytes).between(f.pod, f.service),
                        AllowRelated,
                        error().quoting(&came, bytes).between(f.pod, f.peer),
                    ),
            );
        }
    }
    tables
}
