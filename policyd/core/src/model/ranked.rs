//! ClusterNetworkPolicy, as podgate sees it, and what may be said of any policy: that it is only audited, or logged.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Direction, Labels, Peers, Ports};
use crate::selector::Selector;

/// Whether what a policy denies is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyMode {
    /// It is in force.
    #[default]
    Enforce,
    /// It is evaluated beside those in force: what it alone would deny passes and is reported.
    Audit,
}

/// What annotations say of a policy, or of all policies of a namespace (`podgate.io/mode`, `podgate.io/log`,
/// `podgate.io/deny`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicySettings {
    /// Whether it is in force.
    pub mode: PolicyMode,
    /// Where there is a label, each new flow that the policy decides is reported with it.
    pub log: Option<Arc<str>>,
    /// Whether the sender of what the policy denies is told.
    pub reject: bool,
    /// What could not be read and has no effect, each with its annotation and the cause, as a sentence for people.
    pub problems: Vec<String>,
}

impl PolicySettings {
    /// What holds for a policy with these settings in a namespace with those: audited if either says so, as is
    /// whether senders are told, with the policy's own label before that of the namespace.
    pub fn within(&self, namespace: &Self) -> Self {
        Self {
            mode: self.mode.max(namespace.mode),
            log: self.log.clone().or_else(|| namespace.log.clone()),
            reject: self.reject || namespace.reject,
            problems: self.problems.clone(),
        }
    }
}

/// The tier of a ClusterNetworkPolicy: the Admin tier is evaluated before NetworkPolicies, the Baseline tier after them and
/// only where none isolates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// Before NetworkPolicy.
    Admin,
    /// After NetworkPolicy.
    Baseline,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        })
    }
}

/// What a rule does with the packets that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// They pass; no later rule is evaluated.
    Accept,
    /// They are dropped; no later rule is evaluated.
    Deny,
    /// No other rule of the tier is evaluated for them.
    Pass,
}

/// Names a ClusterNetworkPolicy and the source that gave it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterPolicyId {
    /// Its name, by which policies of equal priority are ordered.
    pub name: Arc<str>,
    /// `kubernetes`, `dir` or `local`.
    pub source: Arc<str>,
}

impl fmt::Display for ClusterPolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A ClusterNetworkPolicy with all defaults applied. What could not be read of it has failed closed already
/// (docs/semantics.md 15): an Accept rule has no peers, a Deny or Pass rule has every peer and every port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Its name and source.
    pub id: ClusterPolicyId,
    /// Its tier.
    pub tier: Tier,
    /// 0 to 1000, lower first; policies of equal priority are evaluated in the order of their ids.
    pub priority: u16,
    /// The pods that it governs.
    pub subject: Subject,
    /// Rules for what reaches those pods, in order of evaluation. Without rules it says nothing of the direction.
    pub ingress: Vec<RankedRule>,
    /// Rules for what they send.
    pub egress: Vec<RankedRule>,
    /// What its annotations say.
    pub settings: PolicySettings,
    /// What of its spec failed closed or has no effect, each with its field, the cause and what holds in its place, as a
    /// sentence for people; those of the annotations are in `settings`.
    pub problems: Vec<String>,
}

impl ClusterPolicy {
    /// The rules of a direction, in order.
    pub fn rules(&self, direction: Direction) -> &[RankedRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// The pods that a ClusterNetworkPolicy governs; hostNetwork pods never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Their namespaces.
    pub namespaces: Selector,
    /// The pods in those.
    pub pods: Selector,
}

impl Subject {
    /// Whether these are the labels of such a namespace and of such a pod.
    pub(crate) fn selects(&self, namespace: &Labels, pod: &Labels) -> bool {
        self.pods.matches(pod) && self.namespaces.matches(namespace)
    }
}

/// One rule of a ClusterNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankedRule {
    /// Its name, if it has one.
    pub name: Option<Arc<str>>,
    /// What it does.
    pub action: Action,
    /// The other end of the traffic. `Peers::Of` an empty list matches nothing.
    pub peers: Peers,
    /// The destination ports. A [`super::Port::Named`] matches pods only, on a rule for networks or nodes nothing.
    pub ports: Ports,
}
