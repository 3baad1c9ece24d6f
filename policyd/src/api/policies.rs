//! `/v1/policies`: all policies, and those that were given to this API.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use podgate_contract::api::{self, ChangeKind, NewPolicyMode, Policy, PolicyChange, PolicyName};
use podgate_policy::model::{ObjectKey, PolicyId, PolicyMode};

use super::{Api, Refusal};
use crate::snapshot::Snapshot;
use crate::sources::local::{LOCAL_SOURCE, LocalError, LocalKey, Was};

/// A policy's name as the API writes it.
pub(super) fn policy_name(id: &PolicyId) -> PolicyName {
    PolicyName {
        source: id.source.to_string(),
        namespace: id.key.namespace.to_string(),
        name: id.key.name.to_string(),
    }
}

/// A policy's mode as the API writes it.
pub(super) fn mode(mode: PolicyMode) -> api::PolicyMode {
    match mode {
        PolicyMode::Enforce => api::PolicyMode::Enforce,
        PolicyMode::Audit => api::PolicyMode::Audit,
    }
}

pub(super) async fn list(State(api): State<Api>) -> Json<Vec<Policy>> {
    let snapshot = api.shared.snapshot();
    let index = api.shared.index();
    let policies = index.policies().map(|policy| {
        let directions = [("ingress", &policy.ingress), ("egress", &policy.egress)];
        let isolates = directions.iter().filter(|(_, rules)| rules.is_some());
        Policy {
            name: policy_name(&policy.id),
            isolates: isolates.map(|(direction, _)| (*direction).to_owned()).collect(),
            pods: selected(&snapshot, &policy.id),
            mode: mode(policy.settings.mode),
            log: policy.settings.log.as_deref().map(str::to_owned),
        }
    });
    Json(policies.collect())
}

/// The pods of this node that a policy isolates.
fn selected(snapshot: &Snapshot, policy: &PolicyId) -> Vec<String> {
    let of = |endpoint: &crate::snapshot::EndpointSnapshot| {
        let table = endpoint.table.as_ref()?;
        let named = table.ingress.contains(policy) || table.egress.contains(policy);
        named.then(|| endpoint.name())
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
    let body = serde_json::from_slice(&body)
        .map_err(|error| Refusal::malformed(format!("read policy {namespace}/{name}: {error}")))?;
    let key = ObjectKey::new(namespace, name);
    let local = api.local.clone();
    let named = LocalKey::Policy(key.clone());
    let was = run(move || local.set(&named, body)).await?;
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
    let named = LocalKey::Policy(key.clone());
    let was = run(move || local.remove(&named)).await?;
    match was {
        Was::Present => changed(&api, &key, ChangeKind::Deleted).await,
        Was::Absent => Err(Refusal::not_found(format!(
            "delete policy {key}: there is no local policy of this name"
        ))),
    }
}

pub(super) async fn put_mode(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<PolicyChange>, Refusal> {
    let key = ObjectKey::new(namespace, name);
    set_mode(&api, LocalKey::Policy(key.clone()), &body).await?;
    changed(&api, &key, ChangeKind::Replaced).await
}

/// Gives a local policy the mode that a body says.
pub(super) async fn set_mode(api: &Api, key: LocalKey, body: &[u8]) -> Result<(), Refusal> {
    let NewPolicyMode { mode } = serde_json::from_slice(body).map_err(|error| {
        Refusal::malformed(format!(
            "read mode of {key}: {error}; send {{\"mode\": \"enforce\"}} or \"audit\""
        ))
    })?;
    let mode = match mode {
        api::PolicyMode::Enforce => PolicyMode::Enforce,
        api::PolicyMode::Audit => PolicyMode::Audit,
    };
    let (local, of) = (api.local.clone(), key.clone());
    match run(move || local.set_mode(&of, mode)).await? {
        Was::Present => Ok(()),
        Was::Absent => Err(Refusal::not_found(format!(
            "set mode of {key}: there is no local policy of this name"
        ))),
    }
}

/// The state file is synced to disk: not on a thread that serves others.
pub(super) async fn run(
    change: impl FnOnce() -> Result<Was, LocalError> + Send + 'static,
) -> Result<Was, Refusal> {
    match tokio::task::spawn_blocking(change).await {
        Ok(Ok(was)) => Ok(was),
        Ok(Err(LocalError::Invalid { key, field })) => {
            Err(Refusal::field(format!("read {key}: {field}"), &field))
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
    Ok(Json(PolicyChange {
        name: policy_name(&id),
        change,
        problems: api.shared.snapshot().problems(),
    }))
}
