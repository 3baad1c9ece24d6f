//! What an update made different.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::compile::{Class, Compiled, EndpointId};

/// The names of what came out differently; how it is now is for [`crate::engine::Engine::compiled`] to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Addresses that have another class in `hosts`, or are new or gone there.
    pub hosts: BTreeSet<IpAddr>,
    /// The same of prefixes in `nets`.
    pub nets: BTreeSet<IpNet>,
    /// Tables that have other entries, or are new or gone.
    pub tables: BTreeMap<EndpointId, Part>,
}

/// How much of a table is different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Perhaps all of it.
    Whole,
    /// The entries of these classes.
    Classes(BTreeSet<Class>),
}

impl Touched {
    /// Everything there is.
    pub fn everything(compiled: &Compiled) -> Self {
        Self {
            hosts: compiled.hosts.keys().copied().collect(),
            nets: compiled.nets.keys().copied().collect(),
            tables: compiled.tables.keys().map(|id| (*id, Part::Whole)).collect(),
        }
    }

    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.nets.is_empty() && self.tables.is_empty()
    }

    /// A table is different, new or gone.
    pub fn table(&mut self, endpoint: EndpointId) {
        self.tables.insert(endpoint, Part::Whole);
    }

    /// The entries of a class are different in a table.
    pub fn column(&mut self, endpoint: EndpointId, class: Class) {
        let part = self.tables.entry(endpoint).or_insert_with(|| Part::Classes(BTreeSet::new()));
        if let Part::Classes(classes) = part {
            classes.insert(class);
        }
    }

    /// Both.
    pub fn merge(&mut self, other: Self) {
        self.hosts.extend(other.hosts);
        self.nets.extend(other.nets);
        for (endpoint, part) in other.tables {
            match part {
                Part::Whole => self.table(endpoint),
                Part::Classes(classes) => {
                    classes.into_iter().for_each(|class| self.column(endpoint, class));
                }
            }
        }
    }
}
