//! From what the API server sends of one kind to updates for the writer.
//!
//! The objects of a list are passed on page by page: each is valid by itself, and 100,000 pods need not be in memory
//! twice. Which objects are *gone* is known only once the list is complete, so that is reported at its end: a list that
//! fails half way removes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use podgate_manifests::{closed, parse};
use podgate_policy::convert::FieldError;
use podgate_policy::object::{Kind, Object, ObjectId};
use serde_json::Value;

use super::observed::ObservedPolicies;
use super::policy_uids::PolicyUids;
use super::{KUBERNETES_SOURCE, metadata};
use crate::sources::Update;

/// An object that was received and cannot be converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its id, if its metadata are complete.
    pub id: Option<ObjectId>,
    /// Its uid; empty if it has none.
    pub uid: Arc<str>,
    /// The field that is wrong.
    pub field: FieldError,
    /// What is in force in its place.
    pub fallback: Fallback,
}

/// What is in force in the place of a rejected object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Its last version that could be converted; nothing if there was none.
    LastGood,
    /// For a policy of which no version could be converted: its pods are isolated, and nothing is allowed.
    DenyAll,
    /// For a cluster policy of which no version could be converted: nothing. A substitute that denies could cut off every pod
    /// of the cluster, and one that accepts would open what other policies deny.
    LeftOut,
    /// For a traffic policy of which no version could be converted: nothing. Its pods are as they are without it.
    NoLimits,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "read {id}: {}; ", self.field)?,
            None => write!(f, "read an object without a name: {}; ", self.field)?,
        }
        f.write_str(match self.fallback {
            Fallback::LastGood => "what was read of it before stays in force",
            Fallback::LeftOut => "until it can be read, it has no effect: what it denies may pass",
            Fallback::NoLimits => "until it can be read, it has no effect",
            Fallback::DenyAll => "until it can be read, it isolates its pods and allows nothing",
        })
    }
}

/// Tracks the objects of one kind.
#[derive(Debug)]
pub(super) struct Feed {
    kind: Kind,
    /// The ids in the list that is being received.
    listed: BTreeSet<ObjectId>,
    rejected: BTreeMap<Option<ObjectId>, Rejected>,
    /// The uids of policies of which a version could be converted.
    uids: PolicyUids,
    observed: ObservedPolicies,
    /// What was last passed on of each node, as a hash: most of a node's updates are heartbeats, which change nothing that is
    /// kept.
    nodes: BTreeMap<ObjectId, u64>,
    hashing: RandomState,
}

impl Feed {
    pub(super) fn new(kind: Kind, uids: PolicyUids, observed: ObservedPolicies) -> Self {
        Self {
            kind,
            listed: BTreeSet::new(),
            rejected: BTreeMap::new(),
            uids,
            observed,
            nodes: BTreeMap::new(),
            hashing: RandomState::new(),
        }
    }

    pub(super) fn rejected(&self) -> Vec<Rejected> {
        self.rejected.values().cloned().collect()
    }

    /// A list begins or is started over.
    pub(super) fn begin(&mut self) {
        self.listed.clear();
    }

    /// Takes a page of the list.
    pub(super) fn page<'a>(&mut self, items: impl IntoIterator<Item = &'a Value>) -> Update {
        let mut set = Vec::new();
        for item in items {
            self.listed.extend(metadata::id(self.kind, item));
            set.extend(self.read(item));
        }
        Update::Change { set, gone: Vec::new() }
    }

    /// Ends the list after its last page.
    pub(super) fn complete(&mut self) -> Update {
        let ids = std::mem::take(&mut self.listed);
        self.rejected.retain(|id, _| id.as_ref().is_some_and(|id| ids.contains(id)));
        self.uids.retain(self.kind, &ids);
        self.observed.retain(self.kind, &ids);
        self.nodes.retain(|id, _| ids.contains(id));
        Update::Listed { kind: self.kind, ids }
    }

    /// An object is new or changed.
    pub(super) fn applied(&mut self, value: &Value) -> Option<Update> {
        let object = self.read(value)?;
        Some(Update::Change { set: vec![object], gone: Vec::new() })
    }

    /// An object is gone, whether or not it can be read.
    pub(super) fn deleted(&mut self, value: &Value) -> Option<Update> {
        let id = metadata::id(self.kind, value)?;
        self.rejected.remove(&Some(id.clone()));
        self.uids.remove(&id);
        self.observed.remove(&id);
        self.nodes.remove(&id);
        Some(Update::Change { set: Vec::new(), gone: vec![id] })
    }

    fn read(&mut self, value: &Value) -> Option<Object> {
        let (id, uid) = (metadata::id(self.kind, value), metadata::uid(value));
        if let Some(id) = &id {
            self.observed.set(id, value);
        }
        let field = match parse::object(self.kind, KUBERNETES_SOURCE, value) {
            Ok(object) => {
                let id = object.id();
                self.rejected.remove(&Some(id.clone()));
                self.uids.set(&id, uid);
                return (!self.is_repeated(id, &object)).then_some(object);
            }
            Err(field) => field,
        };
        // a policy that was deleted and created again under its name has another uid, and no last good version
        let known = id.as_ref().and_then(|id| self.uids.get(id)).is_some_and(|read| read == uid);
        let closed = match self.kind {
            Kind::Policy if !known => {
                closed::instead_of(KUBERNETES_SOURCE, value).map(Object::from)
            }
            _ => None,
        };
        let fallback = match (&closed, self.kind) {
            (Some(_), _) => Fallback::DenyAll,
            (None, Kind::ClusterPolicy) if !known => Fallback::LeftOut,
            (None, Kind::PodTrafficPolicy) if !known => Fallback::NoLimits,
            (None, _) => Fallback::LastGood,
        };
        let rejected = Rejected { id: id.clone(), uid, field, fallback };
        if self.rejected.get(&id) != Some(&rejected) {
            tracing::error!("{rejected}");
            self.rejected.insert(id, rejected);
        }
        closed
    }

    /// Whether the object is a node that was passed on like this already.
    fn is_repeated(&mut self, id: ObjectId, object: &Object) -> bool {
        let Object::Node(node) = object else { return false };
        let hash = self.hashing.hash_one(node);
        self.nodes.insert(id, hash) == Some(hash)
    }
}
