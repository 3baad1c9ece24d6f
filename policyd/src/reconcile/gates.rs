//! Attaches gates again that were removed, replaced or are no longer first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use podgate_bpf::Datapath;
use podgate_contract::handshake::EndpointRef;

use super::Reconciler;

/// How long a gate must have been broken before it is attached again: the plugin registers before it attaches, and
/// removes programs before it unregisters.
const GRACE_PERIOD: Duration = Duration::from_secs(3);

pub(super) async fn watch(reconciler: &Reconciler) {
    loop {
        let broken = check(reconciler, registered(reconciler)).await;
        if !broken.is_empty() {
            tokio::time::sleep(GRACE_PERIOD).await;
            let now = registered(reconciler);
            // only those whose owner number is still the same
            let again: BTreeMap<u32, u32> = broken
                .into_iter()
                .filter(|(ifindex, (owner, _))| now.get(ifindex) == Some(owner))
                .map(|(ifindex, (owner, _))| (ifindex, owner))
                .collect();
            for (ifindex, (owner, reason)) in check(reconciler, again).await {
                attach(reconciler, EndpointRef { ifindex, owner }, &reason).await;
            }
        }
        tokio::time::sleep(reconciler.every).await;
    }
}

/// Every endpoint's interface and owner.
fn registered(reconciler: &Reconciler) -> BTreeMap<u32, u32> {
    let snapshot = reconciler.shared.snapshot();
    snapshot.endpoints.values().map(|e| (e.registration.ifindex, e.registration.owner)).collect()
}

/// The endpoints whose gate is broken, with owner number and reason.
async fn check(
    reconciler: &Reconciler,
    endpoints: BTreeMap<u32, u32>,
) -> BTreeMap<u32, (u32, String)> {
    let check = move |datapath: Arc<Datapath>| {
        let fault = |(ifindex, owner)| {
            let error = datapath.verify(ifindex).err()?;
            Some((ifindex, (owner, error.to_string())))
        };
        endpoints.into_iter().filter_map(fault).collect()
    };
    let datapath = reconciler.shared.datapath.clone();
    tokio::task::spawn_blocking(move || check(datapath)).await.unwrap_or_default()
}

async fn attach(reconciler: &Reconciler, endpoint: EndpointRef, reason: &str) {
    let EndpointRef { ifindex, owner } = endpoint;
    let name = reconciler.shared.snapshot().name_of(ifindex);
    let (datapath, mode) = (reconciler.shared.datapath.clone(), reconciler.attach);
    // The snapshot may be out of date, and a gate without a registration would drop everything.
    let attach = move || match datapath.maps.registration(ifindex)? {
        Some(found) if found.owner == owner => datapath.attach(ifindex, mode).map(Some),
        _ => Ok(None),
    };
    match tokio::task::spawn_blocking(attach).await {
        Ok(Ok(Some(_))) => {
            reconciler.reattached.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                ifindex,
                endpoint = name,
                reason,
                "a gate was broken, attached it again"
            );
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => {
            tracing::error!(ifindex, endpoint = name, reason, %error, "cannot attach a broken gate again");
        }
        Err(error) => tracing::error!(ifindex, %error, "cannot attach a broken gate again"),
    }
}
