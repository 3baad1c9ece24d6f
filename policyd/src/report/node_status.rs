//! The node's status at one moment, as far as it is reported.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use podgate_bpf::abi::Mode;
use podgate_manifests::manifest::DIR_SOURCE;
use podgate_manifests::unenforced::Unenforced;
use podgate_policy::index::Problem;
use podgate_policy::model::{ObjectKey, PolicyId};
use podgate_policy::object::{Kind, ObjectId};

use super::notice::{About, PodRef};
use crate::pod_key::pod_key;
use crate::snapshot::{EndpointState, NodeState, Snapshot};
use crate::sources::kubernetes::{KUBERNETES_SOURCE, Rejected, UidMap};
use crate::ungated::Gating;

/// The status of the node and its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Whether the sources' objects have been put in force at least once.
    pub ready: bool,
    /// Whether each pod that ran before policyd has a gate, or a reason why not.
    pub settled: bool,
    /// The enforcement mode.
    pub mode: Mode,
    /// Why the last commit stopped before all addresses had their classes.
    pub stopped: Option<String>,
    /// Pods with a gate.
    pub pods: BTreeMap<PodRef, PodStatus>,
    /// Pods without a gate, with the reason.
    pub ungated: BTreeMap<PodRef, String>,
    /// Policies of kinds that are not enforced.
    pub unenforced: Unenforced,
    /// What cannot be read in directories of manifests, and what is in force instead.
    pub unread: Vec<String>,
    /// Policies and cluster policies that cannot be read.
    pub refused: Vec<Rejected>,
    /// What of those that can be read is not in force as its author may believe.
    pub problems: Vec<Problem>,
    /// The uids of the cluster's policies and cluster policies.
    pub uids: Arc<UidMap>,
}

/// The status of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    /// Policies that isolate it for ingress.
    pub ingress: Vec<PolicyId>,
    /// The same for egress.
    pub egress: Vec<PolicyId>,
    /// Whether these policies are in force.
    pub state: State,
}

/// Whether a pod's policies are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// All of them are in force.
    InForce,
    /// An earlier policy is, for this reason.
    Earlier(String),
    /// No policy is, for this reason: the pod is in its startup state.
    Startup(String),
}

impl NodeStatus {
    /// The present status.
    pub fn of(shared: &NodeState) -> Self {
        let Gating { snapshot, unenforced, ready } = shared.gating();
        let mut pods: BTreeMap<PodRef, PodStatus> = BTreeMap::new();
        for endpoint in snapshot.endpoints.values() {
            let Some(pod) = &endpoint.registration.pod else { continue };
            let key = pod_key(pod);
            let table = endpoint.table.as_ref();
            let status = PodStatus {
                ingress: table.map(|table| table.ingress.clone()).unwrap_or_default(),
                egress: table.map(|table| table.egress.clone()).unwrap_or_default(),
                state: match &endpoint.state {
                    EndpointState::Enforced => State::InForce,
                    EndpointState::Degraded(reason) => State::Earlier(reason.clone()),
                    EndpointState::Pending(reason) => State::Startup(reason.clone()),
                },
            };
            // a pod with several interfaces has the state of one where its policies are not in force, if any
            match pods.entry(PodRef { key, uid: pod.uid.clone() }) {
                Entry::Vacant(entry) => drop(entry.insert(status)),
                Entry::Occupied(mut entry) => {
                    if entry.get().state == State::InForce {
                        entry.insert(status);
                    }
                }
            }
        }
        let servers = shared.servers();
        let watches = servers.iter().flat_map(|server| {
            let mut watches = server.watches();
            [Kind::Policy, Kind::ClusterPolicy, Kind::PodTrafficPolicy]
                .map(|kind| watches.remove(&kind))
        });
        let uid = |pod: &ObjectKey| {
            shared.index().pod(pod).map_or_else(String::new, |known| known.uid.to_string())
        };
        let ungated = unenforced
            .into_iter()
            .map(|each| (PodRef { uid: uid(&each.pod), key: each.pod }, each.reason))
            .collect();
        Self {
            ungated,
            unenforced: snapshot.unenforced(),
            ready: snapshot.ready,
            settled: ready,
            mode: shared.datapath.maps.control().mode(),
            stopped: snapshot.stopped.clone(),
            pods,
            unread: unread(&snapshot),
            refused: watches.flatten().flat_map(|watch| watch.rejected).collect(),
            problems: shared.index().problems(),
            // policies of a second API server, which is rare, are reported without their uid
            uids: servers.first().map(|server| server.policy_uids()).unwrap_or_default(),
        }
    }

    /// The policy's uid; `None` if it is not from an API server.
    pub(super) fn uid_of(&self, policy: &PolicyId) -> Option<String> {
        let id = ObjectId::Policy(policy.clone());
        let known = || self.uids.get(&id).map_or("", |uid| uid).to_owned();
        (*policy.source == *KUBERNETES_SOURCE).then(known)
    }
}

fn unread(snapshot: &Snapshot) -> Vec<String> {
    let is_dir = |name: &str| name.split_once(':').is_some_and(|(kind, _)| kind == DIR_SOURCE);
    let dirs = snapshot.sources.iter().filter(|source| is_dir(&source.name));
    dirs.flat_map(|source| &source.problems).cloned().collect()
}

impl PodStatus {
    /// Every policy that isolates it, without duplicates.
    pub(super) fn policies(&self) -> impl Iterator<Item = &PolicyId> {
        let egress = self.egress.iter().filter(|policy| !self.ingress.contains(policy));
        self.ingress.iter().chain(egress)
    }
}

impl State {
    /// Why the policies are not in force.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::InForce => None,
            Self::Earlier(reason) | Self::Startup(reason) => Some(reason),
        }
    }
}

/// The object of an API server that an Event about this id concerns. `None` if no Event can be about it.
pub(super) fn about(id: &ObjectId, uid: String) -> Option<About> {
    let of_server = |source: &str| source == KUBERNETES_SOURCE;
    match id {
        ObjectId::Policy(id) if of_server(&id.source) => {
            Some(About::Policy { key: id.key.clone(), uid })
        }
        ObjectId::ClusterPolicy(id) if of_server(&id.source) => {
            Some(About::ClusterPolicy { name: id.name.to_string(), uid })
        }
        ObjectId::PodTrafficPolicy(id) if of_server(&id.source) => {
            Some(About::PodTrafficPolicy { key: id.key.clone(), uid })
        }
        _ => None,
    }
}
