//! How the node stands at one moment, as far as it is reported.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use podgate_bpf::abi::Mode;
use podgate_policy::model::{ObjectKey, PolicyId};

use super::notice::PodRef;
use crate::sources::kubernetes::{KUBERNETES_SOURCE, Refused, UidMap};
use crate::sources::manifest::DIR_SOURCE;
use crate::sources::unenforced::Unenforced;
use crate::sources::{Kind, ObjectId};
use crate::ungated::Gating;
use crate::view::{EndpointState, Shared, View};

/// How the node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether what the sources say has been put in force once.
    pub ready: bool,
    /// Whether the pods that ran before are gated too, or it is known why not.
    pub settled: bool,
    /// What a denial does.
    pub mode: Mode,
    /// Why the classes of addresses cannot be changed.
    pub stopped: Option<String>,
    /// The gated pods.
    pub pods: BTreeMap<PodRef, PodStanding>,
    /// Pods that no gate stands at, and why.
    pub ungated: BTreeMap<PodRef, String>,
    /// Policies of kinds that are not enforced.
    pub unenforced: Unenforced,
    /// What directories of manifests hold that cannot be read, and what is in force instead.
    pub unread: Vec<String>,
    /// Policies that cannot be read.
    pub refused: Vec<Refused>,
    /// The uids of the cluster's policies.
    pub uids: Arc<UidMap>,
}

/// How a pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStanding {
    /// Policies that isolate it for ingress.
    pub ingress: Vec<PolicyId>,
    /// The same for egress.
    pub egress: Vec<PolicyId>,
    /// Whether they are in force.
    pub state: State,
}

/// Whether what should be in force is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is.
    InForce,
    /// An earlier policy is, for this reason.
    Earlier(String),
    /// No policy is, for this reason: the pod is in its startup state.
    Startup(String),
}

impl Standing {
    /// How it stands now.
    pub fn of(shared: &Shared) -> Self {
        let Gating { view, unenforced, ready } = shared.gating();
        let mut pods: BTreeMap<PodRef, PodStanding> = BTreeMap::new();
        for endpoint in view.endpoints.values() {
            let Some(pod) = &endpoint.registration.pod else { continue };
            let key = ObjectKey::new(pod.namespace.as_str(), pod.name.as_str());
            let table = endpoint.table.as_ref();
            let standing = PodStanding {
                ingress: table.map(|table| table.ingress.clone()).unwrap_or_default(),
                egress: table.map(|table| table.egress.clone()).unwrap_or_default(),
                state: match &endpoint.state {
                    EndpointState::Enforced => State::InForce,
                    EndpointState::Degraded(reason) => State::Earlier(reason.clone()),
                    EndpointState::Pending(reason) => State::Startup(reason.clone()),
                },
            };
            // of several interfaces the one that is worst off speaks for the pod
            match pods.entry(PodRef { key, uid: pod.uid.clone() }) {
                Entry::Vacant(entry) => drop(entry.insert(standing)),
                Entry::Occupied(mut entry) => {
                    if entry.get().state == State::InForce {
                        entry.insert(standing);
                    }
                }
            }
        }
        let servers = shared.servers();
        let watches = servers.iter().filter_map(|server| server.watches().remove(&Kind::Policy));
        let uid = |pod: &ObjectKey| {
            shared.index().pod(pod).map_or_else(String::new, |known| known.uid.to_string())
        };
        let ungated = unenforced
            .into_iter()
            .map(|each| (PodRef { uid: uid(&each.pod), key: each.pod }, each.reason))
            .collect();
        Self {
            ungated,
            unenforced: view.unenforced(),
            ready: view.ready,
            settled: ready,
            mode: shared.gate.maps.control().mode(),
            stopped: view.stopped.clone(),
            pods,
            unread: unread(&view),
            refused: watches.flat_map(|watch| watch.refused).collect(),
            // a second API server is a curiosity: its policies are named without their uid
            uids: servers.first().map(|server| server.policy_uids()).unwrap_or_default(),
        }
    }

    /// The policy's uid, if it is one of the cluster.
    pub(super) fn uid_of(&self, policy: &PolicyId) -> Option<String> {
        let known = || self.uids.get(&policy.key).map_or("", |uid| uid).to_owned();
        (*policy.source == *KUBERNETES_SOURCE).then(known)
    }
}

fn unread(view: &View) -> Vec<String> {
    let is_dir = |name: &str| name.split_once(':').is_some_and(|(kind, _)| kind == DIR_SOURCE);
    let dirs = view.sources.iter().filter(|source| is_dir(&source.name));
    dirs.flat_map(|source| &source.problems).cloned().collect()
}

impl PodStanding {
    /// Every policy that isolates it, once.
    pub(super) fn policies(&self) -> impl Iterator<Item = &PolicyId> {
        let egress = self.egress.iter().filter(|policy| !self.ingress.contains(policy));
        self.ingress.iter().chain(egress)
    }
}

impl State {
    /// Why what should be in force is not.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::InForce => None,
            Self::Earlier(reason) | Self::Startup(reason) => Some(reason),
        }
    }
}

/// The policy that was refused.
pub(super) fn refused_key(refused: &Refused) -> Option<&ObjectKey> {
    match &refused.id {
        Some(ObjectId::Policy(id)) => Some(&id.key),
        _ => None,
    }
}
