//! EndpointSlices.

use k8s_openapi::api::discovery::v1 as api;

use super::fields::{LABELS, NAME, NAMESPACE, UID, VERSION};
use super::{ApiType, FieldMask, Names, Resource};
use crate::convert::{self, FieldError};
use crate::model::{EndpointSlice, ObjectKey};

impl Resource for EndpointSlice {
    type Key = ObjectKey;
    type Api = api::EndpointSlice;

    const NAMES: Names = Names { singular: "endpointslice", plural: "endpointslices" };
    const API: ApiType = ApiType {
        version: "discovery.k8s.io/v1",
        kind: "EndpointSlice",
        resource: "endpointslices",
    };
    /// The slices that kube-proxy reads.
    const LABEL_SELECTOR: Option<&'static str> = Some("!service.kubernetes.io/headless");
    const FIELDS: FieldMask = FieldMask::Fields(&[
        ("metadata", FieldMask::Fields(&[NAME, NAMESPACE, UID, VERSION, LABELS])),
        FieldMask::whole("addressType"),
        FieldMask::whole("ports"),
        (
            "endpoints",
            FieldMask::Each(&FieldMask::Fields(&[
                FieldMask::whole("addresses"),
                FieldMask::whole("conditions"),
                FieldMask::whole("nodeName"),
                FieldMask::whole("hints"),
            ])),
        ),
    ]);

    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn key_of(_source: &str, namespace: Option<&str>, name: &str) -> Option<ObjectKey> {
        Some(ObjectKey::new(namespace?, name))
    }

    fn convert(_source: &str, object: &api::EndpointSlice) -> Result<Self, FieldError> {
        convert::endpoint_slice(object)
    }
}
