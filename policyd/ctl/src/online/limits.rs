//! `limits`: what this node's policyd knows of a pod's limits.

use podgate_contract::api::PodLimits;
use podgate_policy::model::ObjectKey;

use super::client::{Client, Server};
use crate::Failure;

pub(crate) fn limits(server: &Server, pod: &ObjectKey) -> Result<PodLimits, Failure> {
    Client::new(server)?.get(&format!("/v1/endpoints/{}/{}/limits", pod.namespace, pod.name))
}
