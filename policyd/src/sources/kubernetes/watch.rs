//! One kind of object, listed and watched for as long as policyd runs.
//!
//! `kube::runtime::watcher` does the same for a controller. It is not used here because of what a node agent meets on a
//! large cluster: it restarts a list of 200 pages when one page fails, reconnects without a pause when a proxy ends each
//! watch as it begins, keeps asking for a version that the server answers with a plain 410, waits without a timeout for
//! the answer to a list, and swallows the bookmarks that tell a quiet server from a dead connection.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use kube::{Client, Error};
use podgate_bpf::error::chain;
use podgate_policy::object::{Content, Kind, Resource, Served};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::Sink;
use super::backoff::WatchBackoff;
use super::feed::Feed;
use super::health::{Connection, Health};
use super::metadata;
use super::projection::Projected;
use crate::sources::Update;

/// How long a page, or the beginning of a watch, may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a watch may be silent: the server sends a bookmark about every minute.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(150);
/// How long the server is asked to keep a watch open, in seconds; random, so that the nodes do not all reconnect at once.
const WATCH_SECONDS: std::ops::Range<u32> = 200..290;
/// After so many failures in a row, without an event, a watch gives up its version and lists again, and a list gives up
/// its continue token and starts over.
const MAX_FAILURES: u32 = 8;
/// The shortest pause between two requests, even after [`Health::wake`]. A watch that lived longer was a good one.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// How many answers in a row it takes for a kind to be missing or forbidden.
const PATIENCE: u32 = 3;

/// Watches one kind.
pub(super) struct Watcher {
    pub(super) client: Client,
    pub(super) kind: Kind,
    pub(super) page_size: u32,
    pub(super) feed: Feed,
    pub(super) sink: Sink,
    pub(super) health: Arc<Health>,
    pub(super) backoff: WatchBackoff,
    pub(super) access: Access,
    /// The version that it is asked for in.
    pub(super) version: &'static str,
}

/// What the last complete answer to a list said of the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// There was none yet.
    Unknown,
    /// The server has it.
    Listed,
    /// The server does not have it.
    Absent,
    /// The server does not permit it.
    Forbidden,
}

impl Access {
    /// What an error says of a kind that a server may do without. `None`: nothing.
    fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Api(status) if status.code == 404 => Some(Self::Absent),
            Error::Api(status) if status.code == 403 => Some(Self::Forbidden),
            _ => None,
        }
    }

    /// How many times in a row the server has to say so. One that starts up may deny for a moment what it permits, and what is
    /// in force must not be lost by that; nothing is lost where nothing was known to be there.
    fn patience(self, after: Self) -> u32 {
        match (self, after) {
            (Self::Absent, Self::Unknown | Self::Absent) => 1,
            _ => PATIENCE,
        }
    }
}

/// A page of a list.
#[derive(Deserialize)]
#[serde(bound(deserialize = "R: Resource"))]
struct Page<R> {
    metadata: PageMeta,
    #[serde(default = "Option::default")]
    items: Option<Vec<Projected<R>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

/// Why a watch ended.
enum WatchEnd {
    /// The server closed it: resume at the last version.
    Closed,
    /// The server no longer has the version, or the kind: a new list is needed.
    Expired,
}

impl Watcher {
    /// Never ends.
    pub(super) async fn run<R: Resource>(mut self) {
        loop {
            let version = self.list::<R>().await;
            self.watch::<R>(version).await;
            // all nodes may need a new list at the same time
            self.pause().await;
        }
    }

    /// Lists until a list is complete, and returns its version.
    async fn list<R: Resource>(&mut self) -> String {
        let kind = self.kind;
        self.health.listing(kind);
        self.feed.begin();
        let mut token = None;
        let mut failures = 0;
        let mut unavailable = 0;
        loop {
            match self.page::<R>(token.as_deref()).await {
                Ok(page) => {
                    failures = 0;
                    self.responded();
                    let items = page.items.iter().flatten().map(|object| &object.value);
                    let update = self.feed.page(items);
                    (self.sink)(update);
                    unavailable = 0;
                    if page.metadata.r#continue.is_empty() {
                        self.access = Access::Listed;
                        self.health.served(kind, self.version);
                        let update = self.feed.complete();
                        (self.sink)(update);
                        self.publish_rejected();
                        return page.metadata.resource_version;
                    }
                    token = Some(page.metadata.r#continue);
                }
                Err(error) => {
                    let access = Access::of(&error).filter(|_| R::SERVED == Served::Optional);
                    if access == Some(Access::Absent) && self.next_version() {
                        token = None;
                        self.feed.begin();
                        continue;
                    }
                    match access {
                        Some(access) => {
                            unavailable += 1;
                            if unavailable >= access.patience(self.access) {
                                token = None;
                                self.unavailable(access, &error);
                                self.pause_unwoken().await;
                                continue;
                            }
                        }
                        None => unavailable = 0,
                    }
                    failures += 1;
                    let is_lost =
                        is_expired(&error) || is_rejected(&error) || failures >= MAX_FAILURES;
                    if is_lost && token.take().is_some() {
                        // The continue token is not valid any more. Not every server answers 410: one whose etcd was
                        // restored from an older snapshot answers the token with 400, 500 or 504 for ever.
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

    async fn page<R: Resource>(&self, token: Option<&str>) -> Result<Page<R>, Error> {
        let mut params = ListParams::default().limit(self.page_size);
        params.continue_token = token.map(str::to_owned);
        params.label_selector = R::LABEL_SELECTOR.map(str::to_owned);
        let request = Request::new(R::API.in_version(self.version).path());
        let request = match R::CONTENT {
            Content::Metadata => request.list_metadata(&params),
            Content::Whole => request.list(&params),
        };
        let request = request.map_err(Error::BuildRequest)?;
        let text = answered(self.client.request_text(request)).await?;
        serde_json::from_str(&text).map_err(Error::SerdeError)
    }

    /// Watches until a new list is needed.
    async fn watch<R: Resource>(&mut self, mut version: String) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let before = version.clone();
            let result = self.events::<R>(&mut version).await;
            self.backoff.watched(began.elapsed());
            failures = if version == before { failures + 1 } else { 0 };
            match result {
                Ok(WatchEnd::Closed) if began.elapsed() >= MIN_INTERVAL => {
                    failures = 0;
                    continue;
                }
                Ok(WatchEnd::Closed) => {}
                Ok(WatchEnd::Expired) => {
                    tracing::debug!(
                        "the version of the watch of {} has expired",
                        self.kind.names().plural
                    );
                    return;
                }
                Err(error) => self.failed("watch", &error),
            }
            if failures >= MAX_FAILURES {
                return;
            }
            self.pause().await;
        }
    }

    /// One watch, from `version` on, which is advanced with each event.
    async fn events<R: Resource>(&mut self, version: &mut String) -> Result<WatchEnd, Error> {
        let mut params = WatchParams::default().timeout(fastrand::u32(WATCH_SECONDS));
        params.label_selector = R::LABEL_SELECTOR.map(str::to_owned);
        let request = Request::new(R::API.in_version(self.version).path());
        let request = match R::CONTENT {
            Content::Metadata => request.watch_metadata(&params, version),
            Content::Whole => request.watch(&params, version),
        };
        let request = request.map_err(Error::BuildRequest)?;
        let events = match answered(self.client.request_events::<Projected<R>>(request)).await {
            Err(error) if is_expired(&error) || is_gone::<R>(&error) => {
                return Ok(WatchEnd::Expired);
            }
            events => events?,
        };
        let mut events = std::pin::pin!(events);
        self.responded();
        loop {
            let event = match timeout(SILENCE_TIMEOUT, events.try_next()).await {
                Ok(event) => event?,
                Err(_) => return Err(silent(SILENCE_TIMEOUT)),
            };
            let Some(event) = event else { return Ok(WatchEnd::Closed) };
            let update = match event {
                WatchEvent::Error(status) => {
                    let error = Error::Api(status.boxed());
                    return if is_expired(&error) { Ok(WatchEnd::Expired) } else { Err(error) };
                }
                WatchEvent::Bookmark(bookmark) => {
                    version.clone_from(&bookmark.metadata.resource_version);
                    None
                }
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    advance(version, &object.value);
                    self.feed.applied(&object.value)
                }
                WatchEvent::Deleted(object) => {
                    advance(version, &object.value);
                    self.feed.deleted(&object.value)
                }
            };
            self.responded();
            update.map(&*self.sink);
            self.publish_rejected();
        }
    }

    /// Waits before the next request: as long as the backoff says, or until [`Health::wake`].
    async fn pause(&mut self) {
        let wait = self.backoff.wait();
        let wake = self.health.woken();
        let woken = async {
            sleep(MIN_INTERVAL).await;
            wake.await;
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = woken => {}
        }
    }

    /// Goes on to the next version of the kind. False if that was the last: the first is the next then.
    fn next_version(&mut self) -> bool {
        let mut later = self.kind.versions().skip_while(|version| *version != self.version).skip(1);
        let next = later.next();
        self.version = next.unwrap_or(self.kind.api().version);
        next.is_some()
    }

    /// The server says that it does not have the kind, or does not permit it.
    fn unavailable(&mut self, access: Access, error: &Error) {
        self.feed.begin();
        let connection = match access {
            Access::Absent => {
                if self.access != Access::Absent {
                    let update = self.feed.complete();
                    (self.sink)(update);
                }
                Connection::Absent
            }
            _ => {
                if self.access != Access::Forbidden {
                    (self.sink)(Update::Unlistable(self.kind));
                }
                Connection::Forbidden { error: explain(error) }
            }
        };
        self.access = access;
        let rejected = self.health.set_rejected(self.kind, self.feed.rejected());
        if self.health.unavailable(self.kind, connection) || rejected {
            self.publish_problems();
        }
    }

    /// Waits before a kind is asked for that the server does not have: as long as the backoff says, whatever pods come.
    async fn pause_unwoken(&mut self) {
        sleep(self.backoff.wait()).await;
    }

    fn responded(&self) {
        if self.health.responded(self.kind) {
            self.publish_problems();
        }
    }

    fn failed(&self, verb: &str, error: &Error) {
        if self.health.failed(self.kind, format!("{verb}: {}", explain(error))) {
            self.publish_problems();
        }
    }

    fn publish_rejected(&self) {
        if self.health.set_rejected(self.kind, self.feed.rejected()) {
            self.publish_problems();
        }
    }

    fn publish_problems(&self) {
        self.health.publish_problems(|problems| (self.sink)(Update::Problems(problems)));
    }
}

fn advance(version: &mut String, object: &serde_json::Value) {
    let new = metadata::version(object);
    if !new.is_empty() {
        new.clone_into(version);
    }
}

async fn answered<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| Err(silent(ANSWER_TIMEOUT)))
}

fn silent(waited: Duration) -> Error {
    let message = format!("nothing heard for {} s", waited.as_secs());
    Error::Service(message.into())
}

/// 410: the version, or the rest of the list, is too old for the server.
fn is_expired(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 410 || status.reason == "Expired")
}

/// 404 for a kind that the server may do without: it had the kind when it was listed.
fn is_gone<R: Resource>(error: &Error) -> bool {
    R::SERVED == Served::Optional && Access::of(error) == Some(Access::Absent)
}

/// 4xx: the same request gets the same answer, except after 429, too many requests.
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
