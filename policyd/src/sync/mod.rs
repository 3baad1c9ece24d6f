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
mod commit;
mod keep;
pub mod left;
pub mod services;
mod undo;

use std::collections::BTreeMap;
use std::sync::Arc;

use podgate_bpf::Gate;
use podgate_bpf::abi::{PolicyKey, PolicyValue};
use podgate_bpf::maps::PolicyMap;
use podgate_policy::compile::{Compiled, EndpointId, RuleId, RuleOrigin};
use podgate_policy::diff::{Change, EntryKey, State, TableChange, plan};
use podgate_policy::engine::{Engine, Part, Touched};

use crate::encode::{self, MapKey};
use commit::Commit;

pub use adopt::Adopted;

/// What the maps hold.
pub type MapState = State<MapKey>;

/// What the maps should hold, where it may be something else.
pub type MapChange = Change<MapKey>;

/// Entries that a policy map has beside the compiler's from its first packet on, by endpoint.
pub type FirstEntries = BTreeMap<EndpointId, Vec<(PolicyKey, PolicyValue)>>;

/// Numbers of the registrations, by endpoint.
pub type Owners = BTreeMap<EndpointId, u32>;

/// The maps that only policyd writes, and what is in them. Owned by the writer.
#[derive(Debug)]
pub struct Kernel {
    gate: Arc<Gate>,
    shadow: MapState,
    /// The maps in force, by endpoint; the same keys as `shadow.tables`.
    installed: BTreeMap<EndpointId, Installed>,
    /// The highest class that any address was to have when a commit last came to its end.
    highest: u32,
    /// See [`Kernel::share`].
    shared: bool,
    /// See [`Kernel::share`].
    first: FirstEntries,
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
    /// How many tables were made anew and swapped, because so many of their entries changed.
    pub swapped: usize,
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

    /// Whether [`left::LeftAlone`] has entries in the policy maps: a map that takes another's place must have them too.
    /// It is a look at each entry of the other one, so it is only done where it must. `first` are those of endpoints that
    /// have no policy map yet.
    pub fn share(&mut self, shared: bool, first: FirstEntries) {
        (self.shared, self.first) = (shared, first);
    }

    /// Adds the members that a commit which stopped left in a transient class, and the tables with entries for one:
    /// the change that is still to come need not name them.
    pub fn add_stranded(&self, pending: &mut Touched) {
        let MapState { hosts, nets, tables } = &self.shadow;
        let stranded = hosts.iter().filter(|(_, class)| class.is_transient());
        pending.hosts.extend(stranded.map(|(address, _)| *address));
        let stranded = nets.iter().filter(|(_, class)| class.is_transient());
        pending.nets.extend(stranded.map(|(prefix, _)| *prefix));
        let transient =
            |table: &BTreeMap<MapKey, RuleId>| table.keys().any(|key| key.class().is_transient());
        let named = tables.iter().filter(|(_, table)| transient(table));
        named.for_each(|(endpoint, _)| pending.table(*endpoint));
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

    /// Makes the maps hold what `change` says and bumps the epoch. `owners` has every endpoint of it. Endpoints
    /// in `held` have failed lately and are not tried, only kept in force as they are, for the reason given.
    ///
    /// A table whose endpoint has another owner than the map in force is a new table: the old map never
    /// matches the new owner's packets, so there is nothing to keep.
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
        let outcome = Commit::new(self, change, owners).run(steps, held);
        if outcome.stopped.is_none() {
            let classes = change.hosts.values().chain(change.nets.values()).flatten();
            self.highest = classes.map(|class| class.0).fold(self.highest, u32::max);
        }
        // also after a failure: the steps that were taken changed verdicts
        self.gate.maps.control().bump_epoch();
        outcome
    }
}

/// What the maps should hold of the things that an engine touched. An endpoint without a table (another pod has
/// taken its name) keeps the one it has, if any: without one it would fall back to its startup state, which
/// may be "open".
pub fn change(engine: &Engine, touched: &Touched, owners: &Owners) -> MapChange {
    let compiled: &Compiled = engine.compiled();
    let origin = |rule: RuleId| -> Option<&RuleOrigin> { engine.origin(rule) };
    let mut tables = BTreeMap::new();
    for (endpoint, part) in &touched.tables {
        let (Some(table), Some(owner)) = (compiled.tables.get(endpoint), owners.get(endpoint))
        else {
            continue;
        };
        let change = match part {
            Part::Whole => TableChange::Whole(encode::table(*owner, &table.entries, origin)),
            Part::Classes(classes) => {
                let column = |class| {
                    let column = table.column(class);
                    let rules = column
                        .into_iter()
                        .filter_map(|entry| table.entries.get(&entry).map(|rule| (entry, *rule)));
                    (class, encode::table(*owner, &rules.collect(), origin))
                };
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
    }
}
