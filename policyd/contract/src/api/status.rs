//! `/v1/status`.

use serde::{Deserialize, Serialize};

use super::Enforcement;

/// Whether new pods get a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "gated", rename_all = "lowercase")]
pub enum NewPods {
    /// They do.
    Yes {
        /// The configuration files that say so.
        files: Vec<String>,
        /// What in those files makes some pods fail all the same.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<String>,
    },
    /// policyd cannot enforce on this node. `policyd install` has put the plugin's entry in all the same, so that the
    /// plugin refuses new pods, or holds them in their startup state.
    Refused {
        /// Why policyd cannot enforce.
        reason: String,
    },
    /// They do not.
    No {
        /// Why not.
        reason: String,
    },
    /// Not known: no `policyd install` has run here, or it has ended.
    Unknown {
        /// What is known.
        reason: String,
    },
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
    /// Why policyd cannot enforce any policy on this node, if so: the counts below are 0 then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cannot_enforce: Option<String>,
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
    /// Pods of this node without a gate that cannot get one at present, so that no policy is enforced for them;
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
    /// Whether it answers that it does not have this kind: there is nothing to watch then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
    /// How long it has not answered, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_for: Option<u64>,
    /// What happened last, if it does not answer, or answers that the kind may not be read.
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
    /// Pods without a gate for a known reason.
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
    /// NetworkPolicies of every source.
    pub policies: usize,
    /// ClusterNetworkPolicies of every source.
    #[serde(default)]
    pub cluster_policies: usize,
    /// PodTrafficPolicies of every source.
    #[serde(default)]
    pub pod_traffic_policies: usize,
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
