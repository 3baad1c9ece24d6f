//! The trait of a kind of object.

use std::fmt;

use serde::de::DeserializeOwned;

use super::{FieldMask, Object};
use crate::convert::FieldError;

/// A kind of object.
pub trait Resource: Clone + Into<Object> + Send + Sync + 'static {
    /// What identifies an object among those of the kind.
    type Key: Clone + fmt::Debug + fmt::Display + Ord + std::hash::Hash;
    /// The object as the API has it.
    type Api: DeserializeOwned;

    /// What the kind is called in messages and metrics.
    const NAMES: Names;
    /// What the kind is called in the API.
    const API: ApiType;
    /// Other versions of the group in which an object is written in the same way: read like the first from manifests, and
    /// asked for where an API server does not have the first.
    const OTHER_VERSIONS: &'static [&'static str] = &[];
    /// Whether every API server has the kind.
    const SERVED: Served = Served::Always;
    /// Which objects are read from an API server: those that match this label selector.
    const LABEL_SELECTOR: Option<&'static str> = None;
    /// How much of each object is requested from an API server.
    const CONTENT: Content = Content::Whole;
    /// Which fields are kept of what an API server sends: those that [`Resource::convert`] reads, the name, the uid and
    /// the version. Everything else is dropped while it is parsed.
    const FIELDS: FieldMask;

    /// What identifies the object.
    fn key(&self) -> &Self::Key;

    /// The key of the object with this metadata, given by `source`; `None` if a namespace is needed and missing.
    fn key_of(source: &str, namespace: Option<&str>, name: &str) -> Option<Self::Key>;

    /// Converts an object that `source` gives.
    fn convert(source: &str, object: &Self::Api) -> Result<Self, FieldError>;

    /// Whether an object may have a field that [`Resource::Api`] does not know. If it may not, the object is rejected.
    fn may_have(_unknown_field: &str) -> bool {
        true
    }
}

/// What a kind is called in messages and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// One object: "policy".
    pub singular: &'static str,
    /// Several objects, also a metric label: "policies".
    pub plural: &'static str,
}

/// What a kind is called in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiType {
    /// `apiVersion`, with the group: "networking.k8s.io/v1".
    pub version: &'static str,
    /// `kind`: "NetworkPolicy".
    pub kind: &'static str,
    /// The resource in URLs: "networkpolicies".
    pub resource: &'static str,
}

impl ApiType {
    /// The path of the collection of all namespaces.
    pub fn path(self) -> String {
        let root = if self.version.contains('/') { "/apis" } else { "/api" };
        format!("{root}/{}/{}", self.version, self.resource)
    }

    /// The same type in another version.
    #[must_use]
    pub fn in_version(self, version: &'static str) -> Self {
        Self { version, ..self }
    }
}

/// Whether every API server has a kind and permits it to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It does: a source is complete only with it.
    Always,
    /// A server may do without: its CRD may be missing, or an older ClusterRole may not permit it. Then no object of the
    /// kind exists, and the source is complete.
    Optional,
}

/// How much of each object is requested from an API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of it.
    Whole,
    /// Only `metadata`.
    Metadata,
}

/// A generic function over kinds, for [`super::Kind::visit`].
pub trait KindVisitor {
    /// What it returns, for every kind.
    type Output;

    /// The function, for the kind `R`.
    fn visit<R: Resource>(self) -> Self::Output;
}
