//! The cluster as podgate sees it: our own types, parsed once at the edge (see [`crate::convert`]).
//!
//! Nothing here can hold a state that the API's defaulting leaves open: a missing `from` is
//! [`Peers::Any`], a missing protocol is TCP, a CIDR with host bits is masked.

mod ip_protocol;
mod local;
mod pod_traffic_policy;
mod ranked;
mod service;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::limits::{AnnotatedLimits, Stated};
use crate::selector::Selector;

pub use crate::labels::Labels;
pub use ip_protocol::{IpProtocol, NoProtocol};
pub use local::{LocalAction, LocalDefaults, LocalRule, LocalRules};
pub use pod_traffic_policy::PodTrafficPolicy;
pub use podgate_contract::api::Direction;
pub use ranked::{
    Action, ClusterPolicy, ClusterPolicyId, PolicyMode, PolicySettings, RankedRule, Subject, Tier,
};
pub use service::{
    Addressing, Condition, EndpointSlice, Service, ServicePort, SliceEndpoint, SlicePort,
    TargetPort, TopologyHints, TrafficPolicy,
};

/// Namespace and name of a namespaced object. Prints as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name inside it.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The transport protocols that a policy can name (docs/semantics.md 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The protocol of this number, if policies can name it.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|known| known.number() == number)
    }

    /// The IANA protocol number of the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A namespace and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name; also the value of its `kubernetes.io/metadata.name` label (docs/semantics.md 4.8).
    pub name: Arc<str>,
    /// Its labels, `kubernetes.io/metadata.name` included.
    pub labels: Labels,
    /// What its annotations say of all its NetworkPolicies.
    pub settings: PolicySettings,
    /// Whether its annotations say that its pods are accounted.
    pub accounting: Option<Stated<bool>>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// `status.addresses`: the `InternalIP`s, then the `ExternalIP`s, then all others that are addresses.
    pub addresses: Vec<IpAddr>,
}

/// The phase of a pod, as far as policy depends on it (docs/semantics.md 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodLife {
    /// Pending or running.
    Live,
    /// Has a deletion timestamp: still target and peer, but yields a disputed address to a live pod.
    Terminating,
    /// Succeeded or Failed: neither peer nor target; its address may belong to another pod.
    Finished,
}

/// A container port that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name, unique per protocol inside a pod (though the API server only warns).
    pub name: Arc<str>,
    /// Its protocol; `containerPort.protocol` defaults to TCP.
    pub protocol: Protocol,
    /// The number.
    pub number: u16,
}

/// A pod, stripped to what policy needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`; empty in hand-written manifests. Tells a re-created pod from its predecessor.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since 1970, 0 if unknown: the newer of two pods that
    /// claim one address has it.
    pub created: i64,
    /// Its labels.
    pub labels: Labels,
    /// Every address of `status.podIPs` (or `status.podIP`), both families, canonical.
    pub addresses: Vec<IpAddr>,
    /// Named ports of its containers and restartable init containers (docs/semantics.md 6.14).
    pub ports: Arc<[NamedPort]>,
    /// Its phase.
    pub life: PodLife,
    /// A hostNetwork pod is its node: neither subject nor selector peer (docs/semantics.md 9.5).
    pub host_network: bool,
    /// `spec.nodeName`, if scheduled.
    pub node: Option<Arc<str>>,
    /// Its node's addresses, `status.hostIPs` (or `status.hostIP`).
    pub host_addresses: Vec<IpAddr>,
    /// What its annotations say of its limits, if they do.
    pub annotated_limits: Option<Arc<AnnotatedLimits>>,
}

/// Names a policy and the source that gave it: one name may come from two sources, and then both apply.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyId {
    /// `kubernetes`, `dir` or `local`.
    pub source: Arc<str>,
    /// Namespace and name.
    pub key: ObjectKey,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

/// A NetworkPolicy with all defaults applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name and source.
    pub id: PolicyId,
    /// Which pods of its namespace it selects.
    pub selector: Selector,
    /// `Some` if it isolates its pods for ingress, with the rules; no rule: nothing is allowed.
    /// `None`: ingress is not in policyTypes and its rules, if any, were ignored.
    pub ingress: Option<Vec<Rule>>,
    /// The same for egress.
    pub egress: Option<Vec<Rule>>,
    /// What its annotations say; in the index also what those of its namespace say.
    pub settings: PolicySettings,
}

/// One item of `ingress` or `egress`: peer AND port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The peers.
    pub peers: Peers,
    /// The destination ports.
    pub ports: Ports,
}

/// The `from` or `to` of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Missing or empty: every address, also outside the cluster.
    Any,
    /// Any of these: sorted, no duplicates.
    Of(Arc<[Peer]>),
}

impl Peers {
    /// Any of these.
    pub fn of(peers: impl IntoIterator<Item = Peer>) -> Self {
        let sorted: BTreeSet<Peer> = peers.into_iter().collect();
        Self::Of(sorted.into_iter().collect())
    }
}

/// One item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods, never an external address or a node.
    Pods {
        /// Their namespaces.
        namespaces: NamespaceScope,
        /// The pods in those.
        pods: Selector,
    },
    /// An ipBlock: the packet's address, pods included (docs/semantics.md 5).
    Block(Block),
    /// Nodes, by their labels: every address that their Node objects give.
    Nodes(Selector),
    /// One pod by its name, whatever its labels; a hostNetwork pod never. Only local rules name it.
    Pod(ObjectKey),
}

/// The namespaces of a pod peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// No namespaceSelector: the policy's own namespace (named, so that peers of two policies can be compared).
    Own(Arc<str>),
    /// Those whose labels match; the empty selector matches all.
    Matching(Selector),
}

/// An ipBlock: masked, of one family. `except` only shrinks this block; it is no deny.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The range, host bits cleared.
    pub cidr: IpNet,
    /// Holes in it, host bits cleared, sorted.
    pub except: Vec<IpNet>,
}

/// The `ports` of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Missing or empty: every port of every protocol, protocols without ports included.
    Any,
    /// Any of these.
    Of(Vec<Port>),
}

/// One item of `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// No number: all ports of the protocol.
    All(Protocol),
    /// All packets of a protocol that is none of [`Protocol`]'s. Only local rules name it.
    Of(IpProtocol),
    /// `port` or `port`..`endPort`, at the pod (after service translation).
    Numbers(Protocol, RangeInclusive<u16>),
    /// A name, looked up on the destination pod by (name, protocol). A name that the pod does not have matches nothing.
    Named(Protocol, Arc<str>),
}
