//! Namespaces.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;

use super::fields::{LABELS, NAME, NAMESPACE_SETTINGS, UID, VERSION};
use super::{ApiType, Content, FieldMask, Names, Resource};
use crate::convert::{self, FieldError};
use crate::model::Namespace;

impl Resource for Namespace {
    type Key = Arc<str>;
    type Api = api::Namespace;

    const NAMES: Names = Names { singular: "namespace", plural: "namespaces" };
    const API: ApiType = ApiType { version: "v1", kind: "Namespace", resource: "namespaces" };
    const CONTENT: Content = Content::Metadata;
    const FIELDS: FieldMask = FieldMask::Fields(&[(
        "metadata",
        FieldMask::Fields(&[NAME, UID, VERSION, LABELS, NAMESPACE_SETTINGS]),
    )]);

    fn key(&self) -> &Arc<str> {
        &self.name
    }

    fn key_of(_source: &str, _namespace: Option<&str>, name: &str) -> Option<Arc<str>> {
        Some(name.into())
    }

    fn convert(source: &str, object: &api::Namespace) -> Result<Self, FieldError> {
        convert::namespace(source, object)
    }
}
