//! What the maps hold.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{EntryKey, Step};
use crate::prefixes::PrefixMap;
use crate::tables::{Class, Classifier, Compiled, Decision, EndpointId, Table};

/// What the maps hold. `K` is an entry's key: [`crate::tables::Entry`], or how the kernel's map spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State<K> {
    /// Classes of exact addresses.
    pub hosts: BTreeMap<IpAddr, Class>,
    /// Classes of prefixes.
    pub nets: PrefixMap<Class>,
    /// Each endpoint's entries, and the decision that each names.
    pub tables: BTreeMap<EndpointId, BTreeMap<K, Decision>>,
    /// Whether entries may deny. Then plans keep a stronger promise, at a higher price.
    pub ranked: bool,
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            nets: PrefixMap::new(),
            tables: BTreeMap::new(),
            ranked: false,
        }
    }
}

impl<K: EntryKey> State<K> {
    /// The state that holds a compilation; `encode` gives a table's entries as the maps have them.
    pub fn of(
        compiled: &Compiled,
        encode: impl Fn(EndpointId, &Table) -> BTreeMap<K, Decision>,
    ) -> Self {
        let tables = compiled.tables.iter();
        Self {
            hosts: compiled.hosts.clone(),
            nets: compiled.nets.clone(),
            tables: tables.map(|(id, table)| (*id, encode(*id, table))).collect(),
            ranked: compiled.is_ranked(),
        }
    }

    /// Applies one step. A shadow of the maps applies each step that the maps took, so that it is correct even when a plan
    /// stops half way.
    pub fn apply(&mut self, step: Step<K>) {
        match step {
            Step::SetEntry { endpoint, key, decision } => {
                self.tables.entry(endpoint).or_default().insert(key, decision);
            }
            Step::SetHost { address, class } => {
                self.hosts.insert(address, class);
            }
            Step::SetNet { prefix, class } => {
                self.nets.insert(prefix, class);
            }
            Step::RemoveNet { prefix } => {
                self.nets.remove(&prefix);
            }
            Step::RemoveHost { address } => {
                self.hosts.remove(&address);
            }
            Step::NewTable { endpoint, entries } => {
                self.tables.insert(endpoint, entries);
            }
            Step::RemoveEntry { endpoint, key } => {
                if let Some(table) = self.tables.get_mut(&endpoint) {
                    table.remove(&key);
                }
            }
            Step::DropTable { endpoint } => {
                self.tables.remove(&endpoint);
            }
        }
    }

    /// The class of any address, in this state.
    pub fn classifier(&self) -> Classifier<'_> {
        Classifier::new(&self.hosts, &self.nets)
    }

    /// Every class that has a member or an entry. May contain duplicates.
    pub fn classes(&self) -> impl Iterator<Item = Class> {
        let keys = self.tables.values().flat_map(BTreeMap::keys);
        let members = self.hosts.values().chain(self.nets.values()).copied();
        members.chain(keys.map(EntryKey::class))
    }
}
