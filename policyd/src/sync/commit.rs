//! One commit: takes the steps of a plan, and copes with what cannot be done.

use std::collections::{BTreeMap, BTreeSet};

use podgate_bpf::abi::{PolicyKey, PolicyValue};
use podgate_bpf::maps::{POLICY_MAP_MAX, PolicyMap};
use podgate_policy::compile::{Class, EndpointId, RuleId};
use podgate_policy::diff::{EntryKey, Step, TableChange};

use super::keep::{self, Moves};
use super::left::is_left;
use super::undo::Undo;
use super::{Installed, Kernel, MapChange, Outcome, Owners};
use crate::encode::{self, MapKey};

/// From how many edits of one table on it is made anew and swapped, together with all others of the commit that
/// change as much. An edit in place costs a system call, about 1.2 us. A swap writes what has not changed
/// again, 1 us for each entry, and waits for an RCU grace period, about 10 ms: where all entries of a table are
/// replaced, which is two edits for each, both cost the same at 14,000 edits.
pub(super) const SWAP_FROM: usize = 16_384;

pub(super) struct Commit<'a> {
    kernel: &'a mut Kernel,
    change: &'a MapChange,
    owners: &'a Owners,
    undo: Undo,
    /// Worked out when the first endpoint fails.
    moves: Option<Moves>,
    /// The transient classes of the plan, each with the class whose members pass through it.
    twins: BTreeMap<Class, Class>,
    outcome: Outcome,
}

impl<'a> Commit<'a> {
    pub(super) fn new(kernel: &'a mut Kernel, change: &'a MapChange, owners: &'a Owners) -> Self {
        let (undo, outcome) = (Undo::default(), Outcome::default());
        Self { kernel, change, owners, undo, moves: None, twins: BTreeMap::new(), outcome }
    }

    pub(super) fn run(
        mut self,
        steps: Vec<Step<MapKey>>,
        held: BTreeMap<EndpointId, String>,
    ) -> Outcome {
        self.twins = twins(&steps);
        held.into_iter().for_each(|(endpoint, reason)| self.fail(endpoint, reason));
        self.refuse_oversized();
        self.take(steps);
        self.outcome
    }

    /// Spares the kernel a million insertions that end in "full".
    fn refuse_oversized(&mut self) {
        for (endpoint, table) in &self.change.tables {
            let TableChange::Whole(entries) = table else { continue };
            if entries.len() > POLICY_MAP_MAX as usize
                && !self.outcome.degraded.contains_key(endpoint)
            {
                let reason = format!(
                    "its policies need {} map entries, at most {POLICY_MAP_MAX} fit: use fewer or wider port ranges",
                    entries.len()
                );
                self.fail(*endpoint, reason);
            }
        }
    }

    fn take(&mut self, steps: Vec<Step<MapKey>>) {
        let (mut edits, mut new) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::SetEntry { .. } | Step::RemoveEntry { .. } => {
                    // the plan has all new tables in a row, when the classes have settled
                    self.install(std::mem::take(&mut new));
                    edits.push(step);
                }
                Step::NewTable { endpoint, entries } => {
                    self.edit(std::mem::take(&mut edits));
                    new.push((endpoint, entries));
                }
                Step::DropTable { endpoint } => {
                    // its registration is gone (the writer keeps the tables of all others): nothing is in force
                    self.kernel.forget(endpoint);
                    self.outcome.steps += 1;
                }
                step => {
                    self.edit(std::mem::take(&mut edits));
                    if let Err(error) = self.take_class(&step) {
                        // Later steps rely on every address having its class: nothing may be removed
                        // while one is missing. New endpoints stay in their startup state.
                        self.outcome.stopped = Some(error.to_string());
                        return;
                    }
                    self.done(step);
                }
            }
        }
        self.edit(edits);
        self.install(new);
    }

    fn take_class(&mut self, step: &Step<MapKey>) -> podgate_bpf::Result<()> {
        let maps = &self.kernel.gate.maps;
        match step {
            Step::SetHost { address, class } => maps.set_peer(*address, class.0),
            Step::SetNet { prefix, class } => {
                maps.set_net((prefix.addr(), prefix.prefix_len()), class.0)
            }
            Step::RemoveNet { prefix } => maps.remove_net((prefix.addr(), prefix.prefix_len())),
            Step::RemoveHost { address } => maps.remove_peer(*address),
            Step::SetEntry { .. }
            | Step::RemoveEntry { .. }
            | Step::NewTable { .. }
            | Step::DropTable { .. } => Ok(()),
        }
    }

    fn done(&mut self, step: Step<MapKey>) {
        self.undo.note(&self.kernel.shadow, &step);
        self.kernel.shadow.apply(step);
        self.outcome.steps += 1;
    }

    /// Takes steps between which no address changes its class: their order does not matter, nor whether those of
    /// one table are taken at once.
    fn edit(&mut self, steps: Vec<Step<MapKey>>) {
        if steps.len() >= SWAP_FROM {
            return self.edit_many(steps);
        }
        steps.into_iter().for_each(|step| self.edit_one(step));
    }

    fn edit_many(&mut self, steps: Vec<Step<MapKey>>) {
        let mut by_table: BTreeMap<EndpointId, Vec<Step<MapKey>>> = BTreeMap::new();
        for step in steps {
            let (Step::SetEntry { endpoint, .. } | Step::RemoveEntry { endpoint, .. }) = &step
            else {
                continue;
            };
            by_table.entry(*endpoint).or_default().push(step);
        }
        let (many, few): (BTreeMap<_, _>, BTreeMap<_, _>) =
            by_table.into_iter().partition(|(_, steps)| steps.len() >= SWAP_FROM);
        few.into_values().flatten().for_each(|step| self.edit_one(step));

        let mut tables = Vec::new();
        for (endpoint, steps) in many {
            if self.outcome.degraded.contains_key(&endpoint) {
                continue;
            }
            let Some(table) = self.kernel.shadow.tables.get(&endpoint) else { continue };
            let mut entries = table.clone();
            for step in &steps {
                match step {
                    Step::SetEntry { key, rule, .. } => drop(entries.insert(*key, *rule)),
                    Step::RemoveEntry { key, .. } => drop(entries.remove(key)),
                    _ => {}
                }
            }
            tables.push((endpoint, entries, steps));
        }
        let swaps = tables.iter().map(|(endpoint, entries, _)| (*endpoint, entries));
        let mut failed = self.put_in_force(swaps.collect());
        for (endpoint, _, steps) in tables {
            match failed.remove(&endpoint) {
                None => {
                    self.outcome.swapped += 1;
                    steps.into_iter().for_each(|step| self.done(step));
                }
                // there may be room for it where it is
                Some(_) => steps.into_iter().for_each(|step| self.edit_one(step)),
            }
        }
    }

    fn edit_one(&mut self, step: Step<MapKey>) {
        let (Step::SetEntry { endpoint, .. } | Step::RemoveEntry { endpoint, .. }) = &step else {
            return;
        };
        let endpoint = *endpoint;
        if self.outcome.degraded.contains_key(&endpoint) {
            return;
        }
        let Some(Installed { map, .. }) = self.kernel.installed.get(&endpoint) else { return };
        let taken = match &step {
            Step::SetEntry { key, rule, .. } => map.set(&key.0, &encode::value(*rule)),
            Step::RemoveEntry { key, .. } => map.remove(&key.0),
            _ => return,
        };
        match (taken, &step) {
            (Ok(()), _) => self.done(step),
            (Err(error), Step::SetEntry { .. }) => self.fail(endpoint, error.to_string()),
            // all that it should allow it does
            (Err(error), _) => drop(self.outcome.degraded.insert(endpoint, error.to_string())),
        }
    }

    /// Installs first tables, all in one batch. Until that moment each of the endpoints is in its startup state;
    /// classes and their entries are complete by now, so that its first verdict under a policy is the right one.
    fn install(&mut self, mut tables: Vec<(EndpointId, BTreeMap<MapKey, RuleId>)>) {
        tables.retain(|(endpoint, _)| !self.outcome.degraded.contains_key(endpoint));
        let batch = tables.iter().map(|(endpoint, entries)| (*endpoint, entries));
        let mut failed = self.put_in_force(batch.collect());
        for (endpoint, entries) in tables {
            match failed.remove(&endpoint) {
                None => self.done(Step::NewTable { endpoint, entries }),
                Some(reason) => drop(self.outcome.degraded.insert(endpoint, reason)),
            }
        }
    }

    /// Makes tables and puts them in force, all in one batch: one RCU grace period however many there are. Returns
    /// those that are not, and why.
    fn put_in_force(
        &mut self,
        tables: Vec<(EndpointId, &BTreeMap<MapKey, RuleId>)>,
    ) -> BTreeMap<EndpointId, String> {
        let maps = &self.kernel.gate.maps;
        let mut failed = BTreeMap::new();
        let mut made: Vec<(EndpointId, PolicyMap)> = Vec::new();
        for (endpoint, entries) in tables {
            let encoded = entries.iter().map(|(key, rule)| (key.0, encode::value(*rule)));
            let map = self
                .others(endpoint)
                .and_then(|others| maps.new_policy_map(&encoded.chain(others).collect::<Vec<_>>()));
            match map {
                Ok(map) => made.push((endpoint, map)),
                Err(error) => drop(failed.insert(endpoint, error.to_string())),
            }
        }
        let batch: Vec<_> = made.iter().map(|(endpoint, map)| (endpoint.0, map)).collect();
        let whole = maps.install_policy_maps(&batch);
        for (endpoint, map) in made {
            // a batch stops at its first failure; one by one, the others are not held up by it
            let installed = match &whole {
                Ok(()) => Ok(()),
                Err(_) => maps.install_policy_maps(&[(endpoint.0, &map)]),
            };
            if let Err(error) = installed {
                failed.insert(endpoint, error.to_string());
                continue;
            }
            let owner = self.owners.get(&endpoint).copied().unwrap_or_default();
            self.kernel.installed.insert(endpoint, Installed { owner, map });
        }
        failed
    }

    /// Entries of an endpoint's map in force that are not the compiler's, or those that its first map is to have.
    fn others(&self, endpoint: EndpointId) -> podgate_bpf::Result<Vec<(PolicyKey, PolicyValue)>> {
        let Kernel { installed, first, shared, .. } = &*self.kernel;
        let Some(Installed { map, .. }) = installed.get(&endpoint) else {
            return Ok(first.get(&endpoint).cloned().unwrap_or_default());
        };
        if !shared {
            return Ok(Vec::new());
        }
        let mut entries = map.entries()?;
        entries.retain(|(key, _)| is_left(key.class));
        Ok(entries)
    }

    /// The endpoint's new entries cannot all be there: goes back to its last complete policy.
    fn fail(&mut self, endpoint: EndpointId, reason: String) {
        self.outcome.degraded.insert(endpoint, reason);
        let Some(mut last) = self.undo.table(&self.kernel.shadow, endpoint) else { return };
        let known = self.kernel.highest;
        if last.keys().any(|key| key.class().0 > known) {
            // Of a commit that stopped: transient ones, and ones that were new. Where that has left somebody they still
            // need their entries; where it got nobody that far, what was to be is no part of any complete policy.
            let shadow = &self.kernel.shadow;
            let in_use: BTreeSet<Class> =
                shadow.hosts.values().chain(shadow.nets.values()).copied().collect();
            last.retain(|key, _| key.class().0 <= known || in_use.contains(&key.class()));
        }
        let moves = match self.moves.take() {
            Some(moves) => moves,
            None => self.moves(),
        };
        let mut kept = keep::translate(&last, &moves, known);
        self.moves = Some(moves);
        for (twin, class) in &self.twins {
            let mut column = MapKey::column(&last, *class);
            column.extend(MapKey::column(&kept, *class));
            kept.extend(column.into_iter().map(|(key, rule)| (key.with_class(*twin), rule)));
        }

        let Some(installed) = self.kernel.installed.get(&endpoint) else { return };
        let now = self.kernel.shadow.tables.get(&endpoint).cloned().unwrap_or_default();
        let mut set = Vec::new();
        for (key, rule) in last.iter().chain(&kept) {
            if now.get(key) != Some(rule) {
                set.push((*key, *rule));
            }
        }
        // removals first: they make the room
        let keep: BTreeSet<&MapKey> = last.keys().chain(kept.keys()).collect();
        for key in now.keys().filter(|key| !keep.contains(key)) {
            if installed.map.remove(&key.0).is_ok() {
                self.kernel.shadow.apply(Step::RemoveEntry { endpoint, key: *key });
            }
        }
        for (key, rule) in set {
            if installed.map.set(&key.0, &encode::value(rule)).is_ok() {
                self.kernel.shadow.apply(Step::SetEntry { endpoint, key, rule });
            }
        }
    }

    /// From which classes into which this commit moves addresses.
    fn moves(&self) -> Moves {
        let shadow = &self.kernel.shadow;
        let before = self.undo.nets(shadow);
        let mut after = before.clone();
        for (prefix, class) in &self.change.nets {
            match class {
                Some(class) => drop(after.insert(*prefix, *class)),
                None => drop(after.remove(prefix)),
            }
        }
        let class = |found: Option<(_, &Class)>| found.map_or(Class::ANY, |(_, class)| *class);
        let mut moves = Moves::new();
        for (address, now) in &self.change.hosts {
            let then = self.undo.host(shadow, *address);
            let then = then.unwrap_or_else(|| class(before.longest_match(*address)));
            let now = now.unwrap_or_else(|| class(after.longest_match(*address)));
            moves.entry(now).or_default().insert(then);
        }
        for (prefix, now) in &self.change.nets {
            let then = before.get(prefix).copied();
            let then = then.unwrap_or_else(|| class(before.around(prefix).next()));
            let now = now.unwrap_or_else(|| class(after.around(prefix).next()));
            moves.entry(now).or_default().insert(then);
        }
        moves
    }
}

/// The transient classes that members pass through, each with the class in which they end.
fn twins(steps: &[Step<MapKey>]) -> BTreeMap<Class, Class> {
    let (mut hosts, mut nets) = (BTreeMap::new(), BTreeMap::new());
    let mut twins = BTreeMap::new();
    for step in steps {
        let (twin, class) = match step {
            Step::SetHost { address, class } if class.is_transient() => {
                hosts.insert(*address, *class);
                continue;
            }
            Step::SetNet { prefix, class } if class.is_transient() => {
                nets.insert(*prefix, *class);
                continue;
            }
            Step::SetHost { address, class } => (hosts.remove(address), class),
            Step::SetNet { prefix, class } => (nets.remove(prefix), class),
            _ => continue,
        };
        if let Some(twin) = twin {
            twins.insert(twin, *class);
        }
    }
    twins
}
