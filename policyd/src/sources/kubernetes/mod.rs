//! The objects of a cluster, from its API server.
//!
//! ```text
//!   one task per kind: list, then watch -> projection (strip) -> feed (convert, track) -> Update
//!                                   \-> health: connected? since when? what cannot be read?
//! ```
//!
//! While the server is away nothing changes: what was read stays in force. Once it is back, a watch resumes at its last
//! version; if the server no longer has that, a new list shows what is gone.
//!
//! Kinds that a server may not have or not permit ([`podgate_policy::object::Served`]) are asked for again, for as long as
//! that is so.

mod backoff;
mod connect;
mod feed;
mod health;
mod metadata;
pub mod metrics;
mod observed;
mod policy_uids;
mod projection;
mod unenforced;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use podgate_policy::object::{Kind, KindVisitor, Resource};
use tokio::task::JoinSet;

use self::backoff::WatchBackoff;
use self::feed::Feed;
use self::watch::{Access, Watcher};
use super::Update;

pub use connect::ConnectError;
pub use feed::{Fallback, Rejected};
pub use health::{Connection, Health, Watch};
pub use observed::{ACCEPTED, Condition, Observed, ObservedMap};
pub use podgate_policy::object::KUBERNETES_SOURCE;
pub use policy_uids::UidMap;
pub use unenforced::follow as follow_unenforced;

/// Where updates go.
pub type Sink = Arc<dyn Fn(Update) + Send + Sync>;

/// How the API server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pacing {
    /// Objects per page of a list.
    pub page_size: u32,
    /// The first list begins after a random part of this, so that a thousand nodes do not list at once.
    pub jitter: Duration,
}

/// A client of the API server of this kubeconfig; without one, of the cluster that this pod runs in, else of
/// the user's kubeconfig. Does not ask the server anything yet.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    connect::connect(kubeconfig).await
}

/// A watched cluster. Dropping it ends the watches.
#[derive(Debug)]
pub struct KubernetesSource {
    tasks: JoinSet<()>,
}

impl KubernetesSource {
    /// Starts to list and watch every kind that is read from API servers. Must be called inside a tokio runtime.
    pub fn start(client: Client, pacing: Pacing, health: Arc<Health>, sink: Sink) -> Self {
        let mut tasks = JoinSet::new();
        let delay = pacing.jitter.mul_f64(fastrand::f64());
        for kind in Kind::ALL.iter().copied() {
            let watcher = Watcher {
                client: client.clone(),
                kind,
                page_size: pacing.page_size,
                feed: Feed::new(kind, health.uids(), health.observed_policies()),
                sink: sink.clone(),
                health: health.clone(),
                backoff: WatchBackoff::default(),
                access: Access::Unknown,
                version: kind.api().version,
            };
            kind.visit(Spawn { watcher, delay, tasks: &mut tasks });
        }
        Self { tasks }
    }

    /// Resolves when a watch has ended, which by itself it does only by a panic, and says why. From then on the
    /// source is no longer followed whole.
    pub async fn ended(mut self) -> String {
        match self.tasks.join_next().await {
            Some(Err(error)) => error.to_string(),
            Some(Ok(())) | None => "it has nothing to do any more".to_owned(),
        }
    }
}

/// Starts a watcher as the task of its kind.
struct Spawn<'a> {
    watcher: Watcher,
    delay: Duration,
    tasks: &'a mut JoinSet<()>,
}

impl KindVisitor for Spawn<'_> {
    type Output = ();

    fn visit<R: Resource>(self) {
        let Self { watcher, delay, tasks } = self;
        tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            watcher.run::<R>().await;
        });
    }
}
