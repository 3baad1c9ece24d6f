//! `/v1/pod-traffic-policies`.

use serde::{Deserialize, Serialize};

use super::PolicyName;

/// An item of `GET /v1/pod-traffic-policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodTrafficPolicy {
    /// Which.
    #[serde(flatten)]
    pub name: PolicyName,
    /// Of two policies that state the same value, the one with the lower order holds; of equal ones the first by name.
    pub order: u32,
    /// Pods of this node that it selects, sorted.
    pub pods: Vec<String>,
    /// What of it could not be read and has no effect, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}
