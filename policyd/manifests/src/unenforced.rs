//! Kinds of policies that podgate knows of and does not enforce. Who writes one believes in it: a source says which
//! there are, instead of passing them over.

use std::collections::BTreeMap;

/// Their API group.
pub const GROUP: &str = "policy.networking.k8s.io";

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnenforcedKind {
    /// Of `v1alpha1`; ordered rules of the cluster's administrator.
    AdminNetworkPolicy,
    /// Of `v1alpha1`; what holds where nothing else says anything.
    BaselineAdminNetworkPolicy,
    /// Of a version that podgate does not read ([`podgate_policy::model::ClusterPolicy`]).
    ClusterNetworkPolicy,
}

/// How many objects there are of each.
pub type Unenforced = BTreeMap<UnenforcedKind, usize>;

impl UnenforcedKind {
    /// Every one.
    pub const ALL: &[Self] =
        &[Self::AdminNetworkPolicy, Self::BaselineAdminNetworkPolicy, Self::ClusterNetworkPolicy];

    /// As in an object's `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// As in the API's paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::AdminNetworkPolicy => "adminnetworkpolicies",
            Self::BaselineAdminNetworkPolicy => "baselineadminnetworkpolicies",
            Self::ClusterNetworkPolicy => "clusternetworkpolicies",
        }
    }

    /// The kind of an object with these fields, whatever the version.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, _) = api_version.split_once('/')?;
        let known = |each: &&Self| group == GROUP && each.name() == kind;
        Self::ALL.iter().find(known).copied()
    }
}

/// "3 ClusterNetworkPolicy objects".
pub fn describe(kind: &str, count: usize) -> String {
    format!("{count} {kind} object{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_known_by_its_group_and_name() {
        let of = |version: &str, kind: &str| UnenforcedKind::of(version, kind);
        let cluster = Some(UnenforcedKind::ClusterNetworkPolicy);
        assert_eq!(of("policy.networking.k8s.io/v1", "ClusterNetworkPolicy"), cluster);
        assert_eq!(of("crd.antrea.io/v1beta1", "ClusterNetworkPolicy"), None);
        assert_eq!(of("policy.networking.k8s.io/v1alpha2", "Other"), None);
        assert_eq!(of("v1", "ClusterNetworkPolicy"), None);
    }
}
