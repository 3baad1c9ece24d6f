//! `GET /v1/usage`.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use podgate_contract::api::{Usage, UsageQuery};

use super::{Api, Refusal};
use crate::usage;

pub(super) async fn get(
    State(api): State<Api>,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<Json<Usage>, Refusal> {
    let Query(UsageQuery { pod: wanted, top }) =
        query.map_err(|error| Refusal::malformed(format!("read query: {}", error.body_text())))?;
    let read = tokio::task::spawn_blocking(move || usage::read(&api.shared)).await;
    let read = read.map_err(|error| Refusal::internal(format!("read the accounts: {error}")))?;
    let mut pods = read.map_err(|error| Refusal::internal(error.to_string()))?;
    if let Some(wanted) = wanted {
        pods.retain(|pod| pod.pod == wanted);
    }
    Ok(Json(usage::top(pods, top.unwrap_or(usize::MAX))))
}
