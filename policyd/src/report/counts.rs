//! Counts the Events that were sent, for metrics.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::DescriptorEncoder;

use crate::metrics::families::REPORTS;

/// Numbers of Events by their outcome, since the start.
#[derive(Debug, Default)]
pub struct ReportCounts {
    /// The API server accepted them, or had the same ones from another node.
    pub sent: AtomicU64,
    /// The API server refused them.
    pub refused: AtomicU64,
    /// The queue was full because the API server was slow or did not answer.
    pub dropped: AtomicU64,
}

impl ReportCounts {
    /// Writes them for Prometheus.
    pub(crate) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counts = [("sent", &self.sent), ("refused", &self.refused), ("dropped", &self.dropped)];
        let counts = counts.map(|(result, count)| (result, count.load(Ordering::Relaxed)));
        REPORTS.counters(encoder, counts)
    }
}
