//! Random states whose entries may deny: each step of the plan between two of them changes a verdict only from that of the
//! old state to that of the new one, and none changes back.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podgate_policy::diff::{Change, State, plan};
use podgate_policy::model::{Direction, Protocol};
use podgate_policy::tables::{
    Class, Decision, Effect, EndpointId, Entry, PortMatch, RuleId, Table, Transport,
};
use proptest::prelude::*;

const CLASSES: u32 = 5;

fn addresses() -> Vec<IpAddr> {
    (0..16).map(|last| IpAddr::from([10, 0, 0, last])).collect()
}

fn packets() -> Vec<Transport> {
    let tcp = (0..8).map(|port| Transport::Port(Protocol::Tcp, port));
    tcp.chain([Transport::Port(Protocol::Udp, 3), Transport::Other]).collect()
}

/// What a table says of a class: nothing, or something of every packet, as the engine writes it.
fn column(class: u32) -> impl Strategy<Value = Vec<(Entry, Decision)>> {
    let effect = prop_oneof![
        Just(Effect::Allow),
        Just(Effect::Deny),
        Just(Effect::Audit),
        Just(Effect::Reject)
    ];
    let decision = (effect, 1u32..4).prop_map(|(effect, rule)| Decision {
        effect,
        rule: RuleId(rule),
        log: false,
    });
    // ranges that do not overlap, an entry for the protocol, and one for everything
    let pieces = prop::collection::vec(prop::option::weighted(0.4, decision.clone()), 4);
    let parts = (decision.clone(), prop::option::of(decision), pieces);
    prop::option::weighted(0.7, parts).prop_map(move |parts| {
        let entry = |ports| Entry { direction: Direction::Ingress, class: Class(class), ports };
        let Some((others, tcp, pieces)) = parts else { return Vec::new() };
        let mut column = vec![(entry(PortMatch::Everything), others)];
        column.extend(tcp.map(|decision| (entry(PortMatch::all(Protocol::Tcp)), decision)));
        for (number, decision) in pieces.into_iter().enumerate() {
            let first = number as u16 * 2;
            let ports = PortMatch::Range { protocol: Protocol::Tcp, first, last: first + 1 };
            column.extend(decision.map(|decision| (entry(ports), decision)));
        }
        column
    })
}

/// Entries that only allow, as of NetworkPolicies.
fn allowing() -> impl Strategy<Value = BTreeMap<Entry, Decision>> {
    let ports = prop_oneof![
        Just(PortMatch::Everything),
        Just(PortMatch::all(Protocol::Tcp)),
        (0u16..8).prop_map(|port| PortMatch::one(Protocol::Tcp, port)),
    ];
    let entry = (0..CLASSES, ports).prop_map(|(class, ports)| Entry {
        direction: Direction::Ingress,
        class: Class(class),
        ports,
    });
    prop::collection::btree_map(
        entry,
        (1u32..4).prop_map(|rule| Decision::allow(RuleId(rule))),
        0..8,
    )
}

fn table() -> impl Strategy<Value = BTreeMap<Entry, Decision>> {
    let columns: Vec<_> = (0..CLASSES).map(|class| column(class).boxed()).collect();
    let ranked = columns.prop_map(|columns| {
        let mut table: BTreeMap<_, _> = columns.into_iter().flatten().collect();
        // what is said of every peer is said of every packet
        let everything = Entry {
            direction: Direction::Ingress,
            class: Class::ANY,
            ports: PortMatch::Everything,
        };
        table.entry(everything).or_insert(Decision::deny(RuleId(9)));
        table
    });
    prop_oneof![3 => ranked, 1 => allowing()]
}

fn state() -> impl Strategy<Value = State<Entry>> {
    let class = || (0..CLASSES).prop_map(Class);
    let address = (0u8..16).prop_map(|last| IpAddr::from([10, 0, 0, last]));
    let prefix = (0u8..16, 26u8..=32).prop_map(|(last, length)| {
        IpNet::new(IpAddr::from([10, 0, 0, last]), length).unwrap().trunc()
    });
    let hosts = prop::collection::btree_map(address, class(), 0..8);
    let nets = prop::collection::btree_map(prefix, class(), 0..6);
    let tables = prop::collection::btree_map((1u32..4).prop_map(EndpointId), table(), 0..3);
    (hosts, nets, tables).prop_map(|(hosts, nets, tables)| State {
        hosts,
        nets: nets.into_iter().collect(),
        tables,
        ranked: true,
    })
}

type Flow = (EndpointId, IpAddr, String);

fn verdicts(state: &State<Entry>) -> BTreeMap<Flow, Option<bool>> {
    let classes = state.classifier();
    let mut verdicts = BTreeMap::new();
    for endpoint in (1..4).map(EndpointId) {
        let entries = state.tables.get(&endpoint);
        let table = entries.map(|of| Table { entries: of.clone(), ..Table::default() });
        for address in addresses() {
            for packet in packets() {
                let class = classes.class_of(address);
                let verdict = table.as_ref().map(|table| {
                    let found = table.lookup(Direction::Ingress, class, packet);
                    found.is_some_and(|decision| decision.effect.passes())
                });
                verdicts.insert((endpoint, address, packet.to_string()), verdict);
            }
        }
    }
    verdicts
}

fn walk(old: &State<Entry>, new: &State<Entry>) -> Result<State<Entry>, TestCaseError> {
    let (before, after) = (verdicts(old), verdicts(new));
    let mut changed: BTreeMap<Flow, bool> = BTreeMap::new();
    let mut now = old.clone();
    let steps = plan(old, &Change::between(old, new));
    for (number, step) in steps.iter().enumerate() {
        now.apply(step.clone());
        for (flow, verdict) in verdicts(&now) {
            // a table that is about to vanish is held to nothing
            if !new.tables.contains_key(&flow.0) {
                continue;
            }
            let (was, will_be) = (before[&flow], after[&flow]);
            let arrived = changed.get(&flow).copied().unwrap_or(false);
            let wanted = if arrived { will_be } else { was };
            if verdict != wanted {
                prop_assert!(
                    !arrived && verdict == will_be,
                    "{:?} goes from {:?} to {:?}, and is {:?} after step {} of {:#?}\nold {:#?}\nnew {:#?}",
                    flow,
                    was,
                    will_be,
                    verdict,
                    number,
                    steps,
                    old,
                    new
                );
                changed.insert(flow, true);
            }
        }
    }
    Ok(now)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_verdict_changes_once_and_only_to_the_new_one(old in state(), new in state()) {
        let end = walk(&old, &new)?;
        prop_assert_eq!(end, new);
    }

    /// A plan that stops anywhere is continued from there by the next one, which keeps the promise too.
    #[test]
    fn a_plan_that_stopped_is_continued(
        old in state(),
        new in state(),
        third in state(),
        stop in any::<prop::sample::Index>(),
    ) {
        let steps = plan(&old, &Change::between(&old, &new));
        let mut now = old.clone();
        let taken = stop.index(steps.len() + 1);
        steps.into_iter().take(taken).for_each(|step| now.apply(step));
        let end = walk(&now, &third)?;
        prop_assert_eq!(end, third);
    }
}
