//! What a pod allows, as the compiler would have put it.

use std::collections::BTreeMap;

use podgate_policy::model::{Direction, Protocol};
use podgate_policy::tables::{Class, Decision, Effect, Entry, PortMatch, RuleId};

use policyd::encode::{self, MapKey};

/// A pod's table in the making.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    entries: BTreeMap<Entry, Decision>,
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
        self.entries.insert(Entry { direction, class, ports }, Decision::allow(rule));
        self
    }

    /// Denies everything that nothing else is said of, in both directions, and tells each sender.
    #[must_use]
    pub fn rejecting(mut self) -> Self {
        for direction in [Direction::Ingress, Direction::Egress] {
            let rule = RuleId(self.entries.len() as u32 + 1);
            let entry = Entry { direction, class: Class::ANY, ports: PortMatch::Everything };
            let decision = Decision { effect: Effect::Reject, rule, log: false };
            self.entries.insert(entry, decision);
        }
        self
    }

    /// The same as the map of an endpoint with this `owner` number has it.
    pub(super) fn spelled(&self, owner: u32) -> BTreeMap<MapKey, Decision> {
        encode::table(owner, &self.entries, |_| None)
    }
}
