//! From one state of the maps to another, in an order that no flow notices (ARCHITECTURE.md#the-order-of-a-commit).
//!
//! Every step changes one entry of one map. A verdict comes from two of them, the class of the peer's address
//! and the entries of that class, and the promise is about each moment in between: **a flow that both
//! states allow is never refused, and one that both refuse is never allowed.**
//!
//! Adding entries first, moving addresses between classes then and removing entries last keeps the first
//! half. That is the order where entries only allow; where they may deny, [`exact`] has another one.
//! The second half needs more, for a class may change its entries and its members at once: of pods
//! `a` in class 1 and `b` in class 2, let a policy that allowed class 2 now allow class 1, while `a` loses
//! the label that made it class 1. New entries of class 1 added before `a` has left would let `a` in,
//! which no state does. Just so a pod that joins a class must not find entries there that are about to go.
//! Such a class (it gets entries and loses members, or loses entries and gets members) is edited only
//! while it has no members: its new entries are written for a *transient* twin first, the members that stay or
//! join are moved to the twin, the empty class is edited, and they are moved back.
//!
//! [`Class::ANY`] needs no twin: its entries hold for every peer, so old ones are no more than what the old
//! state allows everybody, and new ones no more than what the new one does.
//!
//! A plan is made from what a [`Change`] names, and costs no more; only for a class that needs a twin all members are
//! looked up.
//!
//! Exact addresses and prefixes that vanish are taken away as early as that is safe: where what they fall to
//! is already what it will be. So a class map that is full has room again before new ones come.
//!
//! An endpoint's first table comes when the classes have settled, so that its first verdict is its final one;
//! until then it is in its startup state. No class can be referenced before its entries exist.

mod change;
mod exact;
mod plan;
mod state;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Direction;
use crate::tables::{Class, Decision, EndpointId, Entry, PortMatch};

pub use change::{Change, TableChange};
pub use exact::CompleteColumns;
pub use state::State;

/// The steps that make `change` of `old`, in order. Class numbers must mean the same in both, which they do if one
/// [`crate::compile::Engine`] made both; `old` may also be where an earlier plan stopped.
pub fn plan<K: EntryKey>(old: &State<K>, change: &Change<K>) -> Vec<Step<K>> {
    match old.ranked || change.ranked {
        true => exact::plan(old, change),
        false => plan::plan(old, change),
    }
}

/// The key of a table's entry, as the maps have it. Which packets an entry is about must depend on its key alone, and be the
/// same for two keys that differ in their classes only.
pub trait EntryKey: Clone + Ord {
    /// The class of peers that it applies to.
    fn class(&self) -> Class;
    /// The same key for another class.
    #[must_use]
    fn with_class(&self, class: Class) -> Self;
    /// How specific it is: of the entries of one class that match a packet, the one with the greatest decides.
    fn depth(&self) -> u32;
    /// Whether it matches every packet of `other`, classes aside.
    fn covers(&self, other: &Self) -> bool;
    /// The entries of a table for one class.
    fn column(table: &BTreeMap<Self, Decision>, class: Class) -> BTreeMap<Self, Decision>;
}

impl EntryKey for Entry {
    fn class(&self) -> Class {
        self.class
    }

    fn with_class(&self, class: Class) -> Self {
        Self { class, ..*self }
    }

    fn depth(&self) -> u32 {
        u32::MAX - self.ports.width()
    }

    fn covers(&self, other: &Self) -> bool {
        self.direction == other.direction && self.ports.covers(other.ports)
    }

    fn column(table: &BTreeMap<Self, Decision>, class: Class) -> BTreeMap<Self, Decision> {
        let of = |direction| {
            let first = Self { direction, class, ports: PortMatch::Everything };
            let entries = table.range(first..).map(|(entry, decision)| (*entry, *decision));
            entries.take_while(move |(e, _)| e.direction == direction && e.class == class)
        };
        of(Direction::Ingress).chain(of(Direction::Egress)).collect()
    }
}

/// One change of one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<K> {
    /// Adds an entry, or changes the decision that it names.
    SetEntry {
        /// The owner of the table.
        endpoint: EndpointId,
        /// The entry's key.
        key: K,
        /// The decision that it names from now on.
        decision: Decision,
    },
    /// Adds an exact address, or changes its class.
    SetHost {
        /// The address.
        address: IpAddr,
        /// Its class from now on.
        class: Class,
    },
    /// Adds a prefix, or changes its class.
    SetNet {
        /// The prefix.
        prefix: IpNet,
        /// Its class from now on.
        class: Class,
    },
    /// Removes a prefix: its addresses get the class of the next shorter one.
    RemoveNet {
        /// The prefix.
        prefix: IpNet,
    },
    /// Removes an exact address: it gets the class of its longest prefix.
    RemoveHost {
        /// The address.
        address: IpAddr,
    },
    /// Adds the first table of an endpoint, with all entries.
    NewTable {
        /// The owner of the table.
        endpoint: EndpointId,
        /// All its entries.
        entries: BTreeMap<K, Decision>,
    },
    /// Removes an entry.
    RemoveEntry {
        /// The owner of the table.
        endpoint: EndpointId,
        /// The entry's key.
        key: K,
    },
    /// Removes the table of an endpoint.
    DropTable {
        /// The owner of the table.
        endpoint: EndpointId,
    },
}
