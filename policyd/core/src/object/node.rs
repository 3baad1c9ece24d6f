//! Nodes.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;

use super::fields::{LABELS, NAME, UID, VERSION};
use super::{ApiType, FieldMask, Names, Resource, Served};
use crate::convert::{self, FieldError};
use crate::model::Node;

impl Resource for Node {
    type Key = Arc<str>;
    type Api = api::Node;

    const NAMES: Names = Names { singular: "node", plural: "nodes" };
    const API: ApiType = ApiType { version: "v1", kind: "Node", resource: "nodes" };
    /// An older ClusterRole does not permit them. Without them no rule that names nodes matches, and everything else is as it
    /// is: the `hostIPs` of pods say which addresses are nodes'.
    const SERVED: Served = Served::Optional;
    /// What a heartbeat changes is not kept.
    const FIELDS: FieldMask = FieldMask::Fields(&[
        ("metadata", FieldMask::Fields(&[NAME, UID, VERSION, LABELS])),
        ("status", FieldMask::Fields(&[FieldMask::whole("addresses")])),
    ]);

    fn key(&self) -> &Arc<str> {
        &self.name
    }

    fn key_of(_source: &str, _namespace: Option<&str>, name: &str) -> Option<Arc<str>> {
        Some(name.into())
    }

    fn convert(_source: &str, object: &api::Node) -> Result<Self, FieldError> {
        convert::node(object)
    }
}
