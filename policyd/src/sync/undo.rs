//! What the maps held when a commit began, recorded only for what it changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podgate_policy::diff::Step;
use podgate_policy::prefixes::PrefixMap;
use podgate_policy::tables::{Class, Decision, EndpointId};

use super::MapState;
use crate::encode::MapKey;

/// The original values of what a commit has changed so far; `None` if there was none.
#[derive(Debug, Default)]
pub(super) struct Undo {
    hosts: BTreeMap<IpAddr, Option<Class>>,
    nets: BTreeMap<IpNet, Option<Class>>,
    /// In the order of the changes: of several with one key the first has the original value.
    tables: BTreeMap<EndpointId, Vec<(MapKey, Option<Decision>)>>,
}

impl Undo {
    /// Applies a step to the shadow, and records what it changes.
    pub(super) fn apply(&mut self, shadow: &mut MapState, step: Step<MapKey>) {
        match &step {
            Step::SetEntry { endpoint, key, decision } => {
                let table = shadow.tables.entry(*endpoint).or_default();
                let was = table.insert(*key, *decision);
                return self.tables.entry(*endpoint).or_default().push((*key, was));
            }
            Step::RemoveEntry { endpoint, key } => {
                let was = shadow.tables.get_mut(endpoint).and_then(|table| table.remove(key));
                return self.tables.entry(*endpoint).or_default().push((*key, was));
            }
            Step::SetHost { address, .. } | Step::RemoveHost { address } => {
                self.hosts.entry(*address).or_insert(shadow.hosts.get(address).copied());
            }
            Step::SetNet { prefix, .. } | Step::RemoveNet { prefix } => {
                self.nets.entry(*prefix).or_insert(shadow.nets.get(prefix).copied());
            }
            // an endpoint's first table, or one whose interface is gone: there is nothing to restore
            Step::NewTable { .. } | Step::DropTable { .. } => {}
        }
        shadow.apply(step);
    }

    /// The class that an address had in the exact map.
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
    ) -> Option<BTreeMap<MapKey, Decision>> {
        let mut table = shadow.tables.get(&endpoint)?.clone();
        for (key, rule) in self.tables.get(&endpoint).into_iter().flatten().rev() {
            match rule {
                Some(rule) => drop(table.insert(*key, *rule)),
                None => drop(table.remove(key)),
            }
        }
        Some(table)
    }
}
