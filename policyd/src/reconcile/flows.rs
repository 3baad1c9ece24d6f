//! Repairs the flow tables: entries of pods that are gone, and wrong counts.

use std::time::Duration;

use super::Reconciler;

/// Interval of the repair. It is not urgent, and reading a full table takes some hundredths of a second.
const REPAIR_INTERVAL: Duration = Duration::from_secs(60);

pub(super) async fn watch(reconciler: &Reconciler) {
    loop {
        let datapath = reconciler.shared.datapath.clone();
        let repaired = tokio::task::spawn_blocking(move || datapath.maps.repair_flow_table()).await;
        match repaired {
            Ok(Ok(repaired)) => tracing::debug!(?repaired, "repaired the flow tables"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot repair the flow tables"),
            Err(error) => tracing::error!(%error, "cannot repair the flow tables"),
        }
        tokio::time::sleep(REPAIR_INTERVAL).await;
    }
}
