//! What identifies an object as the API server sends it.

use std::sync::Arc;

use podgate_policy::object::{Kind, ObjectId};
use serde_json::Value;

use super::KUBERNETES_SOURCE;

/// Its id, if its metadata are complete.
pub(super) fn id(kind: Kind, value: &Value) -> Option<ObjectId> {
    let text = |field: &str| Some(metadata(value, field)).filter(|text| !text.is_empty());
    kind.id(KUBERNETES_SOURCE, text("namespace"), text("name")?)
}

/// Its uid; empty if it has none.
pub(super) fn uid(value: &Value) -> Arc<str> {
    metadata(value, "uid").into()
}

/// Its `resourceVersion`; empty if it has none.
pub(super) fn version(value: &Value) -> &str {
    metadata(value, "resourceVersion")
}

fn metadata<'a>(value: &'a Value, field: &str) -> &'a str {
    let field = value.get("metadata").and_then(|metadata| metadata.get(field));
    field.and_then(Value::as_str).unwrap_or_default()
}
