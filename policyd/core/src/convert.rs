//! From Kubernetes objects to the [`crate::model`]: the one place where "missing or empty?" is decided.
//!
//! An API server sends defaulted and validated objects, a manifest directory does not, so both are done
//! here: what the API server would reject is an error that names the field (semantics 13), and an object
//! that cannot be read is never half read.

mod cidr;
mod pod;
mod policy;
mod service;
mod slice;

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use thiserror::Error;

use crate::model::ObjectKey;

pub use cidr::{parse_address, parse_cidr};
pub use pod::{METADATA_NAME, namespace, pod};
pub use policy::policy;
pub use service::{PROXY_NAME, service};
pub use slice::{HEADLESS, SERVICE_NAME, endpoint_slice};

/// A field that cannot be read, inside some object.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{path}: {cause}")]
pub struct FieldError {
    /// The field, as in `spec.ingress[0].ports[1].endPort`.
    pub path: String,
    /// What is wrong with it.
    pub cause: String,
}

impl FieldError {
    /// An error at `path`, which may be relative to where it is found.
    pub fn new(path: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { path: path.into(), cause: cause.into() }
    }

    /// The same error seen from the parent field.
    #[must_use]
    pub fn under(self, parent: impl fmt::Display) -> Self {
        Self { path: format!("{parent}.{}", self.path), ..self }
    }
}

/// An object that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("read {kind} {name}: {field}")]
pub struct ConvertError {
    /// Which kind of object.
    pub kind: &'static str,
    /// Its name, with its namespace if it has one; as much of it as could be read.
    pub name: String,
    /// Which of its fields, and why. Part of the message, so not also its source.
    pub field: FieldError,
}

impl ConvertError {
    fn of(kind: &'static str, metadata: &ObjectMeta) -> impl FnOnce(FieldError) -> Self {
        let name = metadata.name.clone().unwrap_or_default();
        let name = match &metadata.namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name,
        };
        move |field| Self { kind, name, field }
    }
}

/// The key of a namespaced object. A manifest without a namespace means `default`, as for kubectl.
fn key(metadata: &ObjectMeta) -> Result<ObjectKey, FieldError> {
    let namespace = metadata.namespace.as_deref().filter(|name| !name.is_empty());
    Ok(ObjectKey::new(namespace.unwrap_or("default"), name(metadata)?))
}

fn name(metadata: &ObjectMeta) -> Result<&str, FieldError> {
    let name = metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        return Err(FieldError::new("metadata.name", "must not be empty"));
    }
    Ok(name)
}
