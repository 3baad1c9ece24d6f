//! A change of a state: the keys that may change and their new values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{EntryKey, State};
use crate::tables::{Class, Decision, EndpointId};

/// The new values of some keys. Keys that it does not name stay as they are; it may name unchanged ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K> {
    /// Classes of exact addresses; `None`: removed.
    pub hosts: BTreeMap<IpAddr, Option<Class>>,
    /// Classes of prefixes; `None`: removed.
    pub nets: BTreeMap<IpNet, Option<Class>>,
    /// Tables of endpoints.
    pub tables: BTreeMap<EndpointId, TableChange<K>>,
    /// Whether entries of the new tables may deny.
    pub ranked: bool,
}

/// The new entries of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableChange<K> {
    /// All its entries. An endpoint that has no table gets its first.
    Whole(BTreeMap<K, Decision>),
    /// All entries of some classes. Ignored for an endpoint without a table.
    Classes(BTreeMap<Class, BTreeMap<K, Decision>>),
    /// The table is removed.
    Gone,
}

impl<K> Default for Change<K> {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            nets: BTreeMap::new(),
            tables: BTreeMap::new(),
            ranked: false,
        }
    }
}

impl<K: EntryKey> Change<K> {
    /// Whether some address or prefix has another entry than before.
    pub(super) fn moves(&self, old: &State<K>) -> bool {
        self.hosts.iter().any(|(address, class)| old.hosts.get(address) != class.as_ref())
            || self.nets.iter().any(|(prefix, class)| old.nets.get(prefix) != class.as_ref())
    }

    /// Everything that differs between two states.
    pub fn between(old: &State<K>, new: &State<K>) -> Self {
        let names: BTreeSet<IpAddr> = old.hosts.keys().chain(new.hosts.keys()).copied().collect();
        let hosts = names.into_iter().map(|name| (name, new.hosts.get(&name).copied()));
        let names: BTreeSet<IpNet> = old.nets.keys().chain(new.nets.keys()).copied().collect();
        let nets = names.into_iter().map(|name| (name, new.nets.get(&name).copied()));
        let names: BTreeSet<EndpointId> =
            old.tables.keys().chain(new.tables.keys()).copied().collect();
        let tables = names.into_iter().map(|name| match new.tables.get(&name) {
            Some(entries) => (name, TableChange::Whole(entries.clone())),
            None => (name, TableChange::Gone),
        });
        Self {
            hosts: hosts.filter(|(name, class)| old.hosts.get(name) != class.as_ref()).collect(),
            nets: nets.filter(|(name, class)| old.nets.get(name) != class.as_ref()).collect(),
            tables: tables
                .filter(|(name, _)| old.tables.get(name) != new.tables.get(name))
                .collect(),
            ranked: new.ranked,
        }
    }
}
