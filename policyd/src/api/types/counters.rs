//! What the programs counted.

use serde::{Deserialize, Serialize};

use super::Allowed;

/// `GET /v1/counters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Every direction and reason, whether there were any packets or not.
    pub packets: Vec<PacketCount>,
    /// Everything that the endpoints of this node allow.
    pub rules: Vec<RuleCount>,
}

/// Packets of one direction that were judged for one reason, since the kernel's maps were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCount {
    /// `ingress` or `egress`, seen from the pod.
    pub direction: String,
    /// `allow` or `deny`; while enforcement is not on, denied packets pass and are counted as denied.
    pub verdict: String,
    /// Why, as in the metrics: `policy`, `flow`, `startup`, ...
    pub reason: String,
    /// How many.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How often something that an endpoint allows was made use of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCount {
    /// `namespace/pod`, or the host veth of a container that is no pod.
    pub pod: String,
    /// What, with its new flows as `hits`.
    #[serde(flatten)]
    pub allowed: Allowed,
}
