//! policyd on a node where it cannot enforce: the programs do not load, or their pins cannot be used.
//!
//! ```text
//!   `start` -- fails --> serve what is in `serve`, send an Event on the Node, wait (1 s to 60 s), try again
//!      |
//!      +-- succeeds --> `daemon` goes on as at any start
//! ```
//!
//! Ending instead would leave a crash loop as the only sign, and `policyd install` without an answer. Gates and policies
//! that an earlier policyd left in the kernel stay in force meanwhile.

mod serve;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use podgate_bpf::Obstacle;
use podgate_bpf::error::chain;
use podgate_contract::api::NewPods;

use self::serve::Served;
use crate::args::MetricsAddr;
use crate::backoff::Backoff;
use crate::install::new_pods;
use crate::report::ReportCounts;
use crate::run_error::RunError;

/// Delays after a failure.
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// Where the node's operator and plugin find policyd.
#[derive(Debug)]
pub(crate) struct NodeSide {
    pub(crate) node: String,
    pub(crate) install_state: PathBuf,
    pub(crate) cni_socket: PathBuf,
    pub(crate) api_socket: PathBuf,
    pub(crate) metrics_addr: MetricsAddr,
    /// The API server that Events go to.
    pub(crate) events: Option<EventServer>,
}

/// Where to find an API server.
#[derive(Clone, Debug)]
pub(crate) struct EventServer {
    /// `None`: that of the cluster this pod runs in.
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// What is known while policyd cannot enforce.
#[derive(Debug)]
pub(crate) struct CannotEnforce {
    pub(crate) node: String,
    pub(crate) started: Instant,
    pub(crate) reports: Arc<ReportCounts>,
    install_state: PathBuf,
    failure: ArcSwap<Failure>,
}

/// Why the last try failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) obstacle: Obstacle,
    /// Cause and next step.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(obstacle: Obstacle, error: &dyn std::error::Error) -> Self {
        let text = format!("policyd cannot enforce NetworkPolicy on this node: {}", chain(error));
        Self { obstacle, text }
    }
}

impl CannotEnforce {
    pub(crate) fn failure(&self) -> Arc<Failure> {
        self.failure.load_full()
    }

    /// What becomes of new pods, as `policyd install` says.
    pub(crate) fn new_pods(&self) -> NewPods {
        new_pods(&self.install_state)
    }
}

/// The failed tries in a row, and what is served between them.
#[derive(Debug)]
pub(crate) struct Outage {
    node_side: NodeSide,
    state: Option<Arc<CannotEnforce>>,
    served: Option<Served>,
    backoff: Backoff,
}

impl Outage {
    /// None yet.
    pub(crate) fn new(node_side: NodeSide) -> Self {
        Self { node_side, state: None, served: None, backoff: RETRY_BACKOFF }
    }

    /// Serves and reports the failure until it is time for the next try.
    pub(crate) async fn wait(&mut self, failure: Failure) -> Result<(), RunError> {
        let state = self.note(failure);
        if self.served.is_none() {
            self.served = Served::start(&self.node_side, &state).await?;
        }
        tokio::time::sleep(self.backoff.next_delay()).await;
        Ok(())
    }

    /// A try has succeeded. Returns when the sockets and the metrics' port are free again.
    pub(crate) async fn end(self) {
        if let Some(served) = self.served {
            served.stop().await;
        }
        if self.state.is_some() {
            tracing::info!("policyd can enforce on this node now");
        }
    }

    /// Each cause is logged once.
    fn note(&mut self, failure: Failure) -> Arc<CannotEnforce> {
        let NodeSide { node, install_state, .. } = &self.node_side;
        let reason = failure.obstacle.name();
        if let Some(state) = &self.state {
            if *state.failure() == failure {
                tracing::debug!("{}; trying again", failure.text);
            } else {
                tracing::error!(reason, "{}; trying again", failure.text);
                state.failure.store(Arc::new(failure));
            }
            return state.clone();
        }
        tracing::error!(reason, "{}; trying again", failure.text);
        let state = Arc::new(CannotEnforce {
            node: node.clone(),
            started: Instant::now(),
            reports: Arc::default(),
            install_state: install_state.clone(),
            failure: ArcSwap::from_pointee(failure),
        });
        self.state = Some(state.clone());
        state
    }
}
