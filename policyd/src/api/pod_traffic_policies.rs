//! `/v1/pod-traffic-policies`: all PodTrafficPolicies, and those that were given to this API.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use podgate_contract::api::{ChangeKind, PodTrafficPolicy, PolicyChange};
use podgate_policy::index::Index;
use podgate_policy::model::{self, ObjectKey, PolicyId};

use super::policies::{policy_name, run};
use super::{Api, Refusal};
use crate::pod_key::pod_key;
use crate::snapshot::{EndpointSnapshot, Snapshot};
use crate::sources::local::{LOCAL_SOURCE, LocalKey, Was};

pub(super) async fn list(State(api): State<Api>) -> Json<Vec<PodTrafficPolicy>> {
    let snapshot = api.shared.snapshot();
    let index = api.shared.index();
    let policies = index.pod_traffic_policies().map(|policy| PodTrafficPolicy {
        name: policy_name(&policy.id),
        order: policy.order,
        pods: selected(&snapshot, &index, policy),
        problems: policy.problems.clone(),
    });
    Json(policies.collect())
}

/// The pods of this node that a policy selects.
fn selected(snapshot: &Snapshot, index: &Index, policy: &model::PodTrafficPolicy) -> Vec<String> {
    let of = |endpoint: &EndpointSnapshot| {
        let pod = index.pod(&pod_key(endpoint.registration.pod.as_ref()?))?;
        let selecting = index.pod_traffic_policies_selecting(pod);
        selecting.iter().any(|of| of.id == policy.id).then(|| endpoint.name())
    };
    let mut pods: Vec<String> = snapshot.endpoints.values().filter_map(of).collect();
    pods.sort();
    pods.dedup();
    pods
}

pub(super) async fn put(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<(StatusCode, Json<PolicyChange>), Refusal> {
    let key = ObjectKey::new(namespace, name);
    let named = LocalKey::PodTrafficPolicy(key.clone());
    let body = serde_json::from_slice(&body)
        .map_err(|error| Refusal::malformed(format!("read {named}: {error}")))?;
    let local = api.local.clone();
    match run(move || local.set(&named, body)).await? {
        Was::Absent => Ok((StatusCode::CREATED, changed(&api, key, ChangeKind::Created).await?)),
        Was::Present => Ok((StatusCode::OK, changed(&api, key, ChangeKind::Replaced).await?)),
    }
}

pub(super) async fn delete(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<PolicyChange>, Refusal> {
    let key = ObjectKey::new(namespace, name);
    let named = LocalKey::PodTrafficPolicy(key.clone());
    let local = api.local.clone();
    let removed = named.clone();
    match run(move || local.remove(&removed)).await? {
        Was::Present => changed(&api, key, ChangeKind::Deleted).await,
        Was::Absent => {
            let cause = "there is no local policy of this name";
            Err(Refusal::not_found(format!("delete {named}: {cause}")))
        }
    }
}

/// Answers once the change is known to the writer, with what could not be programmed.
async fn changed(
    api: &Api,
    key: ObjectKey,
    change: ChangeKind,
) -> Result<Json<PolicyChange>, Refusal> {
    api.writer.settled().await?;
    let id = PolicyId { source: LOCAL_SOURCE.into(), key };
    let problems = api.shared.snapshot().problems();
    Ok(Json(PolicyChange { name: policy_name(&id), change, problems }))
}
