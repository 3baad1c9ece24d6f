//! `/v1/policies`.

use serde::{Deserialize, Serialize};

/// A policy by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyName {
    /// `dir`, `local` or `kubernetes`.
    pub source: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An item of `GET /v1/policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Which.
    #[serde(flatten)]
    pub name: PolicyName,
    /// `ingress`, `egress`: what it isolates its pods for.
    pub isolates: Vec<String>,
    /// Pods of this node that it selects, sorted.
    pub pods: Vec<String>,
    /// Whether what it denies is dropped, by its annotation `podgate.io/mode` or that of its namespace.
    #[serde(default)]
    pub mode: PolicyMode,
    /// The label of `podgate.io/log`, its own or that of its namespace: each new flow that it decides is reported with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// Whether what a policy denies is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyMode {
    /// It is.
    #[default]
    Enforce,
    /// What it alone would deny passes and is reported.
    Audit,
}

/// Body of `PUT /v1/policies/{namespace}/{name}/mode` and `/v1/cluster-policies/{name}/mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPolicyMode {
    /// What the policy's own annotation `podgate.io/mode` says from now on. That of its namespace may say `audit` all the same.
    pub mode: PolicyMode,
}

/// Answer to a change of `/v1/policies/{namespace}/{name}`, once it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    /// Which.
    #[serde(flatten)]
    pub name: PolicyName,
    /// What happened to it.
    pub change: ChangeKind,
    /// Endpoints that keep an earlier policy, and why.
    pub problems: Vec<String>,
}

/// What happened to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is new.
    Created,
    /// It replaced one of the same name.
    Replaced,
    /// It is gone.
    Deleted,
}
