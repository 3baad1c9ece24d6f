//! One object as the API server sends it, into the model.

use std::sync::Arc;

use podgate_policy::convert::FieldError;
use podgate_policy::model::{ObjectKey, PolicyId};
use serde_json::Value;

use super::KUBERNETES_SOURCE;
use crate::sources::{Kind, Object, ObjectId, closed, object};

/// Which object it is, as far as it says.
pub(super) fn id(kind: Kind, value: &Value) -> Option<ObjectId> {
    let text =
        |field: &str| Some(value.get("metadata")?.get(field)?.as_str()?).filter(|t| !t.is_empty());
    let key = || Some(ObjectKey::new(text("namespace")?, text("name")?));
    Some(match kind {
        Kind::Pod => ObjectId::Pod(key()?),
        Kind::Namespace => ObjectId::Namespace(text("name")?.into()),
        Kind::Policy => {
            ObjectId::Policy(PolicyId { source: KUBERNETES_SOURCE.into(), key: key()? })
        }
        Kind::Service => ObjectId::Service(key()?),
        Kind::EndpointSlice => ObjectId::EndpointSlice(key()?),
    })
}

/// Its uid, or nothing.
pub(super) fn uid(value: &Value) -> Arc<str> {
    metadata(value, "uid").into()
}

/// Its version, or nothing.
pub(super) fn version(value: &Value) -> &str {
    metadata(value, "resourceVersion")
}

fn metadata<'a>(value: &'a Value, field: &str) -> &'a str {
    let field = value.get("metadata").and_then(|metadata| metadata.get(field));
    field.and_then(Value::as_str).unwrap_or_default()
}

/// The object.
pub(super) fn object(kind: Kind, value: &Value) -> Result<Object, FieldError> {
    match kind {
        Kind::Pod => object::pod(value).map(Object::Pod),
        Kind::Namespace => object::namespace(value).map(Object::Namespace),
        Kind::Policy => object::policy(KUBERNETES_SOURCE, value).map(Object::Policy),
        Kind::Service => object::service(value).map(Object::Service),
        Kind::EndpointSlice => object::slice(value).map(Object::EndpointSlice),
    }
}

/// What stands in for a policy that cannot be read and never could.
pub(super) fn closed(value: &Value) -> Option<Object> {
    closed::instead_of(KUBERNETES_SOURCE, value).map(Object::Policy)
}
