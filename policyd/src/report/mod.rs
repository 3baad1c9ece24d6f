//! Reports whether policy is in force on the objects themselves: Kubernetes Events on pods, policies and the node, and the
//! `Accepted` condition of ClusterNetworkPolicies.
//!
//! ```text
//!   NodeState (snapshot, mode, health) --once a second--> node_status --changes--> tracker --Notice--> publish
//! ```
//!
//! The writer is not involved: changes are found by comparing the status each second. If the API server is slow, a bounded
//! queue fills and further Events are dropped and counted.

mod accepted;
mod counts;
mod kernel;
mod node_status;
mod notice;
mod outage;
mod publish;
mod tracker;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::mpsc;

use self::accepted::Accepting;
use self::publish::Publisher;
use self::tracker::Tracker;
use crate::snapshot::NodeState;

pub use counts::ReportCounts;
pub use node_status::{NodeStatus, PodStatus, State};
pub use notice::{About, Dedupe, Notice, PodRef, Severity};
pub(crate) use outage::cannot_enforce;
pub use tracker::Settings;

/// How often the status is compared with what was reported.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Events that may wait for the API server.
const QUEUE_SIZE: usize = 512;

/// The task that reports on this node.
pub struct Reporter {
    /// The node's state.
    pub shared: Arc<NodeState>,
    /// The API server's client.
    pub client: Client,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

impl Reporter {
    /// Runs until the task is dropped.
    pub async fn run(self) {
        let Self { shared, client } = self;
        let (queue, waiting) = mpsc::channel(QUEUE_SIZE);
        let publisher = Publisher::new(client.clone(), shared.node.clone(), shared.reports.clone());
        if let Some(notice) = kernel::lacks(&shared.kernel) {
            // cannot fail: the queue is empty
            let _ = queue.try_send(notice);
        }
        let accepting = Accepting::new(client);
        tokio::join!(publisher.run(waiting), track(&shared, queue), accept(&shared, accepting));
    }
}

async fn track(shared: &NodeState, queue: mpsc::Sender<Notice>) {
    let mut tracker = Tracker::new(Settings::default());
    let mut clock = tokio::time::interval(CHECK_INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        for notice in tracker.update(Instant::now(), NodeStatus::of(shared)) {
            if queue.try_send(notice).is_err() {
                shared.reports.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn accept(shared: &NodeState, mut accepting: Accepting) {
    let mut clock = tokio::time::interval(CHECK_INTERVAL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        accepting.look(shared).await;
    }
}
