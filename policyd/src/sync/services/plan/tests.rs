//! Every single operation of every plan, from every state that an interrupted plan leaves.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

const FRONTENDS: u16 = 2;
const BACKENDS: u8 = 5;

fn frontend(number: u16) -> Frontend {
    Frontend { address: [10, 96, 0, 1].into(), port: number, protocol: 6 }
}

fn backend(number: u8) -> Backend {
    Backend { address: [10, 0, 0, number].into(), port: 80 }
}

fn wanted() -> impl Strategy<Value = Option<Wanted>> {
    let state = prop_oneof![
        3 => Just(None),
        4 => Just(Some(BackendState::Ready)),
        1 => Just(Some(BackendState::Serving)),
    ];
    let states = prop::collection::vec(state, usize::from(BACKENDS));
    (states, 0u32..3).prop_map(|(states, number)| {
        let affinity = NonZeroU32::new(number)
            .map(|number| Affinity { seconds: NonZeroU32::MIN, number: Some(number) });
        let numbered = states.into_iter().zip(0..);
        let backends: BTreeMap<_, _> =
            numbered.filter_map(|(state, nth)| Some((backend(nth), state?))).collect();
        let usable = backends.values().any(|state| *state == BackendState::Ready);
        usable.then_some(Wanted { affinity, backends })
    })
}

type World = BTreeMap<Frontend, Wanted>;

fn worlds() -> impl Strategy<Value = Vec<World>> {
    let world = prop::collection::vec(wanted(), usize::from(FRONTENDS)).prop_map(|all| {
        let numbered = all.into_iter().zip(0..);
        numbered.filter_map(|(wanted, nth)| Some((frontend(nth), wanted?))).collect()
    });
    prop::collection::vec(world, 1..6)
}

fn ready(world: &World, frontend: &Frontend) -> BTreeSet<Backend> {
    let backends = world.get(frontend).into_iter().flat_map(|wanted| &wanted.backends);
    backends.filter(|(_, state)| **state == BackendState::Ready).map(|(of, _)| *of).collect()
}

/// What holds at every moment between `before` (what could be picked when the change began) and `after`.
fn check(
    state: &ServiceState,
    before: &BTreeMap<Frontend, BTreeSet<Backend>>,
    after: &World,
) -> Result<(), TestCaseError> {
    for number in 0..FRONTENDS {
        let frontend = frontend(number);
        let old = before.get(&frontend).cloned().unwrap_or_default();
        let new = ready(after, &frontend);
        let Some(entry) = state.services.get(&frontend) else {
            prop_assert!(old.is_empty() || new.is_empty(), "{frontend:?} has vanished");
            continue;
        };
        prop_assert!(entry.count > 0 && entry.id > 0);
        for slot in 0..entry.count {
            let picked = state.slots.get(&(entry.id, slot)).copied();
            let Some(picked) = picked else {
                return Err(TestCaseError::fail(format!("slot {slot} of {entry:?} is missing")));
            };
            prop_assert!(
                old.contains(&picked) || new.contains(&picked),
                "{picked:?} is of neither"
            );
            let known = state.backends.get(&(entry.id, picked));
            prop_assert_eq!(known, Some(&BackendState::Ready), "{:?}", picked);
        }
    }
    Ok(())
}

fn picked(state: &ServiceState) -> BTreeMap<Frontend, BTreeSet<Backend>> {
    let entries = state.services.iter();
    let picked = |(frontend, entry): (&Frontend, &ServiceEntry)| {
        let all = state.selectable(entry).unwrap_or_default();
        (*frontend, all.into_iter().collect())
    };
    entries.map(picked).collect()
}

/// The steps of a commit, in their order.
fn commit(state: &ServiceState, world: &World, next_id: &mut u32) -> Vec<Step> {
    let (mut steps, mut now) = (Vec::new(), state.clone());
    for number in 0..FRONTENDS {
        let new = now.retire(&frontend(number), world.get(&frontend(number)));
        new.iter().for_each(|step| now.apply(step));
        steps.extend(new);
    }
    for (frontend, wanted) in world {
        let known = now.services.get(frontend).map(|entry| entry.id);
        let id = known.unwrap_or_else(|| {
            *next_id += 1;
            *next_id
        });
        let new = now.extend(frontend, wanted, id);
        new.iter().for_each(|step| now.apply(step));
        steps.extend(new);
    }
    steps
}

fn sweep(state: &mut ServiceState) {
    let ids: BTreeSet<u32> = state.slots.keys().map(|(id, _)| *id).collect();
    let ids: BTreeSet<u32> =
        ids.into_iter().chain(state.backends.keys().map(|(id, _)| *id)).collect();
    for id in ids {
        let alive = state.services.values().find(|entry| entry.id == id).copied();
        for step in state.garbage(id, alive.as_ref()) {
            state.apply(&step);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Also if policyd is killed after any step (`cuts`), or an operation fails, and the next one starts from there; with
    /// and without cleaning up in between.
    #[test]
    fn every_slot_below_the_count_holds_a_backend_of_the_old_or_the_new_state(
        worlds in worlds(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 6),
        sweeps in prop::collection::vec(any::<bool>(), 6),
    ) {
        let (mut state, mut next_id) = (ServiceState::default(), 0);
        let mut before = BTreeMap::new();
        for ((world, cut), clean) in worlds.iter().zip(cuts).zip(sweeps) {
            let steps = commit(&state, world, &mut next_id);
            let kept = cut.index(steps.len() + 1);
            for step in &steps[..kept] {
                state.apply(step);
                check(&state, &before, world)?;
            }
            if clean {
                sweep(&mut state);
                check(&state, &before, world)?;
            }
            before = picked(&state);
        }
        let world = &worlds[worlds.len() - 1];
        for step in commit(&state, world, &mut next_id) {
            state.apply(&step);
            check(&state, &before, world)?;
        }
        sweep(&mut state);
        // nothing but what is wanted, and each of it once
        prop_assert_eq!(commit(&state, world, &mut next_id), vec![]);
        prop_assert_eq!(state.services.len(), world.len());
        let (mut slots, mut backends) = (0, 0);
        for (frontend, wanted) in world {
            let entry = state.services[frontend];
            prop_assert_eq!(entry.affinity, wanted.affinity);
            let ready = ready(world, frontend);
            prop_assert_eq!(&picked(&state)[frontend], &ready);
            prop_assert_eq!(entry.count as usize, ready.len());
            let held = state.backends_of(entry.id).map(|((_, backend), state)| (backend, state));
            prop_assert_eq!(&held.collect::<BTreeMap<_, _>>(), &wanted.backends);
            slots += ready.len();
            backends += wanted.backends.len();
        }
        prop_assert_eq!((state.slots.len(), state.backends.len()), (slots, backends));
    }
}

#[test]
fn a_frontend_keeps_its_id_and_a_slot_that_vanished_gives_it_a_new_one() {
    let only =
        |nth| Wanted { affinity: None, backends: [(backend(nth), BackendState::Ready)].into() };
    let mut state = ServiceState::default();
    let mut next = 6;
    for (nth, id) in [(1, 7), (2, 7)] {
        let world = [(frontend(0), only(nth))].into();
        commit(&state, &world, &mut next).iter().for_each(|step| state.apply(step));
        assert_eq!(state.services[&frontend(0)].id, id);
    }
    state.slots.clear();
    let world = [(frontend(0), only(2))].into();
    let steps = commit(&state, &world, &mut next);
    assert_eq!(steps.first(), Some(&Step::RemoveService(frontend(0))));
    steps.iter().for_each(|step| state.apply(step));
    assert_eq!(state.services[&frontend(0)], ServiceEntry { id: 8, count: 1, affinity: None });
}
