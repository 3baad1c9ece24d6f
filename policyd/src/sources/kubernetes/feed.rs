//! From what the API server says of one kind to what the writer is told.
//!
//! Objects of a list are handed on as they come: each is true by itself, and 100,000 pods need not stand in
//! memory twice. Only that something is *gone* follows from the list as a whole, so it is told when the list
//! is whole: a list that fails half way loses nothing, and finds nothing gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use podgate_policy::convert::FieldError;
use serde_json::Value;

use super::health::Uids;
use super::read;
use crate::sources::{Kind, Object, ObjectId, Update};

/// An object that was received and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which, as far as it says.
    pub id: Option<ObjectId>,
    /// Its uid, or nothing.
    pub uid: Arc<str>,
    /// Which field, and why.
    pub field: FieldError,
    /// What is in force in its place.
    pub instead: Instead,
}

/// What is in force in the place of an object that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Its last version that could be read; nothing, if there was none.
    Before,
    /// Of a policy that could never be read: it isolates and allows nothing.
    Closed,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "read {id}: {}; ", self.field)?,
            None => write!(f, "read an object without a name: {}; ", self.field)?,
        }
        f.write_str(match self.instead {
            Instead::Before => "what was read of it before stays in force",
            Instead::Closed => "until it can be read, it isolates its pods and allows nothing",
        })
    }
}

/// What is remembered of one kind.
#[derive(Debug)]
pub(super) struct Feed {
    kind: Kind,
    /// Met in the list that is being read.
    listed: BTreeSet<ObjectId>,
    refused: BTreeMap<Option<ObjectId>, Refused>,
    /// Those of policies of which a version was read. Only of policies: there are few, and only for them a
    /// stand-in is needed.
    uids: Uids,
}

impl Feed {
    pub(super) fn new(kind: Kind, uids: Uids) -> Self {
        Self { kind, listed: BTreeSet::new(), refused: BTreeMap::new(), uids }
    }

    pub(super) fn refused(&self) -> Vec<Refused> {
        self.refused.values().cloned().collect()
    }

    /// A list begins, or begins again.
    pub(super) fn begin(&mut self) {
        self.listed.clear();
    }

    /// A page of the list.
    pub(super) fn page<'a>(&mut self, items: impl IntoIterator<Item = &'a Value>) -> Update {
        let mut set = Vec::new();
        for item in items {
            self.listed.extend(read::id(self.kind, item));
            set.extend(self.read(item));
        }
        Update::Change { set, gone: Vec::new() }
    }

    /// That was the last page.
    pub(super) fn whole(&mut self) -> Update {
        let ids = std::mem::take(&mut self.listed);
        self.refused.retain(|id, _| id.as_ref().is_some_and(|id| ids.contains(id)));
        if self.kind == Kind::Policy {
            self.uids.keep(&ids);
        }
        Update::Listed { kind: self.kind, ids }
    }

    /// An object is new or changed.
    pub(super) fn applied(&mut self, value: &Value) -> Option<Update> {
        let object = self.read(value)?;
        Some(Update::Change { set: vec![object], gone: Vec::new() })
    }

    /// An object is gone, whether or not it can be read.
    pub(super) fn deleted(&mut self, value: &Value) -> Option<Update> {
        let id = read::id(self.kind, value)?;
        self.refused.remove(&Some(id.clone()));
        self.uids.remove(&id);
        Some(Update::Change { set: Vec::new(), gone: vec![id] })
    }

    fn read(&mut self, value: &Value) -> Option<Object> {
        let (id, uid) = (read::id(self.kind, value), read::uid(value));
        let field = match read::object(self.kind, value) {
            Ok(object) => {
                let id = object.id();
                self.refused.remove(&Some(id.clone()));
                self.uids.set(&id, uid);
                return Some(object);
            }
            Err(field) => field,
        };
        // a policy of the same name that was deleted and made again is another one
        let known = id.as_ref().and_then(|id| self.uids.get(id)).is_some_and(|read| read == uid);
        let closed = match self.kind {
            Kind::Policy if !known => read::closed(value),
            _ => None,
        };
        let instead = if closed.is_some() { Instead::Closed } else { Instead::Before };
        let refused = Refused { id: id.clone(), uid, field, instead };
        if self.refused.get(&id) != Some(&refused) {
            tracing::error!("{refused}");
            self.refused.insert(id, refused);
        }
        closed
    }
}
