//! One object of a manifest, from plain data: typed, with the path of what is wrong.

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use podgate_policy::convert::{self, FieldError};
use podgate_policy::model::Policy;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a NetworkPolicy that a source of this name gives; the API's bodies come this way too.
pub fn policy(source: &str, value: &Value) -> Result<Policy, FieldError> {
    let (policy, unknown) = typed::<NetworkPolicy>(value)?;
    // `status` was part of NetworkPolicy in Kubernetes 1.24 to 1.27 and still stands in old dumps
    if let Some(field) = unknown.into_iter().find(|field| !field.starts_with("status")) {
        return Err(FieldError::new(field, "unknown field"));
    }
    convert::policy(source, &policy).map_err(|error| error.field)
}

pub(super) fn pod(value: &Value) -> Result<podgate_policy::model::Pod, FieldError> {
    let (pod, unknown) = typed::<Pod>(value)?;
    tracing::trace!(?unknown, "fields of a newer pod");
    convert::pod(&pod).map_err(|error| error.field)
}

pub(super) fn namespace(value: &Value) -> Result<podgate_policy::model::Namespace, FieldError> {
    convert::namespace(&typed::<Namespace>(value)?.0).map_err(|error| error.field)
}

pub(super) fn service(value: &Value) -> Result<podgate_policy::model::Service, FieldError> {
    convert::service(&typed::<Service>(value)?.0).map_err(|error| error.field)
}

pub(super) fn slice(value: &Value) -> Result<podgate_policy::model::EndpointSlice, FieldError> {
    convert::endpoint_slice(&typed::<EndpointSlice>(value)?.0).map_err(|error| error.field)
}

/// The typed object and the fields it does not know.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<(T, Vec<String>), FieldError> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let object = serde_ignored::deserialize(deserializer, |path| unknown.push(spell(&path)));
    match object {
        Ok(object) => Ok((object, unknown)),
        Err(error) => Err(FieldError::new(track.path().to_string(), error.to_string())),
    }
}

/// A path as every other error here spells it: `spec.ingress[0].form`.
fn spell(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", spell(parent)),
        Path::Map { parent, key } => match spell(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => spell(parent),
    }
}
