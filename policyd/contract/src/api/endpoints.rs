//! `/v1/endpoints`.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Direction, PolicyName};

/// Whether an endpoint's policy is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// It is.
    Enforced,
    /// There is none yet: the endpoint is in its startup state.
    Pending,
    /// An earlier one is.
    Degraded,
}

/// One direction of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// Whether any NetworkPolicy isolates it.
    pub isolated: bool,
    /// Whether something is denied by what has an order: a ClusterNetworkPolicy, a local rule or a default mode. If it is not
    /// isolated either, everything is allowed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restricted: bool,
    /// The NetworkPolicies that isolate it, `namespace/name`, sorted.
    pub policies: Vec<String>,
}

/// An item of `GET /v1/endpoints`: one interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod's namespace; empty for a container that is no pod.
    pub namespace: String,
    /// The pod's name; empty for a container that is no pod.
    pub name: String,
    /// The pod's uid as the runtime gave it, or empty.
    pub uid: String,
    /// Number of the host veth.
    pub ifindex: u32,
    /// Name of the host veth.
    pub host_interface: String,
    /// How its gate is attached: `clsact` or `tcx`; empty if it is not, or not as it should be, see `podgatectl status`.
    #[serde(default)]
    pub gate: String,
    /// Its name inside the pod.
    pub interface: String,
    /// The sandbox.
    pub container_id: String,
    /// The interface's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its policy is in force.
    pub state: EndpointState,
    /// Why not, unless it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What the endpoint does while it has no policy: `hold` or `open`.
    pub startup: String,
    /// Traffic to it.
    pub ingress: Isolation,
    /// Traffic from it.
    pub egress: Isolation,
    /// Entries of its policy map.
    pub rules: usize,
    /// What it has of the flow tables and of the events.
    #[serde(default)]
    pub share: EndpointShare,
}

/// What an endpoint has of what there is only so much of for all endpoints of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointShare {
    /// Places of the IPv4 flow table.
    pub ipv4_flows: u32,
    /// Places of the IPv6 flow table.
    pub ipv6_flows: u32,
    /// Live flows that had to make room for others of the same endpoint.
    pub flows_evicted: u64,
    /// Verdict events that the rate limit held back.
    pub events_held: u64,
}

/// An item of `GET /v1/endpoints/{namespace}/{pod}`: a pod may have several interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointDetail {
    /// What the list says of it.
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// Everything it allows.
    pub allowed: Vec<Allowed>,
}

/// Something an endpoint allows or, where ranked rules apply to it, denies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// Seen from the pod.
    pub direction: Direction,
    /// For whom: everybody, or the addresses and prefixes of a class.
    pub peers: PeerSet,
    /// `any`, `TCP`, `TCP 80`, `UDP 8000-8999`.
    pub ports: String,
    /// What becomes of it. Without ranked rules always `allow`.
    #[serde(default)]
    pub verdict: EntryVerdict,
    /// What decides it: `shop/web-from-api ingress[0]`, or `not isolated for egress`.
    pub rule: String,
    /// The policy of the rule; `None` where the pod is not isolated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// New flows that it decided on since its entries were written. What is denied becomes no flow, so each packet of it counts.
    pub hits: u64,
}

/// What becomes of the packets that something speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryVerdict {
    /// They pass.
    #[default]
    Allow,
    /// They pass, only because the policy of the rule is audited.
    Audit,
    /// They are dropped.
    Deny,
    /// They are dropped, and their sender is told.
    Reject,
}

impl fmt::Display for EntryVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Deny => "deny",
            Self::Reject => "reject",
        })
    }
}

/// Peers of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerSet {
    /// Everybody, also outside the cluster.
    Any,
    /// The members of a class.
    Of {
        /// The number of the class, as in flow events.
        class: u32,
        /// `shop/web (10.0.0.7)`, `10.1.0.0/16`; at most 100 of them.
        members: Vec<String>,
        /// How many there are.
        count: usize,
    },
}
