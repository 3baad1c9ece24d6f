//! Addresses that the gate does not translate and something behind it may: node ports, load balancers with source ranges,
//! other proxies' services, and with `services: leave` all. The gate answers for them as well as it can.
//!
//! Each such address gets a class of its own or one that it shares with its likes ([`groups`]), and each isolated pod's
//! policy map entries for that class: what the compiler says of the address, and above it allow or deny for each port
//! ([`podgate_policy::services::answer_left`]). These classes lie above all others. The policy maps are the compiler's
//! ([`super::Kernel`]): one that takes another's place gets these entries too, and where the compiler writes the class of
//! such an address, it is written again here.
//!
//! Order, as for all classes: entries first, then the addresses that they are for; the other way when they go.

mod groups;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podgate_bpf::abi::{PolicyKey, Verdict};
use podgate_bpf::{Gate, Result};
use podgate_policy::compile::{Class, Compiled, Endpoint, EndpointId};
use podgate_policy::engine::{Part, Touched};
use podgate_policy::services::LeftSet;

use super::FirstEntries;
use crate::encode;
use groups::Groups;

/// Classes from here on are of service addresses. Above those that a plan uses for itself.
const FIRST: u32 = 0xF800_0000;
/// So many entries of one policy map are for such addresses at most. A node port takes two for each class that the
/// compiler gives to nodes' addresses.
const MOST: usize = 1 << 16;

/// Whether a class is of a service address, and so not of the compiler.
pub(super) fn is_left(class: u32) -> bool {
    class >= FIRST
}

/// A verdict, and the rule that it follows from or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    verdict: u8,
    rule: u32,
}

impl Value {
    const DENY: Self = Self { verdict: Verdict::Deny as u8, rule: 0 };

    fn allow(rule: u32) -> Self {
        Self { verdict: Verdict::Allow as u8, rule }
    }
}

/// Entries of one policy map that are ours, by their keys.
type Entries = BTreeMap<PolicyKey, Value>;

/// Endpoints and the numbers of their registrations.
pub type Owned<'a> = [(&'a Endpoint, u32)];

/// The part of the class maps and the policy maps that answers for service addresses. Owned by the writer.
#[derive(Debug)]
pub struct LeftAlone {
    gate: Arc<Gate>,
    set: LeftSet,
    groups: Groups,
    /// As the class maps have them.
    classes: BTreeMap<IpAddr, Class>,
    /// What the policy maps hold, by endpoint and owner.
    held: BTreeMap<EndpointId, (u32, Entries)>,
    /// Endpoints whose policy maps hold entries that go at the end of the commit.
    waning: BTreeSet<EndpointId>,
    /// All answers are to be worked out again.
    stale: bool,
    /// What an earlier policyd left in the policy maps is known.
    taken_over: bool,
    /// What could not be done at the last commit.
    problem: Option<String>,
}

impl LeftAlone {
    /// Takes over what an earlier policyd left in the maps.
    pub fn adopt(gate: Arc<Gate>) -> Result<Self> {
        let peers = gate.maps.peers()?.into_iter();
        let ours = peers.filter(|(_, class)| is_left(*class));
        let classes = ours.map(|(address, class)| (address, Class(class))).collect();
        Ok(Self {
            gate,
            set: LeftSet::default(),
            groups: Groups::default(),
            classes,
            held: BTreeMap::new(),
            waning: BTreeSet::new(),
            stale: true,
            taken_over: false,
            problem: None,
        })
    }

    /// Whether the maps hold nothing of it.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
            && self.problem.is_none()
            && self.held.values().all(|(_, entries)| entries.is_empty())
    }

    /// Whether everything that was asked for is in the maps.
    pub fn is_complete(&self) -> bool {
        self.problem.is_none()
    }

    /// What is not as it should be, for people.
    pub fn problem(&self) -> Option<String> {
        let reason = self.problem.as_ref()?;
        Some(format!("answer for services that are left alone: {reason}; retrying"))
    }

    /// Before policies change: takes note of a new set, and of what the compiler says now. Returns the entries that belong
    /// into the first policy maps of endpoints, by endpoint. Where no policy map is in force yet, addresses get their classes
    /// at once.
    pub fn prepare(
        &mut self,
        set: Option<LeftSet>,
        (compiled, touched): (&Compiled, &Touched),
        endpoints: &Owned<'_>,
        nothing_in_force: bool,
    ) -> FirstEntries {
        if self.problem.is_some() {
            // what the maps took of the last answers is read from them
            self.held.clear();
            self.stale = true;
        }
        self.stale |= set.is_some();
        self.stale |= !touched.nets.is_empty() || self.groups.concern(&touched.hosts);
        self.set = set.unwrap_or_else(|| std::mem::take(&mut self.set));
        if self.stale {
            let taken = self.classes.values().copied();
            self.groups = Groups::of(&self.set, compiled, &self.groups, taken);
        }
        let owners: BTreeMap<EndpointId, u32> =
            endpoints.iter().map(|(endpoint, owner)| (endpoint.id, *owner)).collect();
        self.held.retain(|id, (owner, _)| owners.get(id) == Some(owner));
        for (address, class) in self.groups.addresses.iter().filter(|_| nothing_in_force) {
            // what fails here fails again below, and is reported there
            if self.gate.maps.set_peer(*address, class.0).is_ok() {
                self.classes.insert(*address, *class);
            }
        }
        let new = endpoints.iter().filter(|(endpoint, _)| !self.held.contains_key(&endpoint.id));
        let first = |(endpoint, owner): &(&Endpoint, u32)| {
            let (entries, _) = self.wanted(compiled, endpoint, *owner);
            let entries = entries.into_iter();
            (endpoint.id, entries.map(|(key, value)| (key, encode::left(value.into()))).collect())
        };
        match self.groups.shared.is_empty() {
            true => BTreeMap::new(),
            false => new.map(first).collect(),
        }
    }

    /// After policies have changed: makes the maps answer for every address. What they answer for beyond that goes with
    /// [`LeftAlone::finish`]. True if something changed.
    pub fn answer(
        &mut self,
        compiled: &Compiled,
        touched: &Touched,
        endpoints: &Owned<'_>,
    ) -> bool {
        let mut changed = false;
        let mut problems = Vec::new();
        for (endpoint, owner) in endpoints {
            if self.concerns(touched, endpoint.id) {
                let answered = self.answer_at(compiled, (endpoint, *owner), &mut changed);
                problems.extend(answered.err());
            }
        }
        // An address whose class came before an endpoint's entries would lose what that endpoint allows it without one.
        // Where there is no room for another address, what goes at the end makes it for the next time.
        let mut added = problems.iter().all(|problem| problem.1);
        for (address, class) in &self.groups.addresses {
            let stands =
                self.classes.get(address) == Some(class) && !touched.hosts.contains(address);
            if !added || stands {
                continue;
            }
            match self.gate.maps.set_peer(*address, class.0) {
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
            tracing::error!(%error, "cannot answer for services that are left alone");
        }
        self.problem = problem;
        changed
    }

    /// Removes what is not wanted any more. True if something changed.
    pub fn finish(&mut self, compiled: &Compiled, endpoints: &Owned<'_>) -> bool {
        let mut changed = false;
        let wanted = &self.groups.addresses;
        let gone: Vec<IpAddr> =
            self.classes.keys().copied().filter(|address| !wanted.contains_key(address)).collect();
        let mut done = Ok(());
        for address in gone {
            let removed = match compiled.hosts.get(&address) {
                Some(class) => self.gate.maps.set_peer(address, class.0),
                None => self.gate.maps.remove_peer(address),
            };
            if removed.is_ok() {
                self.classes.remove(&address);
                changed = true;
            }
            done = done.and(removed);
        }
        // a class that some address could not leave keeps its entries
        let current: BTreeSet<Class> =
            self.groups.shared.iter().map(|shared| shared.class).collect();
        let mut in_use: BTreeSet<u32> = self.classes.values().map(|class| class.0).collect();
        in_use.retain(|class| !current.contains(&Class(*class)));
        let waning = std::mem::take(&mut self.waning);
        for (endpoint, owner) in endpoints.iter().filter(|(of, _)| waning.contains(&of.id)) {
            let removed = self.remove_at(compiled, (endpoint, *owner), &in_use, &mut changed);
            done = done.and(removed);
        }
        if let Err(error) = done {
            self.problem.get_or_insert(error.to_string());
        }
        self.stale = false;
        self.taken_over |= self.problem.is_none();
        changed
    }

    /// Whether an endpoint's answers may be other ones.
    fn concerns(&self, touched: &Touched, endpoint: EndpointId) -> bool {
        let part = || touched.tables.get(&endpoint);
        self.stale
            || !self.held.contains_key(&endpoint)
            || part().is_some_and(|part| match part {
                Part::Whole => true,
                Part::Classes(classes) => self.groups.follow_from(classes),
            })
    }

    /// Writes an endpoint's answers. An error says whether addresses may get their classes all the same.
    fn answer_at(
        &mut self,
        compiled: &Compiled,
        (endpoint, owner): (&Endpoint, u32),
        changed: &mut bool,
    ) -> std::result::Result<(), (String, bool)> {
        let failed = |error: podgate_bpf::Error| (error.to_string(), false);
        let Some(map) = self.gate.maps.policy_map(endpoint.id.0).map_err(failed)? else {
            self.held.remove(&endpoint.id);
            return Ok(());
        };
        let unused = self.classes.is_empty() && self.groups.shared.is_empty();
        let mut held = match self.held.remove(&endpoint.id) {
            Some((_, held)) => held,
            // no commit has written any since the maps were taken over
            None if unused && self.taken_over => Entries::new(),
            None => {
                let entries = map.entries().map_err(failed)?.into_iter();
                let ours = entries.filter(|(key, _)| is_left(key.class) && key.owner == owner);
                ours.map(|(key, value)| (key, Value { verdict: value.verdict, rule: value.rule }))
                    .collect()
            }
        };
        let (wanted, fits) = self.wanted(compiled, endpoint, owner);
        let mut written = Ok(());
        for (key, value) in &wanted {
            if held.get(key) == Some(value) {
                continue;
            }
            match map.set(key, &encode::left((*value).into())) {
                Ok(()) => {
                    held.insert(*key, *value);
                    *changed = true;
                }
                Err(error) => written = written.and(Err(failed(error))),
            }
        }
        if held.keys().any(|key| !wanted.contains_key(key)) {
            self.waning.insert(endpoint.id);
        }
        self.held.insert(endpoint.id, (owner, held));
        written.and(fits.map_err(|problem| (problem, true)))
    }

    fn remove_at(
        &mut self,
        compiled: &Compiled,
        (endpoint, owner): (&Endpoint, u32),
        in_use: &BTreeSet<u32>,
        changed: &mut bool,
    ) -> Result<()> {
        let Some(map) = self.gate.maps.policy_map(endpoint.id.0)? else { return Ok(()) };
        let (wanted, _) = self.wanted(compiled, endpoint, owner);
        let Some((_, held)) = self.held.get_mut(&endpoint.id) else { return Ok(()) };
        let gone = held.keys().filter(|key| !wanted.contains_key(*key));
        let gone = gone.filter(|key| !in_use.contains(&key.class));
        for key in gone.copied().collect::<Vec<_>>() {
            map.remove(&key)?;
            held.remove(&key);
            *changed = true;
        }
        Ok(())
    }

    /// The entries of an endpoint's policy map, and whether its answers fit.
    fn wanted(
        &self,
        compiled: &Compiled,
        endpoint: &Endpoint,
        owner: u32,
    ) -> (Entries, std::result::Result<(), String>) {
        let entries = self.groups.entries(compiled, endpoint, owner);
        if entries.len() <= MOST {
            return (entries, Ok(()));
        }
        let (ifindex, needed) = (endpoint.id.0, entries.len());
        let problem = format!(
            "interface {ifindex} needs {needed} map entries for them, at most {MOST} fit: it may send nothing to such \
             addresses; use fewer node ports, or fewer rules with single nodes' addresses"
        );
        (self.groups.closed(owner), Err(problem))
    }
}

impl From<Value> for (u8, u32) {
    fn from(value: Value) -> Self {
        (value.verdict, value.rule)
    }
}
