//! Policy for service addresses (VIPs) that podgate does not translate but kube-proxy or another proxy may: node ports,
//! load balancers with source ranges, other proxies' services, and with `--services leave` all of them. The gate sees only
//! the service's address, so its verdict is worked out from all backends behind it.
//!
//! Each such address gets a class of its own, or shares one with addresses of the same verdicts ([`groups`]). Each isolated
//! pod's policy map gets entries for that class: those of the class that the compiler gives the address, and for each port
//! of a service allow or deny ([`podgate_policy::services::vip_verdict`]). The numbers of these classes are above all
//! others. [`super::PolicyMaps`] writes the compiler's entries into the same maps: a map that it replaces gets these
//! entries too, and if it writes the class of such an address, that is written again here.
//!
//! Order, as for all classes: first the entries, then the addresses with the class; the reverse when they are removed.

mod groups;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podgate_bpf::abi::PolicyKey;
use podgate_bpf::{Datapath, Result};
use podgate_policy::compile::{EngineDelta, TableDelta};
use podgate_policy::services::UntranslatedSet;
use podgate_policy::tables::{Class, Compiled, Decision, Endpoint, EndpointId};

use super::FirstEntries;
use crate::encode;
use groups::Groups;

/// The largest number of entries of one policy map for such addresses. A node port takes two for each class that the
/// compiler gives to nodes' addresses.
const MAX_VIP_ENTRIES: usize = 1 << 16;

/// The entries of one policy map that are for such addresses.
type Entries = BTreeMap<PolicyKey, Decision>;

/// Endpoints with the owner numbers of their registrations.
pub type Owned<'a> = [(&'a Endpoint, u32)];

/// The entries of the class maps and policy maps for untranslated service addresses.
#[derive(Debug)]
pub struct VipPolicy {
    datapath: Arc<Datapath>,
    set: UntranslatedSet,
    groups: Groups,
    /// The classes of such addresses in the class maps.
    classes: BTreeMap<IpAddr, Class>,
    /// Owner number and entries of the policy maps, by endpoint.
    written: BTreeMap<EndpointId, (u32, Entries)>,
    /// Endpoints whose policy maps hold entries that are to be removed at the end of the commit.
    to_remove: BTreeSet<EndpointId>,
    /// All verdicts have to be computed again.
    stale: bool,
    /// The entries of an earlier policyd have been read.
    recovered: bool,
    /// The first error of the last commit.
    problem: Option<String>,
}

impl VipPolicy {
    /// Reads the classes of such addresses that an earlier policyd wrote.
    pub fn recover(datapath: Arc<Datapath>) -> Result<Self> {
        let peers = datapath.maps.peers()?.into_iter();
        let ours = peers.filter(|(_, class)| Class(*class).is_vip());
        let classes = ours.map(|(address, class)| (address, Class(class))).collect();
        Ok(Self {
            datapath,
            set: UntranslatedSet::default(),
            groups: Groups::default(),
            classes,
            written: BTreeMap::new(),
            to_remove: BTreeSet::new(),
            stale: true,
            recovered: false,
            problem: None,
        })
    }

    /// Whether the maps hold no such entries.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
            && self.problem.is_none()
            && self.written.values().all(|(_, entries)| entries.is_empty())
    }

    /// Whether the last commit wrote everything.
    pub fn is_complete(&self) -> bool {
        self.problem.is_none()
    }

    /// The error of the last commit, for users.
    pub fn problem(&self) -> Option<String> {
        let reason = self.problem.as_ref()?;
        Some(format!("write policy for untranslated services: {reason}; retrying"))
    }

    /// Before policies change: takes the new set, if it changed, and assigns classes. Returns the entries that the first
    /// policy maps of endpoints must have. If no policy map is in force yet, addresses get their classes at once.
    pub fn prepare(
        &mut self,
        set: Option<UntranslatedSet>,
        (compiled, touched): (&Compiled, &EngineDelta),
        endpoints: &Owned<'_>,
        nothing_in_force: bool,
    ) -> FirstEntries {
        if self.problem.is_some() {
            // it is not known which entries were written: read them from the maps
            self.written.clear();
            self.stale = true;
        }
        self.stale |= set.is_some();
        self.stale |= !touched.nets.is_empty() || self.groups.depend_on_hosts(&touched.hosts);
        self.set = set.unwrap_or_else(|| std::mem::take(&mut self.set));
        if self.stale {
            let taken = self.classes.values().copied();
            self.groups = Groups::of(&self.set, compiled, &self.groups, taken);
        }
        let owners: BTreeMap<EndpointId, u32> =
            endpoints.iter().map(|(endpoint, owner)| (endpoint.id, *owner)).collect();
        self.written.retain(|id, (owner, _)| owners.get(id) == Some(owner));
        for (address, class) in self.groups.addresses.iter().filter(|_| nothing_in_force) {
            // if this fails, `write` tries again and reports the error
            if self.datapath.maps.set_peer(*address, class.0).is_ok() {
                self.classes.insert(*address, *class);
            }
        }
        let new = endpoints.iter().filter(|(endpoint, _)| !self.written.contains_key(&endpoint.id));
        let first = |(endpoint, owner): &(&Endpoint, u32)| {
            let (entries, _) = self.wanted(compiled, endpoint, *owner);
            let entries = entries.into_iter();
            (endpoint.id, entries.map(|(key, value)| (key, encode::value(value))).collect())
        };
        match self.groups.classes.is_empty() {
            true => BTreeMap::new(),
            false => new.map(first).collect(),
        }
    }

    /// After policies have changed: writes the entries and classes of all such addresses. Those that are no longer needed
    /// are removed by [`VipPolicy::remove_old`]. True if something changed.
    pub fn write(
        &mut self,
        compiled: &Compiled,
        touched: &EngineDelta,
        endpoints: &Owned<'_>,
    ) -> bool {
        let mut changed = false;
        let mut problems = Vec::new();
        for (endpoint, owner) in endpoints {
            if self.concerns(touched, endpoint.id) {
                let written = self.write_at(compiled, (endpoint, *owner), &mut changed);
                problems.extend(written.err());
            }
        }
        // If an endpoint's entries are missing, an address that got its class would lose what the endpoint allows it now.
        // If a map is full, the removals at the end of this commit make room for the next one.
        let mut added = problems.iter().all(|problem| problem.1);
        for (address, class) in &self.groups.addresses {
            let is_current =
                self.classes.get(address) == Some(class) && !touched.hosts.contains(address);
            if !added || is_current {
                continue;
            }
            match self.datapath.maps.set_peer(*address, class.0) {
                Ok(()) => {
                    self.classes.insert(*address, *class);
                    changed = true;
                }
                Err(error) => {
                    problems.push((error.to_string(), false));
                    added = false;
                }
            }
        }
        let problem = problems.into_iter().map(|(problem, _)| problem).next();
        if let Some(error) = problem.as_ref().filter(|_| self.problem != problem) {
            tracing::error!(%error, "cannot write policy for untranslated services");
        }
        self.problem = problem;
        changed
    }

    /// Removes entries and classes that are no longer needed. True if something changed.
    pub fn remove_old(&mut self, compiled: &Compiled, endpoints: &Owned<'_>) -> bool {
        let mut changed = false;
        let wanted = &self.groups.addresses;
        let gone: Vec<IpAddr> =
            self.classes.keys().copied().filter(|address| !wanted.contains_key(address)).collect();
        let mut done = Ok(());
        for address in gone {
            let removed = match compiled.hosts.get(&address) {
                Some(class) => self.datapath.maps.set_peer(address, class.0),
                None => self.datapath.maps.remove_peer(address),
            };
            if removed.is_ok() {
                self.classes.remove(&address);
                changed = true;
            }
            done = done.and(removed);
        }
        // a class that some address still has keeps its entries
        let current: BTreeSet<Class> = self.groups.classes.iter().map(|of| of.class).collect();
        let mut in_use: BTreeSet<u32> = self.classes.values().map(|class| class.0).collect();
        in_use.retain(|class| !current.contains(&Class(*class)));
        let to_remove = std::mem::take(&mut self.to_remove);
        for (endpoint, owner) in endpoints.iter().filter(|(of, _)| to_remove.contains(&of.id)) {
            let removed = self.remove_at(compiled, (endpoint, *owner), &in_use, &mut changed);
            done = done.and(removed);
        }
        if let Err(error) = done {
            self.problem.get_or_insert(error.to_string());
        }
        self.stale = false;
        self.recovered |= self.problem.is_none();
        changed
    }

    /// Whether an endpoint's entries may have to change.
    fn concerns(&self, touched: &EngineDelta, endpoint: EndpointId) -> bool {
        let part = || touched.tables.get(&endpoint);
        self.stale
            || !self.written.contains_key(&endpoint)
            || part().is_some_and(|part| match part {
                TableDelta::Whole => true,
                TableDelta::Classes(classes) => self.groups.depend_on(classes),
            })
    }

    /// Writes an endpoint's entries. An error comes with whether addresses may get their classes nevertheless.
    fn write_at(
        &mut self,
        compiled: &Compiled,
        (endpoint, owner): (&Endpoint, u32),
        changed: &mut bool,
    ) -> std::result::Result<(), (String, bool)> {
        let failed = |error: podgate_bpf::Error| (error.to_string(), false);
        let Some(map) = self.datapath.maps.policy_map(endpoint.id.0).map_err(failed)? else {
            self.written.remove(&endpoint.id);
            return Ok(());
        };
        let unused = self.classes.is_empty() && self.groups.classes.is_empty();
        let mut written = match self.written.remove(&endpoint.id) {
            Some((_, written)) => written,
            // nothing was recovered and no commit has written any
            None if unused && self.recovered => Entries::new(),
            None => {
                let entries = map.entries().map_err(failed)?.into_iter();
                let ours =
                    entries.filter(|(key, _)| Class(key.class).is_vip() && key.owner == owner);
                ours.map(|(key, value)| (key, encode::decision(&value))).collect()
            }
        };
        let (wanted, fits) = self.wanted(compiled, endpoint, owner);
        let mut result = Ok(());
        // From the longest prefix to the shortest, and removed the other way round: where entries deny, a packet meets its old
        // entry or its new one, and no third (podgate_policy::diff).
        for (key, value) in wanted.iter().rev() {
            if written.get(key) == Some(value) {
                continue;
            }
            match map.set(key, &encode::value(*value)) {
                Ok(()) => {
                    written.insert(*key, *value);
                    *changed = true;
                }
                Err(error) => result = result.and(Err(failed(error))),
            }
        }
        if written.keys().any(|key| !wanted.contains_key(key)) {
            self.to_remove.insert(endpoint.id);
        }
        self.written.insert(endpoint.id, (owner, written));
        result.and(fits.map_err(|problem| (problem, true)))
    }

    fn remove_at(
        &mut self,
        compiled: &Compiled,
        (endpoint, owner): (&Endpoint, u32),
        in_use: &BTreeSet<u32>,
        changed: &mut bool,
    ) -> Result<()> {
        let Some(map) = self.datapath.maps.policy_map(endpoint.id.0)? else { return Ok(()) };
        let (wanted, _) = self.wanted(compiled, endpoint, owner);
        let Some((_, written)) = self.written.get_mut(&endpoint.id) else { return Ok(()) };
        let gone = written.keys().filter(|key| !wanted.contains_key(*key));
        let gone = gone.filter(|key| !in_use.contains(&key.class));
        for key in gone.copied().collect::<Vec<_>>() {
            map.remove(&key)?;
            written.remove(&key);
            *changed = true;
        }
        Ok(())
    }

    /// The entries that an endpoint's policy map should have; an error text if they do not fit, with entries that deny all
    /// such addresses instead.
    fn wanted(
        &self,
        compiled: &Compiled,
        endpoint: &Endpoint,
        owner: u32,
    ) -> (Entries, std::result::Result<(), String>) {
        let entries = self.groups.entries(compiled, endpoint, owner);
        if entries.len() <= MAX_VIP_ENTRIES {
            return (entries, Ok(()));
        }
        let (ifindex, needed) = (endpoint.id.0, entries.len());
        let problem = format!(
            "interface {ifindex} needs {needed} map entries for them, at most {MAX_VIP_ENTRIES} fit: it may send nothing to such \
             addresses; use fewer node ports, or fewer rules with single nodes' addresses"
        );
        (self.groups.deny_all(owner), Err(problem))
    }
}
