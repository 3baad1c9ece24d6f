//! Where objects come from. A source reports its objects to the writer as [`Update`]s; it never sees the maps, and the
//! writer never sees files or API servers.
//!
//! [`dir`] watches a directory of manifests (read by `podgate-manifests`), [`kubernetes`] watches an API server, [`local`] keeps the policies that the API was given.

pub mod dir;
pub mod kubernetes;
pub mod local;
mod scan;
mod spec;
mod store;

use std::collections::BTreeSet;

use podgate_manifests::unenforced;
use podgate_policy::object::{Kind, Object, ObjectId};

pub use spec::SourceSpec;
pub use store::{SourceState, Store};

/// The position of a source on the command line: of two sources that provide the same object, the one with the lower
/// rank owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub usize);

/// A report of a source.
#[derive(Clone, Debug)]
pub enum Update {
    /// All its objects: those that it provided before and that are missing here are gone. The first one makes the source
    /// "synced".
    Replace(Vec<Object>),
    /// The ids of all objects of a kind: others that it provided before are gone. The objects themselves were reported
    /// before, or could not be read. A source that has listed every kind is "synced".
    Listed {
        /// The kind.
        kind: Kind,
        /// Their ids.
        ids: BTreeSet<ObjectId>,
    },
    /// A kind that may be missing ([`podgate_policy::object::Served::Optional`]) may not be listed. What was provided of it
    /// stays, and the source is "synced" without it.
    Unlistable(Kind),
    /// Some objects are new or changed, some are gone.
    Change {
        /// New or changed.
        set: Vec<Object>,
        /// Gone.
        gone: Vec<ObjectId>,
    },
    /// The number of its objects of kinds that are not enforced. Replaces the last report.
    Unenforced(unenforced::Unenforced),
    /// Everything that it cannot read. Replaces the last report; the objects that it provided stay in force.
    Problems(Vec<String>),
    /// Everything that it skipped because it is no Kubernetes object. Replaces the last report.
    Skipped(Vec<String>),
    /// Whether it may have policies, of any namespace, of which no version could be read. While it may, every pod is
    /// isolated, and only what other policies allow passes.
    Incomplete(bool),
}
