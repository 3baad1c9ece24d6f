//! From one state of the maps to another, in an order that no flow notices (design.md section 4).
//!
//! Every step is one change of one map. A verdict comes from two of them, the class of the peer's address
//! and the entries of that class, and the promise is about each moment in between: **a flow that both
//! states allow is never refused, and one that both refuse is never allowed.**
//!
//! Adding entries first, moving addresses between classes then and removing entries last keeps the first
//! half. The second half needs more, for a class may change its entries and its members at once: of pods
//! `a` in class 1 and `b` in class 2, let a policy that allowed class 2 now allow class 1, while `a` loses
//! the label that made it class 1. New entries of class 1 added before `a` has left would let `a` in,
//! which no state does. Just so a pod that joins a class must not find entries there that are about to go.
//! Such a class (it gets entries and loses members, or loses entries and gets members) is edited only
//! while nobody is in it: its new entries are written for a *transient* twin first, those who stay or
//! come go to the twin, the empty class is edited, and they move back.
//!
//! [`Class::ANY`] needs no twin: its entries hold for every peer, so old ones are no more than what the old
//! state allows everybody, and new ones no more than what the new one does.
//!
//! A plan is made from what a [`Change`] touches, and costs what it touches; only where a class needs a twin
//! all its members are looked for.
//!
//! Exact addresses and prefixes that vanish are taken away as early as that is safe: where what they fall to
//! is already what it will be. So a class map that is full has room again before new ones come.
//!
//! An endpoint's first table comes when the classes have settled, so that its first verdict is its final one;
//! until then it is in its startup state. No class can be referenced before its entries exist.

mod change;
mod plan;
mod state;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::compile::{Class, EndpointId, Entry, PortMatch, RuleId};
use crate::model::Direction;

pub use change::{Change, TableChange};
pub use plan::plan;
pub use state::State;

/// The key of a table's entry, as the maps have it.
///
/// Entries only ever allow. What an entry allows must depend on its key alone, and be the same for two
/// keys that differ in their classes only.
pub trait EntryKey: Clone + Ord {
    /// For which peers it is.
    fn class(&self) -> Class;
    /// The same for other peers.
    #[must_use]
    fn with_class(&self, class: Class) -> Self;
    /// The entries of a table that are for these peers.
    fn column(table: &BTreeMap<Self, RuleId>, class: Class) -> BTreeMap<Self, RuleId>;
}

impl EntryKey for Entry {
    fn class(&self) -> Class {
        self.class
    }

    fn with_class(&self, class: Class) -> Self {
        Self { class, ..*self }
    }

    fn column(table: &BTreeMap<Self, RuleId>, class: Class) -> BTreeMap<Self, RuleId> {
        let of = |direction| {
            let first = Self { direction, class, ports: PortMatch::Everything };
            let entries = table.range(first..).map(|(entry, rule)| (*entry, *rule));
            entries.take_while(move |(e, _)| e.direction == direction && e.class == class)
        };
        of(Direction::Ingress).chain(of(Direction::Egress)).collect()
    }
}

/// One change of one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<K> {
    /// Adds an entry, or changes the rule that it names.
    SetEntry {
        /// Whose.
        endpoint: EndpointId,
        /// Which.
        key: K,
        /// The rule.
        rule: RuleId,
    },
    /// Gives an exact address its class, or another one.
    SetHost {
        /// Which.
        address: IpAddr,
        /// Its class from now on.
        class: Class,
    },
    /// Gives a prefix its class, or another one.
    SetNet {
        /// Which.
        prefix: IpNet,
        /// Its class from now on.
        class: Class,
    },
    /// Takes a prefix away: its addresses fall to the next shorter one.
    RemoveNet {
        /// Which.
        prefix: IpNet,
    },
    /// Takes an exact address away: it falls to its prefix.
    RemoveHost {
        /// Which.
        address: IpAddr,
    },
    /// Gives an endpoint its first table, whole.
    NewTable {
        /// Whose.
        endpoint: EndpointId,
        /// All its entries.
        entries: BTreeMap<K, RuleId>,
    },
    /// Takes an entry away.
    RemoveEntry {
        /// Whose.
        endpoint: EndpointId,
        /// Which.
        key: K,
    },
    /// Takes an endpoint's table away.
    DropTable {
        /// Whose.
        endpoint: EndpointId,
    },
}
