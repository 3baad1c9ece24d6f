//! The local rules and default modes of pods, and the modes of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use podgate_contract::api::{
    ChangeKind, Defaults, NewRule, NodeRules, PodRules, RuleChange, RuleQuery, RulesRemoved,
};
use podgate_policy::convert::FieldError;
use podgate_policy::model::ObjectKey;
use podgate_policy::tables::{RuleId, RuleOrigin};
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{Api, Refusal};
use crate::local_rules::{LocalRuleBook, LocalRulesError, Said};
use crate::pod_key::registered_pod;
use crate::snapshot::{NodeState, Snapshot};
use crate::sources::local::Was;

/// A pod, as the path of a request names it.
type PodPath = Path<(String, String)>;

pub(super) async fn list(State(api): State<Api>) -> Result<Json<NodeRules>, Refusal> {
    let (said, defaults) = (api.local_rules.all(), api.local_rules.node_defaults());
    Ok(Json(NodeRules { pods: described(&api, said).await?, defaults }))
}

pub(super) async fn get(State(api): State<Api>, pod: PodPath) -> Result<Json<PodRules>, Refusal> {
    let said = api.local_rules.of(&key(pod));
    described(&api, vec![said])
        .await?
        .pop()
        .map(Json)
        .ok_or_else(|| Refusal::internal("read rules: none"))
}

pub(super) async fn put(
    State(api): State<Api>,
    pod: PodPath,
    body: Bytes,
) -> Result<(StatusCode, Json<RuleChange>), Refusal> {
    let pod = key(pod);
    let new: NewRule = read(&format!("read rule of {pod}"), &body)?;
    let (rule, was) = change(&api, {
        let pod = pod.clone();
        move |book| book.add(&pod, new, SystemTime::now())
    })
    .await?;
    let (status, change) = match was {
        Was::Absent => (StatusCode::CREATED, ChangeKind::Created),
        Was::Present => (StatusCode::OK, ChangeKind::Replaced),
    };
    api.writer.settled().await?;
    let snapshot = api.shared.snapshot();
    let here = here(&snapshot).contains(&pod);
    Ok((status, Json(RuleChange { change, rule, here, problems: snapshot.problems() })))
}

pub(super) async fn delete(
    State(api): State<Api>,
    pod: PodPath,
    query: Result<Query<RuleQuery>, QueryRejection>,
) -> Result<Json<RulesRemoved>, Refusal> {
    let pod = key(pod);
    let Query(RuleQuery { id }) = query.map_err(|error| {
        Refusal::malformed(format!("delete rules of {pod}: {}", error.body_text()))
    })?;
    let removed = change(&api, {
        let pod = pod.clone();
        move |book| book.remove(&pod, id)
    })
    .await?;
    if let (Some(id), true) = (id, removed.is_empty()) {
        return Err(Refusal::not_found(format!(
            "delete rule {id} of {pod}: there is none of this number"
        )));
    }
    api.writer.settled().await?;
    Ok(Json(RulesRemoved { removed, problems: api.shared.snapshot().problems() }))
}

pub(super) async fn put_defaults(
    State(api): State<Api>,
    pod: PodPath,
    body: Bytes,
) -> Result<Json<Defaults>, Refusal> {
    let pod = key(pod);
    let wanted: Defaults = read(&format!("read defaults of {pod}"), &body)?;
    let defaults = change(&api, move |book| book.set_defaults(&pod, wanted)).await?;
    api.writer.settled().await?;
    Ok(Json(defaults))
}

pub(super) async fn node_defaults(State(api): State<Api>) -> Json<Defaults> {
    Json(api.local_rules.node_defaults())
}

pub(super) async fn put_node_defaults(
    State(api): State<Api>,
    body: Bytes,
) -> Result<Json<Defaults>, Refusal> {
    let wanted: Defaults = read("read the node's defaults", &body)?;
    let defaults = change(&api, move |book| book.set_node_defaults(wanted)).await?;
    api.writer.settled().await?;
    Ok(Json(defaults))
}

fn key(Path((namespace, pod)): PodPath) -> ObjectKey {
    ObjectKey::new(namespace, pod)
}

/// Reads a body. What is no JSON is malformed; what is wrong in it is named by its field.
fn read<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, Refusal> {
    let text = &mut serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(text).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        // serde_json calls some values of a wrong type a wrong syntax
        if serde_json::from_slice::<IgnoredAny>(body).is_err() {
            return Refusal::malformed(format!("{what}: {inner}"));
        }
        let field = FieldError::new(path, inner.to_string());
        Refusal::field(format!("{what}: {field}"), &field)
    })
}

/// The state file is synced to disk: not on a thread that serves others.
async fn change<T: Send + 'static>(
    api: &Api,
    change: impl FnOnce(&LocalRuleBook) -> Result<T, LocalRulesError> + Send + 'static,
) -> Result<T, Refusal> {
    let book = api.local_rules.clone();
    match tokio::task::spawn_blocking(move || change(&book)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(LocalRulesError::Invalid { pod, field })) => {
            Err(Refusal::field(format!("change rules of {pod}: {field}"), &field))
        }
        Ok(Err(error)) => Err(Refusal::internal(error.to_string())),
        Err(error) => Err(Refusal::internal(format!("change rules: {error}"))),
    }
}

/// With what was counted of the rules.
async fn described(api: &Api, said: Vec<Said>) -> Result<Vec<PodRules>, Refusal> {
    let (snapshot, shared) = (api.shared.snapshot(), api.shared.clone());
    let described = move || -> podgate_bpf::Result<Vec<PodRules>> {
        let here = here(&snapshot);
        said.into_iter()
            .map(|Said { pod, mut rules, defaults }| {
                if !rules.is_empty() && here.contains(&pod) {
                    let counted = new_flows(&shared, &snapshot, &pod)?;
                    for rule in &mut rules {
                        rule.new_flows = counted.get(&rule.id).copied().unwrap_or(0);
                    }
                }
                let (namespace, name) = (pod.namespace.to_string(), pod.name.to_string());
                Ok(PodRules { namespace, name, here: here.contains(&pod), rules, defaults })
            })
            .collect()
    };
    match tokio::task::spawn_blocking(described).await {
        Ok(Ok(described)) => Ok(described),
        Ok(Err(error)) => Err(Refusal::internal(error.to_string())),
        Err(error) => Err(Refusal::internal(format!("read rules: {error}"))),
    }
}

/// The pods that have a gated interface.
fn here(snapshot: &Snapshot) -> BTreeSet<ObjectKey> {
    let endpoints = snapshot.endpoints.values();
    endpoints.filter_map(|endpoint| registered_pod(&endpoint.registration)).collect()
}

/// The new flows that each local rule of a pod decided, as far as its tables count them.
fn new_flows(
    shared: &Arc<NodeState>,
    snapshot: &Snapshot,
    pod: &ObjectKey,
) -> podgate_bpf::Result<BTreeMap<u32, u64>> {
    let mut counted = BTreeMap::new();
    for endpoint in snapshot.endpoints.values() {
        if registered_pod(&endpoint.registration).as_ref() != Some(pod) {
            continue;
        }
        let Some(map) = shared.datapath.maps.policy_map(endpoint.registration.ifindex)? else {
            continue;
        };
        for (_, value) in map.entries()? {
            if value.hits > 0
                && let Some(origin) = snapshot.origins.get(RuleId(value.rule))
                && let RuleOrigin::Local { id, .. } = &*origin
            {
                *counted.entry(*id).or_default() += value.hits;
            }
        }
    }
    Ok(counted)
}
