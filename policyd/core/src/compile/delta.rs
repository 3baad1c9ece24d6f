//! What an update changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::tables::{Class, Compiled, EndpointId};

/// The keys of everything that an update changed; the new values are in [`crate::compile::Engine::compiled`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineDelta {
    /// Addresses added to, changed in or removed from [`Compiled::hosts`].
    pub hosts: BTreeSet<IpAddr>,
    /// Prefixes added to, changed in or removed from [`Compiled::nets`].
    pub nets: BTreeSet<IpNet>,
    /// Tables added, changed or removed.
    pub tables: BTreeMap<EndpointId, TableDelta>,
}

/// How much of a table may be different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableDelta {
    /// Any of it, or it is new or gone.
    Whole,
    /// Only the entries of these classes.
    Classes(BTreeSet<Class>),
}

impl EngineDelta {
    /// Everything that is compiled, as if all of it were new.
    pub fn everything(compiled: &Compiled) -> Self {
        Self {
            hosts: compiled.hosts.keys().copied().collect(),
            nets: compiled.nets.keys().copied().collect(),
            tables: compiled.tables.keys().map(|id| (*id, TableDelta::Whole)).collect(),
        }
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.nets.is_empty() && self.tables.is_empty()
    }

    /// Marks a table as a whole.
    pub fn table(&mut self, endpoint: EndpointId) {
        self.tables.insert(endpoint, TableDelta::Whole);
    }

    /// Marks the entries of one class in a table.
    pub fn column(&mut self, endpoint: EndpointId, class: Class) {
        let part =
            self.tables.entry(endpoint).or_insert_with(|| TableDelta::Classes(BTreeSet::new()));
        if let TableDelta::Classes(classes) = part {
            classes.insert(class);
        }
    }

    /// Adds what another update changed.
    pub fn merge(&mut self, other: Self) {
        self.hosts.extend(other.hosts);
        self.nets.extend(other.nets);
        for (endpoint, part) in other.tables {
            match part {
                TableDelta::Whole => self.table(endpoint),
                TableDelta::Classes(classes) => {
                    classes.into_iter().for_each(|class| self.column(endpoint, class));
                }
            }
        }
    }
}
