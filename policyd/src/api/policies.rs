//! `/v1/policies`: all policies, and those that were given to this API.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use podgate_policy::model::{ObjectKey, PolicyId};

use super::types::{ChangeKind, Policy, PolicyChange, PolicyName};
use super::{Api, Refusal};
use crate::sources::local::{LOCAL_SOURCE, LocalError, Was};
use crate::view::View;

impl From<&PolicyId> for PolicyName {
    fn from(id: &PolicyId) -> Self {
        Self {
            source: id.source.to_string(),
            namespace: id.key.namespace.to_string(),
            name: id.key.name.to_string(),
        }
    }
}

pub(super) async fn list(State(api): State<Api>) -> Json<Vec<Policy>> {
    let view = api.shared.view();
    let index = api.shared.index();
    let policies = index.policies().map(|policy| {
        let directions = [("ingress", &policy.ingress), ("egress", &policy.egress)];
        let isolates = directions.iter().filter(|(_, rules)| rules.is_some());
        Policy {
            name: (&policy.id).into(),
            isolates: isolates.map(|(direction, _)| (*direction).to_owned()).collect(),
            pods: selected(&view, &policy.id),
        }
    });
    Json(policies.collect())
}

/// The pods of this node that a policy isolates.
fn selected(view: &View, policy: &PolicyId) -> Vec<String> {
    let of = |endpoint: &crate::view::EndpointView| {
        let table = endpoint.table.as_ref()?;
        let named = table.ingress.contains(policy) || table.egress.contains(policy);
        named.then(|| endpoint.name())
    };
    let mut pods: Vec<String> = view.endpoints.values().filter_map(of).collect();
    pods.sort();
    pods.dedup();
    pods
}

pub(super) async fn put(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<(StatusCode, Json<PolicyChange>), Refusal> {
    let body = serde_json::from_slice(&body)
        .map_err(|error| Refusal::malformed(format!("read policy {namespace}/{name}: {error}")))?;
    let key = ObjectKey::new(namespace, name);
    let local = api.local.clone();
    let was = run({
        let key = key.clone();
        move || local.set(&key, body)
    })
    .await?;
    match was {
        Was::Absent => Ok((StatusCode::CREATED, changed(&api, &key, ChangeKind::Created).await?)),
        Was::Present => Ok((StatusCode::OK, changed(&api, &key, ChangeKind::Replaced).await?)),
    }
}

pub(super) async fn delete(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<PolicyChange>, Refusal> {
    let key = ObjectKey::new(namespace, name);
    let local = api.local.clone();
    let was = run({
        let key = key.clone();
        move || local.remove(&key)
    })
    .await?;
    match was {
        Was::Present => changed(&api, &key, ChangeKind::Deleted).await,
        Was::Absent => Err(Refusal::not_found(format!(
            "delete policy {key}: there is no local policy of this name"
        ))),
    }
}

/// The state file is synced to disk: not on a thread that serves others.
async fn run(
    change: impl FnOnce() -> Result<Was, LocalError> + Send + 'static,
) -> Result<Was, Refusal> {
    match tokio::task::spawn_blocking(change).await {
        Ok(Ok(was)) => Ok(was),
        Ok(Err(LocalError::Invalid { key, field })) => {
            Err(Refusal::field(format!("read policy {key}: {field}"), &field))
        }
        Ok(Err(error)) => Err(Refusal::internal(error.to_string())),
        Err(error) => Err(Refusal::internal(format!("change policy: {error}"))),
    }
}

/// Answers once the change is in force, with what could not be programmed.
async fn changed(
    api: &Api,
    key: &ObjectKey,
    change: ChangeKind,
) -> Result<Json<PolicyChange>, Refusal> {
    api.writer.settled().await?;
    let id = PolicyId { source: LOCAL_SOURCE.into(), key: key.clone() };
    Ok(Json(PolicyChange { name: (&id).into(), change, problems: api.shared.view().problems() }))
}
