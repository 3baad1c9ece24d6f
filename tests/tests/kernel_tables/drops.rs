//! Packets that are allowed and then dropped, because their translation cannot be finished: counted once, as what happened
//! to them, and reported.

use podgate_bpf::abi::{Mode, Reason, Verdict};

use crate::events::told;
use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(slow_path);
    tables.extend(both(fast_path));
    tables.extend(both(modes));
    tables.extend(both(reported));
    tables
}

fn world(f: Family) -> World {
    let tcp = Service::new(f.service, 80, TCP, &[(f.peer, 8080)]);
    let sctp = Service::new(f.service, 80, SCTP, &[(f.peer, 8080)]);
    World::isolated().allow(Egress, ANY, Ports::Every).service(tcp).service(sctp)
}

/// A TCP packet whose checksum lies behind the end of the frame, although its IP header claims a whole TCP header: ports
/// and addresses are rewritten before that shows.
fn unfinishable(f: Family, transport: Transport, from: &str, to: &str) -> Ip {
    let ip_header = if f.icmp == ICMP { 20 } else { 0 };
    transport.truncated(16).between(from, to).claim_length(ip_header + 20)
}

/// With a connection to the service that is established.
fn established(f: Family, name: &str) -> Table {
    table(f.named(name), world(f))
        .from_pod_as(
            tcp(40000, 80).syn().between(f.pod, f.service),
            AllowPolicy,
            tcp(40000, 8080).syn().between(f.pod, f.peer),
        )
        .to_pod_as(
            tcp(8080, 40000).syn_ack().between(f.peer, f.pod),
            AllowFlow,
            tcp(80, 40000).syn_ack().between(f.service, f.pod),
        )
        .from_pod_as(
            tcp(40000, 80).ack().between(f.pod, f.service),
            AllowFlow,
            tcp(40000, 8080).ack().between(f.pod, f.peer),
        )
}

fn slow_path(f: Family) -> Vec<Table> {
    let syn = || tcp(40000, 80).syn();
    let first_fragment = sctp(40000, 80).payload(&[7; 100]).crc().between(f.pod, f.service);
    let itself = World::isolated().service(Service::new(f.service, 80, TCP, &[(f.pod, 8080)]));
    vec![
        table(f.named("drops: a new flow that cannot be translated"), world(f))
            .from_pod(unfinishable(f, syn(), f.pod, f.service), DenyRewrite),
        table(f.named("drops: the same, of a known flow"), world(f))
            .from_pod_as(
                syn().between(f.pod, f.service),
                AllowPolicy,
                tcp(40000, 8080).syn().between(f.pod, f.peer),
            )
            .from_pod(unfinishable(f, syn(), f.pod, f.service), DenyRewrite)
            .from_pod(unfinishable(f, tcp(40000, 80).fin(), f.pod, f.service), DenyRewrite)
            .to_pod(unfinishable(f, tcp(8080, 40000).syn_ack(), f.peer, f.pod), DenyRewrite),
        table(f.named("drops: the same, of a pod to itself"), itself)
            .from_pod(unfinishable(f, syn(), f.pod, f.service), DenyRewrite),
        // its checksum covers bytes of the other fragments
        table(f.named("drops: a fragment of SCTP whose port would change"), world(f))
            .from_pod(first_fragment.in_fragments(7, 64)[0].clone(), DenyRewrite),
    ]
}

fn fast_path(f: Family) -> Vec<Table> {
    vec![
        established(f, "drops: an established packet that cannot be translated")
            .from_pod(unfinishable(f, tcp(40000, 80).ack(), f.pod, f.service), DenyRewrite)
            .to_pod(unfinishable(f, tcp(8080, 40000).ack(), f.peer, f.pod), DenyRewrite)
            .from_pod_as(
                tcp(40000, 80).ack().between(f.pod, f.service),
                AllowFlow,
                tcp(40000, 8080).ack().between(f.pod, f.peer),
            ),
    ]
}

/// Half a translation must not leave, whatever the mode.
fn modes(f: Family) -> Vec<Table> {
    let each = |(name, mode): (&str, Mode)| {
        table(f.named(&format!("drops: in mode {name}")), world(f))
            .change(move |lab| lab.set_mode(mode))
            .from_pod(unfinishable(f, tcp(40000, 80).syn(), f.pod, f.service), DenyRewrite)
            .change(|lab| lab.withdraw(Egress, ANY, Ports::Every))
            .from_pod(unfinishable(f, tcp(40001, 80).syn(), f.pod, f.service), DenyRewrite)
            .from_pod_as(
                tcp(40002, 80).syn().between(f.pod, f.service),
                AllowAudit,
                tcp(40002, 8080).syn().between(f.pod, f.peer),
            )
    };
    [("audit", Mode::Audit), ("off", Mode::Off)].map(each).into()
}

/// One event for each such packet: that it was dropped, and none that it was allowed.
fn reported(f: Family) -> Vec<Table> {
    let address = |text: &str| -> std::net::IpAddr { text.parse().unwrap() };
    let (pod, peer, service) = (address(f.pod), address(f.peer), address(f.service));
    let wanted: [(Reason, Verdict); 2] =
        [(DenyRewrite, Verdict::Deny), (DenyRewrite, Verdict::Deny)];
    vec![
        established(f, "drops: reported as what they are")
            .then("report allowed flows too", |lab| {
                lab.datapath().maps.control().set_report_allowed(true);
            })
            .from_pod(unfinishable(f, tcp(40001, 80).syn(), f.pod, f.service), DenyRewrite)
            .from_pod(unfinishable(f, tcp(40000, 80).ack(), f.pod, f.service), DenyRewrite)
            .then("their events", move |lab| {
                let events = told(lab);
                let found: Vec<_> = events.iter().map(|each| (each.reason, each.verdict)).collect();
                assert_eq!(found, wanted);
                let (slow, fast) = (&events[0], &events[1]);
                assert_eq!((slow.pod, slow.peer), ((pod, 40001), (peer, 8080)));
                assert_eq!(slow.service, Some((service, 80)));
                // of the packet as the pod sent it
                assert_eq!((fast.pod, fast.peer), ((pod, 40000), (service, 80)));
                assert_eq!((fast.owner, fast.protocol), (0x5eed, TCP));
            }),
    ]
}
