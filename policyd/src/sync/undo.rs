//! What was in the maps when a commit began, kept only where it changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podgate_policy::compile::{Class, EndpointId, RuleId};
use podgate_policy::diff::Step;
use podgate_policy::prefixes::PrefixMap;

use super::MapState;
use crate::encode::MapKey;

/// First values of what a commit has changed so far; `None`: it was not there.
#[derive(Debug, Default)]
pub(super) struct Undo {
    hosts: BTreeMap<IpAddr, Option<Class>>,
    nets: BTreeMap<IpNet, Option<Class>>,
    tables: BTreeMap<EndpointId, BTreeMap<MapKey, Option<RuleId>>>,
}

impl Undo {
    /// Takes note of what a step is about to change in the shadow.
    pub(super) fn note(&mut self, shadow: &MapState, step: &Step<MapKey>) {
        match step {
            Step::SetEntry { endpoint, key, .. } | Step::RemoveEntry { endpoint, key } => {
                let was = shadow.tables.get(endpoint).and_then(|table| table.get(key)).copied();
                self.tables.entry(*endpoint).or_default().entry(*key).or_insert(was);
            }
            Step::SetHost { address, .. } | Step::RemoveHost { address } => {
                self.hosts.entry(*address).or_insert(shadow.hosts.get(address).copied());
            }
            Step::SetNet { prefix, .. } | Step::RemoveNet { prefix } => {
                self.nets.entry(*prefix).or_insert(shadow.nets.get(prefix).copied());
            }
            // a first table, or one whose interface is gone: nothing to go back to
            Step::NewTable { .. } | Step::DropTable { .. } => {}
        }
    }

    /// The class that an address had of its own.
    pub(super) fn host(&self, shadow: &MapState, address: IpAddr) -> Option<Class> {
        let changed = self.hosts.get(&address).copied();
        changed.unwrap_or_else(|| shadow.hosts.get(&address).copied())
    }

    /// The classes that prefixes had.
    pub(super) fn nets(&self, shadow: &MapState) -> PrefixMap<Class> {
        let mut nets = shadow.nets.clone();
        for (prefix, class) in &self.nets {
            match class {
                Some(class) => drop(nets.insert(*prefix, *class)),
                None => drop(nets.remove(prefix)),
            }
        }
        nets
    }

    /// The entries that an endpoint had, if it had a table.
    pub(super) fn table(
        &self,
        shadow: &MapState,
        endpoint: EndpointId,
    ) -> Option<BTreeMap<MapKey, RuleId>> {
        let mut table = shadow.tables.get(&endpoint)?.clone();
        for (key, rule) in self.tables.get(&endpoint).into_iter().flatten() {
            match rule {
                Some(rule) => drop(table.insert(*key, *rule)),
                None => drop(table.remove(key)),
            }
        }
        Some(table)
    }
}
