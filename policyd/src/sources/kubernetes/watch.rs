//! One kind of object, listed and watched for as long as policyd runs.
//!
//! `kube::runtime::watcher` does the same for a controller. It is not used here for what a node's enforcer
//! meets on a large cluster: it begins a list of 200 pages anew when one page is refused, asks again at
//! once for ever when a proxy ends each watch as it begins, keeps asking for a version that the server
//! answers with a plain 410, waits without end for an answer to a list, and swallows the bookmarks by which
//! one can tell a quiet server from a dead connection.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use kube::{Client, Error};
use podgate_bpf::error::chain;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::Sink;
use super::backoff::Backoff;
use super::feed::Feed;
use super::health::Health;
use super::keep::{Kept, Shape};
use super::read;
use crate::sources::{Kind, Update};

/// How long a page, or the beginning of a watch, may take.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a watch may be silent: the server sends a bookmark about every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// How long the server is asked to keep a watch open, in seconds; spread, so that the nodes do not all come again at once.
const OPEN: std::ops::Range<u32> = 200..290;
/// A version at which so many watches failed one after the other, without an event, is given up; so is the
/// rest of a list that was asked for so often in vain.
const FAILURES: u32 = 8;
/// How soon somebody who hurries can make the server be asked again.
const HURRY: Duration = Duration::from_secs(1);

/// How a kind is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// Its collection, of all namespaces.
    pub(super) path: &'static str,
    /// Those whose labels match this.
    pub(super) labels: Option<&'static str>,
    /// Only `metadata`.
    pub(super) metadata_only: bool,
}

/// Watches one kind.
pub(super) struct Watcher {
    pub(super) client: Client,
    pub(super) resource: Resource,
    pub(super) page_size: u32,
    pub(super) feed: Feed,
    pub(super) sink: Sink,
    pub(super) health: Arc<Health>,
    pub(super) backoff: Backoff,
}

/// Some objects of a list.
#[derive(Deserialize)]
#[serde(bound(deserialize = "S: Shape"))]
struct Page<S> {
    metadata: PageMeta,
    #[serde(default = "Option::default")]
    items: Option<Vec<Kept<S>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

/// How a watch ended.
enum End {
    /// As it should, or for want of the server: go on where it was.
    Resume,
    /// The server does not know any more what has changed since.
    Expired,
}

impl Watcher {
    /// Never ends.
    pub(super) async fn run<S: Shape>(mut self) {
        loop {
            let version = self.list::<S>().await;
            self.watch::<S>(version).await;
            // all nodes may have lost their place at once
            self.pause().await;
        }
    }

    /// Lists until a list is whole; its version.
    async fn list<S: Shape>(&mut self) -> String {
        let kind = self.resource.kind;
        self.health.listing(kind);
        self.feed.begin();
        let mut token = None;
        let mut failures = 0;
        loop {
            match self.page::<S>(token.as_deref()).await {
                Ok(page) => {
                    failures = 0;
                    self.heard();
                    let items = page.items.iter().flatten().map(|kept| &kept.value);
                    let update = self.feed.page(items);
                    (self.sink)(update);
                    if page.metadata.r#continue.is_empty() {
                        let update = self.feed.whole();
                        (self.sink)(update);
                        self.tell_refused();
                        return page.metadata.resource_version;
                    }
                    token = Some(page.metadata.r#continue);
                }
                Err(error) => {
                    failures += 1;
                    let lost = is_expired(&error) || is_rejected(&error) || failures >= FAILURES;
                    if lost && token.take().is_some() {
                        // The rest of this list cannot be had any more. Not every server says so with 410: one whose
                        // etcd came back from an older snapshot answers the token with 400, 500 or 504 for ever.
                        failures = 0;
                        self.health.listing(kind);
                        self.feed.begin();
                    }
                    self.failed("list", &error);
                    self.pause().await;
                }
            }
        }
    }

    async fn page<S: Shape>(&self, token: Option<&str>) -> Result<Page<S>, Error> {
        let mut params = ListParams::default().limit(self.page_size);
        params.continue_token = token.map(str::to_owned);
        params.label_selector = self.resource.labels.map(str::to_owned);
        let request = Request::new(self.resource.path);
        let request = match self.resource.metadata_only {
            true => request.list_metadata(&params),
            false => request.list(&params),
        };
        let request = request.map_err(Error::BuildRequest)?;
        let text = answered(self.client.request_text(request)).await?;
        serde_json::from_str(&text).map_err(Error::SerdeError)
    }

    /// Watches until a list is needed.
    async fn watch<S: Shape>(&mut self, mut version: String) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let before = version.clone();
            let result = self.events::<S>(&mut version).await;
            self.backoff.watched(began.elapsed());
            failures = if version == before { failures + 1 } else { 0 };
            match result {
                Ok(End::Resume) if began.elapsed() >= HURRY => {
                    failures = 0;
                    continue;
                }
                Ok(End::Resume) => {}
                Ok(End::Expired) => {
                    tracing::debug!(
                        "the place in the watch of {} is lost",
                        self.resource.kind.plural()
                    );
                    return;
                }
                Err(error) => self.failed("watch", &error),
            }
            if failures >= FAILURES {
                return;
            }
            self.pause().await;
        }
    }

    /// One watch, from `version` on, which follows.
    async fn events<S: Shape>(&mut self, version: &mut String) -> Result<End, Error> {
        let mut params = WatchParams::default().timeout(fastrand::u32(OPEN));
        params.label_selector = self.resource.labels.map(str::to_owned);
        let request = Request::new(self.resource.path);
        let request = match self.resource.metadata_only {
            true => request.watch_metadata(&params, version),
            false => request.watch(&params, version),
        };
        let request = request.map_err(Error::BuildRequest)?;
        let events = match answered(self.client.request_events::<Kept<S>>(request)).await {
            Err(error) if is_expired(&error) => return Ok(End::Expired),
            events => events?,
        };
        let mut events = std::pin::pin!(events);
        self.heard();
        loop {
            let event = match timeout(SILENCE, events.try_next()).await {
                Ok(event) => event?,
                Err(_) => return Err(silent(SILENCE)),
            };
            let Some(event) = event else { return Ok(End::Resume) };
            let update = match event {
                WatchEvent::Error(status) => {
                    let error = Error::Api(status.boxed());
                    return if is_expired(&error) { Ok(End::Expired) } else { Err(error) };
                }
                WatchEvent::Bookmark(bookmark) => {
                    version.clone_from(&bookmark.metadata.resource_version);
                    None
                }
                WatchEvent::Added(kept) | WatchEvent::Modified(kept) => {
                    advance(version, &kept.value);
                    self.feed.applied(&kept.value)
                }
                WatchEvent::Deleted(kept) => {
                    advance(version, &kept.value);
                    self.feed.deleted(&kept.value)
                }
            };
            self.heard();
            update.map(&*self.sink);
            self.tell_refused();
        }
    }

    /// Waits before the server is asked again, or until somebody is in a hurry.
    async fn pause(&mut self) {
        let wait = self.backoff.wait();
        let somebody = self.health.hurried();
        let hurried = async {
            sleep(HURRY).await;
            somebody.await;
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = hurried => {}
        }
    }

    fn heard(&self) {
        if self.health.heard(self.resource.kind) {
            self.tell_problems();
        }
    }

    fn failed(&self, verb: &str, error: &Error) {
        if self.health.failed(self.resource.kind, format!("{verb}: {}", explain(error))) {
            self.tell_problems();
        }
    }

    fn tell_refused(&self) {
        if self.health.refuse(self.resource.kind, self.feed.refused()) {
            self.tell_problems();
        }
    }

    fn tell_problems(&self) {
        self.health.tell_problems(|problems| (self.sink)(Update::Problems(problems)));
    }
}

fn advance(version: &mut String, object: &serde_json::Value) {
    let new = read::version(object);
    if !new.is_empty() {
        new.clone_into(version);
    }
}

async fn answered<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(ANSWER, answer).await.unwrap_or_else(|_| Err(silent(ANSWER)))
}

fn silent(waited: Duration) -> Error {
    let message = format!("nothing heard for {} s", waited.as_secs());
    Error::Service(message.into())
}

/// 410: the version, or the rest of the list, is too old for the server.
fn is_expired(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 410 || status.reason == "Expired")
}

/// 4xx: asked the same again, the server answers the same, unless it only has too much to do.
fn is_rejected(error: &Error) -> bool {
    matches!(error, Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

/// For people: the chain of causes, each once.
fn explain(error: &Error) -> String {
    match error {
        Error::Api(status) if !status.message.is_empty() => {
            format!("the API server says {} {}: {}", status.code, status.reason, status.message)
        }
        Error::Api(status) => format!("the API server says {} {}", status.code, status.reason),
        error => chain(error),
    }
}
