//! ICMP queries and their answers (docs/semantics.md 7.4, GHSA-c66w-hq56-4q97).

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = s7_4_echo();
    tables.extend(s7_4_other_queries());
    tables
}

fn s7_4_echo() -> Vec<Table> {
    both(|f| {
        let pings = || World::isolated().not_isolated(Egress);
        vec![
            table(f.named("echo: the pod's request is answered"), pings())
                .from_pod(f.out(f.ping(7)), AllowPolicy)
                .to_pod(f.back(f.pong(7)), AllowFlow)
                .from_pod(f.out(f.ping(7)), AllowFlow)
                .to_pod(f.back(f.pong(7)), AllowFlow),
            table(f.named("echo: a request never counts as a reply"), pings())
                .from_pod(f.out(f.ping(7)), AllowPolicy)
                .to_pod(f.back(f.ping(7)), DenyPolicy)
                .to_pod(f.back(f.pong(7)), AllowFlow),
            table(f.named("echo: another identifier or peer is another flow"), pings())
                .from_pod(f.out(f.ping(7)), AllowPolicy)
                .to_pod(f.back(f.pong(8)), DenyPolicy)
                .to_pod(f.pong(7).between(f.stranger, f.pod), DenyPolicy),
            table(f.named("echo: a reply without its request is judged"), pings())
                .to_pod(f.back(f.pong(7)), DenyPolicy),
            table(f.named("echo: an allowed reply without its request opens nothing"), pings())
                .from_pod(f.out(f.pong(7)), AllowPolicy)
                .then("no flow", |lab| assert_eq!(lab.flows(), []))
                .to_pod(f.back(f.ping(7)), DenyPolicy)
                .to_pod(f.back(f.pong(7)), DenyPolicy),
            table(f.named("echo: the two sides' requests are two flows"), World::open())
                .from_pod(f.out(f.ping(7)), AllowPolicy)
                .to_pod(f.back(f.ping(7)), AllowPolicy)
                .from_pod(f.out(f.pong(7)), AllowFlow)
                .to_pod(f.back(f.pong(7)), AllowFlow)
                .then("two flows", |lab| assert_eq!(lab.flows().len(), 2)),
            table(f.named("echo: rules with ports are not for it"), {
                web().allow(Ingress, ANY, Ports::All(UDP)).allow(Egress, ANY, Ports::All(TCP))
            })
            .to_pod(f.back(f.ping(7)), DenyPolicy)
            .from_pod(f.out(f.ping(7)), DenyPolicy),
            table(f.named("echo: rules without ports are"), {
                World::isolated().not_isolated(Ingress)
            })
            .to_pod(f.back(f.ping(7)), AllowPolicy)
            .from_pod(f.out(f.pong(7)), AllowFlow)
            .from_pod(f.out(f.ping(7)), DenyPolicy),
            table(f.named("echo: a flow is forgotten after half a minute"), pings())
                .from_pod(f.out(f.ping(7)), AllowPolicy)
                .then("32 s pass", |lab| lab.age_flows(32))
                .to_pod(f.back(f.pong(7)), DenyPolicy),
            table(f.named("echo: the other family's ICMP is no echo"), pings())
                .from_pod(f.out(raw(59 - f.icmp, &[0; 8])), AllowPolicy)
                .to_pod(f.back(raw(f.icmp, &[f.echo_reply, 0, 0, 0, 0, 0, 0, 0])), DenyPolicy),
        ]
    })
}

fn s7_4_other_queries() -> Vec<Table> {
    let pings = || World::isolated().not_isolated(Egress);
    let ask = |kind| icmp(kind, 0, [0, 7, 0, 1]).payload(&[0; 12]);
    vec![
        table("timestamp: its reply answers it", pings())
            .from_pod(V4.out(ask(13)), AllowPolicy)
            .to_pod(V4.back(ask(13)), DenyPolicy)
            .to_pod(V4.back(ask(0)), DenyPolicy)
            .to_pod(V4.back(ask(14)), AllowFlow),
        table("icmp: types that are no query are judged, and open nothing", pings())
            .to_pod(V4.back(ask(10)), DenyPolicy)
            .from_pod(V4.out(ask(10)), AllowPolicy)
            .to_pod(V4.back(ask(9)), DenyPolicy)
            .to_pod(V4.back(ask(10)), DenyPolicy)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table("icmpv6: types that are no query are judged, and open nothing", pings())
            .to_pod(V6.back(ask(139)), DenyPolicy)
            .from_pod(V6.out(ask(139)), AllowPolicy)
            .to_pod(V6.back(ask(140)), DenyPolicy)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
    ]
}
