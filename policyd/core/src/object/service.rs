//! Services.

use k8s_openapi::api::core::v1 as api;

use super::fields::{LABELS, NAME, NAMESPACE, UID, VERSION};
use super::{ApiType, FieldMask, Names, Resource};
use crate::convert::{self, FieldError};
use crate::model::{ObjectKey, Service};

impl Resource for Service {
    type Key = ObjectKey;
    type Api = api::Service;

    const NAMES: Names = Names { singular: "service", plural: "services" };
    const API: ApiType = ApiType { version: "v1", kind: "Service", resource: "services" };
    /// Without the selector: with an API server the slices name a service's endpoints. All services are read, also those
    /// that kube-proxy leaves to another proxy: their addresses are no plain addresses either.
    const FIELDS: FieldMask = FieldMask::Fields(&[
        ("metadata", FieldMask::Fields(&[NAME, NAMESPACE, UID, VERSION, LABELS])),
        (
            "spec",
            FieldMask::Fields(&[
                FieldMask::whole("type"),
                FieldMask::whole("clusterIP"),
                FieldMask::whole("clusterIPs"),
                FieldMask::whole("externalIPs"),
                FieldMask::whole("loadBalancerSourceRanges"),
                FieldMask::whole("ports"),
                FieldMask::whole("sessionAffinity"),
                FieldMask::whole("sessionAffinityConfig"),
                FieldMask::whole("internalTrafficPolicy"),
                FieldMask::whole("externalTrafficPolicy"),
                FieldMask::whole("trafficDistribution"),
            ]),
        ),
        ("status", FieldMask::Fields(&[FieldMask::whole("loadBalancer")])),
    ]);

    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn key_of(_source: &str, namespace: Option<&str>, name: &str) -> Option<ObjectKey> {
        Some(ObjectKey::new(namespace?, name))
    }

    fn convert(_source: &str, object: &api::Service) -> Result<Self, FieldError> {
        convert::service(object)
    }
}
