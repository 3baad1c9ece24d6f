//! Where objects come from. A source tells the writer what it knows as [`Update`]s; it never sees the
//! maps, and the writer never sees files or API servers.
//!
//! [`manifest`] reads Kubernetes manifests (also for `podgatectl` offline), [`dir`] watches a directory of
//! them, [`kubernetes`] watches an API server, [`local`] keeps the policies that the API was given.

mod closed;
mod complete;
pub mod dir;
mod document;
pub mod kubernetes;
pub mod local;
pub mod manifest;
mod names;
mod object;
mod scan;
mod spec;
mod store;
mod text;
pub mod unenforced;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use podgate_policy::index::Change;
use podgate_policy::model::{EndpointSlice, Namespace, ObjectKey, Pod, Policy, PolicyId, Service};

pub(crate) use complete::complete;
pub use spec::SourceSpec;
pub use store::{SourceState, Store};

/// An object of a source, converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A pod.
    Pod(Pod),
    /// A namespace.
    Namespace(Namespace),
    /// A policy.
    Policy(Policy),
    /// A service.
    Service(Service),
    /// Endpoints of a service.
    EndpointSlice(EndpointSlice),
}

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Pods.
    Pod,
    /// Namespaces.
    Namespace,
    /// Policies.
    Policy,
    /// Services.
    Service,
    /// EndpointSlices.
    EndpointSlice,
}

impl Kind {
    /// Every kind: a source that tells kind by kind must have told all of them before it is synced.
    pub const ALL: &[Self] =
        &[Self::Pod, Self::Namespace, Self::Policy, Self::Service, Self::EndpointSlice];

    /// "pods", for people and metrics.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::Namespace => "namespaces",
            Self::Policy => "policies",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
        }
    }
}

/// What tells one object from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    /// A pod by namespace and name.
    Pod(ObjectKey),
    /// A namespace by name.
    Namespace(Arc<str>),
    /// A policy by source, namespace and name.
    Policy(PolicyId),
    /// A service by namespace and name.
    Service(ObjectKey),
    /// An EndpointSlice by namespace and name.
    EndpointSlice(ObjectKey),
}

impl Object {
    /// Its identity.
    pub fn id(&self) -> ObjectId {
        match self {
            Self::Pod(pod) => ObjectId::Pod(pod.key.clone()),
            Self::Namespace(namespace) => ObjectId::Namespace(namespace.name.clone()),
            Self::Policy(policy) => ObjectId::Policy(policy.id.clone()),
            Self::Service(service) => ObjectId::Service(service.key.clone()),
            Self::EndpointSlice(slice) => ObjectId::EndpointSlice(slice.key.clone()),
        }
    }
}

impl ObjectId {
    /// Of which kind the object is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pod(_) => Kind::Pod,
            Self::Namespace(_) => Kind::Namespace,
            Self::Policy(_) => Kind::Policy,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "pod {key}"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
            Self::Policy(id) => write!(f, "policy {id}"),
            Self::Service(key) => write!(f, "service {key}"),
            Self::EndpointSlice(key) => write!(f, "endpointslice {key}"),
        }
    }
}

impl From<Object> for Change {
    fn from(object: Object) -> Self {
        match object {
            Object::Pod(pod) => Self::PodSet(pod),
            Object::Namespace(namespace) => Self::NamespaceSet(namespace),
            Object::Policy(policy) => Self::PolicySet(policy),
            Object::Service(service) => Self::ServiceSet(service),
            Object::EndpointSlice(slice) => Self::SliceSet(slice),
        }
    }
}

impl From<ObjectId> for Change {
    fn from(id: ObjectId) -> Self {
        match id {
            ObjectId::Pod(key) => Self::PodGone(key),
            ObjectId::Namespace(name) => Self::NamespaceGone(name),
            ObjectId::Policy(id) => Self::PolicyGone(id),
            ObjectId::Service(key) => Self::ServiceGone(key),
            ObjectId::EndpointSlice(key) => Self::SliceGone(key),
        }
    }
}

/// Which source, by its place on the command line: of two sources that know the same pod or namespace
/// the one with the lower rank is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub usize);

/// What a source says.
#[derive(Clone, Debug)]
pub enum Update {
    /// Everything it knows: what it said before and is not here is gone. The first one makes it "synced".
    Replace(Vec<Object>),
    /// These are all objects of the kind: what it said before and is not here is gone. It has told of
    /// each of them before, or could not read it. A source that has said so of every kind is "synced".
    Listed {
        /// The kind.
        kind: Kind,
        /// Their ids.
        ids: BTreeSet<ObjectId>,
    },
    /// Some objects are new or changed, some are gone.
    Change {
        /// New or changed.
        set: Vec<Object>,
        /// Gone.
        gone: Vec<ObjectId>,
    },
    /// How many objects it has of kinds that are not enforced, in full.
    Unenforced(unenforced::Unenforced),
    /// What it could not read, in full: replaces what it complained about before. The objects it gave
    /// earlier stay in force.
    Problems(Vec<String>),
    /// What it passed over because it is no object of Kubernetes, in full: replaces what it said before.
    Skipped(Vec<String>),
    /// Whether it may hold policies of any namespace that it could never read. While it may, every pod is isolated, and
    /// only what other policies allow passes.
    Incomplete(bool),
}
