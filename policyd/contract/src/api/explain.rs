//! `/v1/explain`, and `podgatectl explain -o json` from manifests.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Direction, ServiceEndpoint, Verdict};

/// The query of `GET /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// `namespace/pod`, an address or `node:NAME`.
    pub from: String,
    /// The same, or `svc:namespace/name`, whose port is the service's.
    pub to: String,
    /// Destination port; 0 or absent for a protocol without ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `TCP` (the default), `UDP`, `SCTP`, or `ICMP` for any protocol without ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// `4` or `6`: only over this version of IP. Absent: over every one that both ends have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<u8>,
}

/// `GET /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// As in the query.
    pub from: String,
    /// As in the query.
    pub to: String,
    /// `80/TCP`, or `a protocol without ports`.
    pub transport: String,
    /// `allow` if every path is allowed; to a service `mixed` if some of its endpoints are allowed and some are not; `deny`
    /// if an address family is denied, or no path exists.
    pub verdict: Verdict,
    /// One line for people.
    pub why: String,
    /// The gates of all paths, each once.
    pub gates: Vec<GateAnswer>,
    /// Of a service: the verdict for each endpoint that may be selected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointAnswer>,
    /// Every path that a packet may take: one for each address family, and to a service one for each endpoint.
    #[serde(default)]
    pub paths: Vec<PathAnswer>,
}

/// One path of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathAnswer {
    /// 4 or 6.
    pub family: u8,
    /// The packet's source address.
    pub source: IpAddr,
    /// Where it arrives: of a service, the endpoint's address.
    pub destination: IpAddr,
    /// The port there; absent for a protocol without ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Of a service: the address, port and protocol that it is sent to, `10.96.0.10:53/UDP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// `allow` or `deny`.
    pub verdict: Verdict,
    /// One line for people.
    pub why: String,
    /// The gates on the path, in the order in which the packet meets them.
    pub gates: Vec<GateAnswer>,
}

/// The verdict for packets to one endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointAnswer {
    /// The endpoint.
    #[serde(flatten)]
    pub endpoint: ServiceEndpoint,
    /// `allow` or `deny`.
    pub verdict: Verdict,
    /// One line for people.
    pub why: String,
}

/// The verdict of one gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateAnswer {
    /// The pod that the gate belongs to, `namespace/name`.
    pub pod: String,
    /// Whether the pod is on the node that answers, so that this is its policy in force; else it was compiled from what the
    /// node knows of the cluster. Always true from manifests.
    pub local: bool,
    /// Seen from the pod.
    pub direction: Direction,
    /// The address that the gate judges by: the other end's.
    pub peer: IpAddr,
    /// `allow` or `deny`.
    pub verdict: Verdict,
    /// The rule that decides, with its policy and of a ClusterNetworkPolicy with tier and priority; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// True if it passes only because the policy of `rule` is audited: enforced, it would be denied.
    #[serde(default, skip_serializing_if = "is_false")]
    pub audited: bool,
    /// Of a denial: the rule that comes closest to allowing it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<NearestRule>,
    /// The policies that isolate the pod in this direction, `namespace/name`.
    pub isolating: Vec<String>,
    /// One line for people.
    pub why: String,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Of a denied packet, the rule that would have allowed it but for something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearestRule {
    /// The rule, as in `GateAnswer`.
    pub rule: String,
    /// On what it fails.
    pub failed_on: FailedOn,
    /// The ports that it allows to this peer, or would allow if it were one of its peers: `TCP 80, UDP 53`.
    pub allows: String,
}

/// On what a rule fails, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailedOn {
    /// It matches, but a rule before it denies.
    Order,
    /// The peer is one of its peers, the port is none of its ports.
    Port,
    /// The port is one of its ports, the peer is none of its peers.
    Peer,
    /// Neither matches.
    Both,
}

impl fmt::Display for NearestRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, failed_on, allows } = self;
        match failed_on {
            FailedOn::Order => write!(f, "{rule} allows it, but comes after what denies"),
            FailedOn::Port => write!(f, "{rule} allows this peer {allows}"),
            FailedOn::Peer => write!(f, "{rule} allows {allows}, but not to this peer"),
            FailedOn::Both => write!(f, "{rule} allows {allows}, and not to this peer"),
        }
    }
}
