//! The pods of this node without a gate: what adoption found last, compared with the present registrations.
//!
//! Adoption searches every two seconds. Pods that have a gate since then, or that the sources no longer know, are left out
//! when its findings are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podgate_policy::model::ObjectKey;

use crate::pod_key::pod_key;
use crate::snapshot::{NodeState, Snapshot};

/// A pod of this node without a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UngatedPod {
    /// The pod.
    pub pod: ObjectKey,
    /// Whether it is about to get one.
    pub stage: Stage,
    /// Why it has none.
    pub reason: String,
}

/// Whether a pod is about to get its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its interface is being searched for or gated.
    Pending,
    /// It cannot be gated at present; adoption keeps trying.
    Ungated,
}

/// What adoption found about a pod without a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It is about to be gated.
    Pending(String),
    /// It cannot be, for this reason.
    Ungated(String),
    /// It does not run on this node, or not any more.
    Absent,
}

/// What adoption found at its last search.
#[derive(Debug, Default)]
pub(crate) struct AdoptionStatus {
    /// Whether each pod that ran when policyd started has a gate, or a reason why not.
    pub(crate) settled: bool,
    /// Findings of pods that are on this node by the sources.
    pub(crate) local: BTreeMap<ObjectKey, Finding>,
    /// Findings of pods whose veth was found, whether the sources have them or not.
    pub(crate) veths: BTreeMap<ObjectKey, Finding>,
    /// Why pods are not adopted, if that is switched off.
    pub(crate) not_adopted: Option<String>,
}

impl Finding {
    fn stage(&self) -> Option<(Stage, &str)> {
        match self {
            Self::Pending(reason) => Some((Stage::Pending, reason)),
            Self::Ungated(reason) => Some((Stage::Ungated, reason)),
            Self::Absent => None,
        }
    }
}

impl AdoptionStatus {
    /// Adoption is switched off.
    pub(crate) fn off() -> Self {
        let reason = "it has no gate, and pods that run are not adopted (--adopt=false)".to_owned();
        Self { settled: true, not_adopted: Some(reason), ..Self::default() }
    }

    /// Whether any pod is about to be gated.
    pub(crate) fn is_pending(&self) -> bool {
        let mut findings = self.local.values().chain(self.veths.values());
        findings.any(|finding| matches!(finding, Finding::Pending(_)))
    }

    /// The pods without a gate, for the log.
    pub(crate) fn without_gate(&self) -> String {
        let all = self.local.iter().chain(&self.veths);
        let without = all.filter(|(_, finding)| finding.stage().is_some());
        without.map(|(pod, _)| pod.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// What to report of a pod that it has not searched for yet. Nothing once it is settled: a new pod is gated by its
    /// plugin, and if not, the next search finds it.
    fn unseen(&self) -> Option<(Stage, &str)> {
        match &self.not_adopted {
            Some(reason) => Some((Stage::Ungated, reason)),
            None if self.settled => None,
            None => Some((Stage::Pending, "policyd has not searched for its interface yet")),
        }
    }
}

/// Which pods of this node have a gate, at one moment.
#[derive(Clone, Debug)]
pub struct Gating {
    /// Has the pods with a gate.
    pub snapshot: Arc<Snapshot>,
    /// Pods without a gate, sorted.
    pub unenforced: Vec<UngatedPod>,
    /// Whether the policies of every pod that ran when policyd started are in force, or it is known why not.
    pub ready: bool,
}

impl NodeState {
    /// The pods of this node with and without a gate.
    pub fn gating(&self) -> Gating {
        // in this order, so that a pod that gets its gate in between is in the snapshot
        let adoption = self.adoption();
        let snapshot = self.snapshot();
        let ready = snapshot.ready && adoption.settled;
        let unenforced = self.without_gate(&adoption, &snapshot);
        Gating { snapshot, unenforced, ready }
    }

    fn without_gate(&self, adoption: &AdoptionStatus, snapshot: &Snapshot) -> Vec<UngatedPod> {
        let registered = registered(snapshot);
        let mut found: BTreeMap<ObjectKey, Option<(Stage, &str)>> = BTreeMap::new();
        for pod in self.index().local_pods() {
            let finding = adoption.local.get(&pod.key);
            let reported = finding.map_or_else(|| adoption.unseen(), Finding::stage);
            found.insert(pod.key.clone(), reported);
        }
        // the finding of a veth is more specific
        found.extend(adoption.veths.iter().map(|(pod, finding)| (pod.clone(), finding.stage())));
        let without = found.into_iter().filter(|(pod, _)| !registered.contains(pod));
        let unenforced = without.filter_map(|(pod, reported)| {
            let (stage, reason) = reported?;
            Some(UngatedPod { pod, stage, reason: reason.to_owned() })
        });
        unenforced.collect()
    }
}

/// The pods with a registered interface.
pub(crate) fn registered(snapshot: &Snapshot) -> BTreeSet<ObjectKey> {
    let pods =
        snapshot.endpoints.values().filter_map(|endpoint| endpoint.registration.pod.as_ref());
    pods.map(pod_key).collect()
}
