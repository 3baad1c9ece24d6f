//! The order in which the service maps change.
//!
//! Programs read `slots[random % count]` at any time, without a lock. So at every moment each slot below a frontend's count
//! holds a backend that is ready in the old state or in the new one, and a frontend with a ready backend before and after
//! the change has one at every step:
//!
//! - A backend is added to `backends` and to the slot after the last one, then the count is raised.
//! - To remove one, the last slot's backend is copied into its slot, then the count is lowered. The last slot is not
//!   cleared at once, because a program that read the old count may still read it, but later when idle.
//! - Removals come before policy changes and additions after them, so that no flow is sent to a backend whose class is not
//!   written yet. If all of a frontend's backends are removed at once, one stays until its successors are there.

use std::collections::{BTreeMap, BTreeSet};

use podgate_bpf::abi::BackendState;
use podgate_bpf::services::{Affinity, Backend, Frontend, ServiceEntry};

/// What the maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// Frontends.
    pub services: BTreeMap<Frontend, ServiceEntry>,
    /// Backends by service id and slot number.
    pub slots: BTreeMap<(u32, u32), Backend>,
    /// States by service id and backend.
    pub backends: BTreeMap<(u32, Backend), BackendState>,
}

/// A frontend's desired backends. At least one is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Session affinity.
    pub affinity: Option<Affinity>,
    /// The backends.
    pub backends: BTreeMap<Backend, BackendState>,
}

/// One operation on one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A frontend is added or changed.
    SetService(Frontend, ServiceEntry),
    /// A frontend is removed.
    RemoveService(Frontend),
    /// A slot of a service is filled.
    SetSlot((u32, u32), Backend),
    /// A slot at or above the count is removed.
    RemoveSlot((u32, u32)),
    /// A backend of a service is added or changes its state.
    SetBackend((u32, Backend), BackendState),
    /// A backend of a service is removed.
    RemoveBackend((u32, Backend)),
}

impl ServiceState {
    /// The state after a step.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::SetService(frontend, entry) => drop(self.services.insert(*frontend, *entry)),
            Step::RemoveService(frontend) => drop(self.services.remove(frontend)),
            Step::SetSlot(key, backend) => drop(self.slots.insert(*key, *backend)),
            Step::RemoveSlot(key) => drop(self.slots.remove(key)),
            Step::SetBackend(key, state) => drop(self.backends.insert(*key, *state)),
            Step::RemoveBackend(key) => drop(self.backends.remove(key)),
        }
    }

    /// The first half of a change: removes what is no longer wanted. With `None` that is the whole frontend.
    pub fn retire(&self, frontend: &Frontend, wanted: Option<&Wanted>) -> Vec<Step> {
        let Some(entry) = self.services.get(frontend) else { return Vec::new() };
        let (Some(wanted), Some(slots)) = (wanted, self.selectable(entry)) else {
            return vec![Step::RemoveService(*frontend)];
        };
        let is_ready =
            |backend: &Backend| wanted.backends.get(backend) == Some(&BackendState::Ready);
        let mut seen = BTreeSet::new();
        // two slots have the same backend if policyd was killed in the middle of a removal
        let stays: Vec<bool> =
            slots.iter().map(|backend| is_ready(backend) && seen.insert(*backend)).collect();
        let mut removed: Vec<usize> = (0..slots.len()).filter(|nth| !stays[*nth]).collect();
        let mut spared = None;
        if removed.len() == slots.len() {
            spared = Some(slots[removed.remove(0)]);
        }

        let mut steps = Vec::new();
        let mut last = slots;
        for nth in removed.iter().rev() {
            let moved = last.pop();
            if let Some(moved) = moved.filter(|_| *nth < last.len()) {
                steps.push(Step::SetSlot((entry.id, number(*nth)), moved));
                last[*nth] = moved;
            }
        }
        let count = number(last.len());
        if count != entry.count {
            steps.push(Step::SetService(*frontend, ServiceEntry { count, ..*entry }));
        }
        for ((id, backend), state) in self.backends_of(entry.id) {
            if spared == Some(backend) {
                continue;
            }
            match wanted.backends.get(&backend) {
                None => steps.push(Step::RemoveBackend((id, backend))),
                Some(BackendState::Serving) if state != BackendState::Serving => {
                    steps.push(Step::SetBackend((id, backend), BackendState::Serving));
                }
                Some(_) => {}
            }
        }
        steps
    }

    /// The second half: adds what is new and then removes what had to stay until then. `id` is the frontend's, or an unused
    /// one if it is new.
    pub fn extend(&self, frontend: &Frontend, wanted: &Wanted, id: u32) -> Vec<Step> {
        let known = self.services.get(frontend);
        let whole = known.copied().filter(|entry| self.selectable(entry).is_some());
        let affinity = wanted.affinity;
        let entry = whole.unwrap_or(ServiceEntry { id, count: 0, affinity });
        let mut steps = Vec::new();
        for (backend, state) in &wanted.backends {
            let is = self.backends.get(&(entry.id, *backend));
            // a ready backend that is to be removed keeps its state until `retire` below
            if is != Some(state) && (is.is_none() || *state == BackendState::Ready) {
                steps.push(Step::SetBackend((entry.id, *backend), *state));
            }
        }
        let mut count = entry.count;
        let slots: BTreeSet<Backend> =
            self.selectable(&entry).unwrap_or_default().into_iter().collect();
        for (backend, state) in &wanted.backends {
            if *state == BackendState::Ready && !slots.contains(backend) {
                steps.push(Step::SetSlot((entry.id, count), *backend));
                count += 1;
            }
        }
        let new = ServiceEntry { count, affinity, ..entry };
        if known != Some(&new) {
            steps.push(Step::SetService(*frontend, new));
        }
        if whole.is_some() {
            let mut after = self.only(frontend, entry.id);
            steps.iter().for_each(|step| after.apply(step));
            steps.extend(after.retire(frontend, Some(wanted)));
        }
        steps
    }

    /// Removes the entries of a service id that no program can read, once an RCU grace period has passed since its last
    /// change.
    pub fn garbage(&self, id: u32, alive: Option<&ServiceEntry>) -> Vec<Step> {
        let count = alive.map_or(0, |entry| entry.count);
        let slots = self.slots.range((id, count)..=(id, u32::MAX));
        let mut steps: Vec<_> = slots.map(|(key, _)| Step::RemoveSlot(*key)).collect();
        if alive.is_none() {
            steps.extend(self.backends_of(id).map(|(key, _)| Step::RemoveBackend(key)));
        }
        steps
    }

    /// The backends in the slots below the count; `None` if a slot is missing, which no order of steps leads to.
    fn selectable(&self, entry: &ServiceEntry) -> Option<Vec<Backend>> {
        (0..entry.count).map(|slot| self.slots.get(&(entry.id, slot)).copied()).collect()
    }

    fn backends_of(&self, id: u32) -> impl Iterator<Item = ((u32, Backend), BackendState)> + '_ {
        let first = Backend { address: std::net::Ipv4Addr::UNSPECIFIED.into(), port: 0 };
        let all = self.backends.range((id, first)..);
        all.take_while(move |((of, _), _)| *of == id).map(|(key, state)| (*key, *state))
    }

    /// The part of the state that belongs to one frontend.
    fn only(&self, frontend: &Frontend, id: u32) -> Self {
        let services = self.services.get(frontend).map(|entry| (*frontend, *entry));
        let slots = self.slots.range((id, 0)..=(id, u32::MAX));
        Self {
            services: services.into_iter().collect(),
            slots: slots.map(|(key, backend)| (*key, *backend)).collect(),
            backends: self.backends_of(id).collect(),
        }
    }
}

fn number(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
