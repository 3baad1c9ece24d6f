//! PodTrafficPolicies.

use super::fields::{NAME, NAMESPACE, UID, VERSION};
use super::{ApiType, FieldMask, Names, Resource, Served};
use crate::convert::{self, ApiPodTrafficPolicy, FieldError};
use crate::model::{ObjectKey, PodTrafficPolicy, PolicyId};

impl Resource for PodTrafficPolicy {
    type Key = PolicyId;
    type Api = ApiPodTrafficPolicy;

    const NAMES: Names = Names { singular: "podtrafficpolicy", plural: "podtrafficpolicies" };
    const API: ApiType = ApiType {
        version: "podgate.io/v1alpha1",
        kind: "PodTrafficPolicy",
        resource: "podtrafficpolicies",
    };
    const SERVED: Served = Served::Optional;
    /// The whole `spec`: what podgate does not know of it is reported.
    const FIELDS: FieldMask = FieldMask::Fields(&[
        (
            "metadata",
            FieldMask::Fields(&[NAME, NAMESPACE, UID, VERSION, FieldMask::whole("generation")]),
        ),
        FieldMask::whole("spec"),
        (
            "status",
            FieldMask::Fields(&[
                FieldMask::whole("conditions"),
                FieldMask::whole("pods"),
                FieldMask::whole("observedGeneration"),
            ]),
        ),
    ]);

    fn key(&self) -> &PolicyId {
        &self.id
    }

    fn key_of(source: &str, namespace: Option<&str>, name: &str) -> Option<PolicyId> {
        Some(PolicyId { source: source.into(), key: ObjectKey::new(namespace?, name) })
    }

    fn convert(source: &str, object: &ApiPodTrafficPolicy) -> Result<Self, FieldError> {
        convert::pod_traffic_policy(source, object)
    }

    /// Not in `metadata`; `spec` is read whole.
    fn may_have(unknown_field: &str) -> bool {
        ["status", "apiVersion", "kind"].iter().any(|known| unknown_field.starts_with(known))
    }
}
