//! Accounting: what a pod exchanged with whom, by where that is.

use podgate_bpf::abi::{Account, AccountKey, Direction, LimitsFlag, LimitsRecord, Scope};
use podgate_testkit::packet::{addr, arp};
use podgate_tests::kernel::Lab;

use crate::prelude::*;

pub(crate) fn tables() -> Vec<Table> {
    let mut tables = both(by_scope);
    tables.push(links());
    tables
}

fn accounted(lab: &mut Lab) {
    lab.datapath().maps.limits().open_accounts(lab.owner()).unwrap();
    let flags = LimitsFlag::Account as u8;
    lab.limit(0, &LimitsRecord { flags, ..LimitsRecord::default() });
}

fn account(lab: &Lab, scope: Scope, direction: Direction) -> Account {
    let key = AccountKey {
        owner: lab.owner(),
        scope: scope as u8,
        direction: direction as u8,
        pad: [0; 2],
    };
    lab.datapath().maps.limits().accounts().unwrap()[&key]
}

/// All accounts but those that are empty.
fn accounts(lab: &Lab) -> Vec<(Scope, Direction, Account)> {
    let mut found = Vec::new();
    for &scope in Scope::ALL {
        for direction in [Egress, Ingress] {
            let account = account(lab, scope, direction);
            if account != (Account { packets: 0, bytes: 0, flows: 0 }) {
                found.push((scope, direction, account));
            }
        }
    }
    found
}

fn is(packets: u64, bytes: usize, flows: u64) -> Account {
    Account { packets, bytes: bytes as u64, flows }
}

fn by_scope(f: Family) -> Vec<Table> {
    let length = |packet: Ip| packet.frame().len();
    let syn = length(f.out(tcp(40001, 80).syn()));
    let data = || tcp(80, 40001).ack().payload(&[7; 900]);
    let answer = length(f.back(data()));
    let service = || World::open().service(Service::new(f.service, 80, TCP, &[(f.peer, 80)]));
    let near = move |lab: &mut Lab| {
        let length = if f.icmp == ICMP { 24 } else { 64 };
        let limits = lab.datapath().maps.limits();
        limits.set_scope((addr(f.peer), length), Scope::OtherZone).unwrap();
        let host = if f.icmp == ICMP { 32 } else { 128 };
        limits.set_scope((addr(f.peer), host), Scope::SameNode).unwrap();
        assert_eq!(limits.scopes().unwrap().len(), 2);
        accounted(lab);
    };
    vec![
        table(f.named("accounts: packets, bytes and flows each way"), World::open())
            .then("accounted", near)
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .to_pod(f.back(tcp(80, 40001).syn_ack()), AllowFlow)
            .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
            .to_pod(f.back(data()), AllowFlow)
            .to_pod(f.back(udp(53, 40000)), AllowPolicy)
            .then("what was exchanged", move |lab| {
                let datagram = length(f.back(udp(53, 40000)));
                let wanted = vec![
                    (Scope::SameNode, Egress, is(2, 2 * syn, 1)),
                    (Scope::SameNode, Ingress, is(3, syn + answer + datagram, 1)),
                ];
                assert_eq!(accounts(lab), wanted);
            }),
        table(f.named("accounts: the longest prefix says where a peer is"), World::open())
            .then("accounted", near)
            .from_pod(tcp(40001, 80).syn().between(f.pod, f.second), AllowPolicy)
            .from_pod(tcp(40001, 80).syn().between(f.pod, f.stranger), AllowPolicy)
            .then("what was exchanged", move |lab| {
                let wanted = vec![
                    (Scope::External, Egress, is(1, syn, 1)),
                    (Scope::OtherZone, Egress, is(1, syn, 1)),
                ];
                assert_eq!(accounts(lab), wanted);
            }),
        table(f.named("accounts: a peer's place changes with the epoch"), World::open())
            .then("accounted", accounted)
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy)
            .then("it is near", near)
            .from_pod(f.out(tcp(40001, 80).ack()), AllowFlow)
            .then("what was exchanged", move |lab| {
                let wanted = vec![
                    (Scope::External, Egress, is(1, syn, 1)),
                    (Scope::SameNode, Egress, is(1, syn, 0)),
                ];
                assert_eq!(accounts(lab), wanted);
            }),
        table(f.named("accounts: what is denied is not exchanged"), client())
            .then("accounted", near)
            .from_pod(f.out(tcp(40001, 81).syn()), DenyPolicy)
            .to_pod(f.back(tcp(81, 40001).ack()), DenyPolicy)
            .then("nothing", |lab| assert_eq!(accounts(lab), [])),
        table(f.named("accounts: through a service, with the endpoint"), service())
            .then("accounted", near)
            .from_pod_as(
                tcp(40001, 80).syn().between(f.pod, f.service),
                AllowPolicy,
                f.out(tcp(40001, 80).syn()),
            )
            .from_pod_as(
                tcp(40001, 80).ack().between(f.pod, f.service),
                AllowFlow,
                f.out(tcp(40001, 80).ack()),
            )
            .then("what was exchanged", move |lab| {
                assert_eq!(accounts(lab), [(Scope::SameNode, Egress, is(2, 2 * syn, 1))]);
            }),
        table(f.named("accounts: an error about a flow, with its sender"), World::open())
            .then("accounted", near)
            .from_pod(tcp(40001, 80).syn().between(f.pod, f.stranger), AllowPolicy)
            .then("a router of the zone answers", move |lab| {
                let (kind, code) = if f.icmp == ICMP { (3, 1) } else { (1, 0) };
                let about = tcp(40001, 80).syn().between(f.pod, f.stranger);
                let error = f.back(icmp(kind, code, [0; 4]).quoting(&about, 8));
                let met = lab.send(Ingress, &error.frame(), Via::Uplink);
                assert_eq!(met.reason(), Some(AllowRelated));
                let wanted = is(1, length(error), 0);
                assert_eq!(account(lab, Scope::SameNode, Ingress), wanted);
            }),
        table(f.named("accounts: closed, there are none"), World::open())
            .then("accounted", near)
            .then("closed", |lab| {
                let limits = lab.datapath().maps.limits();
                limits.close_accounts(lab.owner()).unwrap();
                assert!(limits.accounts().unwrap().is_empty());
            })
            .from_pod(f.out(tcp(40001, 80).syn()), AllowPolicy),
    ]
}

fn links() -> Table {
    table("accounts: what only serves the link is not accounted", World::open())
        .then("accounted", accounted)
        .from_pod(arp(POD, PEER), AllowControl)
        .then("nothing", |lab| assert_eq!(accounts(lab), []))
}
