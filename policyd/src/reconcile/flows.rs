//! The flow tables: what pods that are gone have left, and what others no longer need.

use std::time::Duration;

use super::Reconciler;

/// How often: what is found is of no hurry, and reading a full table takes some hundredths of a second.
const EVERY: Duration = Duration::from_secs(60);

pub(super) async fn watch(reconciler: &Reconciler) {
    loop {
        let gate = reconciler.shared.gate.clone();
        let mended = tokio::task::spawn_blocking(move || gate.maps.mend_flow_table()).await;
        match mended {
            Ok(Ok(mended)) => tracing::debug!(?mended, "looked over the flow tables"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot look over the flow tables"),
            Err(error) => tracing::error!(%error, "cannot look over the flow tables"),
        }
        tokio::time::sleep(EVERY).await;
    }
}
