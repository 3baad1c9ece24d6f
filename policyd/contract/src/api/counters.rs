//! What the programs counted.

use serde::{Deserialize, Serialize};

use super::{Allowed, Direction, Verdict};

/// `GET /v1/counters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Every direction and reason, whether there were any packets or not.
    pub packets: Vec<PacketCount>,
    /// Everything that the endpoints of this node allow, and what their ranked rules deny.
    pub rules: Vec<RuleCount>,
}

/// Packets of one direction that were judged for one reason, since the kernel's maps were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCount {
    /// Seen from the pod.
    pub direction: Direction,
    /// `allow` or `deny`; while enforcement is not on, denied packets pass and are counted as denied.
    pub verdict: Verdict,
    /// Why, as in the metrics: `policy`, `flow`, `startup`, ...
    pub reason: String,
    /// How many.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How often something that an endpoint allows or denies happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCount {
    /// `namespace/pod`, or the host veth of a container that is no pod.
    pub pod: String,
    /// What, with its new flows as `hits`.
    #[serde(flatten)]
    pub allowed: Allowed,
}
