//! ICMP errors: they pass with the flow that they quote (docs/semantics.md 7.3), and with nothing else.

use crate::prelude::*;

/// A router on the way, in no world's tables.
fn router(f: Family) -> &'static str {
    f.stranger
}

/// Type and code of the errors of a family.
fn kinds(f: Family) -> &'static [(u8, u8)] {
    match f.icmp {
        ICMP => {
            &[(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 13), (4, 0), (11, 0), (11, 1), (12, 0)]
        }
        _ => &[(1, 0), (1, 1), (1, 3), (1, 4), (1, 5), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1)],
    }
}

/// "Your packet could not be delivered."
fn unreachable(f: Family) -> Transport {
    let (kind, code) = kinds(f)[0];
    icmp(kind, code, [0; 4])
}

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(s7_3_errors_of_every_kind);
    tables.extend(both(s7_3_whom_an_error_reaches));
    tables.extend(both(s7_3_what_an_error_quotes));
    tables
}

/// Every protocol whose flow an error may quote, by the pod's side and the peer's port.
fn senders() -> [(&'static str, Transport); 5] {
    [
        ("tcp", tcp(40000, 80).syn()),
        ("udp", udp(40000, 53).payload(&[0; 40])),
        ("sctp", sctp(40000, 3868)),
        ("gre", raw(protocol::GRE, &[0; 40])),
        ("udp-lite", raw(136, &[0; 40])),
    ]
}

fn s7_3_errors_of_every_kind(f: Family) -> Vec<Table> {
    let mut tables = Vec::new();
    for &(kind, code) in kinds(f) {
        let error = || icmp(kind, code, [0; 4]);
        for (name, sent) in senders() {
            let sent = f.out(sent);
            let unknown = f.out(udp(40000, 9));
            let title = format!("errors: {kind}/{code} about the pod's {name} packet");
            tables.push(
                table(f.named(&title), World::isolated().not_isolated(Egress))
                    .to_pod(error().quoting(&sent, 40).between(router(f), f.pod), DenyPolicy)
                    .from_pod(sent.clone(), AllowPolicy)
                    .to_pod(error().quoting(&sent, 40).between(router(f), f.pod), AllowRelated)
                    .to_pod(error().quoting(&sent, 8).between(f.peer, f.pod), AllowRelated)
                    .to_pod(error().quoting(&unknown, 40).between(router(f), f.pod), DenyPolicy)
                    .then("no flow but the packet's", |lab| assert_eq!(lab.flows().len(), 1)),
            );
        }
        let asked = f.back(udp(5000, 53));
        let title = format!("errors: {kind}/{code} of the pod about what it received");
        tables.push(
            table(f.named(&title), World::isolated().not_isolated(Ingress))
                .from_pod(error().quoting(&asked, 40).between(f.pod, f.peer), DenyPolicy)
                .to_pod(asked.clone(), AllowPolicy)
                .from_pod(error().quoting(&asked, 40).between(f.pod, f.peer), AllowRelated),
        );
    }
    tables
}

/// A pod that may send anything, receives nothing, and has two addresses.
fn sender(f: Family) -> World {
    World::isolated().not_isolated(Egress).address(f.second)
}

fn s7_3_whom_an_error_reaches(f: Family) -> Vec<Table> {
    let error = || unreachable(f);
    let sent = f.out(udp(40000, 53));
    let received = f.back(udp(5000, 53));
    let receiver = || World::isolated().not_isolated(Ingress).address(f.second);
    vec![
        table(f.named("errors: one that goes to another than the packet's sender"), sender(f))
            .from_pod(sent.clone(), AllowPolicy)
            .to_pod(error().quoting(&sent, 8).between(router(f), f.second), DenyPolicy)
            .to_pod(error().quoting(&sent, 8).between(router(f), f.pod), AllowRelated),
        table(
            f.named("errors: one that quotes what the pod received, sent to the pod"),
            receiver(),
        )
        .to_pod(received.clone(), AllowPolicy)
        .then("ingress is isolated", |lab| {
            lab.withdraw(Ingress, ANY, Ports::Every);
            lab.allow(Ingress, ANY, Ports::One(UDP, 53));
            lab.bump();
        })
        .to_pod(error().quoting(&received, 8).between(router(f), f.pod), DenyPolicy),
        table(f.named("errors: the pod's own to another than the packet's sender"), receiver())
            .to_pod(received.clone(), AllowPolicy)
            .from_pod(error().quoting(&received, 8).between(f.pod, f.stranger), DenyPolicy),
        table(f.named("errors: the pod's own in the name of its other address"), receiver())
            .to_pod(received.clone(), AllowPolicy)
            .from_pod(error().quoting(&received, 8).between(f.second, f.peer), DenyPolicy),
        table(f.named("errors: the pod's own in a stranger's name"), receiver())
            .to_pod(received.clone(), AllowPolicy)
            .from_pod(error().quoting(&received, 8).between(f.stranger, f.peer), DenySpoofed),
        table(f.named("errors: the pod's own that quotes what the pod sent"), sender(f))
            .from_pod(sent.clone(), AllowPolicy)
            .then("egress is isolated but for the flow", |lab| {
                lab.withdraw(Egress, ANY, Ports::Every);
                lab.allow(Egress, ANY, Ports::One(UDP, 53));
                lab.bump();
            })
            .from_pod(error().quoting(&sent, 8).between(f.pod, f.peer), DenyPolicy)
            .to_pod(error().quoting(&sent, 8).between(router(f), f.pod), AllowRelated),
    ]
}

fn s7_3_what_an_error_quotes(f: Family) -> Vec<Table> {
    let error = || unreachable(f);
    let to_pod = |quoted: &Ip, bytes| error().quoting(quoted, bytes).between(router(f), f.pod);
    let sent = f.out(udp(40000, 53).payload(&[9; 64]));
    let ping = f.out(f.ping(7));
    let about_error = f.out(unreachable(f).quoting(&f.back(udp(1, 2)), 8));
    let first = |f: Family| f.out(udp(40000, 53).payload(&[9; 64])).fragment(99, 0, true);
    let later = f.out(raw(UDP, &[0x9c, 0x40, 0, 53, 0, 72, 0, 0])).fragment(99, 72, false);
    let mut tables = vec![
        table(f.named("errors: about the pod's echo request"), sender(f))
            .to_pod(to_pod(&ping, 8), DenyPolicy)
            .from_pod(ping.clone(), AllowPolicy)
            .to_pod(to_pod(&ping, 8), AllowRelated)
            .to_pod(to_pod(&f.out(f.ping(8)), 8), DenyPolicy)
            .to_pod(to_pod(&f.out(f.pong(7)), 8), DenyPolicy),
        table(
            f.named("errors: about the pod's echo reply"),
            World::isolated().not_isolated(Ingress),
        )
        .to_pod(f.back(f.ping(7)), AllowPolicy)
        .then("only this flow is left", |lab| assert_eq!(lab.flows().len(), 1))
        .to_pod(to_pod(&f.out(f.pong(7)), 8), AllowRelated),
        table(f.named("errors: about an error"), sender(f))
            .from_pod(about_error.clone(), AllowPolicy)
            .to_pod(to_pod(&about_error, 48), DenyPolicy),
        table(f.named("errors: with a quote cut short"), sender(f))
            .from_pod(sent.clone(), AllowPolicy)
            .to_pod(to_pod(&sent, 7), DenyPolicy)
            .to_pod(error().between(router(f), f.pod), DenyPolicy)
            .to_pod(error().payload(&[0; 60]).between(router(f), f.pod), DenyPolicy)
            // four of the eight bytes behind the end that its own header tells, in a trailer
            .to_pod(to_pod(&sent, 8).claim_length(52), DenyPolicy)
            .to_pod(to_pod(&sent, 8), AllowRelated),
        table(f.named("errors: about a first fragment, not a later one"), sender(f))
            .from_pod(first(f), AllowPolicy)
            .to_pod(to_pod(&first(f), 8), AllowRelated)
            .to_pod(to_pod(&later, 8), DenyPolicy),
        table(f.named("errors: about a flow that was cut"), sender(f))
            .from_pod(sent.clone(), AllowPolicy)
            .change(|lab| lab.withdraw(Egress, ANY, Ports::Every))
            .to_pod(to_pod(&sent, 8), DenyPolicy)
            .from_pod(sent.clone(), DenyPolicy)
            .to_pod(to_pod(&sent, 8), DenyPolicy),
        table(f.named("errors: about a flow that is forgotten"), sender(f))
            .from_pod(sent.clone(), AllowPolicy)
            .then("62 s pass", |lab| lab.age_flows(62))
            .to_pod(to_pod(&sent, 8), DenyPolicy),
        table(f.named("errors: where everything is allowed, quoting nothing known"), World::open())
            .to_pod(to_pod(&sent, 8), AllowPolicy)
            .then("no flow", |lab| assert_eq!(lab.flows(), [])),
        table(f.named("errors: in fragments are judged as themselves"), sender(f))
            .from_pod(sent.clone(), AllowPolicy)
            .to_pod(to_pod(&sent, 40).fragment(7, 0, true), DenyPolicy),
        table(f.named("errors: quoting the other family"), sender(f))
            .from_pod(
                if f.icmp == ICMP { V6.out(udp(40000, 53)) } else { V4.out(udp(40000, 53)) },
                AllowPolicy,
            )
            .to_pod(
                to_pod(
                    &if f.icmp == ICMP { V6.out(udp(40000, 53)) } else { V4.out(udp(40000, 53)) },
                    40,
                ),
                DenyPolicy,
            ),
    ];
    if f.icmp == ICMP {
        for words in 6..=15 {
            let long = sent.clone().header_words(words);
            tables.push(
                table(format!("errors: quoting a header of {words} words"), sender(f))
                    .from_pod(sent.clone(), AllowPolicy)
                    .to_pod(to_pod(&long, 8), AllowRelated)
                    .to_pod(to_pod(&long, 4), DenyPolicy),
            );
        }
    } else {
        for number in [protocol::HOP_BY_HOP, protocol::DESTINATION, protocol::AH] {
            let long = f.out(udp(40000, 53)).extension(number, 2);
            tables.push(
                table(format!("errors: quoting extension header {number}"), sender(f))
                    .from_pod(sent.clone(), AllowPolicy)
                    .to_pod(to_pod(&long, 8), AllowRelated),
            );
        }
        let routed = f.out(udp(40000, 53)).routing(1);
        tables.push(
            table("errors: quoting a source-routed packet", sender(f))
                .from_pod(sent.clone(), AllowPolicy)
                .to_pod(to_pod(&routed, 8), DenyPolicy),
        );
    }
    tables
}
