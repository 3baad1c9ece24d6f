//! However the objects of a world come in, and whatever came before and went, the index is the same and
//! so is what a fresh compiler makes of it.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::collections::{BTreeMap, VecDeque};

use podgate_policy::compile::Endpoint;
use podgate_policy::engine::Engine;
use podgate_policy::index::{Change, Index};
use podgate_tests::compiling::{changes, endpoints, essence, index};
use podgate_tests::oracle::World;
use podgate_tests::worlds::{config, successive_worlds, worlds};
use proptest::prelude::*;

fn gone(change: &Change) -> Change {
    match change {
        Change::PodSet(pod) => Change::PodGone(pod.key.clone()),
        Change::NamespaceSet(namespace) => Change::NamespaceGone(namespace.name.clone()),
        Change::ServiceSet(service) => Change::ServiceGone(service.key.clone()),
        Change::SliceSet(slice) => Change::SliceGone(slice.key.clone()),
        Change::PolicySet(policy) => Change::PolicyGone(policy.id.clone()),
        other => other.clone(),
    }
}

/// A world, and events that lead to it: its objects may have been others before, or gone in between, and
/// those of an earlier world have come and gone. Only the events of one object keep their order.
fn histories() -> impl Strategy<Value = (World, Vec<Change>)> {
    (successive_worlds(), any::<u64>())
        .prop_map(|((first, last), flips)| {
            let mut queues: BTreeMap<String, VecDeque<Change>> = BTreeMap::new();
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

fn changes_of(world: &World) -> Vec<Change> {
    changes(world).unwrap()
}

/// Endpoints that come and go: all of the world's, every second one, none.
fn endpoints_then(world: &World) -> Vec<Vec<Endpoint>> {
    let all = endpoints(world).unwrap();
    let some = all.iter().step_by(2).cloned().collect();
    vec![some, all, Vec::new()]
}

proptest! {
    #![proptest_config(config(300, file!()))]

    #[test]
    fn any_event_order_gives_the_fresh_build(
        (world, events) in histories(),
        bursts in prop::collection::vec(any::<bool>(), 1..9),
    ) {
        let mut index_by_events = Index::new();
        // one engine follows every step of the way, in bursts of any size
        let mut engine = Engine::new();
        let mut bursts = bursts.into_iter().cycle();
        let mut here = endpoints_then(&world).into_iter().cycle();
        for event in events {
            index_by_events.apply(event);
            if bursts.next() == Some(true) {
                engine.set_endpoints(here.next().unwrap_or_default());
                let changes = index_by_events.take_changes();
                engine.update(&index_by_events, changes);
            }
        }
        let fresh = index(&world).unwrap();
        prop_assert_eq!(&index_by_events, &fresh);
        let endpoints = endpoints(&world).unwrap();
        engine.set_endpoints(endpoints.clone());
        let changes = index_by_events.take_changes();
        engine.update(&index_by_events, changes);
        let expected = essence(&Engine::of(&fresh, endpoints.clone()));
        prop_assert_eq!(essence(&engine), expected.as_str());
        prop_assert_eq!(essence(&Engine::of(&index_by_events, endpoints)), expected);
        // and when everything goes, nothing is left behind
        for change in changes_of(&world) {
            index_by_events.apply(gone(&change));
        }
        let changes = index_by_events.take_changes();
        engine.update(&index_by_events, changes);
        prop_assert_eq!(engine.classes(), 0);
        prop_assert_eq!(&engine.compiled().hosts, &BTreeMap::new());
        prop_assert_eq!(engine.compiled().nets.len() + engine.compiled().tables.len(), 0);
    }

    #[test]
    fn endpoints_in_any_order_compile_alike(world in worlds()) {
        let index = index(&world).unwrap();
        let mut endpoints = endpoints(&world).unwrap();
        let engine = Engine::of(&index, endpoints.clone());
        endpoints.reverse();
        prop_assert_eq!(essence(&engine), essence(&Engine::of(&index, endpoints)));
    }

    #[test]
    fn an_event_that_says_nothing_new_changes_nothing(world in worlds()) {
        let mut index = index(&world).unwrap();
        let known = index.clone();
        for change in changes(&world).unwrap() {
            prop_assert!(!index.apply(change.clone()), "{:?}", change);
        }
        prop_assert_eq!(index, known);
    }
}
