//! `/v1/cluster-policies`: all ClusterNetworkPolicies, and those that were given to this API.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use podgate_contract::api::{ChangeKind, ClusterPolicy, ClusterPolicyChange, ClusterPolicyName};
use podgate_policy::index::{Index, Problem};
use podgate_policy::model::{self, ClusterPolicyId};
use podgate_policy::object::ObjectId;

use super::policies::{mode, run, set_mode};
use super::{Api, Refusal};
use crate::pod_key::pod_key;
use crate::snapshot::Snapshot;
use crate::sources::local::{LOCAL_SOURCE, LocalKey, Was};

/// A policy's name as the API writes it.
pub(super) fn policy_name(id: &ClusterPolicyId) -> ClusterPolicyName {
    ClusterPolicyName { source: id.source.to_string(), name: id.name.to_string() }
}

pub(super) async fn list(State(api): State<Api>) -> Json<Vec<ClusterPolicy>> {
    let snapshot = api.shared.snapshot();
    let index = api.shared.index();
    let problems = index.problems();
    let policies = index.cluster_policies().map(|policy| {
        let directions = [("ingress", &policy.ingress), ("egress", &policy.egress)];
        let governs = directions.iter().filter(|(_, rules)| !rules.is_empty());
        ClusterPolicy {
            name: policy_name(&policy.id),
            tier: policy.tier.to_string(),
            priority: policy.priority,
            directions: governs.map(|(direction, _)| (*direction).to_owned()).collect(),
            pods: governed(&snapshot, &index, policy),
            mode: mode(policy.settings.mode),
            log: policy.settings.log.as_deref().map(str::to_owned),
            problems: texts(&problems, &policy.id),
        }
    });
    Json(policies.collect())
}

/// The pods of this node that a policy governs.
fn governed(snapshot: &Snapshot, index: &Index, policy: &Arc<model::ClusterPolicy>) -> Vec<String> {
    let of = |endpoint: &crate::snapshot::EndpointSnapshot| {
        let pod = index.pod(&pod_key(endpoint.registration.pod.as_ref()?))?;
        let selecting = index.cluster_policies_selecting(pod);
        selecting.iter().any(|of| of.id == policy.id).then(|| endpoint.name())
    };
    let mut pods: Vec<String> = snapshot.endpoints.values().filter_map(of).collect();
    pods.sort();
    pods.dedup();
    pods
}

fn texts(problems: &[Problem], id: &ClusterPolicyId) -> Vec<String> {
    let of = problems
        .iter()
        .filter(|problem| matches!(&problem.of, ObjectId::ClusterPolicy(of) if of == id));
    of.map(|problem| problem.text.clone()).collect()
}

pub(super) async fn put(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<ClusterPolicyChange>), Refusal> {
    let key = LocalKey::ClusterPolicy(name.as_str().into());
    let body = serde_json::from_slice(&body)
        .map_err(|error| Refusal::malformed(format!("read {key}: {error}")))?;
    let local = api.local.clone();
    match run(move || local.set(&key, body)).await? {
        Was::Absent => Ok((StatusCode::CREATED, changed(&api, &name, ChangeKind::Created).await?)),
        Was::Present => Ok((StatusCode::OK, changed(&api, &name, ChangeKind::Replaced).await?)),
    }
}

pub(super) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<ClusterPolicyChange>, Refusal> {
    let key = LocalKey::ClusterPolicy(name.as_str().into());
    let local = api.local.clone();
    let removed = key.clone();
    match run(move || local.remove(&removed)).await? {
        Was::Present => changed(&api, &name, ChangeKind::Deleted).await,
        Was::Absent => {
            Err(Refusal::not_found(format!("delete {key}: there is no local policy of this name")))
        }
    }
}

pub(super) async fn put_mode(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<ClusterPolicyChange>, Refusal> {
    set_mode(&api, LocalKey::ClusterPolicy(name.as_str().into()), &body).await?;
    changed(&api, &name, ChangeKind::Replaced).await
}

/// Answers once the change is in force, with what of it has no effect and what could not be programmed.
async fn changed(
    api: &Api,
    name: &str,
    change: ChangeKind,
) -> Result<Json<ClusterPolicyChange>, Refusal> {
    api.writer.settled().await?;
    let id = ClusterPolicyId { name: name.into(), source: LOCAL_SOURCE.into() };
    let mut problems = texts(&api.shared.index().problems(), &id);
    problems.extend(api.shared.snapshot().problems());
    Ok(Json(ClusterPolicyChange { name: policy_name(&id), change, problems }))
}
