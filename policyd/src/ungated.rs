//! The pods of this node that no gate stands at: what adoption last found, held against what is registered now.
//!
//! Adoption looks every two seconds. What it found is never shown as it was: a pod that got its gate since, or that the
//! sources no longer know, is left out at the moment of reading.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podgate_policy::model::ObjectKey;

use crate::view::{Shared, View};

/// A pod of this node that no gate stands at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unenforced {
    /// Which.
    pub pod: ObjectKey,
    /// Whether that is about to change.
    pub stage: Stage,
    /// Why there is none.
    pub reason: String,
}

/// Whether a pod is about to get its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is being looked for or gated.
    Pending,
    /// It cannot be gated as things are; that is tried again and again.
    Ungated,
}

/// What adoption found about a pod without a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It is about to be gated.
    Pending(String),
    /// It cannot be, for this reason.
    Ungated(String),
    /// It does not run here (any more), so there is nothing to gate.
    Absent,
}

/// What adoption found when it last looked.
#[derive(Debug, Default)]
pub(crate) struct Lookout {
    /// Whether each pod that ran when policyd started is gated, or was given up for a reason.
    pub(crate) settled: bool,
    /// Of pods that the sources say are on this node.
    pub(crate) local: BTreeMap<ObjectKey, Finding>,
    /// Of pods whose veth was found, whether the sources know them or not.
    pub(crate) veths: BTreeMap<ObjectKey, Finding>,
    /// Of pods that it does not look for.
    pub(crate) unsought: Option<String>,
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

impl Lookout {
    /// Nobody looks.
    pub(crate) fn off() -> Self {
        let reason = "it has no gate, and pods that run are not adopted (--adopt=false)".to_owned();
        Self { settled: true, unsought: Some(reason), ..Self::default() }
    }

    /// Whether any pod is about to be gated.
    pub(crate) fn is_pending(&self) -> bool {
        let mut findings = self.local.values().chain(self.veths.values());
        findings.any(|finding| matches!(finding, Finding::Pending(_)))
    }

    /// The pods at which no gate stands, for the log.
    pub(crate) fn without_gate(&self) -> String {
        let all = self.local.iter().chain(&self.veths);
        let without = all.filter(|(_, finding)| finding.stage().is_some());
        without.map(|(pod, _)| pod.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// What is to be said of a pod that it has not looked for yet. Once settled, nothing: a new pod's own plugin is about
    /// to gate it, and if not, the next look finds it.
    fn unseen(&self) -> Option<(Stage, &str)> {
        match &self.unsought {
            Some(reason) => Some((Stage::Ungated, reason)),
            None if self.settled => None,
            None => Some((Stage::Pending, "policyd has not looked for its interface yet")),
        }
    }
}

/// How the pods of this node stand, at one moment.
#[derive(Clone, Debug)]
pub struct Gating {
    /// Those with a gate.
    pub view: Arc<View>,
    /// Those without; sorted.
    pub unenforced: Vec<Unenforced>,
    /// Whether the policies of every pod that ran when policyd started are in force, or it is known why not.
    pub ready: bool,
}

impl Shared {
    /// How the pods of this node stand.
    pub fn gating(&self) -> Gating {
        // in this order: a pod that is gated in between is in the view
        let lookout = self.lookout();
        let view = self.view();
        let ready = view.ready && lookout.settled;
        let unenforced = self.without_gate(&lookout, &view);
        Gating { view, unenforced, ready }
    }

    fn without_gate(&self, lookout: &Lookout, view: &View) -> Vec<Unenforced> {
        let registered = registered(view);
        let mut found: BTreeMap<ObjectKey, Option<(Stage, &str)>> = BTreeMap::new();
        for pod in self.index().local_pods() {
            let finding = lookout.local.get(&pod.key);
            let said = finding.map_or_else(|| lookout.unseen(), Finding::stage);
            found.insert(pod.key.clone(), said);
        }
        // a veth that leads to the pod says more
        found.extend(lookout.veths.iter().map(|(pod, finding)| (pod.clone(), finding.stage())));
        let without = found.into_iter().filter(|(pod, _)| !registered.contains(pod));
        let unenforced = without.filter_map(|(pod, said)| {
            let (stage, reason) = said?;
            Some(Unenforced { pod, stage, reason: reason.to_owned() })
        });
        unenforced.collect()
    }
}

/// The pods that have a registered interface: how they stand, the view says.
pub(crate) fn registered(view: &View) -> BTreeSet<ObjectKey> {
    let pods = view.endpoints.values().filter_map(|endpoint| endpoint.registration.pod.as_ref());
    pods.map(|pod| ObjectKey::new(pod.namespace.as_str(), pod.name.as_str())).collect()
}
