//! What the writer publishes for those who only read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use podgate_bpf::Gate;
use podgate_bpf::features::Kernel;
use podgate_bpf::maps::{Net, Registration};
use podgate_policy::compile::{EndpointId, Table};
use podgate_policy::engine::RuleNames;
use podgate_policy::index::Index;

use crate::report::Reported;
use crate::sources::SourceState;
use crate::sources::kubernetes::Health;
use crate::sources::unenforced::Unenforced;
use crate::sync::services::{Counts, ServiceMode};
use crate::ungated::Lookout;

/// Shared by the writer, which fills it, and its readers.
#[derive(Debug)]
pub struct Shared {
    /// The kernel's side.
    pub gate: Arc<Gate>,
    /// This node's name.
    pub node: String,
    /// What becomes of services.
    pub services: ServiceMode,
    /// The running kernel, asked once.
    pub kernel: Kernel,
    /// When policyd started.
    pub started: Instant,
    /// Where `policyd install` writes whether new pods get a gate.
    pub install_state: PathBuf,
    view: ArcSwap<View>,
    lookout: ArcSwap<Lookout>,
    index: RwLock<Index>,
    servers: Mutex<Vec<Arc<Health>>>,
    /// What became of the events that were sent to an API server.
    pub reports: Arc<Reported>,
}

/// The state after a commit.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Whether everything the sources say has been put in force at least once.
    pub ready: bool,
    /// By rank.
    pub sources: Vec<SourceState>,
    /// Every registered endpoint.
    pub endpoints: BTreeMap<EndpointId, EndpointView>,
    /// How many exact addresses have a class.
    pub peers: usize,
    /// How many prefixes have a class.
    pub nets: usize,
    /// How many classes there are.
    pub classes: usize,
    /// What rule numbers stand for.
    pub origins: RuleNames,
    /// Prefixes whose addresses count as this node's own.
    pub node_addresses: Arc<BTreeSet<Net>>,
    /// Why the classes of addresses are not as they should be.
    pub stopped: Option<String>,
    /// Entries of all policy maps.
    pub rules: usize,
    /// Of commits, since the start.
    pub commits: Commits,
    /// What the services come to.
    pub services: Counts,
    /// What is not as it should be about services, for people.
    pub service_problems: Vec<String>,
}

/// How commits went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commits {
    /// How many.
    pub count: u64,
    /// How many left something undone.
    pub incomplete: u64,
    /// How long the last one took, compilation included.
    pub last: Duration,
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct EndpointView {
    /// As the plugin registered it.
    pub registration: Arc<Registration>,
    /// Whether its policy is in force.
    pub state: EndpointState,
    /// What it is to allow, if its pod is known.
    pub table: Option<Arc<Table>>,
    /// Entries of its policy map.
    pub rules: usize,
}

/// Whether an endpoint's policy is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// It is.
    Enforced,
    /// There is none yet, for this reason: the endpoint is in its startup state.
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

impl Shared {
    /// Nothing known yet.
    pub fn new(
        gate: Arc<Gate>,
        node: String,
        services: ServiceMode,
        install_state: PathBuf,
    ) -> Self {
        Self {
            gate,
            index: RwLock::new(Index::of_node(&node)),
            node,
            services,
            kernel: Kernel::probe(),
            started: Instant::now(),
            install_state,
            view: ArcSwap::default(),
            lookout: ArcSwap::default(),
            servers: Mutex::default(),
            reports: Arc::default(),
        }
    }

    /// The state after the last commit.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// What adoption found when it last looked.
    pub(crate) fn lookout(&self) -> Arc<Lookout> {
        self.lookout.load_full()
    }

    pub(crate) fn set_lookout(&self, lookout: Lookout) {
        self.lookout.store(Arc::new(lookout));
    }

    pub(crate) fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
    }

    /// The cluster. Readers must be quick: the writer waits for them when something changes.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The API servers that are watched.
    pub fn servers(&self) -> Vec<Arc<Health>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn watch(&self, server: Arc<Health>) {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
    }

    /// For the writer alone.
    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    /// `namespace/pod`, or the host veth of a container that is no pod.
    pub fn name_of(&self, ifindex: u32) -> String {
        match self.endpoints.get(&EndpointId(ifindex)) {
            Some(endpoint) => endpoint.name(),
            None => format!("interface {ifindex}"),
        }
    }

    /// How many objects all sources have of kinds that are not enforced.
    pub fn unenforced(&self) -> Unenforced {
        let mut sum = Unenforced::new();
        for (kind, count) in self.sources.iter().flat_map(|source| &source.unenforced) {
            *sum.entry(*kind).or_default() += count;
        }
        sum
    }

    /// Everything that is not as it should be, for people.
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
        problems.extend(self.service_problems.iter().cloned());
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

impl EndpointView {
    /// `namespace/pod`, or the host veth of a container that is no pod.
    pub fn name(&self) -> String {
        match &self.registration.pod {
            Some(pod) => format!("{}/{}", pod.namespace, pod.name),
            None => format!("interface {}", self.registration.host_interface),
        }
    }
}
