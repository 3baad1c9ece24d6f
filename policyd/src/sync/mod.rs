//! From compiled state to the kernel's maps, so that no flow notices.
//!
//! [`MapSync`] is all of it: what the writer has, and the one place that says in which order a commit writes.
//!
//! [`PolicyMaps`] keeps a shadow copy of the maps. It takes the steps of [`podgate_policy::diff::plan`] one by one and
//! applies each to the shadow once the kernel has taken it: if a plan stops, the next one starts from what the maps hold.
//!
//! A failure stops only the steps that depend on it. An endpoint whose entries cannot be added loses none: its last
//! complete policy stays in force ([`retain`]), and it is "degraded" until a later commit succeeds. If an address cannot
//! be given its class, no later step is taken.

mod commit;
pub mod limits;
mod map_sync;
mod recover;
mod retain;
pub mod scopes;
pub mod services;
mod undo;
pub mod vip_policy;

use std::collections::BTreeMap;
use std::sync::Arc;

use podgate_bpf::Datapath;
use podgate_bpf::abi::{PolicyKey, PolicyValue};
use podgate_bpf::maps::PolicyMap;
use podgate_policy::compile::{Engine, EngineDelta, TableDelta};
use podgate_policy::diff::{Change, EntryKey, State, TableChange, plan};
use podgate_policy::tables::{Compiled, Decision, EndpointId, RuleId, RuleOrigin};

use crate::encode::{self, MapKey};
use commit::Commit;

pub use map_sync::{Committed, Desired, Failed, MapSync};
pub use recover::Recovered;

/// What the maps hold.
pub type MapState = State<MapKey>;

/// What the maps should hold, for the parts that may differ.
pub type MapChange = Change<MapKey>;

/// Entries for untranslated service addresses that an endpoint's first policy map must have when it is installed.
pub type FirstEntries = BTreeMap<EndpointId, Vec<(PolicyKey, PolicyValue)>>;

/// Owner numbers of the registrations, by endpoint.
pub type Owners = BTreeMap<EndpointId, u32>;

/// The policy maps and class maps, with a shadow of their content.
#[derive(Debug)]
pub struct PolicyMaps {
    datapath: Arc<Datapath>,
    shadow: MapState,
    /// The maps in force, by endpoint; the same keys as `shadow.tables`.
    installed: BTreeMap<EndpointId, Installed>,
    /// The highest class of the last commit that did not stop.
    highest: u32,
    /// See [`PolicyMaps::set_vip_entries`].
    has_vip_entries: bool,
    /// See [`PolicyMaps::set_vip_entries`].
    first: FirstEntries,
}

#[derive(Debug)]
struct Installed {
    owner: u32,
    map: PolicyMap,
}

/// Result of [`PolicyMaps::commit`].
#[derive(Debug, Default)]
pub struct Outcome {
    /// Number of steps that the maps took.
    pub steps: usize,
    /// Number of policy maps that were replaced as a whole because many of their entries changed.
    pub swapped: usize,
    /// Endpoints that keep an earlier policy (or their startup state), with the reason.
    pub degraded: BTreeMap<EndpointId, String>,
    /// Why the commit stopped before all addresses had their classes.
    pub stopped: Option<String>,
}

impl Outcome {
    /// Whether the maps hold everything that was requested.
    pub fn is_complete(&self) -> bool {
        self.degraded.is_empty() && self.stopped.is_none()
    }
}

impl PolicyMaps {
    /// Whether a policy map of this registration is in force.
    pub fn in_force(&self, endpoint: EndpointId, owner: u32) -> bool {
        self.installed.get(&endpoint).is_some_and(|installed| installed.owner == owner)
    }

    /// What the maps hold.
    pub fn shadow(&self) -> &MapState {
        &self.shadow
    }

    /// `present`: whether [`vip_policy::VipPolicy`] has entries in the policy maps. Then a map that replaces another gets
    /// them too, which costs reading all entries of the old one. `first` has those for endpoints without a policy map.
    pub fn set_vip_entries(&mut self, present: bool, first: FirstEntries) {
        (self.has_vip_entries, self.first) = (present, first);
    }

    /// Adds to `pending` the addresses that a stopped commit left in a transient class, and the tables with entries for
    /// one: the next change does not necessarily contain them.
    pub fn add_stranded(&self, pending: &mut EngineDelta) {
        let MapState { hosts, nets, tables, ranked: _ } = &self.shadow;
        let stranded = hosts.iter().filter(|(_, class)| class.is_transient());
        pending.hosts.extend(stranded.map(|(address, _)| *address));
        let stranded = nets.iter().filter(|(_, class)| class.is_transient());
        pending.nets.extend(stranded.map(|(prefix, _)| *prefix));
        let transient =
            |table: &BTreeMap<MapKey, Decision>| table.keys().any(|key| key.class().is_transient());
        let affected = tables.iter().filter(|(_, table)| transient(table));
        affected.for_each(|(endpoint, _)| pending.table(*endpoint));
    }

    /// Forgets an endpoint whose registration is gone. If its policy map is still there, its keys carry the old owner
    /// number and match no packet; [`PolicyMaps::sweep`] removes it.
    pub fn forget(&mut self, endpoint: EndpointId) {
        self.installed.remove(&endpoint);
        self.shadow.tables.remove(&endpoint);
    }

    /// Removes at most one policy map that has no registration; each removal waits for an RCU grace
    /// period, so this is for idle moments. True if there may be more.
    pub fn sweep(&self) -> podgate_bpf::Result<bool> {
        let maps = &self.datapath.maps;
        for ifindex in maps.installed_policy_maps()? {
            // only policyd installs policy maps, and only for registered endpoints: it does not come back
            if maps.registration(ifindex)?.is_none() {
                maps.remove_policy_maps(&[ifindex])?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Applies `change` to the maps and bumps the epoch. `owners` has every endpoint of it. Endpoints in `held` failed in a
    /// recent commit, for the given reason: their policy is retained as it is and not changed.
    ///
    /// If an endpoint has another owner number than its map in force, it gets a new map: the old one matches no packet of
    /// the new owner, so nothing of it is retained.
    pub fn commit(
        &mut self,
        change: &MapChange,
        owners: &Owners,
        held: &BTreeMap<EndpointId, String>,
    ) -> Outcome {
        let stale = |(id, installed): (&EndpointId, &Installed)| {
            (owners.get(id) != Some(&installed.owner)).then_some(*id)
        };
        let stale: Vec<_> = self.installed.iter().filter_map(stale).collect();
        stale.into_iter().for_each(|endpoint| self.forget(endpoint));

        let steps = plan(&self.shadow, change);
        let held: BTreeMap<EndpointId, String> = held
            .iter()
            .filter(|(endpoint, _)| change.tables.contains_key(endpoint))
            .map(|(endpoint, reason)| (*endpoint, reason.clone()))
            .collect();
        if steps.is_empty() && held.is_empty() {
            return Outcome::default();
        }
        self.shadow.ranked |= change.ranked;
        let outcome = Commit::new(self, change, owners).run(steps, held);
        if outcome.is_complete() {
            self.shadow.ranked = change.ranked;
        }
        if outcome.stopped.is_none() {
            let classes = change.hosts.values().chain(change.nets.values()).flatten();
            self.highest = classes.map(|class| class.0).fold(self.highest, u32::max);
        }
        // also after a failure: verdicts may have changed with the steps that were taken
        self.datapath.maps.control().bump_epoch();
        outcome
    }
}

/// The changes of the maps for an engine's delta. An endpoint without a table (another pod has its name now) keeps the
/// one that it has: without one it would fall back to its startup state, which may be "open".
pub fn change(engine: &Engine, touched: &EngineDelta, owners: &Owners) -> MapChange {
    let compiled: &Compiled = engine.compiled();
    let origin = |rule: RuleId| -> Option<&RuleOrigin> { engine.origin(rule) };
    let mut tables = BTreeMap::new();
    for (endpoint, part) in &touched.tables {
        let (Some(table), Some(owner)) = (compiled.tables.get(endpoint), owners.get(endpoint))
        else {
            continue;
        };
        let change = match part {
            TableDelta::Whole => TableChange::Whole(encode::table(*owner, &table.entries, origin)),
            TableDelta::Classes(classes) => {
                let column = |class| (class, encode::table(*owner, &table.column(class), origin));
                TableChange::Classes(classes.iter().copied().map(column).collect())
            }
        };
        tables.insert(*endpoint, change);
    }
    let host = |address| (address, compiled.hosts.get(&address).copied());
    let net = |prefix| (prefix, compiled.nets.get(&prefix).copied());
    MapChange {
        hosts: touched.hosts.iter().copied().map(host).collect(),
        nets: touched.nets.iter().copied().map(net).collect(),
        tables,
        ranked: compiled.is_ranked(),
    }
}
