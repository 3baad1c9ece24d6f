//! Random pairs of worlds, compiled by one compiler: after every single step of the plan between them no
//! flow that both allow is refused, and none that both refuse is allowed.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use podgate_policy::compile::{Class, Compiler, EndpointId, Entry, RuleId, Table, Transport};
use podgate_policy::diff::{State, Step, plan};
use podgate_policy::model::{Direction, Protocol};
use podgate_tests::compiling::{endpoints, index};
use podgate_tests::oracle::World;
use podgate_tests::worlds::{config, probe_addresses, successive_worlds, worlds};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const PAIRS: u32 = 2000;

type Flow = (EndpointId, Direction, IpAddr, Transport);

fn state(compiler: &mut Compiler, world: &World) -> State<Entry> {
    let compiled = compiler.compile(&index(world).unwrap(), &endpoints(world).unwrap());
    State::of(&compiled, |_, table| table.entries.clone())
}

fn transports() -> Vec<Transport> {
    let ports = [53, 80, 81, 443, 8080];
    let tcp = ports.map(|port| Transport::Port(Protocol::Tcp, port));
    let udp = [53, 80].map(|port| Transport::Port(Protocol::Udp, port));
    tcp.into_iter().chain(udp).chain([Transport::Other]).collect()
}

/// The flows of an endpoint and their verdicts. Addresses with their classes, which the caller keeps.
fn judge(
    state: &State<Entry>,
    endpoint: EndpointId,
    classes: &[(IpAddr, Class)],
) -> Vec<(Flow, bool)> {
    let Some(entries) = state.tables.get(&endpoint) else { return Vec::new() };
    let table = Table { entries: entries.clone(), ..Table::default() };
    let mut verdicts = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for (address, class) in classes {
            for transport in transports() {
                let allowed = table.lookup(direction, *class, transport).is_some();
                verdicts.push(((endpoint, direction, *address, transport), allowed));
            }
        }
    }
    verdicts
}

fn classes(state: &State<Entry>) -> Vec<(IpAddr, Class)> {
    let classifier = state.classifier();
    let addresses = probe_addresses().into_iter();
    addresses.map(|address| (address, classifier.class_of(address))).collect()
}

fn verdicts(state: &State<Entry>) -> BTreeMap<EndpointId, Vec<(Flow, bool)>> {
    let classes = classes(state);
    state.tables.keys().map(|endpoint| (*endpoint, judge(state, *endpoint, &classes))).collect()
}

/// Takes the steps of the plan and judges after each what it may have changed. Returns the number of steps and of
/// verdicts.
fn walk(old: &State<Entry>, new: &State<Entry>) -> Result<(u64, u64), TestCaseError> {
    let (before, after) = (verdicts(old), verdicts(new));
    let steps = plan(old, new);
    let (mut now, mut members, mut judged) = (old.clone(), classes(old), 0);
    for (number, step) in steps.iter().enumerate() {
        now.apply(step.clone());
        let touched = match step {
            Step::SetEntry { endpoint, .. }
            | Step::RemoveEntry { endpoint, .. }
            | Step::NewTable { endpoint, .. }
            | Step::DropTable { endpoint } => Some(*endpoint),
            _ => None,
        };
        let moved = classes(&now);
        let changed = match touched {
            Some(_) => moved.clone(),
            None => moved.iter().filter(|of| !members.contains(of)).copied().collect(),
        };
        members = moved;
        for endpoint in now.tables.keys().filter(|id| touched.is_none_or(|only| only == **id)) {
            // a table that is about to vanish is held to nothing
            let Some(after) = after.get(endpoint) else { continue };
            for (place, (flow, allowed)) in judge(&now, *endpoint, &changed).into_iter().enumerate()
            {
                let of = |verdicts: &Vec<(Flow, bool)>| match touched {
                    Some(_) => verdicts[place].1,
                    None => verdicts.iter().find(|(known, _)| *known == flow).unwrap().1,
                };
                // an endpoint without a table in the old state is held to the new one at once
                let (to, from) = (of(after), before.get(endpoint).map_or(of(after), of));
                judged += 1;
                prop_assert!(
                    from != to || allowed == from,
                    "{:?} is {} in both states, but {} after step {} of {:#?}\nold {:#?}\nnew {:#?}",
                    flow,
                    from,
                    allowed,
                    number,
                    steps,
                    old,
                    new
                );
            }
        }
    }
    prop_assert_eq!(&now, new, "where the plan ends");
    Ok((steps.len() as u64, judged))
}

#[test]
fn no_step_changes_a_verdict_that_both_states_share() {
    let mut runner = TestRunner::new(config(PAIRS, file!()));
    let (steps, judged, twins) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let result = runner.run(&successive_worlds(), |(old, new)| {
        let mut compiler = Compiler::new();
        let (old, new) = (state(&mut compiler, &old), state(&mut compiler, &new));
        let by_twin = |step: &Step<Entry>| matches!(step, Step::SetEntry { key, .. } if key.class.is_transient());
        twins.set(twins.get() + u64::from(plan(&old, &new).iter().any(by_twin)));
        let (taken, compared) = walk(&old, &new)?;
        steps.set(steps.get() + taken);
        judged.set(judged.get() + compared);
        Ok(())
    });
    result.unwrap();
    println!(
        "{PAIRS} pairs of worlds, {} steps, {} verdicts compared; {} plans needed a twin",
        steps.get(),
        judged.get(),
        twins.get()
    );
    assert!(twins.get() > 0, "no plan needed a twin: the worlds are too tame to prove the order");
}

#[test]
fn a_plan_that_stopped_half_way_is_continued_from_where_it_stopped() {
    let mut runner = TestRunner::new(config(100, file!()));
    let worlds = (successive_worlds(), worlds(), any::<prop::sample::Index>());
    let result = runner.run(&worlds, |((old, new), third, stop)| {
        let mut compiler = Compiler::new();
        let (mut now, new) = (state(&mut compiler, &old), state(&mut compiler, &new));
        let third = state(&mut compiler, &third);
        let steps = plan(&now, &new);
        let taken = stop.index(steps.len() + 1);
        steps.into_iter().take(taken).for_each(|step| now.apply(step));
        walk(&now, &third)?;
        Ok(())
    });
    result.unwrap();
}

#[test]
fn equal_states_need_no_step() {
    let mut runner = TestRunner::new(config(50, file!()));
    let result = runner.run(&worlds(), |world| {
        let mut compiler = Compiler::new();
        let (old, new) = (state(&mut compiler, &world), state(&mut compiler, &world));
        prop_assert_eq!(plan(&old, &new), vec![]);
        Ok(())
    });
    result.unwrap();
}

/// The smallest case of the module's documentation, so that it is not left to chance.
#[test]
fn a_pod_that_leaves_a_class_does_not_profit_from_its_new_entries() {
    let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let endpoint = EndpointId(1);
    let entry = |class| Entry {
        direction: Direction::Ingress,
        class: Class(class),
        ports: podgate_policy::compile::PortMatch::Everything,
    };
    let state = |a_class, b_class, allowed| State {
        hosts: BTreeMap::from([(a, Class(a_class)), (b, Class(b_class))]),
        nets: BTreeMap::new(),
        tables: BTreeMap::from([(endpoint, BTreeMap::from([(entry(allowed), RuleId(3))]))]),
    };
    for (old, new) in [
        (state(1, 2, 2), state(3, 2, 1)), // `a` leaves the class that gets the entry
        (state(3, 2, 1), state(1, 2, 2)), // `a` joins the class that loses it
        (state(1, 2, 1), state(2, 1, 1)), // two change places
        (state(1, 2, 1), state(2, 1, 2)),
    ] {
        walk(&old, &new).unwrap();
    }
}
