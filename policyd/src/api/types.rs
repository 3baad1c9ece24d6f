//! The JSON of the API, version 1. `podgatectl` reads with the same types that policyd writes with.

mod counters;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::install::NewPods;

pub use counters::{Counters, PacketCount, RuleCount};

/// Why a request was refused; the body of every answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// "verb object: cause".
    pub error: String,
    /// The field of the body or the query that is wrong, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// What a denial does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// The packet is dropped. `on` means the same in requests.
    #[serde(alias = "on")]
    Enforce,
    /// It passes, is counted and told.
    Audit,
    /// It passes and is counted.
    Off,
}

/// Body and answer of `PUT /v1/enforcement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnforcementMode {
    /// What a denial does from now on, on the whole node; survives restarts.
    pub mode: Enforcement,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of policyd.
    pub version: String,
    /// This node's name.
    pub node: String,
    /// The kernel's release, as `uname -r` says it.
    #[serde(default)]
    pub kernel: String,
    /// What this kernel lacks, and what podgate does instead.
    #[serde(default)]
    pub kernel_lacks: Vec<KernelLack>,
    /// Whether every source has been read once, the result is in force, and each pod that ran before is gated or it is known
    /// why not.
    pub ready: bool,
    /// Everything that is not as it should be, for people.
    pub problems: Vec<String>,
    /// What a denial does.
    pub enforcement: Enforcement,
    /// The number of the present state of the rules; grows with each change.
    pub epoch: u32,
    /// Seconds since policyd started.
    pub uptime: u64,
    /// Every source, in the order of the command line; the API itself comes last.
    pub sources: Vec<SourceStatus>,
    /// Endpoints by their state.
    pub endpoints: EndpointCounts,
    /// Objects known.
    pub objects: ObjectCounts,
    /// Services that are translated.
    pub services: ServiceCounts,
    /// Entries of the maps that all endpoints share, and of all policy maps.
    pub maps: MapCounts,
    /// How full the flow tables are.
    #[serde(default)]
    pub flows: FlowTables,
    /// Commits since policyd started.
    pub commits: u64,
    /// How long the last one took, seconds.
    pub last_commit: f64,
    /// Pods of this node whose policy is about to be in force, with a gate or without one yet; sorted.
    #[serde(default)]
    pub pending: Vec<UnenforcedPod>,
    /// Pods of this node that no gate stands at and that cannot get one as things are, so that no policy holds for them;
    /// sorted.
    #[serde(default)]
    pub unenforced: Vec<UnenforcedPod>,
    /// Policies of kinds that podgate knows of and does not enforce.
    #[serde(default)]
    pub unenforced_kinds: Vec<KindCount>,
    /// Whether the node's CNI configuration gives new pods a gate, as `policyd install` says.
    pub new_pods: NewPods,
}

/// Objects of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCount {
    /// As in an object's `kind`.
    pub kind: String,
    /// How many there are.
    pub objects: usize,
}

/// A pod of this node for which no policy holds (yet).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnenforcedPod {
    /// `namespace/name`.
    pub pod: String,
    /// Why not.
    pub reason: String,
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// As on the command line; `local` is the API.
    pub name: String,
    /// Whether it has been read once, whole.
    pub synced: bool,
    /// How many objects it gives.
    pub objects: usize,
    /// What cannot be read, and what is in force instead.
    pub problems: Vec<String>,
    /// Of a directory: files that are passed over because they are no objects of Kubernetes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
    /// Of an API server: its watches, by kind of object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<WatchStatus>,
}

/// The watch of one kind of object at an API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// `pods`, `policies`, ...
    pub kind: String,
    /// Whether the server answers. While it does not, what was read stays in force.
    pub connected: bool,
    /// How long it has not answered, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_for: Option<u64>,
    /// What happened last, if it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds since it last said anything, if it ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<u64>,
    /// Lists that were begun.
    pub lists: u64,
    /// Lists and watches that failed.
    pub errors: u64,
}

/// Endpoints by their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCounts {
    /// Their policy is in force.
    pub enforced: usize,
    /// No policy yet: their startup state, or no gate yet.
    pub pending: usize,
    /// An earlier policy is in force.
    pub degraded: usize,
    /// Pods that no gate stands at, and why is known.
    #[serde(default)]
    pub ungated: usize,
}

/// Something that the kernel lacks and podgate does without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLack {
    /// Its name, a label of the metric `podgate_kernel_feature` too.
    pub feature: String,
    /// The first release of Linux that has it.
    pub since: String,
    /// What is different without it.
    pub consequence: String,
}

/// Objects known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectCounts {
    /// Of the whole cluster.
    pub pods: usize,
    /// Of the whole cluster.
    pub namespaces: usize,
    /// Of every source.
    pub policies: usize,
}

/// Services that are translated, as the kernel's maps have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounts {
    /// Their addresses and ports.
    pub frontends: usize,
    /// Endpoints behind those, each once for each frontend.
    pub endpoints: usize,
    /// Frontends that the maps do not hold as they should.
    pub degraded: usize,
}

/// The flow tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTables {
    /// Of IPv4.
    pub ipv4: FlowTableUse,
    /// Of IPv6.
    pub ipv6: FlowTableUse,
}

/// One flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTableUse {
    /// Places that endpoints have taken.
    pub flows: u64,
    /// Places that there are.
    pub size: u32,
}

/// Map entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapCounts {
    /// Exact addresses that have a class.
    pub peers: usize,
    /// Prefixes that have a class.
    pub nets: usize,
    /// Entries of all policy maps.
    pub rules: usize,
}

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
    /// Whether any policy isolates it; if not, everything is allowed.
    pub isolated: bool,
    /// The policies that isolate it, `namespace/name`, sorted.
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

/// Something an endpoint allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// `ingress` or `egress`, seen from the pod.
    pub direction: String,
    /// For whom: everybody, or the addresses and prefixes of a class.
    pub peers: PeerSet,
    /// `any`, `TCP`, `TCP 80`, `UDP 8000-8999`.
    pub ports: String,
    /// What allows it: `shop/web-from-api ingress[0]`, or `not isolated for egress`.
    pub rule: String,
    /// The policy of the rule; `None` where the pod is not isolated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// New flows that it allowed since its entries were written.
    pub hits: u64,
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
}

/// Answer of `PUT` and `DELETE /v1/policies/{namespace}/{name}`, once the change is in force.
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

/// An item of `GET /v1/services`: one address and port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFrontend {
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// What pods send to.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// What becomes of packets to it.
    pub state: ServiceState,
    /// Why, unless they are translated.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Its number in the kernel's maps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// For how many seconds a client keeps its endpoint; 0: not at all.
    pub affinity_seconds: u32,
    /// Where it leads.
    pub endpoints: Vec<ServiceEndpoint>,
    /// What of the service is not heeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What becomes of packets to a service's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// They go to one of its endpoints, which policy judges.
    Translated,
    /// They are not translated here; allowed where policy allows every endpoint that they may lead to behind the gate.
    Alone,
    /// The maps do not hold what they should.
    Degraded,
}

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// The pod, if it is one that policyd knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// `ready`: takes new flows; `serving`: keeps those it has.
    pub state: String,
}

/// The query of `GET /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// `namespace/pod` or an address.
    pub from: String,
    /// `namespace/pod`, an address, or `svc:namespace/name`, whose port is the service's.
    pub to: String,
    /// Destination port; absent for a protocol without ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `TCP` (the default), `UDP`, `SCTP`, or `ICMP` for any protocol without ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// `GET /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// As asked.
    pub from: String,
    /// As asked.
    pub to: String,
    /// `80/TCP`, or `a protocol without ports`.
    pub transport: String,
    /// `allow` if both gates allow it, over every address family that both ends have; to a service `mixed` if some of
    /// its endpoints are allowed and some are not.
    pub verdict: String,
    /// One line for people.
    pub why: String,
    /// Every gate that a packet meets, family by family. To a service: those of every endpoint.
    pub gates: Vec<GateAnswer>,
    /// Of a service, what becomes of a packet to each of its endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointAnswer>,
}

/// What becomes of a packet that is sent to one endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointAnswer {
    /// Which.
    #[serde(flatten)]
    pub endpoint: ServiceEndpoint,
    /// `allow` or `deny`.
    pub verdict: String,
    /// One line for people.
    pub why: String,
}

/// What one gate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateAnswer {
    /// Whose gate.
    pub pod: String,
    /// Whether the pod is on this node, and this is what its map says; else it is what this node knows of it.
    pub local: bool,
    /// `ingress` or `egress`, seen from the pod.
    pub direction: String,
    /// The other end's address.
    pub peer: IpAddr,
    /// `allow` or `deny`.
    pub verdict: String,
    /// The rule that allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The policies that isolate the pod in this direction.
    pub isolating: Vec<String>,
    /// One line for people.
    pub why: String,
}

/// A line of `GET /v1/flows`: a verdict on a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowEvent {
    /// Seconds since 1970.
    pub time: f64,
    /// `allow` or `deny`: what happened to the packet.
    pub verdict: String,
    /// Why, as in the metrics: `policy`, `own-node`, `startup`, ...
    pub reason: String,
    /// `ingress` or `egress`, seen from the pod.
    pub direction: String,
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
    /// The rule that decided, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The service by which the pod reaches its peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<FlowService>,
    /// Bytes of the packet.
    pub length: u32,
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
