//! Flows through services, as policy, modes and somebody else's translation have it.

use std::net::SocketAddr;

use podgate_bpf::abi::{FlowKind, FlowState, Mode, Startup};
use podgate_bpf::seeding::{Seed, Seeded};
use podgate_contract::handshake::EndpointRef;
use podgate_tests::kernel::Lab;

use crate::prelude::*;
use crate::service_steps::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(s10_14_connections_end_with_policy);
    tables.extend(both(modes));
    tables.extend(both(foreign));
    tables
}

fn s10_14_connections_end_with_policy(f: Family) -> Vec<Table> {
    let world = || {
        World::isolated()
            .allow(Egress, ANY, Ports::One(TCP, 8080))
            .service(web_service(f, &[f.peer]))
    };
    vec![
        table(f.named("service flows: cut when policy changes, both ways"), world())
            .connects(f, f.peer)
            .change(|lab| lab.withdraw(Egress, ANY, Ports::One(TCP, 8080)))
            .from_pod(to(f, f.peer, Transport::ack).0, DenyPolicy)
            .to_pod(from(f, f.peer, Transport::ack).0, DenyPolicy)
            .change(|lab| lab.allow(Egress, ANY, Ports::One(TCP, 8080)))
            .out(to(f, f.peer, Transport::ack), AllowFlow)
            .back(from(f, f.peer, Transport::ack)),
        table(
            f.named("service flows: cut by the endpoint's first packet after the change"),
            world(),
        )
        .connects(f, f.peer)
        .change(|lab| lab.withdraw(Egress, ANY, Ports::One(TCP, 8080)))
        .to_pod(from(f, f.peer, Transport::ack).0, DenyPolicy)
        .from_pod(to(f, f.peer, Transport::ack).0, DenyPolicy),
        table(f.named("service flows: go on when policy comes that allows them"), {
            World::open().service(web_service(f, &[f.peer]))
        })
        .connects(f, f.peer)
        .change(|lab| lab.replace(&World::isolated().allow(Egress, ANY, Ports::One(TCP, 8080))))
        .out(to(f, f.peer, Transport::ack), AllowFlow)
        .back(from(f, f.peer, Transport::ack)),
        table(
            f.named("service flows: of an earlier pod with the same interface and address"),
            world(),
        )
        .connects(f, f.peer)
        .then("another pod", move |lab| {
            lab.succeed(&World::open());
        })
        .out(to(f, f.peer, Transport::syn), AllowPolicy)
        .back(from(f, f.peer, Transport::syn_ack))
        .then("its views", |lab| assert_eq!(lab.flows().len(), 2)),
    ]
}

fn modes(f: Family) -> Vec<Table> {
    let world = || World::isolated().service(web_service(f, &[f.peer]));
    let mut tables: Vec<Table> = [Mode::Audit, Mode::Off]
        .into_iter()
        .map(|mode| {
            let title = format!("service flows: translated where denials pass ({})", mode.name());
            let step = |table: Table, direction, (sent, left): (Ip, Ip)| match direction {
                Egress => table.from_pod_as(sent, AllowAudit, left),
                Ingress => table.to_pod_as(sent, AllowAudit, left),
            };
            let table = table(f.named(&title), world()).then("mode", move |lab| lab.set_mode(mode));
            let table = step(table, Egress, to(f, f.peer, Transport::syn));
            let table = step(table, Ingress, from(f, f.peer, Transport::syn_ack));
            step(table, Egress, to(f, f.peer, Transport::ack))
                .then("enforced", |lab| lab.set_mode(Mode::Enforce))
                .from_pod(to(f, f.peer, Transport::ack).0, DenyPolicy)
                .to_pod(from(f, f.peer, Transport::ack).0, DenyPolicy)
        })
        .collect();
    let startup = |startup| World::unprogrammed(startup).service(web_service(f, &[f.peer]));
    tables.push(
        table(
            f.named("service flows: nothing before the first policy (hold)"),
            startup(Startup::Hold),
        )
        .from_pod(to(f, f.peer, Transport::syn).0, DenyStartup)
        .then("no flow", |lab| assert_eq!(lab.flows(), [])),
    );
    tables.push(
        table(
            f.named("service flows: everything before the first policy (open)"),
            startup(Startup::Open),
        )
        .out(to(f, f.peer, Transport::syn), AllowStartup)
        .back(from(f, f.peer, Transport::syn_ack)),
    );
    tables.push(
        table(f.named("service flows: an interface that nobody registered"), {
            World::unregistered().service(web_service(f, &[f.peer]))
        })
        .from_pod(to(f, f.peer, Transport::syn).0, DenyNoEndpoint),
    );
    tables
}

/// A flow to the service that somebody else translates to the peer, as user space seeds it.
fn seed(f: Family, lab: &Lab) {
    let at = |text: &str, port| SocketAddr::new(text.parse().unwrap(), port);
    let seed = Seed {
        endpoint: EndpointRef { ifindex: lab.ifindex, owner: 0x5eed },
        pod: at(f.pod, 40000),
        peer: at(f.service, 80),
        protocol: TCP,
        kind: FlowKind::Plain,
        direction: Egress,
        state: FlowState::Established,
        by_own_node: false,
        translated_to: Some(at(f.peer, 8080)),
    };
    assert_eq!(lab.datapath().maps.seed(&seed).unwrap(), Seeded::New);
}

fn foreign(f: Family) -> Vec<Table> {
    let world = || {
        World::isolated()
            .allow(Egress, ANY, Ports::One(TCP, 8080))
            .service(web_service(f, &[f.peer]))
    };
    let sent = || tcp(40000, 80).ack().between(f.pod, f.service);
    let came = || tcp(80, 40000).ack().between(f.service, f.pod);
    vec![
        table(f.named("foreign: judged by the endpoint, touched by nobody"), world())
            .then("seeded", move |lab| seed(f, lab))
            .from_pod(sent(), AllowFlow)
            .to_pod(came(), AllowFlow)
            .then("another change", |lab| lab.bump())
            .to_pod(came(), AllowFlow)
            .from_pod(sent(), AllowFlow),
        table(f.named("foreign: cut when the endpoint is no longer allowed"), world())
            .then("seeded", move |lab| seed(f, lab))
            .to_pod(came(), AllowFlow)
            .change(move |lab| {
                lab.withdraw(Egress, ANY, Ports::One(TCP, 8080));
                lab.allow(Egress, ANY, Ports::One(TCP, 80));
            })
            .to_pod(came(), DenyPolicy)
            .from_pod(sent(), DenyPolicy),
        table(f.named("foreign: a new connection from the same port is ours"), world())
            .then("seeded", move |lab| seed(f, lab))
            .from_pod(sent(), AllowFlow)
            .out(to(f, f.peer, Transport::syn), AllowPolicy)
            .back(from(f, f.peer, Transport::syn_ack)),
    ]
}
