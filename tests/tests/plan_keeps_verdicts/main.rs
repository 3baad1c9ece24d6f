//! Random pairs of worlds, compiled by one compiler: after every single step of the plan between them no
//! flow that both allow is refused, and none that both refuse is allowed. Where entries may deny, each verdict changes at
//! most once.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod walk;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use podgate_policy::compile::{Engine, EngineDelta, TableDelta};
use podgate_policy::diff::{Change, EntryKey, State, Step, TableChange, plan};
use podgate_policy::index::Index;
use podgate_policy::model::Direction;
use podgate_policy::tables::{Class, Decision, EndpointId, Entry, RuleId, Table};
use podgate_tests::compiling::{self, endpoints};
use podgate_tests::oracle::World;
use podgate_tests::worlds::{
    config, ranked_worlds, successive_ranked_worlds, successive_worlds, without_audits, worlds,
};
use policyd::encode::{self, MapKey};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use walk::{assert_alike, walk};

const PAIRS: u32 = 2000;
const RANKED_PAIRS: u32 = 500;
const ENCODED_PAIRS: u32 = 200;

/// An engine that follows one world after the other.
#[derive(Default)]
struct Follower {
    index: Index,
    engine: Engine,
}

impl Follower {
    /// The state of this world, and what the engine says is different.
    fn follow(&mut self, world: &World) -> (State<Entry>, EngineDelta) {
        let mut touched = self.engine.update(&self.index, self.index.clone().take_changes());
        assert!(touched.is_empty(), "nothing changed: {touched:?}");
        self.index.take_changes();
        compiling::follow(&mut self.index, world).unwrap();
        self.engine.set_endpoints(endpoints(world).unwrap());
        let changes = self.index.take_changes();
        touched.merge(self.engine.update(&self.index, changes));
        (State::of(self.engine.compiled(), |_, table| table.entries.clone()), touched)
    }

    fn state(&mut self, world: &World) -> State<Entry> {
        self.follow(world).0
    }

    /// The state of the last world with the keys of the kernel's map.
    fn keys(&self) -> State<MapKey> {
        let origin = |rule| self.engine.origin(rule);
        let encode = |id: EndpointId, table: &Table| encode::table(id.0, &table.entries, origin);
        State::of(self.engine.compiled(), encode)
    }
}

/// What the writer makes of what the engine says.
fn change(new: &State<Entry>, touched: &EngineDelta) -> Change<Entry> {
    let hosts = touched.hosts.iter().map(|host| (*host, new.hosts.get(host).copied()));
    let nets = touched.nets.iter().map(|net| (*net, new.nets.get(net).copied()));
    let tables = touched.tables.iter().map(|(id, part)| match (new.tables.get(id), part) {
        (None, _) => (*id, TableChange::Gone),
        (Some(table), TableDelta::Whole) => (*id, TableChange::Whole(table.clone())),
        (Some(table), TableDelta::Classes(classes)) => {
            let column = |class: &Class| (*class, Entry::column(table, *class));
            (*id, TableChange::Classes(classes.iter().map(column).collect()))
        }
    });
    Change {
        hosts: hosts.collect(),
        nets: nets.collect(),
        tables: tables.collect(),
        ranked: new.ranked,
    }
}

/// The same with the keys of the kernel's map, of which a table has many more.
fn encoded(engine: &Engine, change: &Change<Entry>) -> Change<MapKey> {
    let origin = |rule| engine.origin(rule);
    let table = |(id, change): (&EndpointId, &TableChange<Entry>)| {
        let encode = |entries| encode::table(id.0, entries, origin);
        let change = match change {
            TableChange::Whole(entries) => TableChange::Whole(encode(entries)),
            TableChange::Classes(columns) => {
                let columns = columns.iter().map(|(class, column)| (*class, encode(column)));
                TableChange::Classes(columns.collect())
            }
            TableChange::Gone => TableChange::Gone,
        };
        (*id, change)
    };
    Change {
        hosts: change.hosts.clone(),
        nets: change.nets.clone(),
        tables: change.tables.iter().map(table).collect(),
        ranked: change.ranked,
    }
}

/// What pairs of worlds took.
#[derive(Debug, Default)]
struct Tally {
    steps: Cell<u64>,
    judged: Cell<u64>,
    /// Plans that used a transient class.
    transient: Cell<u64>,
}

fn walk_pairs(pairs: u32, worlds: impl Strategy<Value = (World, World)>) {
    let mut runner = TestRunner::new(config(pairs, file!()));
    let tally = Tally::default();
    let result = runner.run(&worlds, |(old, new)| {
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
        let is_transient = |step: &Step<Entry>| matches!(step, Step::SetEntry { key, .. } if key.class.is_transient());
        let transient = u64::from(plan(&old, &change).iter().any(is_transient));
        tally.transient.set(tally.transient.get() + transient);
        let (taken, compared) = walk(&old, &new, &change)?;
        tally.steps.set(tally.steps.get() + taken);
        tally.judged.set(tally.judged.get() + compared);
        Ok(())
    });
    result.unwrap();
    println!("{pairs} pairs of worlds: {tally:?}");
    let transient = tally.transient.get();
    assert!(transient > 0, "no plan needed one: the worlds are too tame to prove the order");
}

#[test]
fn no_step_changes_a_verdict_that_both_states_share() {
    walk_pairs(PAIRS, successive_worlds());
}

#[test]
fn each_verdict_changes_at_most_once_where_rules_are_ranked() {
    walk_pairs(RANKED_PAIRS, successive_ranked_worlds());
}

/// Each operation on the kernel's maps, of which an entry takes several.
#[test]
fn nor_does_an_operation_on_the_maps() {
    let mut runner = TestRunner::new(config(ENCODED_PAIRS, file!()));
    let (steps, judged) = (Cell::new(0), Cell::new(0));
    let pairs = prop_oneof![1 => successive_worlds(), 3 => successive_ranked_worlds()];
    let result = runner.run(&pairs, |(old, new)| {
        let mut follower = Follower::default();
        let old_entries = follower.state(&old);
        let old = follower.keys();
        let (entries, touched) = follower.follow(&new);
        let new = follower.keys();
        assert_alike(&old_entries, &old)?;
        assert_alike(&entries, &new)?;
        let change = encoded(&follower.engine, &change(&entries, &touched));
        let (taken, compared) = walk(&old, &new, &change)?;
        steps.set(steps.get() + taken);
        judged.set(judged.get() + compared);
        Ok(())
    });
    result.unwrap();
    println!(
        "{ENCODED_PAIRS} pairs of worlds, {} operations, {} verdicts",
        steps.get(),
        judged.get()
    );
}

fn stop_half_way(
    pairs: u32,
    successive: impl Strategy<Value = (World, World)>,
    worlds: impl Strategy<Value = World>,
) {
    let mut runner = TestRunner::new(config(pairs, file!()));
    let worlds = (successive, worlds, any::<prop::sample::Index>());
    let result = runner.run(&worlds, |((old, new), third, stop)| {
        let mut follower = Follower::default();
        let mut now = follower.state(&old);
        let (new, mut touched) = follower.follow(&new);
        let steps = plan(&now, &change(&new, &touched));
        let taken = stop.index(steps.len() + 1);
        // as policyd's shadow of the maps
        now.ranked |= new.ranked;
        steps.into_iter().take(taken).for_each(|step| now.apply(step));
        // what was not done is still named when the next change comes
        let (third, more) = follower.follow(&third);
        touched.merge(more);
        touched.tables.values_mut().for_each(|part| *part = TableDelta::Whole);
        walk(&now, &third, &change(&third, &touched))?;
        Ok(())
    });
    result.unwrap();
}

#[test]
fn a_plan_that_stopped_half_way_is_continued_from_where_it_stopped() {
    stop_half_way(100, successive_worlds(), worlds());
}

#[test]
fn so_is_one_of_ranked_rules() {
    // also to and from worlds without any
    let third = prop_oneof![2 => ranked_worlds(), 1 => worlds()];
    let first = prop_oneof![2 => successive_ranked_worlds(), 1 => from_plain()];
    stop_half_way(100, first, third);
}

/// From a world without ranked rules to one with them.
fn from_plain() -> impl Strategy<Value = (World, World)> {
    successive_ranked_worlds().prop_map(|(old, new)| {
        let old =
            without_audits(World { cluster_policies: Vec::new(), local_rules: Vec::new(), ..old });
        (old, new)
    })
}

#[test]
fn equal_states_need_no_step() {
    let mut runner = TestRunner::new(config(50, file!()));
    let result = runner.run(&prop_oneof![worlds(), ranked_worlds()], |world| {
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
        ports: podgate_policy::tables::PortMatch::Everything,
    };
    let state = |a_class, b_class, allowed| State {
        hosts: BTreeMap::from([(a, Class(a_class)), (b, Class(b_class))]),
        nets: Default::default(),
        tables: BTreeMap::from([(
            endpoint,
            BTreeMap::from([(entry(allowed), Decision::allow(RuleId(3)))]),
        )]),
        ranked: false,
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
