//! From compiled state to the kernel's maps, so that no flow notices.
//!
//! [`Kernel`] keeps a shadow of what the maps hold, takes the steps of [`podgate_policy::diff::plan`] one by
//! one, and lets the shadow take each step that the maps took: wherever a plan stops, the next one
//! starts from what is really there.
//!
//! What fails stops only what depends on it. An endpoint whose entries cannot be added loses none: its last
//! complete policy stays in force ([`keep`]), and it is "degraded" until a later commit succeeds. Where an
//! address cannot be given its class, no step that follows is taken at all.

mod adopt;
mod keep;
pub mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podgate_bpf::Gate;
use podgate_bpf::maps::{POLICY_MAP_MAX, PolicyMap};
use podgate_policy::compile::{Class, EndpointId, RuleId};
use podgate_policy::diff::{EntryKey, State, Step, plan};

use crate::encode::{self, MapKey};

pub use adopt::Adopted;

/// What the maps should hold or hold.
pub type MapState = State<MapKey>;

/// The maps that only policyd writes, and what is in them. Owned by the writer.
#[derive(Debug)]
pub struct Kernel {
    gate: Arc<Gate>,
    shadow: MapState,
    /// The maps in force, by endpoint; the same keys as `shadow.tables`.
    installed: BTreeMap<EndpointId, Installed>,
}

#[derive(Debug)]
struct Installed {
    owner: u32,
    map: PolicyMap,
}

/// What came of a commit.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many steps the maps took.
    pub steps: usize,
    /// Endpoints that keep an earlier policy (or their startup state), and why.
    pub degraded: BTreeMap<EndpointId, String>,
    /// Why the classes of addresses are not all as they should be.
    pub stopped: Option<String>,
}

impl Outcome {
    /// Whether everything asked for is in force.
    pub fn is_complete(&self) -> bool {
        self.degraded.is_empty() && self.stopped.is_none()
    }
}

impl Kernel {
    /// Whether a policy map of this registration is in force.
    pub fn in_force(&self, endpoint: EndpointId, owner: u32) -> bool {
        self.installed.get(&endpoint).is_some_and(|installed| installed.owner == owner)
    }

    /// What the maps hold.
    pub fn shadow(&self) -> &MapState {
        &self.shadow
    }

    /// Forgets an endpoint whose registration is gone. Its policy map, if nobody removed it, no longer matches
    /// anything, for its keys carry the registration's number; [`Kernel::sweep`] removes it.
    pub fn forget(&mut self, endpoint: EndpointId) {
        self.installed.remove(&endpoint);
        self.shadow.tables.remove(&endpoint);
    }

    /// Removes at most one policy map that has no registration; each removal waits for an RCU grace
    /// period, so this is for idle moments. True if there may be more.
    pub fn sweep(&self) -> podgate_bpf::Result<bool> {
        let maps = &self.gate.maps;
        for ifindex in maps.installed_policy_maps()? {
            // only policyd installs policy maps, and only for registrations: this one's is gone for good
            if maps.registration(ifindex)?.is_none() {
                maps.remove_policy_maps(&[ifindex])?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes the maps hold `wanted` and bumps the epoch. `owners` has every endpoint of `wanted`.
    ///
    /// A table whose endpoint has another owner than the map in force is a new table: the old map never
    /// matches the new owner's packets, so there is nothing to keep.
    pub fn commit(&mut self, wanted: &MapState, owners: &BTreeMap<EndpointId, u32>) -> Outcome {
        let stale = |(id, installed): (&EndpointId, &Installed)| {
            (owners.get(id) != Some(&installed.owner)).then_some(*id)
        };
        let stale: Vec<_> = self.installed.iter().filter_map(stale).collect();
        stale.into_iter().for_each(|endpoint| self.forget(endpoint));

        let steps = plan(&self.shadow, wanted);
        if steps.is_empty() {
            return Outcome::default();
        }
        let before = self.shadow.clone();
        let mut commit =
            Commit { kernel: self, before, wanted, owners, outcome: Outcome::default() };
        commit.refuse_oversized();
        commit.take(steps);
        let outcome = commit.outcome;
        // also after a failure: the steps that were taken changed verdicts
        self.gate.maps.control().bump_epoch();
        outcome
    }
}

struct Commit<'a> {
    kernel: &'a mut Kernel,
    before: MapState,
    wanted: &'a MapState,
    owners: &'a BTreeMap<EndpointId, u32>,
    outcome: Outcome,
}

impl Commit<'_> {
    /// Spares the kernel a million insertions that end in "full".
    fn refuse_oversized(&mut self) {
        for (endpoint, entries) in &self.wanted.tables {
            if entries.len() > POLICY_MAP_MAX as usize {
                let reason = format!(
                    "its policies need {} map entries, at most {POLICY_MAP_MAX} fit: use fewer or wider port ranges",
                    entries.len()
                );
                self.fail(*endpoint, reason);
            }
        }
    }

    fn take(&mut self, steps: Vec<Step<MapKey>>) {
        let mut new = Vec::new();
        for step in steps {
            match step {
                Step::NewTable { endpoint, entries } => new.push((endpoint, entries)),
                step => {
                    // the plan has all new tables in a row, when the classes have settled
                    self.install(std::mem::take(&mut new));
                    if let Err(reason) = self.take_one(step) {
                        // Later steps rely on every address having its class: nothing may be removed
                        // while one is missing. New endpoints stay in their startup state.
                        self.outcome.stopped = Some(reason);
                        return;
                    }
                }
            }
        }
        self.install(new);
    }

    /// Takes any step but [`Step::NewTable`]. An error is one of the classes.
    fn take_one(&mut self, step: Step<MapKey>) -> Result<(), String> {
        let maps = &self.kernel.gate.maps;
        match &step {
            Step::SetEntry { endpoint, key, rule } => {
                let endpoint = *endpoint;
                if self.outcome.degraded.contains_key(&endpoint) {
                    return Ok(());
                }
                let Some(installed) = self.kernel.installed.get(&endpoint) else { return Ok(()) };
                if let Err(error) = installed.map.set(&key.0, &encode::value(*rule)) {
                    self.fail(endpoint, error.to_string());
                    return Ok(());
                }
            }
            Step::RemoveEntry { endpoint, key } => {
                let endpoint = *endpoint;
                if self.outcome.degraded.contains_key(&endpoint) {
                    return Ok(());
                }
                let Some(installed) = self.kernel.installed.get(&endpoint) else { return Ok(()) };
                if let Err(error) = installed.map.remove(&key.0) {
                    self.outcome.degraded.insert(endpoint, error.to_string());
                    return Ok(());
                }
            }
            Step::SetHost { address, class } => {
                maps.set_peer(*address, class.0).map_err(|e| e.to_string())?;
            }
            Step::SetNet { prefix, class } => {
                maps.set_net((prefix.addr(), prefix.prefix_len()), class.0)
                    .map_err(|e| e.to_string())?;
            }
            Step::RemoveNet { prefix } => {
                maps.remove_net((prefix.addr(), prefix.prefix_len())).map_err(|e| e.to_string())?;
            }
            Step::RemoveHost { address } => {
                maps.remove_peer(*address).map_err(|e| e.to_string())?;
            }
            // its registration is gone (the writer keeps the tables of all others), so nothing is in force
            Step::DropTable { endpoint } => {
                self.kernel.installed.remove(endpoint);
            }
            Step::NewTable { .. } => return Ok(()),
        }
        self.kernel.shadow.apply(step);
        self.outcome.steps += 1;
        Ok(())
    }

    /// Installs first tables, all in one batch: one RCU grace period however many pods started at once.
    /// Until that moment each of them is in its startup state; classes and their entries are complete by
    /// now, so that its first verdict under a policy is the right one.
    fn install(&mut self, tables: Vec<(EndpointId, BTreeMap<MapKey, RuleId>)>) {
        let gate = self.kernel.gate.clone();
        let mut made = Vec::new();
        for (endpoint, entries) in tables {
            if self.outcome.degraded.contains_key(&endpoint) {
                continue;
            }
            let encoded: Vec<_> =
                entries.iter().map(|(key, rule)| (key.0, encode::value(*rule))).collect();
            match gate.maps.new_policy_map(&encoded) {
                Ok(map) => made.push((endpoint, entries, map)),
                Err(error) => {
                    self.outcome.degraded.insert(endpoint, error.to_string());
                }
            }
        }
        let batch: Vec<_> = made.iter().map(|(endpoint, _, map)| (endpoint.0, map)).collect();
        let whole = gate.maps.install_policy_maps(&batch);
        for (endpoint, entries, map) in made {
            // a batch stops at its first failure; one by one, the others are not held up by it
            let installed = match &whole {
                Ok(()) => Ok(()),
                Err(_) => gate.maps.install_policy_maps(&[(endpoint.0, &map)]),
            };
            if let Err(error) = installed {
                self.outcome.degraded.insert(endpoint, error.to_string());
                continue;
            }
            let owner = self.owners.get(&endpoint).copied().unwrap_or_default();
            self.kernel.installed.insert(endpoint, Installed { owner, map });
            self.kernel.shadow.apply(Step::NewTable { endpoint, entries });
            self.outcome.steps += 1;
        }
    }

    /// The endpoint's new entries cannot all be there: goes back to its last complete policy.
    fn fail(&mut self, endpoint: EndpointId, reason: String) {
        self.outcome.degraded.insert(endpoint, reason);
        let Some(last) = self.before.tables.get(&endpoint) else { return };
        let Some(installed) = self.kernel.installed.get(&endpoint) else { return };
        let now = self.kernel.shadow.tables.get(&endpoint).cloned().unwrap_or_default();
        let kept = keep::translate(last, &self.before, self.wanted);
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
}

/// The classes that a state mentions.
fn classes(state: &MapState) -> impl Iterator<Item = Class> {
    let keys = state.tables.values().flat_map(BTreeMap::keys).map(EntryKey::class);
    state.hosts.values().chain(state.nets.values()).copied().chain(keys)
}
