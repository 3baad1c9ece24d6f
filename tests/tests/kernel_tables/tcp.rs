//! TCP: handshake, replies, endings, reuse (docs/semantics.md 1.4).

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(s1_4_connections_and_their_replies);
    tables.extend(both(endings));
    tables.extend(both(pickups));
    tables
}

fn s1_4_connections_and_their_replies(f: Family) -> Vec<Table> {
    let request = |t: Transport| f.back(t);
    vec![
        table(f.named("tcp: a connection to the pod and its replies"), web())
            .to_pod(request(tcp(40000, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowFlow)
            .to_pod(request(tcp(40000, 80).ack()), AllowFlow)
            .from_pod(f.out(tcp(80, 40000).ack().payload(&[7; 900])), AllowFlow),
        table(f.named("tcp: a connection of the pod and its replies"), client())
            .from_pod(f.out(tcp(40000, 80).syn()), AllowPolicy)
            .to_pod(f.back(tcp(80, 40000).syn_ack()), AllowFlow)
            .from_pod(f.out(tcp(40000, 80).ack()), AllowFlow)
            .to_pod(f.back(tcp(80, 40000).ack().payload(&[7; 900])), AllowFlow),
        table(f.named("tcp: each direction has its own policy"), web())
            .from_pod(f.out(tcp(40000, 80).syn()), DenyPolicy)
            .to_pod(f.back(tcp(40000, 81).syn()), DenyPolicy)
            .to_pod(f.back(tcp(80, 40000).syn()), DenyPolicy),
        table(f.named("tcp: the pod's port decides ingress, the peer's egress"), {
            World::isolated().allow(Ingress, ANY, Ports::One(TCP, 80)).allow(
                Egress,
                ANY,
                Ports::One(TCP, 443),
            )
        })
        .to_pod(f.back(tcp(443, 443).syn()), DenyPolicy)
        .to_pod(f.back(tcp(443, 80).syn()), AllowPolicy)
        .from_pod(f.out(tcp(80, 80).syn()), DenyPolicy)
        .from_pod(f.out(tcp(80, 444).syn()), DenyPolicy)
        .from_pod(f.out(tcp(81, 443).syn()), AllowPolicy),
        table(f.named("tcp: what was denied leaves no state"), web())
            .to_pod(f.back(tcp(40000, 81).syn()), DenyPolicy)
            .from_pod(f.out(tcp(81, 40000).rst()), DenyPolicy)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("tcp: another port, address or protocol is another flow"), client())
            .from_pod(f.out(tcp(40000, 80).syn()), AllowPolicy)
            .to_pod(f.back(tcp(80, 40001).syn_ack()), DenyPolicy)
            .to_pod(f.back(tcp(81, 40000).syn_ack()), DenyPolicy)
            .to_pod(tcp(80, 40000).syn_ack().between(f.stranger, f.pod), DenyPolicy)
            .to_pod(f.back(udp(80, 40000)), DenyPolicy)
            .to_pod(f.back(tcp(80, 40000).syn_ack()), AllowFlow),
        table(f.named("tcp: a SYN against the flow's direction is judged as its own"), client())
            .from_pod(f.out(tcp(40000, 80).syn()), AllowPolicy)
            .to_pod(f.back(tcp(80, 40000).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(80, 40000).syn()), DenyPolicy)
            .from_pod(f.out(tcp(40000, 80).ack()), AllowFlow)
            .to_pod(f.back(tcp(80, 40000).ack()), AllowFlow),
        table(f.named("tcp: where such a SYN is allowed it opens a flow of its own direction"), {
            client().not_isolated(Ingress)
        })
        .from_pod(f.out(tcp(40000, 80).syn()), AllowPolicy)
        .to_pod(f.back(tcp(80, 40000).syn()), AllowPolicy)
        .from_pod(f.out(tcp(40000, 80).syn_ack()), AllowFlow)
        .then("one flow", |lab| {
            let directions: Vec<_> = lab.flows().iter().map(|flow| flow.direction).collect();
            assert_eq!(directions, [Ingress as u8]);
        }),
        table(f.named("tcp: a repeated SYN is of its flow"), web())
            .to_pod(f.back(tcp(40000, 80).syn()), AllowPolicy)
            .to_pod(f.back(tcp(40000, 80).syn()), AllowFlow)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 80).syn()), AllowFlow)
            .from_pod(f.out(tcp(80, 40000).ack()), AllowFlow),
    ]
}

/// A connection of the pod, open.
fn opened(f: Family, name: &str) -> Table {
    table(f.named(name), client())
        .from_pod(f.out(tcp(40000, 80).syn()), AllowPolicy)
        .to_pod(f.back(tcp(80, 40000).syn_ack()), AllowFlow)
        .from_pod(f.out(tcp(40000, 80).ack()), AllowFlow)
}

fn endings(f: Family) -> Vec<Table> {
    let closed = |name: &str| {
        opened(f, name)
            .from_pod(f.out(tcp(40000, 80).fin()), AllowFlow)
            .to_pod(f.back(tcp(80, 40000).ack()), AllowFlow)
            .to_pod(f.back(tcp(80, 40000).fin()), AllowFlow)
            .from_pod(f.out(tcp(40000, 80).ack()), AllowFlow)
    };
    let wait = |table: Table, seconds| {
        table.then(format!("{seconds} s pass"), move |lab| lab.age_flows(seconds))
    };
    vec![
        wait(closed("tcp: a finished connection's last segments pass"), 5)
            .to_pod(f.back(tcp(80, 40000).fin()), AllowFlow)
            .from_pod(f.out(tcp(40000, 80).ack()), AllowFlow),
        wait(closed("tcp: a finished connection does not linger"), 12)
            .to_pod(f.back(tcp(80, 40000).ack()), DenyPolicy),
        wait(
            wait(closed("tcp: segments do not prolong a finished connection"), 8)
                .to_pod(f.back(tcp(80, 40000).ack()), AllowFlow)
                .from_pod(f.out(tcp(40000, 80).ack()), AllowFlow),
            5,
        )
        .to_pod(f.back(tcp(80, 40000).ack()), DenyPolicy),
        wait(closed("tcp: a closed tuple opens anew"), 5)
            .from_pod(f.out(tcp(40000, 80).syn()), AllowFlow)
            .to_pod(f.back(tcp(80, 40000).syn_ack()), AllowFlow)
            .then("a minute passes", |lab| lab.age_flows(60))
            .to_pod(f.back(tcp(80, 40000).ack()), AllowFlow),
        closed("tcp: a closed tuple does not open the other way")
            .to_pod(f.back(tcp(80, 40000).syn()), DenyPolicy),
        wait(
            opened(f, "tcp: a half-closed connection waits")
                .from_pod(f.out(tcp(40000, 80).fin()), AllowFlow),
            500,
        )
        .to_pod(f.back(tcp(80, 40000).ack()), AllowFlow),
        wait(
            opened(f, "tcp: a half-closed connection does not wait for ever")
                .from_pod(f.out(tcp(40000, 80).fin()), AllowFlow),
            700,
        )
        .to_pod(f.back(tcp(80, 40000).ack()), DenyPolicy),
        wait(
            opened(f, "tcp: a reset ends the connection")
                .to_pod(f.back(tcp(80, 40000).rst()), AllowFlow),
            12,
        )
        .to_pod(f.back(tcp(80, 40000).ack()), DenyPolicy),
        wait(
            opened(f, "tcp: a reset that nobody believes ends nothing")
                .to_pod(f.back(tcp(80, 40000).rst()), AllowFlow)
                .from_pod(f.out(tcp(40000, 80).ack()), AllowFlow),
            300,
        )
        .to_pod(f.back(tcp(80, 40000).ack()), AllowFlow),
        wait(
            opened(f, "tcp: repeated resets do not prolong the connection")
                .to_pod(f.back(tcp(80, 40000).rst()), AllowFlow)
                .then("8 s pass", |lab| lab.age_flows(8))
                .to_pod(f.back(tcp(80, 40000).rst()), AllowFlow),
            5,
        )
        .to_pod(f.back(tcp(80, 40000).ack()), DenyPolicy),
        wait(
            opened(f, "tcp: FINs behind a disbelieved reset still close")
                .to_pod(f.back(tcp(80, 40000).rst()), AllowFlow)
                .from_pod(f.out(tcp(40000, 80).fin()), AllowFlow)
                .to_pod(f.back(tcp(80, 40000).fin()), AllowFlow)
                .from_pod(f.out(tcp(40000, 80).ack()), AllowFlow),
            12,
        )
        .to_pod(f.back(tcp(80, 40000).ack()), DenyPolicy),
        wait(
            table(f.named("tcp: an unanswered SYN is forgotten"), client())
                .from_pod(f.out(tcp(40000, 80).syn()), AllowPolicy),
            130,
        )
        .to_pod(f.back(tcp(80, 40000).syn_ack()), DenyPolicy),
        wait(opened(f, "tcp: an idle connection is kept for five days"), 400_000)
            .to_pod(f.back(tcp(80, 40000).ack()), AllowFlow),
        wait(opened(f, "tcp: and then no longer"), 432_100)
            .to_pod(f.back(tcp(80, 40000).ack()), DenyPolicy),
    ]
}

fn pickups(f: Family) -> Vec<Table> {
    let egress = || World::isolated().not_isolated(Egress);
    vec![
        table(f.named("tcp: a connection is picked up in its middle"), client())
            .from_pod(f.out(tcp(40000, 80).ack()), AllowPolicy)
            .to_pod(f.back(tcp(80, 40000).ack()), AllowFlow),
        opened(f, "tcp: an evicted connection is picked up by its opener")
            .then("the flow is evicted", |lab| lab.forget_flows())
            .from_pod(f.out(tcp(40000, 80).ack()), AllowPolicy)
            .to_pod(f.back(tcp(80, 40000).ack()), AllowFlow),
        table(f.named("tcp: a SYN-ACK without its SYN is judged"), client())
            .to_pod(f.back(tcp(80, 40000).syn_ack()), DenyPolicy),
        table(f.named("tcp: segments with no or odd flags are judged"), client())
            .to_pod(f.back(tcp(80, 40000)), DenyPolicy)
            .to_pod(f.back(tcp(80, 40000).fin()), DenyPolicy)
            .to_pod(f.back(tcp(80, 40000).rst()), DenyPolicy)
            .to_pod(f.back(tcp(80, 40000).flags(0x03)), DenyPolicy)
            .to_pod(f.back(tcp(80, 40000).flags(0xff)), DenyPolicy),
        table(f.named("tcp: a reset of no known connection opens none"), egress())
            .from_pod(f.out(tcp(40000, 80).rst()), AllowPolicy)
            .to_pod(f.back(tcp(80, 40000).ack()), DenyPolicy),
        table(f.named("tcp: a late FIN opens no lasting connection"), egress())
            .from_pod(f.out(tcp(40000, 80).fin()), AllowPolicy)
            .then("700 s pass", |lab| lab.age_flows(700))
            .to_pod(f.back(tcp(80, 40000).ack()), DenyPolicy),
    ]
}
