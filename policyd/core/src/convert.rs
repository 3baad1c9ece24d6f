//! From Kubernetes objects to the [`crate::model`]: the one place where "missing or empty?" is decided.
//!
//! An API server sends defaulted and validated objects, a manifest directory does not, so both are done
//! here: what the API server would reject is an error that names the field (docs/semantics.md 13). An object is converted
//! whole or not at all.

mod cidr;
mod cluster_policy;
mod field_error;
mod local_rule;
mod node;
mod pod;
pub mod pod_traffic_policy;
mod policy;
mod selector;
mod service;
mod settings;
mod slice;
mod value;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::ObjectKey;

pub use cidr::{parse_address, parse_cidr};
pub use cluster_policy::{ApiClusterPolicy, cluster_policy};
pub use field_error::FieldError;
pub use local_rule::{local_defaults, local_rule, pod_rules};
pub use node::node;
pub use pod::{METADATA_NAME, MIRROR, namespace, pod};
pub use pod_traffic_policy::{ApiPodTrafficPolicy, pod_traffic_policy};
pub use policy::policy;
pub use service::{PROXY_NAME, service};
pub use settings::{DENY, LOG, MODE};
pub use slice::{HEADLESS, SERVICE_NAME, endpoint_slice};

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
