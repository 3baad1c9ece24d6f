//! `/v1/audit`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Direction, Enforcement};

/// The query of `GET /v1/audit`; what is absent does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// `namespace/name` of a NetworkPolicy, or the name of a ClusterNetworkPolicy: only what it would have denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Only at gates of pods of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `namespace/pod`: only where it is one of the two ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// `GET /v1/audit`: what passed on this node only because its mode or the policy that denies it is `audit`. It is kept in
/// policyd's memory and begins anew with each start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// The node's mode. `audit`: what policies in force deny is among the flows.
    pub mode: Enforcement,
    /// Since when, in seconds since 1970.
    pub since: f64,
    /// Events that were lost meanwhile, of this and other kinds. If there are any, the numbers of flows are lower bounds and
    /// some pairs may be missing.
    pub lost: u64,
    /// Flows that are not listed, because the list was full when the first of their pair came.
    pub unlisted: u64,
    /// By pair of ends, the one with the most flows first.
    pub flows: Vec<AuditedFlows>,
}

/// Flows of one kind between two ends that would have been denied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditedFlows {
    /// The pod at whose gate: `namespace/pod`, or the host veth of a container that is no pod.
    pub pod: String,
    /// The labels that the pod had at the first flow.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_labels: BTreeMap<String, String>,
    /// Seen from the pod.
    pub direction: Direction,
    /// The other pod, if it was one that policyd knew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The labels that the other pod had at the first flow.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peer_labels: BTreeMap<String, String>,
    /// The other side's address at the first flow.
    pub peer_address: IpAddr,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6` or a number.
    pub protocol: String,
    /// The destination's port; 0 without ports.
    pub port: u16,
    /// Why it would have been denied, as in the metrics: `policy`, `startup`, ...
    pub reason: String,
    /// The rule that would have denied it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The policies by which: that of the rule, or all that isolate the pod and allow nothing of the kind. `namespace/name`,
    /// or the name of a ClusterNetworkPolicy.
    pub policies: Vec<String>,
    /// Whether a NetworkPolicy could allow them: nothing denies them that is evaluated before NetworkPolicies.
    #[serde(default)]
    pub allowable: bool,
    /// When the first was seen, in seconds since 1970.
    pub first: f64,
    /// When the last was.
    pub last: f64,
    /// How many there were, with those that were open when the policy became audited and went on. Where the node's mode is
    /// `audit`, packets of the same ends with pauses of less than two minutes count as one flow.
    pub flows: u64,
}
