//! What a pod allows, as the compiler would have put it.

use std::collections::BTreeMap;

use podgate_policy::compile::{Class, Entry, PortMatch, RuleId};
use podgate_policy::model::{Direction, Protocol};

use policyd::encode::{self, MapKey};

/// A pod's table in the making.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    entries: BTreeMap<Entry, RuleId>,
}

impl Policy {
    /// Isolated in both directions: what is not allowed further on is denied.
    pub fn isolated() -> Self {
        Self::default()
    }

    /// Isolated in no direction.
    pub fn open() -> Self {
        Self::isolated().open_for(Direction::Ingress).open_for(Direction::Egress)
    }

    /// Not isolated in this direction.
    #[must_use]
    pub fn open_for(self, direction: Direction) -> Self {
        self.entry(direction, Class::ANY, PortMatch::Everything)
    }

    /// Allows a port in this direction, of whatever peer.
    #[must_use]
    pub fn allow(self, direction: Direction, protocol: Protocol, port: u16) -> Self {
        self.entry(direction, Class::ANY, PortMatch::one(protocol, port))
    }

    /// Allows any combination.
    #[must_use]
    pub fn entry(mut self, direction: Direction, class: Class, ports: PortMatch) -> Self {
        let rule = RuleId(self.entries.len() as u32 + 1);
        self.entries.insert(Entry { direction, class, ports }, rule);
        self
    }

    /// The same as the map of an endpoint with this `owner` number has it.
    pub(super) fn spelled(&self, owner: u32) -> BTreeMap<MapKey, RuleId> {
        encode::table(owner, &self.entries, |_| None)
    }
}
