//! `services: leave`: kube-proxy translates, and the gate answers for a service's address as well as it can.
//!
//! Each service address gets a class of its own, and each isolated pod's policy map entries for that class: allow
//! or deny, by the service's port ([`podgate_policy::services::answer_left`]). These classes lie above all others, and nobody
//! else's steps touch them: what the maps hold of them is read from the maps at each commit, so it does not matter
//! who replaced a map meanwhile. That costs a look at every local policy map per commit, in this mode only.
//!
//! Order, as for all classes: entries first, then the addresses that they are for; the other way when they go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podgate_bpf::abi::{PolicyKey, Verdict};
use podgate_bpf::maps::{Maps, PolicyMap};
use podgate_bpf::{Gate, Result};
use podgate_policy::compile::{Class, Compiled, Endpoint, Entry, PortMatch};
use podgate_policy::model::Direction;
use podgate_policy::services::{LeftAnswer, ServiceTable, answer_left};

use crate::encode;

/// Classes from here on are of service addresses. Above those that a plan uses for itself.
const FIRST: u32 = 0xF800_0000;

/// Whether a class is of a service address, and so not of the compiler.
pub(super) fn is_left(class: u32) -> bool {
    class >= FIRST
}

/// The part of the class maps and the policy maps that answers for service addresses. Owned by the writer.
#[derive(Debug)]
pub struct LeftAlone {
    gate: Arc<Gate>,
    /// As the class maps have them.
    classes: BTreeMap<IpAddr, Class>,
    /// What could not be done at the last commit.
    problem: Option<String>,
}

/// Entries of one policy map that are ours: the verdict and the rule, by their keys.
type Entries = BTreeMap<PolicyKey, (u8, u32)>;

impl LeftAlone {
    /// Takes over what an earlier policyd left in the maps.
    pub fn adopt(gate: Arc<Gate>) -> Result<Self> {
        let peers = gate.maps.peers()?.into_iter();
        let ours = peers.filter(|(_, class)| is_left(*class));
        let classes = ours.map(|(address, class)| (address, Class(class))).collect();
        Ok(Self { gate, classes, problem: None })
    }

    /// Whether the maps hold nothing of it.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty() && self.problem.is_none()
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

    /// Makes the maps answer for every service address. True if something changed.
    pub fn answer(
        &mut self,
        services: &ServiceTable,
        compiled: &Compiled,
        endpoints: &[(Endpoint, u32)],
    ) -> bool {
        let wanted: BTreeSet<IpAddr> =
            services.iter().map(|(frontend, _)| frontend.address).collect();
        let mut next = self.classes.values().map(|class| class.0 + 1).max().unwrap_or(FIRST);
        let mut classes = BTreeMap::new();
        for address in wanted {
            let class = self.classes.get(&address).copied().unwrap_or_else(|| {
                next += 1;
                Class(next - 1)
            });
            classes.insert(address, class);
        }
        self.commit(&classes, endpoints, |endpoint, owner| {
            let mut entries = Entries::new();
            // an allowed port of a protocol also answers for packets without a port: it is written last
            for allowed in [false, true] {
                for (frontend, balance) in services.iter() {
                    let Some(class) = classes.get(&frontend.address).copied() else { continue };
                    let value = match answer_left(compiled, endpoint, &frontend, balance) {
                        Some(LeftAnswer::Allow(rule)) if allowed => {
                            (Verdict::Allow as u8, rule.map_or(0, |rule| rule.0))
                        }
                        Some(LeftAnswer::Deny) if !allowed => (Verdict::Deny as u8, 0),
                        _ => continue,
                    };
                    let ports = PortMatch::one(frontend.protocol, frontend.port);
                    let entry = Entry { direction: Direction::Egress, class, ports };
                    entries.extend(encode::keys(owner, &entry).into_iter().map(|key| (key, value)));
                }
            }
            entries
        })
    }

    /// Removes everything. True if something changed.
    pub fn clear(&mut self, endpoints: &[(Endpoint, u32)]) -> bool {
        self.commit(&BTreeMap::new(), endpoints, |_, _| Entries::new())
    }

    fn commit(
        &mut self,
        classes: &BTreeMap<IpAddr, Class>,
        endpoints: &[(Endpoint, u32)],
        wanted: impl Fn(&Endpoint, u32) -> Entries,
    ) -> bool {
        let mut changed = false;
        let done = self.try_commit(classes, endpoints, wanted, &mut changed);
        let problem = done.err().map(|error| error.to_string());
        if let Some(error) = problem.as_ref().filter(|_| self.problem != problem) {
            tracing::error!(%error, "cannot answer for services that are left alone");
        }
        self.problem = problem;
        changed
    }

    /// An endpoint's error holds up neither the others nor what goes, only the addresses that are new.
    fn try_commit(
        &mut self,
        classes: &BTreeMap<IpAddr, Class>,
        endpoints: &[(Endpoint, u32)],
        wanted: impl Fn(&Endpoint, u32) -> Entries,
        changed: &mut bool,
    ) -> Result<()> {
        let maps = &self.gate.maps;
        let (mut removals, mut added) = (Vec::new(), Ok(()));
        for (endpoint, owner) in endpoints {
            let (map, present) = match present(maps, endpoint, *owner) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => {
                    added = added.and(Err(error));
                    continue;
                }
            };
            let wanted = wanted(endpoint, *owner);
            for (key, value) in wanted.iter().filter(|(key, value)| present.get(key) != Some(value))
            {
                let set = map.set(key, &encode::left(*value));
                *changed |= set.is_ok();
                added = added.and(set);
            }
            let gone: Vec<PolicyKey> =
                present.into_keys().filter(|key| !wanted.contains_key(key)).collect();
            removals.push((map, gone));
        }
        // An address whose class came before an endpoint's entries would lose what that endpoint allows it without one.
        // Where there is no room for another address, what goes below makes it for the next time.
        for (address, class) in classes {
            if added.is_ok() && !self.classes.contains_key(address) {
                added = maps.set_peer(*address, class.0);
                if added.is_ok() {
                    self.classes.insert(*address, *class);
                    *changed = true;
                }
            }
        }
        let gone: Vec<IpAddr> =
            self.classes.keys().copied().filter(|address| !classes.contains_key(address)).collect();
        for address in gone {
            maps.remove_peer(address)?;
            self.classes.remove(&address);
            *changed = true;
        }
        for (map, keys) in removals {
            for key in keys {
                map.remove(&key)?;
                *changed = true;
            }
        }
        added
    }
}

/// The policy map of an endpoint, if it has one, and what is in it that is ours.
fn present(maps: &Maps, endpoint: &Endpoint, owner: u32) -> Result<Option<(PolicyMap, Entries)>> {
    let Some(map) = maps.policy_map(endpoint.id.0)? else { return Ok(None) };
    let entries = map.entries()?.into_iter();
    let ours = entries.filter(|(key, _)| is_left(key.class) && key.owner == owner);
    let ours = ours.map(|(key, value)| (key, (value.verdict, value.rule))).collect();
    Ok(Some((map, ours)))
}
