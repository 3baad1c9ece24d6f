//! The start of what enforces: programs and maps, the lock of their pins, and the writer over them. Tried until it succeeds,
//! since a repaired node must not need a restart of policyd by hand.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::Flock;
use podgate_bpf::loader::Sizes;
use podgate_bpf::{Datapath, PinRoot};
use prometheus_client::metrics::histogram::Histogram;

use crate::cannot_enforce::{NodeSide, Outage};
use crate::lock;
use crate::run_error::RunError;
use crate::snapshot::NodeState;
use crate::sync::services::ServiceMode;
use crate::writer::Writer;

const HOLDER: &str = "another policyd is still running";

/// What each try needs.
pub(crate) struct Start {
    pub(crate) root: PinRoot,
    pub(crate) sizes: Sizes,
    pub(crate) node: String,
    pub(crate) services: ServiceMode,
    pub(crate) install_state: PathBuf,
    /// Their names, by rank.
    pub(crate) sources: Vec<String>,
    /// How long commits take.
    pub(crate) commits: Histogram,
}

/// What has been started.
pub(crate) struct Started {
    /// Held as long as policyd runs.
    pub(crate) only: Vec<Flock<File>>,
    pub(crate) shared: Arc<NodeState>,
    pub(crate) writer: Writer,
}

impl Start {
    /// Tries until policyd can enforce on this node, which is served and reported meanwhile as one where it cannot.
    pub(crate) async fn until_it_can(&self, node_side: NodeSide) -> Result<Started, RunError> {
        let mut outage = Outage::new(node_side);
        loop {
            let error = match self.once().await {
                Ok(started) => {
                    outage.end().await;
                    return Ok(started);
                }
                Err(error) => error,
            };
            match error.cannot_enforce() {
                Some(failure) => outage.wait(failure).await?,
                None => return Err(error),
            }
        }
    }

    async fn once(&self) -> Result<Started, RunError> {
        let (root, sizes) = (self.root.clone(), self.sizes.clone());
        // loading takes seconds on a slow machine, and sockets may be served already
        let opened = tokio::task::spawn_blocking(move || {
            let datapath = Datapath::open_current(&root, &sizes)?;
            Ok::<_, podgate_bpf::Error>((datapath, root.layouts()?))
        });
        let (datapath, layouts) =
            opened.await.map_err(|error| RunError::Ended(error.to_string()))??;
        // in the order of their numbers, so that two that wait for each other cannot be
        let mut only = Vec::new();
        for layout in layouts {
            let dir = layout.dir();
            // without a time-out: a killed policyd may take a while to end, and a restart of this one would not help
            let lock = tokio::task::spawn_blocking(move || lock::acquire(&dir, None, HOLDER)).await;
            only.push(lock.map_err(|error| RunError::Ended(error.to_string()))??);
        }
        let shared = Arc::new(NodeState::new(
            Arc::new(datapath),
            self.node.clone(),
            self.services,
            self.install_state.clone(),
        ));
        let commits = self.commits.clone();
        let observe = move |took: Duration| commits.observe(took.as_secs_f64());
        let writer = Writer::start(shared.clone(), self.sources.iter().cloned(), observe)?;
        Ok(Started { only, shared, writer })
    }
}
