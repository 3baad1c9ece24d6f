//! One commit: takes the steps of a plan and handles those that fail.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use podgate_bpf::abi::{PolicyKey, PolicyValue};
use podgate_bpf::maps::{POLICY_MAP_MAX, PolicyMap};
use podgate_policy::diff::{EntryKey, Step, TableChange};
use podgate_policy::prefixes::PrefixMap;
use podgate_policy::tables::{Class, Decision, EndpointId};

use super::retain::{self, Moves};
use super::undo::Undo;
use super::{Installed, MapChange, Outcome, Owners, PolicyMaps};
use crate::encode::{self, MapKey};

/// From this number of edits on a policy map is not edited but replaced, together with all others of the commit that
/// change as much. An edit in place costs a system call, about 1.2 us. A replacement writes every entry, 1 us each, and
/// waits for an RCU grace period, about 10 ms. If all entries change, which is two edits for each, both cost the same at
/// 14,000 edits.
pub(super) const SWAP_FROM: usize = 16_384;

pub(super) struct Commit<'a> {
    policy_maps: &'a mut PolicyMaps,
    change: &'a MapChange,
    owners: &'a Owners,
    undo: Undo,
    /// Computed when the first endpoint fails.
    moves: Option<Moves>,
    /// The plan's transient classes (twins), each with the class that its members get next.
    twins: BTreeMap<Class, Class>,
    outcome: Outcome,
}

impl<'a> Commit<'a> {
    pub(super) fn new(
        policy_maps: &'a mut PolicyMaps,
        change: &'a MapChange,
        owners: &'a Owners,
    ) -> Self {
        let (undo, outcome) = (Undo::default(), Outcome::default());
        Self { policy_maps, change, owners, undo, moves: None, twins: BTreeMap::new(), outcome }
    }

    pub(super) fn run(
        mut self,
        steps: Vec<Step<MapKey>>,
        held: BTreeMap<EndpointId, String>,
    ) -> Outcome {
        self.twins =
            twins(&steps, || after(self.policy_maps.shadow.nets.clone(), &self.change.nets));
        held.into_iter().for_each(|(endpoint, reason)| self.fail(endpoint, reason));
        self.refuse_oversized();
        self.take(steps);
        self.outcome
    }

    /// Refuses tables that do not fit before a million entries are inserted.
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
                    // the plan has all new tables in one run, after the last change of a class
                    self.install(std::mem::take(&mut new));
                    edits.push(step);
                }
                Step::NewTable { endpoint, entries } => {
                    self.edit(std::mem::take(&mut edits));
                    new.push((endpoint, entries));
                }
                Step::DropTable { endpoint } => {
                    // only for an endpoint whose registration is gone: its map is in force no more
                    self.policy_maps.forget(endpoint);
                    self.outcome.steps += 1;
                }
                step => {
                    self.edit(std::mem::take(&mut edits));
                    if let Err(error) = self.take_class(&step) {
                        // Later steps assume that every address has its class, so nothing is removed while one is
                        // missing. New endpoints stay in their startup state.
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
        let maps = &self.policy_maps.datapath.maps;
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
        self.undo.apply(&mut self.policy_maps.shadow, step);
        self.outcome.steps += 1;
    }

    /// Takes edits of tables between which no address changes its class. Their order does not matter, so those of one
    /// table may be taken at once.
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
            let Some(table) = self.policy_maps.shadow.tables.get(&endpoint) else { continue };
            let mut entries = table.clone();
            for step in &steps {
                match step {
                    Step::SetEntry { key, decision, .. } => drop(entries.insert(*key, *decision)),
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
                // editing in place needs less memory
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
        let Some(Installed { map, .. }) = self.policy_maps.installed.get(&endpoint) else { return };
        let taken = match &step {
            Step::SetEntry { key, decision, .. } => map.set(&key.0, &encode::value(*decision)),
            Step::RemoveEntry { key, .. } => map.remove(&key.0),
            _ => return,
        };
        match (taken, &step) {
            (Ok(()), _) => self.done(step),
            (Err(error), Step::SetEntry { .. }) => self.fail(endpoint, error.to_string()),
            // an entry too many: the endpoint allows all that it should
            (Err(error), _) => drop(self.outcome.degraded.insert(endpoint, error.to_string())),
        }
    }

    /// Installs the first tables of endpoints, all in one batch. Until then each of them is in its startup state. All
    /// classes are complete by now, so the first verdict by policy is right.
    fn install(&mut self, mut tables: Vec<(EndpointId, BTreeMap<MapKey, Decision>)>) {
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

    /// Creates policy maps and installs them in one batch, for one RCU grace period in total. Returns those that are not
    /// in force, with the reason.
    fn put_in_force(
        &mut self,
        tables: Vec<(EndpointId, &BTreeMap<MapKey, Decision>)>,
    ) -> BTreeMap<EndpointId, String> {
        let maps = &self.policy_maps.datapath.maps;
        let mut failed = BTreeMap::new();
        let mut made: Vec<(EndpointId, PolicyMap)> = Vec::new();
        for (endpoint, entries) in tables {
            let encoded = entries.iter().map(|(key, decision)| (key.0, encode::value(*decision)));
            let map = self
                .vip_entries(endpoint)
                .and_then(|vip| maps.new_policy_map(&encoded.chain(vip).collect::<Vec<_>>()));
            match map {
                Ok(map) => made.push((endpoint, map)),
                Err(error) => drop(failed.insert(endpoint, error.to_string())),
            }
        }
        let batch: Vec<_> = made.iter().map(|(endpoint, map)| (endpoint.0, map)).collect();
        let whole = maps.install_policy_maps(&batch);
        for (endpoint, map) in made {
            // a batch stops at its first failure: then each map is installed separately
            let installed = match &whole {
                Ok(()) => Ok(()),
                Err(_) => maps.install_policy_maps(&[(endpoint.0, &map)]),
            };
            if let Err(error) = installed {
                failed.insert(endpoint, error.to_string());
                continue;
            }
            let owner = self.owners.get(&endpoint).copied().unwrap_or_default();
            self.policy_maps.installed.insert(endpoint, Installed { owner, map });
        }
        failed
    }

    /// The entries for untranslated service addresses of an endpoint's map in force, or those for its first map.
    fn vip_entries(
        &self,
        endpoint: EndpointId,
    ) -> podgate_bpf::Result<Vec<(PolicyKey, PolicyValue)>> {
        let PolicyMaps { installed, first, has_vip_entries, .. } = &*self.policy_maps;
        let Some(Installed { map, .. }) = installed.get(&endpoint) else {
            return Ok(first.get(&endpoint).cloned().unwrap_or_default());
        };
        if !has_vip_entries {
            return Ok(Vec::new());
        }
        let mut entries = map.entries()?;
        entries.retain(|(key, _)| Class(key.class).is_vip());
        Ok(entries)
    }

    /// Restores an endpoint's last complete policy, because not all of its new entries can be written.
    fn fail(&mut self, endpoint: EndpointId, reason: String) {
        self.outcome.degraded.insert(endpoint, reason);
        let Some(mut last) = self.undo.table(&self.policy_maps.shadow, endpoint) else { return };
        let known = self.policy_maps.highest;
        if last.keys().any(|key| key.class().0 > known) {
            // Classes above `known` come from a commit that stopped. Their entries stay only if some address has that
            // class; the others were never part of a complete policy.
            let shadow = &self.policy_maps.shadow;
            let in_use: BTreeSet<Class> =
                shadow.hosts.values().chain(shadow.nets.values()).copied().collect();
            last.retain(|key, _| key.class().0 <= known || in_use.contains(&key.class()));
        }
        let moves = match self.moves.take() {
            Some(moves) => moves,
            None => self.moves(),
        };
        let mut retained = retain::translate(&last, &moves, known);
        self.moves = Some(moves);
        for (twin, class) in &self.twins {
            let mut column = MapKey::column(&last, *class);
            column.extend(MapKey::column(&retained, *class));
            retained.extend(column.into_iter().map(|(key, rule)| (key.with_class(*twin), rule)));
        }

        let Some(installed) = self.policy_maps.installed.get(&endpoint) else { return };
        let now = self.policy_maps.shadow.tables.get(&endpoint).cloned().unwrap_or_default();
        let mut set = Vec::new();
        for (key, rule) in last.iter().chain(&retained) {
            if now.get(key) != Some(rule) {
                set.push((*key, *rule));
            }
        }
        // removals first, to make room
        let keep: BTreeSet<&MapKey> = last.keys().chain(retained.keys()).collect();
        for key in now.keys().filter(|key| !keep.contains(key)) {
            if installed.map.remove(&key.0).is_ok() {
                self.policy_maps.shadow.apply(Step::RemoveEntry { endpoint, key: *key });
            }
        }
        for (key, decision) in set {
            if installed.map.set(&key.0, &encode::value(decision)).is_ok() {
                self.policy_maps.shadow.apply(Step::SetEntry { endpoint, key, decision });
            }
        }
    }

    /// Which classes the addresses of this commit come from, by their new class.
    fn moves(&self) -> Moves {
        let shadow = &self.policy_maps.shadow;
        let before = self.undo.nets(shadow);
        let after = after(before.clone(), &self.change.nets);
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

/// The classes of prefixes once `change` is made of what they were.
fn after(mut nets: PrefixMap<Class>, change: &BTreeMap<IpNet, Option<Class>>) -> PrefixMap<Class> {
    for (prefix, class) in change {
        match class {
            Some(class) => drop(nets.insert(*prefix, *class)),
            None => drop(nets.remove(prefix)),
        }
    }
    nets
}

/// The transient classes of a plan, each with the class that its members get next: what vanishes gets that of the prefix
/// around it, in `nets` after the commit.
fn twins(
    steps: &[Step<MapKey>],
    nets: impl FnOnce() -> PrefixMap<Class>,
) -> BTreeMap<Class, Class> {
    let nets = LazyCell::new(nets);
    let class_of = |found: Option<(_, &Class)>| found.map_or(Class::ANY, |(_, class)| *class);
    let (mut hosts, mut prefixes) = (BTreeMap::new(), BTreeMap::new());
    let mut twins = BTreeMap::new();
    for step in steps {
        let left = match step {
            Step::SetHost { address, class } if class.is_transient() => {
                hosts.insert(*address, *class);
                None
            }
            Step::SetNet { prefix, class } if class.is_transient() => {
                prefixes.insert(*prefix, *class);
                None
            }
            Step::SetHost { address, class } => hosts.remove(address).map(|twin| (twin, *class)),
            Step::SetNet { prefix, class } => prefixes.remove(prefix).map(|twin| (twin, *class)),
            Step::RemoveHost { address } => {
                hosts.remove(address).map(|twin| (twin, class_of(nets.longest_match(*address))))
            }
            Step::RemoveNet { prefix } => {
                prefixes.remove(prefix).map(|twin| (twin, class_of(nets.around(prefix).next())))
            }
            _ => None,
        };
        twins.extend(left);
    }
    twins
}
