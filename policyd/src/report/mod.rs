//! Tells operators where they look, on the objects themselves, whether policy is in force: Kubernetes Events on
//! pods, policies and the node.
//!
//! ```text
//!   Shared (view, mode, health) --once a second--> standing --what is news?--> tracker --Notice--> publish
//! ```
//!
//! The writer knows nothing of this: what happened is seen from one look to the next. A slow API server
//! fills a bounded queue and then costs events, which are counted, and nothing else.

mod notice;
mod publish;
mod standing;
mod tracker;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kube::Client;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tokio::sync::mpsc;

use self::publish::Publisher;
use self::tracker::Tracker;
use crate::view::Shared;

pub use notice::{About, Notice, PodRef, Severity};
pub use standing::{PodStanding, Standing, State};
pub use tracker::Settings;

/// How often to look for news.
const LOOK: Duration = Duration::from_secs(1);
/// Events that may wait for the API server.
const QUEUE: usize = 512;

/// What became of events.
#[derive(Debug, Default)]
pub struct Reported {
    /// The API server took them, or had them already from another node.
    pub sent: AtomicU64,
    /// It refused them.
    pub refused: AtomicU64,
    /// There was no room for them while the API server was slow or away.
    pub dropped: AtomicU64,
}

impl Reported {
    /// Writes them for Prometheus.
    pub(crate) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Kubernetes Events, by what became of them";
        let mut family = encoder.encode_descriptor("reports", help, None, MetricType::Counter)?;
        for (result, count) in
            [("sent", &self.sent), ("refused", &self.refused), ("dropped", &self.dropped)]
        {
            let counter = ConstCounter::new(count.load(Ordering::Relaxed));
            counter.encode(family.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }
}

/// Reports of one node.
pub struct Reporter {
    /// What is reported on.
    pub shared: Arc<Shared>,
    /// Where to.
    pub client: Client,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

impl Reporter {
    /// Never ends.
    pub async fn run(self) {
        let Self { shared, client } = self;
        let (queue, waiting) = mpsc::channel(QUEUE);
        let publisher = Publisher::new(client, shared.node.clone(), shared.reports.clone());
        tokio::join!(publisher.run(waiting), look(&shared, queue));
    }
}

async fn look(shared: &Shared, queue: mpsc::Sender<Notice>) {
    let mut tracker = Tracker::new(Settings::default());
    let mut clock = tokio::time::interval(LOOK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        for notice in tracker.news(Instant::now(), Standing::of(shared)) {
            if queue.try_send(notice).is_err() {
                shared.reports.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
