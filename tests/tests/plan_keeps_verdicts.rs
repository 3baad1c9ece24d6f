//! Random pairs of worlds, compiled by one compiler: after every single step of the plan between them no
//! flow that both allow is refused, and none that both refuse is allowed.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use podgate_policy::compile::{Class, EndpointId, Entry, RuleId, Table, Transport};
use podgate_policy::diff::{Change, EntryKey, State, Step, TableChange, plan};
use podgate_policy::engine::{Engine, Part, Touched};
use podgate_policy::index::Index;
use podgate_policy::model::{Direction, Protocol};
use podgate_tests::compiling::{changes_from, endpoints};
use podgate_tests::oracle::World;
use podgate_tests::worlds::{config, probe_addresses, successive_worlds, worlds};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const PAIRS: u32 = 2000;

type Flow = (EndpointId, Direction, IpAddr, Transport);

/// An engine that follows one world after the other.
#[derive(Default)]
struct Follower {
    index: Index,
    engine: Engine,
}

impl Follower {
    /// The state of this world, and what the engine says is different.
    fn follow(&mut self, world: &World) -> (State<Entry>, Touched) {
        let mut touched = self.engine.update(&self.index, self.index.clone().take_changes());
        assert!(touched.is_empty(), "nothing changed: {touched:?}");
        self.index.take_changes();
        for change in changes_from(&self.index, world).unwrap() {
            self.index.apply(change);
        }
        self.engine.set_endpoints(endpoints(world).unwrap());
        let changes = self.index.take_changes();
        touched.merge(self.engine.update(&self.index, changes));
        (State::of(self.engine.compiled(), |_, table| table.entries.clone()), touched)
    }

    fn state(&mut self, world: &World) -> State<Entry> {
        self.follow(world).0
    }
}

/// What the writer makes of what the engine says.
fn change(new: &State<Entry>, touched: &Touched) -> Change<Entry> {
    let hosts = touched.hosts.iter().map(|host| (*host, new.hosts.get(host).copied()));
    let nets = touched.nets.iter().map(|net| (*net, new.nets.get(net).copied()));
    let tables = touched.tables.iter().map(|(id, part)| match (new.tables.get(id), part) {
        (None, _) => (*id, TableChange::Gone),
        (Some(table), Part::Whole) => (*id, TableChange::Whole(table.clone())),
        (Some(table), Part::Classes(classes)) => {
            let column = |class: &Class| (*class, Entry::column(table, *class));
            (*id, TableChange::Classes(classes.iter().map(column).collect()))
        }
    });
    Change { hosts: hosts.collect(), nets: nets.collect(), tables: tables.collect() }
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
fn walk(
    old: &State<Entry>,
    new: &State<Entry>,
    change: &Change<Entry>,
) -> Result<(u64, u64), TestCaseError> {
    let (before, after) = (verdicts(old), verdicts(new));
    let steps = plan(old, change);
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
        let mut follower = Follower::default();
        let old = follower.state(&old);
        let (new, touched) = follower.follow(&new);
        let change = change(&new, &touched);
        let everything = Change::between(&old, &new);
        // in which order entries of one table go is not settled by what is different; `walk` judges every order
        let steps_of = |change| {
            let mut steps: Vec<_> =
                plan(&old, change).iter().map(|step| format!("{step:?}")).collect();
            steps.sort_unstable();
            steps
        };
        prop_assert_eq!(steps_of(&change), steps_of(&everything), "all differences are named");
        let by_twin = |step: &Step<Entry>| matches!(step, Step::SetEntry { key, .. } if key.class.is_transient());
        twins.set(twins.get() + u64::from(plan(&old, &change).iter().any(by_twin)));
        let (taken, compared) = walk(&old, &new, &change)?;
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
        let mut follower = Follower::default();
        let mut now = follower.state(&old);
        let (new, mut touched) = follower.follow(&new);
        let steps = plan(&now, &change(&new, &touched));
        let taken = stop.index(steps.len() + 1);
        steps.into_iter().take(taken).for_each(|step| now.apply(step));
        // what was not done is still named when the next change comes
        let (third, more) = follower.follow(&third);
        touched.merge(more);
        touched.tables.values_mut().for_each(|part| *part = Part::Whole);
        walk(&now, &third, &change(&third, &touched))?;
        Ok(())
    });
    result.unwrap();
}

#[test]
fn equal_states_need_no_step() {
    let mut runner = TestRunner::new(config(50, file!()));
    let result = runner.run(&worlds(), |world| {
        let mut follower = Follower::default();
        let old = follower.state(&world);
        let (new, touched) = follower.follow(&world);
        prop_assert!(touched.is_empty(), "{:?}", touched);
        prop_assert_eq!(&old, &new);
        prop_assert_eq!(plan(&old, &Change::between(&old, &new)), vec![]);
        prop_assert_eq!(plan(&State::default(), &Change::between(&old, &new)), vec![]);
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
        nets: Default::default(),
        tables: BTreeMap::from([(endpoint, BTreeMap::from([(entry(allowed), RuleId(3))]))]),
    };
    for (old, new) in [
        (state(1, 2, 2), state(3, 2, 1)), // `a` leaves the class that gets the entry
        (state(3, 2, 1), state(1, 2, 2)), // `a` joins the class that loses it
        (state(1, 2, 1), state(2, 1, 1)), // two change places
        (state(1, 2, 1), state(2, 1, 2)),
    ] {
        walk(&old, &new, &Change::between(&old, &new)).unwrap();
    }
}
