//! The node's state as the writer publishes it to all readers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use podgate_bpf::Datapath;
use podgate_bpf::features::Kernel;
use podgate_bpf::maps::{Net, Registration};
use podgate_bpf::shaping::Shaping;
use podgate_contract::api::{EndpointCounts, MapCounts, ObjectCounts};
use podgate_manifests::unenforced::Unenforced;
use podgate_policy::compile::RuleNames;
use podgate_policy::index::Index;
use podgate_policy::tables::{EndpointId, Table};

use crate::audit::AuditSummary;
use crate::report::ReportCounts;
use crate::sources::SourceState;
use crate::sources::kubernetes::Health;
use crate::sync::limits::OriginNames;
use crate::sync::services::{Counts, ServiceMode};
use crate::ungated::AdoptionStatus;

/// State of the node, shared by the writer and its readers.
#[derive(Debug)]
pub struct NodeState {
    /// The loaded programs and maps.
    pub datapath: Arc<Datapath>,
    /// This node's name.
    pub node: String,
    /// Whether services are translated.
    pub services: ServiceMode,
    /// The running kernel's features, probed once.
    pub kernel: Kernel,
    /// When policyd started.
    pub started: Instant,
    /// The file in which `policyd install` writes whether new pods get a gate.
    pub install_state: PathBuf,
    snapshot: ArcSwap<Snapshot>,
    adoption: ArcSwap<AdoptionStatus>,
    index: RwLock<Index>,
    servers: Mutex<Vec<Arc<Health>>>,
    /// Numbers of Events sent to an API server.
    pub reports: Arc<ReportCounts>,
    /// What would have been denied, as the thread of events counts it.
    pub audit: AuditSummary,
}

/// The state after the last commit.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Whether the objects of all sources have been put in force at least once.
    pub ready: bool,
    /// State of the sources, by rank.
    pub sources: Vec<SourceState>,
    /// All registered endpoints.
    pub endpoints: BTreeMap<EndpointId, EndpointSnapshot>,
    /// Number of addresses with a class.
    pub peers: usize,
    /// Number of prefixes with a class.
    pub nets: usize,
    /// Number of classes.
    pub classes: usize,
    /// The policies and rules of rule numbers.
    pub origins: RuleNames,
    /// What has set the limits of pods, by the numbers that events carry.
    pub limit_origins: Arc<OriginNames>,
    /// Endpoints with limits, marks or accounting, and how the bandwidth to each is held where it is limited.
    pub metered: BTreeMap<EndpointId, Option<Shaping>>,
    /// Endpoints that have not the limits that they should have, with the reason.
    pub limits_failed: BTreeMap<EndpointId, String>,
    /// Why where peers are is not all known to the programs, for users.
    pub scope_problem: Option<String>,
    /// Prefixes whose addresses count as this node's own.
    pub node_addresses: Arc<BTreeSet<Net>>,
    /// Why the last commit stopped before all addresses had their classes.
    pub stopped: Option<String>,
    /// Number of entries in all policy maps.
    pub rules: usize,
    /// Commits since the start.
    pub commits: Commits,
    /// Numbers of services and their map entries.
    pub services: Counts,
    /// Problems of services, for users.
    pub service_problems: Vec<String>,
}

/// Statistics of commits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commits {
    /// Number of commits.
    pub count: u64,
    /// Number of those that did not write everything.
    pub incomplete: u64,
    /// Duration of the last one, with compilation.
    pub last: Duration,
}

/// The state of one endpoint.
#[derive(Clone, Debug)]
pub struct EndpointSnapshot {
    /// Its registration.
    pub registration: Arc<Registration>,
    /// Whether its policy is in force.
    pub state: EndpointState,
    /// Its compiled policies, if its pod is known.
    pub table: Option<Arc<Table>>,
    /// Number of entries in its policy map.
    pub rules: usize,
}

/// Whether an endpoint's policy is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Its present policy is in force.
    Enforced,
    /// It has none yet, for this reason: the endpoint is in its startup state.
    Pending(String),
    /// An earlier one is, for this reason.
    Degraded(String),
}

impl EndpointState {
    /// Why its policy is not in force.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Enforced => None,
            Self::Pending(reason) | Self::Degraded(reason) => Some(reason),
        }
    }
}

impl NodeState {
    /// With an empty index and snapshot.
    pub fn new(
        datapath: Arc<Datapath>,
        node: String,
        services: ServiceMode,
        install_state: PathBuf,
    ) -> Self {
        Self {
            datapath,
            index: RwLock::new(Index::of_node(&node)),
            node,
            services,
            kernel: Kernel::probe(),
            started: Instant::now(),
            install_state,
            snapshot: ArcSwap::default(),
            adoption: ArcSwap::default(),
            servers: Mutex::default(),
            reports: Arc::default(),
            audit: AuditSummary::default(),
        }
    }

    /// The state after the last commit.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// What adoption found when it last looked.
    pub(crate) fn adoption(&self) -> Arc<AdoptionStatus> {
        self.adoption.load_full()
    }

    pub(crate) fn set_adoption(&self, adoption: AdoptionStatus) {
        self.adoption.store(Arc::new(adoption));
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    /// The cluster's objects. The lock has to be short: the writer waits for it to apply changes.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers of the cluster's objects.
    pub(crate) fn object_counts(&self) -> ObjectCounts {
        let index = self.index();
        ObjectCounts {
            pods: index.pods().len(),
            namespaces: index.namespaces().len(),
            policies: index.policies().len(),
            cluster_policies: index.cluster_policies().count(),
            pod_traffic_policies: index.pod_traffic_policies().len(),
        }
    }

    /// The API servers that are watched.
    pub fn servers(&self) -> Vec<Arc<Health>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn watch(&self, server: Arc<Health>) {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
    }

    /// For the writer only.
    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// Numbers of endpoints by state; those of pods without a gate are not included.
    pub(crate) fn endpoint_counts(&self) -> EndpointCounts {
        let mut counts = EndpointCounts::default();
        for endpoint in self.endpoints.values() {
            match endpoint.state {
                EndpointState::Enforced => counts.enforced += 1,
                EndpointState::Pending(_) => counts.pending += 1,
                EndpointState::Degraded(_) => counts.degraded += 1,
            }
        }
        counts
    }

    /// Numbers of entries in the class maps and policy maps.
    pub(crate) fn map_counts(&self) -> MapCounts {
        MapCounts { peers: self.peers, nets: self.nets, rules: self.rules }
    }

    /// `namespace/pod`, or the host veth of a container that is no pod.
    pub fn name_of(&self, ifindex: u32) -> String {
        match self.endpoints.get(&EndpointId(ifindex)) {
            Some(endpoint) => endpoint.name(),
            None => format!("interface {ifindex}"),
        }
    }

    /// Number of objects of kinds that are not enforced, in all sources.
    pub fn unenforced(&self) -> Unenforced {
        let mut sum = Unenforced::new();
        for (kind, count) in self.sources.iter().flat_map(|source| &source.unenforced) {
            *sum.entry(*kind).or_default() += count;
        }
        sum
    }

    /// All problems, for users.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for source in &self.sources {
            if !source.synced {
                problems.push(format!("source {} has not been read whole yet", source.name));
            }
            problems.extend(source.problems.iter().map(|p| format!("source {}: {p}", source.name)));
        }
        problems.extend(self.stopped.iter().map(|reason| {
            format!("change the classes of addresses: {reason}; what was in force stays, retrying")
        }));
        problems.extend(self.service_problems.iter().chain(&self.scope_problem).cloned());
        problems.extend(self.limits_failed.iter().map(|(endpoint, reason)| {
            let name = self.name_of(endpoint.0);
            format!("limit {name}: {reason}; it keeps the limits that it has, retrying")
        }));
        for endpoint in self.endpoints.values() {
            if let EndpointState::Degraded(reason) = &endpoint.state {
                problems.push(format!(
                    "program {}: {reason}; its last complete policy stays in force, retrying",
                    endpoint.name()
                ));
            }
        }
        problems
    }
}

impl EndpointSnapshot {
    /// `namespace/pod`, or the host veth of a container that is no pod.
    pub fn name(&self) -> String {
        match &self.registration.pod {
            Some(pod) => format!("{}/{}", pod.namespace, pod.name),
            None => format!("interface {}", self.registration.host_interface),
        }
    }
}
