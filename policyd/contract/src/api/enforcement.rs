//! `/v1/enforcement`.

use serde::{Deserialize, Serialize};

use super::{ClusterPolicyName, PolicyName};

/// What a denial does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// The packet is dropped. `on` means the same in requests.
    #[serde(alias = "on")]
    Enforce,
    /// It passes, is counted and reported.
    Audit,
    /// It passes and is counted.
    Off,
}

/// Body and answer of `PUT /v1/enforcement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnforcementMode {
    /// What a denial does from now on, on the whole node; survives restarts.
    pub mode: Enforcement,
}

/// `GET /v1/enforcement`: the node's mode, and what is only audited whatever the mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnforcementState {
    /// What a denial does on this node.
    pub mode: Enforcement,
    /// Namespaces with the annotation `podgate.io/mode: audit`: all their NetworkPolicies are audited.
    pub namespaces: Vec<String>,
    /// NetworkPolicies that are audited, by their own annotation or that of their namespace.
    pub policies: Vec<PolicyName>,
    /// ClusterNetworkPolicies that are audited.
    pub cluster_policies: Vec<ClusterPolicyName>,
}
