//! What has changed in an index since somebody looked.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::shapes::ShapeId;
use crate::model::{ObjectKey, PolicyId};

/// The names of everything that is new, different or gone: what an engine must look at again. What became
/// of it is the index's to say.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub(crate) pods: HashSet<ObjectKey>,
    /// Claimed, given up, or claimed by somebody else.
    pub(crate) addresses: HashSet<IpAddr>,
    /// New or gone.
    pub(crate) shapes: BTreeSet<ShapeId>,
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    pub(crate) policies: BTreeSet<PolicyId>,
}
