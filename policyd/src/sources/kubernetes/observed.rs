//! What an API server last sent of each cluster policy beside its spec: enough to know whether its `Accepted` condition has to
//! be written, without asking for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podgate_policy::object::{Kind, ObjectId};
use serde_json::Value;

use super::metadata;

/// The type of the condition.
pub const ACCEPTED: &str = "Accepted";

/// A cluster policy, by what is not its spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Its uid.
    pub uid: Arc<str>,
    /// Counts the versions of its spec; 0 if it is not known.
    pub generation: i64,
    /// Its `Accepted` condition, if it has one.
    pub accepted: Option<Condition>,
}

/// A condition, as the API has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// `True` or `False`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// The generation that it is about; 0 if it does not say.
    pub generation: i64,
    /// `lastTransitionTime`.
    pub since: String,
}

/// Every cluster policy that the server has, also those that cannot be converted.
pub type ObservedMap = BTreeMap<ObjectId, Observed>;

/// Written by the watch, read by the report.
#[derive(Clone, Debug, Default)]
pub(super) struct ObservedPolicies(Arc<Mutex<Arc<ObservedMap>>>);

impl ObservedPolicies {
    /// All of them, as they are now.
    pub(super) fn all(&self) -> Arc<ObservedMap> {
        self.lock().clone()
    }

    /// Takes what was received of an object; of other kinds than cluster policies nothing is kept.
    pub(super) fn set(&self, id: &ObjectId, value: &Value) {
        if id.kind() == Kind::ClusterPolicy {
            Arc::make_mut(&mut self.lock()).insert(id.clone(), Observed::of(value));
        }
    }

    pub(super) fn remove(&self, id: &ObjectId) {
        if id.kind() == Kind::ClusterPolicy {
            Arc::make_mut(&mut self.lock()).remove(id);
        }
    }

    /// Removes all others of a kind.
    pub(super) fn retain(&self, kind: Kind, ids: &BTreeSet<ObjectId>) {
        if kind == Kind::ClusterPolicy {
            Arc::make_mut(&mut self.lock()).retain(|id, _| ids.contains(id));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<ObservedMap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observed {
    fn of(value: &Value) -> Self {
        let conditions = value.get("status").and_then(|status| status.get("conditions"));
        let mut conditions = conditions.and_then(Value::as_array).into_iter().flatten();
        let accepted = conditions.find(|condition| text(condition, "type") == ACCEPTED);
        let generation = value.get("metadata").and_then(|metadata| metadata.get("generation"));
        Self {
            uid: metadata::uid(value),
            generation: generation.and_then(Value::as_i64).unwrap_or_default(),
            accepted: accepted.map(|condition| Condition {
                status: text(condition, "status").to_owned(),
                reason: text(condition, "reason").to_owned(),
                message: text(condition, "message").to_owned(),
                generation: condition
                    .get("observedGeneration")
                    .and_then(Value::as_i64)
                    .unwrap_or_default(),
                since: text(condition, "lastTransitionTime").to_owned(),
            }),
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}
