//! NetworkPolicies.

use k8s_openapi::api::networking::v1 as api;

use super::fields::{NAME, NAMESPACE, SETTINGS, UID, VERSION};
use super::{ApiType, FieldMask, Names, Resource};
use crate::convert::{self, FieldError};
use crate::model::{ObjectKey, Policy, PolicyId};

impl Resource for Policy {
    type Key = PolicyId;
    type Api = api::NetworkPolicy;

    const NAMES: Names = Names { singular: "policy", plural: "policies" };
    const API: ApiType = ApiType {
        version: "networking.k8s.io/v1",
        kind: "NetworkPolicy",
        resource: "networkpolicies",
    };
    /// The whole `spec`: a field of it that podgate does not know may change what the rest means.
    const FIELDS: FieldMask = FieldMask::Fields(&[
        ("metadata", FieldMask::Fields(&[NAME, NAMESPACE, UID, VERSION, SETTINGS])),
        FieldMask::whole("spec"),
    ]);

    fn key(&self) -> &PolicyId {
        &self.id
    }

    fn key_of(source: &str, namespace: Option<&str>, name: &str) -> Option<PolicyId> {
        Some(PolicyId { source: source.into(), key: ObjectKey::new(namespace?, name) })
    }

    fn convert(source: &str, object: &api::NetworkPolicy) -> Result<Self, FieldError> {
        convert::policy(source, object)
    }

    /// Not in `metadata` or `spec`: a misspelt `from` would read as "from every peer". `status` was part of NetworkPolicy
    /// in Kubernetes 1.24 to 1.27, and dumps of that time have it.
    fn may_have(unknown_field: &str) -> bool {
        unknown_field.starts_with("status")
    }
}
