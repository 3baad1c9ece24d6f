//! The node operator's own rules for one pod, and what becomes of traffic that no rule and no policy speaks of.

use super::{Direction, ObjectKey, Peers, Ports};

/// What becomes of traffic, as the node's operator says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocalAction {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
    /// It is dropped, and its sender is told.
    Reject,
}

/// One rule of the node's operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRule {
    /// Its number, unique among the rules that the pod ever had.
    pub id: u32,
    /// Seen from the pod.
    pub direction: Direction,
    /// What it does.
    pub action: LocalAction,
    /// The other end of the traffic.
    pub peers: Peers,
    /// The destination ports.
    pub ports: Ports,
}

/// What becomes of traffic that no rule and no policy speaks of, by direction. `None`: nothing is said of it here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalDefaults {
    /// Of what reaches the pod.
    pub ingress: Option<LocalAction>,
    /// Of what it sends.
    pub egress: Option<LocalAction>,
}

impl LocalDefaults {
    /// That of a direction.
    pub fn of(&self, direction: Direction) -> Option<LocalAction> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// All that the node's operator says of one pod, which need not exist yet. Evaluated before every policy, but for the
/// defaults, which are evaluated last (docs/semantics.md 16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRules {
    /// The pod.
    pub pod: ObjectKey,
    /// Its rules, in the order of their evaluation: the first that matches decides.
    pub rules: Vec<LocalRule>,
    /// Its defaults, which come before those of the node.
    pub defaults: LocalDefaults,
}

impl LocalRules {
    /// The rules of a direction, in order.
    pub fn rules(&self, direction: Direction) -> impl Iterator<Item = &LocalRule> {
        self.rules.iter().filter(move |rule| rule.direction == direction)
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.defaults.is_empty()
    }
}
