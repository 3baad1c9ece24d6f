//! ClusterNetworkPolicies.

use super::fields::{NAME, SETTINGS, UID, VERSION};
use super::{ApiType, FieldMask, Names, Resource, Served};
use crate::convert::{self, ApiClusterPolicy, FieldError};
use crate::model::{ClusterPolicy, ClusterPolicyId};

impl Resource for ClusterPolicy {
    type Key = ClusterPolicyId;
    type Api = ApiClusterPolicy;

    const NAMES: Names =
        Names { singular: "clusternetworkpolicy", plural: "clusternetworkpolicies" };
    const API: ApiType = ApiType {
        version: "policy.networking.k8s.io/v1alpha2",
        kind: "ClusterNetworkPolicy",
        resource: "clusternetworkpolicies",
    };
    const OTHER_VERSIONS: &'static [&'static str] = &["policy.networking.k8s.io/v1beta1"];
    const SERVED: Served = Served::Optional;
    /// The whole `spec`: what podgate does not know of it fails closed. And what says whether its condition is up to date.
    const FIELDS: FieldMask = FieldMask::Fields(&[
        (
            "metadata",
            FieldMask::Fields(&[NAME, UID, VERSION, SETTINGS, FieldMask::whole("generation")]),
        ),
        FieldMask::whole("spec"),
        ("status", FieldMask::Fields(&[FieldMask::whole("conditions")])),
    ]);

    fn key(&self) -> &ClusterPolicyId {
        &self.id
    }

    fn key_of(source: &str, _namespace: Option<&str>, name: &str) -> Option<ClusterPolicyId> {
        Some(ClusterPolicyId { name: name.into(), source: source.into() })
    }

    fn convert(source: &str, object: &ApiClusterPolicy) -> Result<Self, FieldError> {
        convert::cluster_policy(source, object)
    }

    /// Not in `metadata` or `spec`: a field beside the rules may change what all of them mean.
    fn may_have(unknown_field: &str) -> bool {
        ["status", "apiVersion", "kind"].iter().any(|known| unknown_field.starts_with(known))
    }
}
