//! `/v1/cluster-policies`.

use serde::{Deserialize, Serialize};

use super::{ChangeKind, PolicyMode};

/// A ClusterNetworkPolicy by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterPolicyName {
    /// `dir`, `local` or `kubernetes`.
    pub source: String,
    /// Its name.
    pub name: String,
}

/// An item of `GET /v1/cluster-policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPolicy {
    /// Which.
    #[serde(flatten)]
    pub name: ClusterPolicyName,
    /// `Admin` or `Baseline`.
    pub tier: String,
    /// 0 to 1000; the lowest of a tier is evaluated first.
    pub priority: u16,
    /// `ingress`, `egress`: what it has rules for.
    pub directions: Vec<String>,
    /// Pods of this node that it governs, sorted.
    pub pods: Vec<String>,
    /// Whether what it denies is dropped, by its annotation `podgate.io/mode`.
    #[serde(default)]
    pub mode: PolicyMode,
    /// The label of `podgate.io/log`: each new flow that it decides is reported with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// What of it has failed closed or has no effect, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Answer to a change of `/v1/cluster-policies/{name}`, once it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPolicyChange {
    /// Which.
    #[serde(flatten)]
    pub name: ClusterPolicyName,
    /// What happened to it.
    pub change: ChangeKind,
    /// What of it has failed closed or has no effect, and endpoints that keep an earlier policy, and why.
    pub problems: Vec<String>,
}
