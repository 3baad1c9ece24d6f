//! One thing to report.

use podgate_policy::model::ObjectKey;

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The object of the Event.
    pub about: About,
    /// Type of the Event.
    pub severity: Severity,
    /// Reason of the Event: one word.
    pub reason: &'static str,
    /// Text for users.
    pub note: String,
    /// Which other Events it is the same as.
    pub dedupe: Dedupe,
}

/// Which Events with the same reason and text are one: they get one name, so the API server keeps the first and refuses the
/// others, for as long as it keeps that (an hour by default). A number makes a later one another Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedupe {
    /// It is an Event of its own.
    No,
    /// The same as those of this node with the same number, also from an earlier policyd.
    Node(u64),
    /// The same as those of all nodes with the same number.
    Cluster(u64),
}

/// The object of a notice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A pod of this node.
    Pod(PodRef),
    /// A policy of the cluster.
    Policy {
        /// Namespace and name.
        key: ObjectKey,
        /// Its uid, empty if not known.
        uid: String,
    },
    /// A cluster policy of the cluster.
    ClusterPolicy {
        /// Its name.
        name: String,
        /// Its uid, empty if not known.
        uid: String,
    },
    /// A PodTrafficPolicy of the cluster.
    PodTrafficPolicy {
        /// Namespace and name.
        key: ObjectKey,
        /// Its uid, empty if not known.
        uid: String,
    },
    /// A namespace of the cluster, by its name.
    Namespace(String),
    /// This node.
    Node,
}

/// A pod of this node, as the runtime named it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRef {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Its uid, empty if not known.
    pub uid: String,
}

/// Type of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Information.
    Normal,
    /// A problem.
    Warning,
}
