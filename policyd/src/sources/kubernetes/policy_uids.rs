//! The uids of policies of every kind, which distinguish a policy from a later one of the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podgate_policy::object::{Kind, ObjectId};

/// The uids of the policies of which a version could be converted.
#[derive(Clone, Debug, Default)]
pub(super) struct PolicyUids(Arc<Mutex<Arc<UidMap>>>);

/// The uid of each policy, by its id.
pub type UidMap = BTreeMap<ObjectId, Arc<str>>;

/// Whether the uids of a kind are kept: those of policies, whose fallback depends on it, and of which Events tell.
pub(super) fn are_kept(kind: Kind) -> bool {
    matches!(kind, Kind::Policy | Kind::ClusterPolicy | Kind::PodTrafficPolicy)
}

impl PolicyUids {
    /// All of them, as they are now.
    pub(super) fn all(&self) -> Arc<UidMap> {
        self.lock().clone()
    }

    pub(super) fn get(&self, id: &ObjectId) -> Option<Arc<str>> {
        self.lock().get(id).cloned()
    }

    pub(super) fn set(&self, id: &ObjectId, uid: Arc<str>) {
        if are_kept(id.kind()) {
            Arc::make_mut(&mut self.lock()).insert(id.clone(), uid);
        }
    }

    pub(super) fn remove(&self, id: &ObjectId) {
        if are_kept(id.kind()) {
            Arc::make_mut(&mut self.lock()).remove(id);
        }
    }

    /// Removes those of all other policies of a kind.
    pub(super) fn retain(&self, kind: Kind, ids: &BTreeSet<ObjectId>) {
        if are_kept(kind) {
            Arc::make_mut(&mut self.lock()).retain(|id, _| id.kind() != kind || ids.contains(id));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<UidMap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
