//! Counts the open connections of pods with limits again: what is lost in races, and with flows that user space removes.

use std::time::Duration;

use podgate_bpf::open_count::Recount;

use super::Reconciler;

/// Interval of the count. It corrects what two counts in a row find, so a place that was lost is back after twice that.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn watch(reconciler: &Reconciler) {
    let mut recount = Recount::default();
    loop {
        tokio::time::sleep(COUNT_INTERVAL).await;
        if reconciler.shared.snapshot().metered.is_empty() {
            continue;
        }
        let datapath = reconciler.shared.datapath.clone();
        let counted = tokio::task::spawn_blocking(move || {
            let corrected = recount.look(&datapath.maps);
            (recount, corrected)
        });
        recount = match counted.await {
            Ok((recount, Ok(corrected))) => {
                if corrected > 0 {
                    tracing::debug!(corrected, "corrected counts of open connections");
                }
                recount
            }
            Ok((recount, Err(error))) => {
                tracing::warn!(%error, "cannot count open connections");
                recount
            }
            Err(error) => {
                tracing::error!(%error, "cannot count open connections");
                Recount::default()
            }
        };
    }
}
