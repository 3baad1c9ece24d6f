//! How many objects the cluster has of kinds that are not enforced.
//!
//! Asked for now and then, not watched: nothing follows from them but a warning. Most clusters do not have these kinds,
//! and then it costs one request that is answered with 404.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResourceList};
use kube::{Client, Error};
use podgate_bpf::error::chain;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use super::Sink;
use crate::sources::Update;
use crate::sources::unenforced::{GROUP, Unenforced, UnenforcedKind};

/// How often to ask; spread over the nodes.
const EVERY: Duration = Duration::from_secs(120);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);

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

/// Never ends. Tells when a number changes.
pub async fn follow(client: Client, sink: Sink) {
    let mut told = Unenforced::new();
    let mut failed = None;
    loop {
        match count(&client, &told).await {
            Ok(counts) => {
                failed = None;
                if counts != told {
                    told.clone_from(&counts);
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
        sleep(EVERY.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// Of a kind that may not be listed, or whose list fails, what was known before.
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
            // gone meanwhile
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

/// The kinds that the server has, each with the first `group/version` that serves it.
async fn served(client: &Client) -> Result<BTreeMap<UnenforcedKind, String>, Error> {
    let mut served = BTreeMap::new();
    let Some(group) = get::<APIGroup>(client, &format!("/apis/{GROUP}")).await? else {
        return Ok(served);
    };
    for version in group.versions {
        let path = format!("/apis/{}", version.group_version);
        let Some(list) = get::<APIResourceList>(client, &path).await? else { continue };
        for resource in list.resources {
            let kind = UnenforcedKind::ALL.iter().find(|kind| kind.plural() == resource.name);
            if let Some(kind) = kind {
                served.entry(*kind).or_insert_with(|| version.group_version.clone());
            }
        }
    }
    Ok(served)
}

/// What is there, or nothing.
async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<Option<T>, Error> {
    let request = http::Request::get(path).body(Vec::new());
    let request = request.map_err(|error| Error::Service(error.into()))?;
    match timeout(ANSWER, client.request::<T>(request)).await {
        Ok(Ok(found)) => Ok(Some(found)),
        Ok(Err(Error::Api(status))) if status.code == 404 => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::Service(format!("nothing heard for {} s", ANSWER.as_secs()).into())),
    }
}
