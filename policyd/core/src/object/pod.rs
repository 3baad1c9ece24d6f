//! Pods.

use k8s_openapi::api::core::v1 as api;

use super::fields::{LABELS, NAME, NAMESPACE, POD_SETTINGS, UID, VERSION};
use super::{ApiType, FieldMask, Names, Resource};
use crate::convert::{self, FieldError};
use crate::model::{ObjectKey, Pod};

const CONTAINERS: FieldMask = FieldMask::Each(&FieldMask::Fields(&[
    NAME,
    FieldMask::whole("ports"),
    FieldMask::whole("restartPolicy"),
]));

impl Resource for Pod {
    type Key = ObjectKey;
    type Api = api::Pod;

    const NAMES: Names = Names { singular: "pod", plural: "pods" };
    const API: ApiType = ApiType { version: "v1", kind: "Pod", resource: "pods" };
    const FIELDS: FieldMask = FieldMask::Fields(&[
        (
            "metadata",
            FieldMask::Fields(&[
                NAME,
                NAMESPACE,
                UID,
                VERSION,
                LABELS,
                FieldMask::whole("creationTimestamp"),
                FieldMask::whole("deletionTimestamp"),
                POD_SETTINGS,
            ]),
        ),
        (
            "spec",
            FieldMask::Fields(&[
                FieldMask::whole("nodeName"),
                FieldMask::whole("hostNetwork"),
                ("containers", CONTAINERS),
                ("initContainers", CONTAINERS),
            ]),
        ),
        (
            "status",
            FieldMask::Fields(&[
                FieldMask::whole("phase"),
                FieldMask::whole("podIP"),
                FieldMask::whole("podIPs"),
                FieldMask::whole("hostIP"),
                FieldMask::whole("hostIPs"),
            ]),
        ),
    ]);

    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn key_of(_source: &str, namespace: Option<&str>, name: &str) -> Option<ObjectKey> {
        Some(ObjectKey::new(namespace?, name))
    }

    fn convert(_source: &str, object: &api::Pod) -> Result<Self, FieldError> {
        convert::pod(object)
    }
}
