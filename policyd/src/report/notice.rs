//! One thing to tell.

use podgate_policy::model::ObjectKey;

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// On which object.
    pub about: About,
    /// Whether something is wrong.
    pub severity: Severity,
    /// In one word, for filters.
    pub reason: &'static str,
    /// For people.
    pub note: String,
    /// Every node says the same: the first one's event is enough. The number tells a later saying of the
    /// same thing from this one.
    pub shared: Option<u64>,
}

/// The object of a notice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A pod of this node.
    Pod(PodRef),
    /// A policy of the cluster.
    Policy {
        /// Which.
        key: ObjectKey,
        /// Its uid, or nothing.
        uid: String,
    },
    /// This node.
    Node,
}

/// A pod of this node, as the runtime named it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRef {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Its uid, or nothing.
    pub uid: String,
}

/// Whether something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// No.
    Normal,
    /// Yes.
    Warning,
}
