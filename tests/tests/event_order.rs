//! However the objects of a world come in, and whatever came before and went, the index is the same and
//! so is what a fresh compiler makes of it.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::collections::{BTreeMap, VecDeque};

use podgate_policy::compile::Engine;
use podgate_policy::index::Index;
use podgate_policy::object::Event;
use podgate_policy::tables::Endpoint;
use podgate_tests::compiling::{changes, endpoints, essence, index, set_local_rules};
use podgate_tests::oracle::World;
use podgate_tests::worlds::{
    config, ranked_worlds, successive_ranked_worlds, successive_worlds, worlds,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

fn gone(event: &Event) -> Event {
    match event {
        Event::Set(object) => Event::Gone(object.id()),
        Event::Gone(_) => event.clone(),
    }
}

/// A world, and events that lead to it: its objects may have been others before, or gone in between, and
/// those of an earlier world have come and gone. Only the events of one object keep their order.
fn histories(
    worlds: impl Strategy<Value = (World, World)>,
) -> impl Strategy<Value = (World, Vec<Event>)> {
    (worlds, any::<u64>())
        .prop_map(|((first, last), flips)| {
            let mut queues: BTreeMap<String, VecDeque<Event>> = BTreeMap::new();
            for change in changes(&first).unwrap() {
                let gone = gone(&change);
                queues.insert(format!("{gone:?}"), VecDeque::from([change, gone]));
            }
            for (number, change) in changes(&last).unwrap().into_iter().enumerate() {
                let queue = queues.entry(format!("{:?}", gone(&change))).or_default();
                if flips >> (number % 64) & 1 == 1 {
                    queue.truncate(1); // changed in place, not gone and come again
                }
                queue.push_back(change);
            }
            (last, queues.into_values().collect::<Vec<_>>())
        })
        .prop_flat_map(|(last, queues)| {
            let turns = queues.iter().enumerate();
            let turns = turns.flat_map(|(queue, events)| vec![queue; events.len()]);
            let turns: Vec<usize> = turns.collect();
            (Just(last), Just(queues), Just(turns).prop_shuffle())
        })
        .prop_map(|(last, mut queues, turns)| {
            let events = turns.into_iter().map(|queue| queues[queue].pop_front().unwrap());
            (last, events.collect())
        })
}

fn changes_of(world: &World) -> Vec<Event> {
    changes(world).unwrap()
}

/// Endpoints that come and go: all of the world's, every second one, none.
fn endpoints_then(world: &World) -> Vec<Vec<Endpoint>> {
    let all = endpoints(world).unwrap();
    let some = all.iter().step_by(2).cloned().collect();
    vec![some, all, Vec::new()]
}

/// One index and one engine follow every step of the way, in bursts of any size.
fn follow(world: &World, events: Vec<Event>, bursts: Vec<bool>) -> Result<(), TestCaseError> {
    let mut index_by_events = Index::new();
    let mut engine = Engine::new();
    let mut bursts = bursts.into_iter().cycle();
    let mut here = endpoints_then(world).into_iter().cycle();
    let half = events.len() / 2;
    for (number, event) in events.into_iter().enumerate() {
        index_by_events.apply(event);
        if number == half {
            // of pods that are there and of such as come, go or never are
            set_local_rules(&mut index_by_events, world).unwrap();
        }
        if bursts.next() == Some(true) {
            engine.set_endpoints(here.next().unwrap_or_default());
            let changes = index_by_events.take_changes();
            engine.update(&index_by_events, changes);
        }
    }
    let fresh = index(world).unwrap();
    prop_assert_eq!(&index_by_events, &fresh);
    let endpoints = endpoints(world).unwrap();
    engine.set_endpoints(endpoints.clone());
    let changes = index_by_events.take_changes();
    engine.update(&index_by_events, changes);
    let expected = essence(&Engine::of(&fresh, endpoints.clone()));
    let differing = |engine| -> Vec<String> {
        essence(engine).symmetric_difference(&expected).cloned().collect()
    };
    prop_assert_eq!(differing(&engine), Vec::<String>::new());
    prop_assert_eq!(differing(&Engine::of(&index_by_events, endpoints)), Vec::<String>::new());
    // and when everything goes, nothing is left behind
    set_local_rules(&mut index_by_events, &World::default()).unwrap();
    for change in changes_of(world) {
        index_by_events.apply(gone(&change));
    }
    let changes = index_by_events.take_changes();
    engine.update(&index_by_events, changes);
    prop_assert_eq!(engine.classes(), 0);
    prop_assert_eq!(&engine.compiled().hosts, &BTreeMap::new());
    prop_assert_eq!(engine.compiled().nets.len() + engine.compiled().tables.len(), 0);
    Ok(())
}

proptest! {
    #![proptest_config(config(300, file!()))]

    #[test]
    fn any_event_order_gives_the_fresh_build(
        (world, events) in histories(successive_worlds()),
        bursts in prop::collection::vec(any::<bool>(), 1..9),
    ) {
        follow(&world, events, bursts)?;
    }

    #[test]
    fn any_event_order_gives_the_fresh_build_with_ranked_rules(
        (world, events) in histories(successive_ranked_worlds()),
        bursts in prop::collection::vec(any::<bool>(), 1..9),
    ) {
        follow(&world, events, bursts)?;
    }

    #[test]
    fn endpoints_in_any_order_compile_alike(world in prop_oneof![worlds(), ranked_worlds()]) {
        let index = index(&world).unwrap();
        let mut endpoints = endpoints(&world).unwrap();
        let engine = Engine::of(&index, endpoints.clone());
        endpoints.reverse();
        prop_assert_eq!(essence(&engine), essence(&Engine::of(&index, endpoints)));
    }

    #[test]
    fn an_event_that_says_nothing_new_changes_nothing(
        world in prop_oneof![worlds(), ranked_worlds()],
    ) {
        let mut index = index(&world).unwrap();
        let known = index.clone();
        for change in changes(&world).unwrap() {
            prop_assert!(!index.apply(change.clone()), "{:?}", change);
        }
        set_local_rules(&mut index, &world).unwrap();
        prop_assert_eq!(index, known);
    }
}
