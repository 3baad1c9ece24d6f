//! Gates that somebody removed, replaced or overtook.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use podgate_bpf::Gate;
use podgate_bpf::handshake::EndpointRef;

use super::Reconciler;

/// How long a gate must have been broken before it is attached again: the plugin registers before it attaches, and
/// removes programs before it unregisters.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn watch(reconciler: &Reconciler) {
    loop {
        let broken = check(reconciler, registered(reconciler)).await;
        if !broken.is_empty() {
            tokio::time::sleep(PATIENCE).await;
            let now = registered(reconciler);
            // only those that are still the same endpoint
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
    let view = reconciler.shared.view();
    view.endpoints.values().map(|e| (e.registration.ifindex, e.registration.owner)).collect()
}

/// Those whose gate is not what it should be, and why.
async fn check(
    reconciler: &Reconciler,
    endpoints: BTreeMap<u32, u32>,
) -> BTreeMap<u32, (u32, String)> {
    let check = move |gate: Arc<Gate>| {
        let fault = |(ifindex, owner)| {
            let error = gate.verify(ifindex).err()?;
            Some((ifindex, (owner, error.to_string())))
        };
        endpoints.into_iter().filter_map(fault).collect()
    };
    let gate = reconciler.shared.gate.clone();
    tokio::task::spawn_blocking(move || check(gate)).await.unwrap_or_default()
}

async fn attach(reconciler: &Reconciler, endpoint: EndpointRef, reason: &str) {
    let EndpointRef { ifindex, owner } = endpoint;
    let name = reconciler.shared.view().name_of(ifindex);
    let (gate, mode) = (reconciler.shared.gate.clone(), reconciler.attach);
    // What the writer published last may be late. A gate where nobody is registered would let nothing pass.
    let attach = move || match gate.maps.registration(ifindex)? {
        Some(found) if found.owner == owner => gate.attach(ifindex, mode).map(Some),
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
