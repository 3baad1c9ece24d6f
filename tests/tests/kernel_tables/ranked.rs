//! Entries that are audited or logged: what passes is a flow like others, and what is told of it.

use std::time::Duration;

use podgate_bpf::abi::{Direction, Mode, Reason, Stat, Verdict};
use podgate_bpf::events::Event;
use podgate_tests::kernel::Lab;

use crate::events::{OWN, OWN_EACH_SECOND, flood, told};
use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(audited);
    tables.extend(both(audit_switched));
    tables.extend(both(audit_elsewhere));
    tables.extend(both(logged));
    tables.extend(both(denied));
    tables.push(logged_flood());
    tables
}

/// A pod that may do anything, but for TCP port 80, which an audited rule (number 3) would deny it.
fn world(direction: Direction) -> World {
    World::open().audit(direction, ANY, Ports::One(TCP, 80))
}

/// The same once the rule is in force.
fn enforced(direction: Direction) -> World {
    World::open().deny(direction, ANY, Ports::One(TCP, 80))
}

/// What an event says of its packet: reason, verdict, rule, direction, and whether it is logged.
type Said = (Reason, Verdict, u32, Direction, bool);

fn said(event: &Event) -> Said {
    (event.reason, event.verdict, event.rule, event.direction, event.logged)
}

/// Exactly these events were told since they were looked at last.
fn are(wanted: &[Said]) -> impl FnOnce(&mut Lab) + Send + use<> {
    let wanted = wanted.to_vec();
    move |lab| {
        let told: Vec<_> = told(lab).iter().map(said).collect();
        assert_eq!(told, wanted);
    }
}

/// An entry of every peer to the pod has decided on so many flows.
fn hits(ports: Ports, wanted: u64) -> impl FnOnce(&mut Lab) + Send {
    move |lab| assert_eq!(lab.hits(Ingress, ANY, ports), wanted)
}

fn audited(f: Family) -> Vec<Table> {
    let would_be_denied = |direction| (DenyPolicy, Verdict::Allow, 3, direction, false);
    vec![
        table(f.named("audited: a connection to the pod, told once"), world(Ingress))
            .to_pod(f.back(tcp(40000, 80).syn()), AllowAudit)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
            .to_pod(f.back(tcp(40001, 81).syn()), AllowPolicy)
            .then("one event", are(&[would_be_denied(Ingress)]))
            .then("one hit", hits(Ports::One(TCP, 80), 1))
            .then("its rule is the flow's", |lab| {
                let rules: Vec<_> = lab.flows().iter().map(|flow| flow.rule).collect();
                assert!(rules.contains(&3), "{rules:?}");
            }),
        table(f.named("audited: a connection of the pod, over changes"), world(Egress))
            .from_pod(f.out(tcp(40000, 80).syn()), AllowAudit)
            .change(|_| ())
            .to_pod(f.back(tcp(80, 40000).syn_ack()), AllowFlow)
            .change(|_| ())
            .from_pod(f.out(tcp(40000, 80).ack()), AllowFlow)
            .then("one event", are(&[would_be_denied(Egress)]))
            .then("revalidated twice", |lab| assert_eq!(lab.stat(Stat::Revalidated), 2)),
        table(f.named("audited: through a service"), {
            world(Egress).service(Service::new(f.service, 8080, TCP, &[(f.peer, 80)]))
        })
        .from_pod_as(
            tcp(40000, 8080).syn().between(f.pod, f.service),
            AllowAudit,
            tcp(40000, 80).syn().between(f.pod, f.peer),
        )
        .to_pod_as(
            tcp(80, 40000).syn_ack().between(f.peer, f.pod),
            AllowFlow,
            tcp(8080, 40000).syn_ack().between(f.service, f.pod),
        )
        .then("one event", are(&[would_be_denied(Egress)])),
        table(f.named("audited: a datagram in fragments, the first one last"), {
            World::open().audit(Ingress, ANY, Ports::Every)
        })
        .to_pod(f.back(raw(UDP, &[0; 8])).fragment(1, 64, false), AllowFragment)
        .then("not told yet", are(&[]))
        .to_pod(f.back(udp(1, 53).payload(&[0; 56])).fragment(1, 0, true), AllowAudit)
        .then("told", are(&[would_be_denied(Ingress)])),
        table(f.named("audited: what opens no flow is told each time"), {
            World::open().audit(Ingress, ANY, Ports::Every)
        })
        .to_pod(f.back(f.pong(7)), AllowAudit)
        .to_pod(f.back(f.pong(7)), AllowAudit)
        .then("two events", are(&[would_be_denied(Ingress); 2])),
        table(f.named("audited: cut packets, where all is audited"), {
            World::isolated().audit(Ingress, ANY, Ports::Every)
        })
        .to_pod(f.back(tcp(1, 80).truncated(9)), AllowAudit),
    ]
}

fn audit_switched(f: Family) -> Vec<Table> {
    let open = |table: Table| {
        table
            .to_pod(f.back(tcp(40000, 80).syn()), AllowAudit)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
    };
    vec![
        open(table(f.named("audited: ended, the flow goes on"), world(Ingress)))
            .change(|lab| lab.replace(&World::open()))
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
            .from_pod(f.out(tcp(80, 40000).ack()), AllowFlow),
        table(f.named("audited: begun, flows go on and are told once"), World::open())
            .to_pod(f.back(tcp(40000, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 40000).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 81).syn()), AllowPolicy)
            .change(|lab| lab.replace(&world(Ingress)))
            .then("nothing was sent yet", are(&[]))
            // the answer's packet comes first; what is told is the flow
            .from_pod(f.out(tcp(80, 40000).ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
            .to_pod(f.back(tcp(40000, 81).ack()), AllowFlow)
            .change(|_| ())
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
            .then("one event", are(&[(DenyPolicy, Verdict::Allow, 3, Ingress, false)])),
        table(f.named("audited: begun on a node that is off"), World::open())
            .to_pod(f.back(tcp(40000, 80).syn()), AllowPolicy)
            .then("off", |lab| lab.set_mode(Mode::Off))
            .change(|lab| lab.replace(&world(Ingress)))
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
            .then("silence", are(&[])),
        table(f.named("audited: begun under a service's flow"), {
            World::open().service(Service::new(f.service, 8080, TCP, &[(f.peer, 80)]))
        })
        .from_pod_as(
            tcp(40000, 8080).syn().between(f.pod, f.service),
            AllowPolicy,
            tcp(40000, 80).syn().between(f.pod, f.peer),
        )
        .change(|lab| lab.replace(&world(Egress)))
        .to_pod_as(
            tcp(80, 40000).syn_ack().between(f.peer, f.pod),
            AllowFlow,
            tcp(8080, 40000).syn_ack().between(f.service, f.pod),
        )
        .from_pod_as(
            tcp(40000, 8080).ack().between(f.pod, f.service),
            AllowFlow,
            tcp(40000, 80).ack().between(f.pod, f.peer),
        )
        .then("one event, which names the service", |lab| {
            let events = told(lab);
            let said: Vec<_> = events.iter().map(|of| (of.direction, of.rule)).collect();
            assert_eq!(said, [(Egress, 3)], "{events:?}");
            assert!(events[0].service.is_some(), "{events:?}");
        }),
        open(table(f.named("audited: enforced, the flow is cut, and audited again"), {
            world(Ingress)
        }))
        .change(|lab| lab.replace(&enforced(Ingress)))
        .to_pod(f.back(tcp(40000, 80).ack()), DenyPolicy)
        .from_pod(f.out(tcp(80, 40000).ack()), DenyPolicy)
        .change(|lab| lab.replace(&world(Ingress)))
        .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
        .from_pod(f.out(tcp(80, 40000).ack()), AllowFlow),
    ]
}

/// Beside the node's own modes.
fn audit_elsewhere(f: Family) -> Vec<Table> {
    let told_as = |verdict, rule| (DenyPolicy, verdict, rule, Ingress, false);
    vec![
        table(f.named("audited: on a node that audits all"), {
            world(Ingress).deny(Ingress, ANY, Ports::One(TCP, 81))
        })
        .then("audit", |lab| lab.set_mode(Mode::Audit))
        .to_pod(f.back(tcp(40000, 80).syn()), AllowAudit)
        .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
        .to_pod(f.back(tcp(40000, 81).syn()), AllowAudit)
        .to_pod(f.back(tcp(40000, 81).ack()), AllowAudit)
        .then("of the audited rule one", {
            let denied = told_as(Verdict::Allow, 4);
            are(&[
                told_as(Verdict::Allow, 3),
                denied,
                (DenyPolicy, Verdict::Allow, 0, Ingress, false),
            ])
        })
        .then("enforce", |lab| lab.set_mode(Mode::Enforce))
        .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
        .to_pod(f.back(tcp(40000, 81).ack()), DenyPolicy),
        table(f.named("audited: on a node that is off"), world(Ingress))
            .then("off", |lab| lab.set_mode(Mode::Off))
            .to_pod(f.back(tcp(40000, 80).syn()), AllowAudit)
            .to_pod(f.back(tcp(40000, 80).ack()), AllowFlow)
            .then("silence", are(&[])),
    ]
}

fn logged(f: Family) -> Vec<Table> {
    let world = || {
        World::isolated()
            .allow(Ingress, ANY, Ports::One(TCP, 80))
            .logged()
            .deny(Ingress, ANY, Ports::One(TCP, 81))
            .logged()
            .allow(Ingress, ANY, Ports::One(TCP, 82))
            .audit(Ingress, ANY, Ports::One(TCP, 83))
            .logged()
    };
    let quiet = |lab: &mut Lab| lab.datapath().maps.control().set_event_limit(0);
    let event = |reason, verdict, rule| (reason, verdict, rule, Ingress, true);
    vec![
        table(f.named("logged: an allowed flow, whoever asks, once"), world())
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
            .from_pod(f.out(tcp(80, 1).syn_ack()), AllowFlow)
            .to_pod(f.back(tcp(1, 80).ack()), AllowFlow)
            .change(|_| ())
            .to_pod(f.back(tcp(1, 80).ack()), AllowFlow)
            .to_pod(f.back(tcp(1, 82).syn()), AllowPolicy)
            .then("one event", are(&[event(AllowPolicy, Verdict::Allow, 1)])),
        table(f.named("logged: where events are switched off"), world())
            .then("no events", quiet)
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
            .to_pod(f.back(tcp(1, 81).syn()), DenyPolicy)
            .to_pod(f.back(tcp(1, 82).syn()), AllowPolicy)
            .to_pod(f.back(tcp(1, 83).syn()), AllowAudit)
            .to_pod(f.back(tcp(1, 84).syn()), DenyPolicy)
            .then(
                "of those three",
                are(&[
                    event(AllowPolicy, Verdict::Allow, 1),
                    event(DenyPolicy, Verdict::Deny, 2),
                    event(DenyPolicy, Verdict::Allow, 4),
                ]),
            ),
        table(f.named("logged: in a mode that tells nothing"), world())
            .then("off", |lab| lab.set_mode(Mode::Off))
            .to_pod(f.back(tcp(1, 81).syn()), AllowAudit)
            .to_pod(f.back(tcp(1, 83).syn()), AllowAudit)
            .to_pod(f.back(tcp(1, 84).syn()), AllowAudit)
            .then(
                "of those two",
                are(&[event(DenyPolicy, Verdict::Allow, 2), event(DenyPolicy, Verdict::Allow, 4)]),
            ),
        table(f.named("logged: through a service"), {
            World::isolated()
                .allow(Egress, ANY, Ports::One(TCP, 80))
                .logged()
                .service(Service::new(f.service, 8080, TCP, &[(f.peer, 80)]))
        })
        .from_pod_as(
            tcp(40000, 8080).syn().between(f.pod, f.service),
            AllowPolicy,
            tcp(40000, 80).syn().between(f.pod, f.peer),
        )
        .then("one event", are(&[(AllowPolicy, Verdict::Allow, 1, Egress, true)])),
        table(f.named("logged: of fragments only the first"), {
            World::isolated().allow(Ingress, ANY, Ports::Every).logged()
        })
        .to_pod(f.back(raw(UDP, &[0; 8])).fragment(1, 64, false), AllowFragment)
        .to_pod(f.back(udp(1, 53).payload(&[0; 56])).fragment(1, 0, true), AllowPolicy)
        .then("one event", are(&[event(AllowPolicy, Verdict::Allow, 1)])),
    ]
}

fn denied(f: Family) -> Vec<Table> {
    let port_80 = Ports::One(TCP, 80);
    vec![
        table(f.named("denied: an entry counts each packet, as none is of a flow"), {
            World::open().deny(Ingress, ANY, port_80)
        })
        .to_pod(f.back(tcp(1, 80).syn()), DenyPolicy)
        .to_pod(f.back(tcp(1, 80).syn()), DenyPolicy)
        .to_pod(f.back(tcp(1, 81).syn()), AllowPolicy)
        .then("two", hits(port_80, 2)),
        table(f.named("denied: an entry counts no packet of a flow that it cuts"), World::open())
            .to_pod(f.back(tcp(1, 80).syn()), AllowPolicy)
            .change(move |lab| lab.replace(&World::open().deny(Ingress, ANY, port_80)))
            .to_pod(f.back(tcp(1, 80).ack()), DenyPolicy)
            .to_pod(f.back(tcp(1, 80).ack()), DenyPolicy)
            .then("none", hits(port_80, 0))
            .to_pod(f.back(tcp(2, 80).syn()), DenyPolicy)
            .then("a new one", hits(port_80, 1)),
    ]
}

/// A client that sends its SYN again and again meets the verdict each time, and the log as often as a pod may tell.
fn logged_flood() -> Table {
    table("logged: no more than the pod's own part of the events", {
        World::isolated().deny(Ingress, ANY, Ports::Every).logged()
    })
    .then("switched off", |lab| {
        lab.keep_to_itself();
        lab.datapath().maps.control().set_event_limit(0);
    })
    .then("300 denials", |lab| {
        flood(lab, 300);
        let events = told(lab);
        // more if the second turned meanwhile
        assert!((OWN..=OWN + 2 * OWN_EACH_SECOND).contains(&(events.len() as u64)));
        assert!(events.iter().all(|event| event.logged), "{events:?}");
        assert_eq!(lab.stat(Stat::EventLimit), 300 - events.len() as u64);
        let denied = lab.datapath().maps.counters().unwrap().get(Ingress, DenyPolicy);
        assert_eq!(denied.packets, 300, "counted all the same");
    })
    .then("a second later", |lab| {
        std::thread::sleep(Duration::from_millis(1100));
        flood(lab, 10);
        assert_eq!(told(lab).len(), 10);
    })
}
