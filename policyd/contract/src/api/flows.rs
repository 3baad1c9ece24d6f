//! `/v1/flows`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Direction, Verdict};

/// A line of `GET /v1/flows`: a verdict on a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowEvent {
    /// Seconds since 1970.
    pub time: f64,
    /// `allow` or `deny`: what happened to the packet. Where denials pass, in audit mode or by an audited policy, it is
    /// `allow` with the reason of the denial.
    pub verdict: Verdict,
    /// Why, as in the metrics: `policy`, `own-node`, `startup`, ...
    pub reason: String,
    /// Seen from the pod.
    pub direction: Direction,
    /// `namespace/pod`, or the host veth of a container that is no pod.
    pub pod: String,
    /// The pod's side.
    pub pod_address: IpAddr,
    /// The pod's port; 0 without ports.
    pub pod_port: u16,
    /// The other pod, if it is one that policyd knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The other side.
    pub peer_address: IpAddr,
    /// Its port; 0 without ports.
    pub peer_port: u16,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6` or a number.
    pub protocol: String,
    /// The rule that decided, if one did. Where `reason` is a limit (`bandwidth`, `packet-rate`, `connection-rate`,
    /// `connection-limit`): which field of which object has set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// True if it passed only because the node's mode or the policy of the rule is `audit`: `reason` and `rule` say by what it
    /// would have been denied.
    #[serde(default, skip_serializing_if = "is_false")]
    pub audited: bool,
    /// The label that the rule's policy has in `podgate.io/log`; such a flow is reported whatever else is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// The service by which the pod reaches its peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<FlowService>,
    /// Bytes of the packet.
    pub length: u32,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The service that a flow goes through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowService {
    /// `namespace/name`, if it is one that policyd knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the pod sends to.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}
