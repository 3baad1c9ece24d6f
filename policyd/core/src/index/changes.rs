//! What has changed in an index since the engine last followed it.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::label_identities::IdentityId;
use crate::model::{ClusterPolicyId, ObjectKey, PolicyId};

/// The keys of everything added, changed or removed: what an engine has to recompute. The new values are in the index.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub(crate) pods: HashSet<ObjectKey>,
    /// Addresses whose owner may be another one than before.
    pub(crate) addresses: HashSet<IpAddr>,
    /// Identities added or removed.
    pub(crate) identities: BTreeSet<IdentityId>,
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    pub(crate) policies: BTreeSet<PolicyId>,
    /// Cluster policies that came, changed or went.
    pub(crate) cluster_policies: BTreeSet<ClusterPolicyId>,
    /// PodTrafficPolicies that came, changed or went.
    pub(crate) pod_traffic_policies: BTreeSet<PolicyId>,
    /// Pods whose local rules came, changed or went.
    pub(crate) local_rules: BTreeSet<ObjectKey>,
    /// Whether the node's defaults changed.
    pub(crate) local_defaults: bool,
    /// Nodes that came, went, or have other labels or addresses.
    pub(crate) nodes: BTreeSet<Arc<str>>,
}
