//! Services and their endpoints.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Labels, ObjectKey, Protocol};

/// A service, stripped to what translation and policy need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Whether it has addresses of its own.
    pub addressing: Addressing,
    /// `externalIPs`, and the load balancer's addresses where the node is to short-circuit them for everybody:
    /// sorted, without duplicates.
    pub external: Vec<IpAddr>,
    /// The load balancer's other addresses that the node short-circuits: only for sources in `source_ranges`. Sorted,
    /// without duplicates.
    pub guarded: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`.
    pub source_ranges: Arc<[IpNet]>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP`: for how many seconds a client keeps its endpoint.
    pub affinity: Option<NonZeroU32>,
    /// The endpoints of its cluster addresses.
    pub internal: TrafficPolicy,
    /// `externalTrafficPolicy`: the endpoints of its external addresses and node ports, for packets that do not come from a
    /// pod of the translating node.
    pub inbound: TrafficPolicy,
    /// Labelled `service.kubernetes.io/service-proxy-name`: kube-proxy leaves it to another proxy.
    pub other_proxy: bool,
    /// `trafficDistribution`.
    pub distribution: Option<Arc<str>>,
    /// Selects its endpoints, for the controller that writes its slices. Empty: its slices are written by other means.
    pub selector: Labels,
}

/// What `spec.clusterIP` and `spec.type` make of a service's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// `clusterIPs`, sorted, never empty.
    Virtual(Vec<IpAddr>),
    /// A manifest that the API server has not seen: it would get addresses there.
    Unassigned,
    /// `clusterIP: None`: DNS gives its endpoints, there is nothing to translate.
    Headless,
    /// `type: ExternalName`: DNS gives another name.
    ExternalName,
}

impl Addressing {
    /// The cluster addresses, if it has any.
    pub fn cluster(&self) -> &[IpAddr] {
        match self {
            Self::Virtual(addresses) => addresses,
            Self::Unassigned | Self::Headless | Self::ExternalName => &[],
        }
    }
}

/// `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every endpoint.
    #[default]
    Cluster,
    /// Those on the packet's node.
    Local,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Its name, by which slices give its number at their endpoints; empty for a service's only port.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number at the service's addresses.
    pub port: u16,
    /// The number at every node's addresses, if it has one there.
    pub node_port: Option<u16>,
    /// The port of its pods. Slices contain it as a number; this is for the controller that writes them.
    pub target: TargetPort,
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetPort {
    /// The same number at every pod.
    Number(u16),
    /// The port of this name and of the service port's protocol, pod by pod.
    Name(Arc<str>),
}

/// Some endpoints of a service, all of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The service it belongs to, which is of the same namespace; `None` for slices of no service.
    pub service: Option<Arc<str>>,
    /// What the service's ports are called and which numbers they have here. Ports without a number mean "any",
    /// which is nothing to translate to, and are left out.
    pub ports: Vec<SlicePort>,
    /// The endpoints. None for a family that podgate does not know (FQDN).
    pub endpoints: Vec<SliceEndpoint>,
}

impl EndpointSlice {
    /// The service it belongs to.
    pub fn service_key(&self) -> Option<ObjectKey> {
        let service = self.service.clone()?;
        Some(ObjectKey::new(self.key.namespace.clone(), service))
    }
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlicePort {
    /// The name of the service's port.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number at the endpoints.
    pub number: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address: the first one, as for kube-proxy (the others were never given a meaning).
    pub address: IpAddr,
    /// Whether it takes connections.
    pub condition: Condition,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// For whom it is, if all nodes are not meant to use it alike. Endpoints of a slice share equal ones.
    pub hints: Arc<TopologyHints>,
}

/// The consumers that the writer of a slice intends an endpoint for, each list sorted and without duplicates. Empty: it
/// has no hint of that kind, which is the same as an empty list in the slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopologyHints {
    /// `forNodes`: the names of nodes.
    pub nodes: Vec<Arc<str>>,
    /// `forZones`: values of the nodes' label `topology.kubernetes.io/zone`.
    pub zones: Vec<Arc<str>>,
}

/// Whether an endpoint takes connections. The better one is the greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Neither new ones nor those it has.
    Unready,
    /// Keeps its connections and takes no new ones, not even if no endpoint is ready: not ready, but `serving`.
    Serving,
    /// Terminating, still serving: takes new ones only if no endpoint is ready (KEP-1669).
    Draining,
    /// Takes new ones.
    Ready,
}
