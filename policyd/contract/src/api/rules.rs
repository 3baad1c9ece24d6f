//! `/v1/endpoints/{namespace}/{pod}/rules`, `.../defaults`, `/v1/rules` and `/v1/defaults`: what the operator of this node says
//! of single pods, before every policy.

use serde::{Deserialize, Serialize};

use super::{ChangeKind, Direction};

/// What becomes of the packets that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleAction {
    /// They pass.
    Allow,
    /// They are dropped.
    Deny,
    /// They are dropped, and their sender is told.
    Reject,
}

/// What a rule is about: two that say the same are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// Seen from the pod.
    pub direction: Direction,
    /// What becomes of the packets that it matches.
    pub action: RuleAction,
    /// The other end: an address, a prefix (`10.0.0.0/8`) or a pod (`namespace/name`). Left out: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// A name (`TCP`, `ICMP`, `GRE`, ...), or a number (`47`) of one that has none. Left out: every protocol, and no ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Destination ports of TCP, UDP or SCTP: `80` or `8000-8999`. Left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
}

/// Body of `PUT /v1/endpoints/{namespace}/{pod}/rules`: one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRule {
    /// Seen from the pod.
    pub direction: Direction,
    /// What becomes of the packets that it matches.
    pub action: RuleAction,
    /// The other end: an address, a prefix (`10.0.0.0/8`) or a pod (`namespace/name`). Left out: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// A name (`TCP`, `ICMP`, `GRE`, ...) or a number (`47`), in any case. Left out: every protocol, and no ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Destination ports of TCP, UDP or SCTP: `80` or `8000-8999`. Left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
    /// Why it is there, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Seconds until it is gone, by the node's clock. Left out: it stays until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u64>,
    /// The number of the rule before which it is evaluated. Left out: it is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u32>,
}

/// A rule that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRule {
    /// Its number, unique on the node and never given again.
    pub id: u32,
    /// What it is about.
    #[serde(flatten)]
    pub spec: RuleSpec,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// When it is gone, in seconds since 1970. Left out: it stays until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// New flows that it decided on since its entries were written, which a change of rules or of their peers may do. Packets of
    /// a flow that is known are not counted by rule. What is denied becomes no flow, so each packet of it counts.
    #[serde(default)]
    pub new_flows: u64,
}

/// What becomes of traffic that no rule and no policy speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultMode {
    /// It passes: rules list what does not.
    Allow,
    /// It is dropped: rules list what passes.
    Deny,
    /// It is dropped, and its sender is told.
    Reject,
    /// Nothing is said here: for a pod the node's mode holds, for the node it passes.
    Unset,
}

/// Body and answer of `PUT /v1/defaults` and `/v1/endpoints/{namespace}/{pod}/defaults`. In a body, what is left out stays as it
/// is; an answer has both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Of what reaches the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<DefaultMode>,
    /// Of what it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<DefaultMode>,
}

/// `GET /v1/rules`: all that is said on this node. `podgatectl explain --rules` reads it from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRules {
    /// The pods of which something is said.
    pub pods: Vec<PodRules>,
    /// The node's default modes.
    pub defaults: Defaults,
}

/// All that is said of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRules {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Whether the pod has a gated interface on this node now. Without, its rules wait for it.
    pub here: bool,
    /// Its rules, in the order of their evaluation: the first that matches decides.
    pub rules: Vec<LocalRule>,
    /// Its default modes.
    pub defaults: Defaults,
}

/// Answer to a rule that was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleChange {
    /// `created`, or `replaced`: the same rule was there, and has this comment and lifetime now.
    pub change: ChangeKind,
    /// The rule.
    pub rule: LocalRule,
    /// Whether the pod has a gated interface on this node now. Without, the rule waits for it.
    pub here: bool,
    /// What of the node is not in force, as in `/v1/status`.
    pub problems: Vec<String>,
}

/// Query of `DELETE /v1/endpoints/{namespace}/{pod}/rules`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleQuery {
    /// The number of the rule to remove. Left out: all rules of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
}

/// Answer to rules that were removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesRemoved {
    /// Their numbers.
    pub removed: Vec<u32>,
    /// What of the node is not in force, as in `/v1/status`.
    pub problems: Vec<String>,
}
