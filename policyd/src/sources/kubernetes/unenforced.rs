//! How many objects the cluster has of kinds that are not enforced.
//!
//! Polled, not watched: they only cause a warning. Most clusters do not have these kinds; then a poll is one request
//! that is answered with 404.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResourceList};
use kube::{Client, Error};
use podgate_bpf::error::chain;
use podgate_manifests::unenforced::{GROUP, Unenforced, UnenforcedKind};
use podgate_policy::object::Kind;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use super::Sink;
use crate::sources::Update;

/// How often to ask; spread over the nodes.
const POLL_INTERVAL: Duration = Duration::from_secs(120);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A list of which only the number matters.
#[derive(Deserialize)]
struct Listed {
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    /// Absent from the last page.
    remaining_item_count: Option<usize>,
}

/// Runs for ever. Reports when a number changes.
pub async fn follow(client: Client, sink: Sink) {
    let mut reported = Unenforced::new();
    let mut failed = None;
    loop {
        match count(&client, &reported).await {
            Ok(counts) => {
                failed = None;
                if counts != reported {
                    reported.clone_from(&counts);
                    sink(Update::Unenforced(counts));
                }
            }
            Err(error) => {
                let error = chain(&error);
                if failed.as_ref() != Some(&error) {
                    tracing::warn!(
                        error,
                        "cannot ask whether there are policies of kinds that are not enforced, trying again"
                    );
                }
                failed = Some(error);
            }
        }
        sleep(POLL_INTERVAL.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// Counts each kind. One that may not be listed, or whose list fails, keeps its count from `before`.
async fn count(client: &Client, before: &Unenforced) -> Result<Unenforced, Error> {
    let mut counts = Unenforced::new();
    for (kind, version) in served(client).await? {
        let path = format!("/apis/{version}/{}?limit=1", kind.plural());
        match get::<Listed>(client, &path).await {
            Ok(Some(list)) => {
                counts.insert(
                    kind,
                    list.items.len() + list.metadata.remaining_item_count.unwrap_or_default(),
                );
            }
            // removed in the meantime
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(
                    kind = kind.name(),
                    error = chain(&error),
                    "cannot list policies of a kind that is not enforced"
                );
                counts.extend(before.get(&kind).map(|count| (kind, *count)));
            }
        }
    }
    counts.retain(|_, count| *count > 0);
    Ok(counts)
}

/// The kinds that the server has, each with the first `group/version` that serves it. A kind that is served in the version
/// that is enforced is none of them: the server converts its objects to that.
async fn served(client: &Client) -> Result<BTreeMap<UnenforcedKind, String>, Error> {
    let mut served = BTreeMap::new();
    let mut enforced = None;
    let Some(group) = get::<APIGroup>(client, &format!("/apis/{GROUP}")).await? else {
        return Ok(served);
    };
    for version in group.versions {
        let path = format!("/apis/{}", version.group_version);
        let Some(list) = get::<APIResourceList>(client, &path).await? else { continue };
        for resource in list.resources {
            let kind = UnenforcedKind::ALL.iter().find(|kind| kind.plural() == resource.name);
            if let Some(kind) = kind {
                if Kind::of_type(&version.group_version, kind.name()).is_some() {
                    enforced = Some(*kind);
                }
                served.entry(*kind).or_insert_with(|| version.group_version.clone());
            }
        }
    }
    served.retain(|kind, _| Some(*kind) != enforced);
    Ok(served)
}

/// The answer; `None` for 404.
async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<Option<T>, Error> {
    let request = http::Request::get(path).body(Vec::new());
    let request = request.map_err(|error| Error::Service(error.into()))?;
    match timeout(ANSWER_TIMEOUT, client.request::<T>(request)).await {
        Ok(Ok(found)) => Ok(Some(found)),
        Ok(Err(Error::Api(status))) if status.code == 404 => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            Err(Error::Service(format!("nothing heard for {} s", ANSWER_TIMEOUT.as_secs()).into()))
        }
    }
}
