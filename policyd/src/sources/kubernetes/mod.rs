//! The objects of a cluster, from its API server.
//!
//! ```text
//!   one task per kind: list, then watch -> keep (strip) -> read (model) -> feed -> Update
//!                                   \-> health: connected? since when? what cannot be read?
//! ```
//!
//! With the server away nothing changes: what was read stays in force. When it is back, a watch goes on
//! where it was; where it cannot, a new list tells what is gone.

mod backoff;
mod connect;
mod feed;
mod health;
mod keep;
pub mod metrics;
mod read;
mod unenforced;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::task::JoinSet;

use self::backoff::Backoff;
use self::feed::Feed;
use self::keep::{NamespaceShape, PodShape, PolicyShape, ServiceShape, SliceShape};
use self::watch::{Resource, Watcher};
use super::{Kind, Update};

pub use connect::ConnectError;
pub use feed::{Instead, Refused};
pub use health::{Health, Link, UidMap, Watch};
pub use unenforced::follow as follow_unenforced;

/// The name of the cluster as a source, in [`podgate_policy::model::PolicyId`] and on the command line.
pub const KUBERNETES_SOURCE: &str = "kubernetes";

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
    /// Starts to list and watch every kind. Must be called inside a tokio runtime.
    pub fn start(client: Client, pacing: Pacing, health: Arc<Health>, sink: Sink) -> Self {
        let mut tasks = JoinSet::new();
        let delay = pacing.jitter.mul_f64(fastrand::f64());
        for kind in Kind::ALL.iter().copied() {
            let watcher = Watcher {
                client: client.clone(),
                resource: resource(kind),
                page_size: pacing.page_size,
                feed: Feed::new(kind, health.uids()),
                sink: sink.clone(),
                health: health.clone(),
                backoff: Backoff::default(),
            };
            tasks.spawn(async move {
                tokio::time::sleep(delay).await;
                match kind {
                    Kind::Pod => watcher.run::<PodShape>().await,
                    Kind::Namespace => watcher.run::<NamespaceShape>().await,
                    Kind::Policy => watcher.run::<PolicyShape>().await,
                    Kind::Service => watcher.run::<ServiceShape>().await,
                    Kind::EndpointSlice => watcher.run::<SliceShape>().await,
                }
            });
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

/// The slices that kube-proxy reads. Services are read all: those that it leaves to another proxy
/// (`service.kubernetes.io/service-proxy-name`) must not be taken for plain addresses.
const SLICES: &str = "!service.kubernetes.io/headless";

fn resource(kind: Kind) -> Resource {
    let (path, labels) = match kind {
        Kind::Pod => ("/api/v1/pods", None),
        Kind::Namespace => ("/api/v1/namespaces", None),
        Kind::Policy => ("/apis/networking.k8s.io/v1/networkpolicies", None),
        Kind::Service => ("/api/v1/services", None),
        Kind::EndpointSlice => ("/apis/discovery.k8s.io/v1/endpointslices", Some(SLICES)),
    };
    Resource { kind, path, labels, metadata_only: kind == Kind::Namespace }
}
