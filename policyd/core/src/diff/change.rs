//! Part of a state: what may be different.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{EntryKey, State};
use crate::compile::{Class, EndpointId, RuleId};

/// How some things are to be. What it does not name stays as it is; it may name what is just so already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K> {
    /// Classes of exact addresses; `None`: not there.
    pub hosts: BTreeMap<IpAddr, Option<Class>>,
    /// Classes of prefixes; `None`: not there.
    pub nets: BTreeMap<IpNet, Option<Class>>,
    /// Tables.
    pub tables: BTreeMap<EndpointId, TableChange<K>>,
}

/// How a table is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableChange<K> {
    /// All its entries. An endpoint that has no table gets its first.
    Whole(BTreeMap<K, RuleId>),
    /// The entries of some classes, all of each. Nothing to an endpoint that has no table.
    Classes(BTreeMap<Class, BTreeMap<K, RuleId>>),
    /// Not there.
    Gone,
}

impl<K> Default for Change<K> {
    fn default() -> Self {
        Self { hosts: BTreeMap::new(), nets: BTreeMap::new(), tables: BTreeMap::new() }
    }
}

impl<K: EntryKey> Change<K> {
    /// All that is different between two states.
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
        }
    }
}
