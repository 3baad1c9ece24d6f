//! Takes over pods whose gate uses another map layout: after an upgrade that changed the layout, or a rollback. Their
//! earlier policies stay in force until this layout's are, and their flows are copied. [`podgate_bpf::handover`] has the
//! order of the steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use podgate_bpf::abi::Startup;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::endpoint::draw_owner;
use podgate_bpf::handover::{OtherLayout, Owners};
use podgate_bpf::maps::Registration;
use podgate_bpf::{Datapath, PinRoot};
use podgate_link::netns::Route;
use podgate_policy::model::ObjectKey;
use tokio::time::Instant;

use super::gate::{in_force, reference, request_commit};
use crate::pod_key::registered_pod;
use crate::snapshot::NodeState;
use crate::writer::Handle;

/// How often other layouts are looked for: a plugin of another version may still be called.
const SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// How often it is checked whether the first commit is done.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the writer may take. A pod that no source knows is tried again and does not hold up others.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than the programs take for a packet.
const PACKET_DRAIN_TIME: Duration = Duration::from_millis(20);

/// The task that takes pods over.
#[derive(Clone, Debug)]
pub struct Takeover {
    /// Which endpoints are registered.
    pub shared: Arc<NodeState>,
    /// The writer, which puts policy in force.
    pub writer: Handle,
    /// How gates are attached.
    pub attach: AttachMode,
    /// The directory of all layouts' pins.
    pub root: PinRoot,
}

/// Interfaces whose gate is another layout's, with their pods as far as they are known.
pub(super) fn in_other_layouts(
    root: &PinRoot,
) -> podgate_bpf::Result<BTreeMap<u32, Option<ObjectKey>>> {
    let mut found = BTreeMap::new();
    for layout in OtherLayout::all(root)? {
        match layout.interfaces() {
            Ok(interfaces) => found.extend(interfaces.into_iter().map(|ifindex| {
                let registration = layout.registration(ifindex).ok().flatten();
                (ifindex, registration.as_ref().and_then(registered_pod))
            })),
            // its maps cannot be read, but the interfaces of its programs can be listed
            Err(_) => {
                let links = Route::here().and_then(|route| route.links()).unwrap_or_default();
                for link in links {
                    if layout.is_attached(link.index)? {
                        found.insert(link.index, None);
                    }
                }
            }
        }
    }
    Ok(found)
}

/// The pods of one round and all other layouts.
#[derive(Debug, Default)]
struct Batch {
    layouts: Vec<OtherLayout>,
    pods: Vec<Registration>,
}

impl Takeover {
    /// Runs until the task is dropped. The next policyd continues with pods that are not finished.
    pub async fn run(self) {
        let mut reported = BTreeMap::new();
        loop {
            let snapshot = self.shared.snapshot();
            // before the node's own addresses are known its probes would be denied
            if snapshot.ready && !snapshot.node_addresses.is_empty() {
                let waits = self.round().await;
                for (pod, reason) in &waits {
                    if reported.get(pod) != Some(reason) {
                        tracing::warn!(
                            pod,
                            reason,
                            "cannot take a pod over from another layout yet, its earlier policy stays in force"
                        );
                    }
                }
                reported = waits;
                tokio::time::sleep(SCAN_INTERVAL).await;
            } else {
                tokio::time::sleep(READY_POLL_INTERVAL).await;
            }
        }
    }

    /// Takes over all pods that it can; returns those that have to wait, each with the reason.
    async fn round(&self) -> BTreeMap<String, String> {
        let mut waits = BTreeMap::new();
        let (datapath, root) = (self.shared.datapath.clone(), self.root.clone());
        let attach = self.attach;
        let begun = blocking(move || begin(&datapath, &root, attach)).await;
        let mut batch = match begun {
            Ok(batch) => batch,
            Err(reason) => return BTreeMap::from([("all".to_owned(), reason)]),
        };
        if batch.pods.is_empty() {
            if !batch.layouts.is_empty() {
                self.clear().await;
            }
            return waits;
        }
        let deadline = Instant::now() + COMMIT_TIMEOUT;
        let pending: Vec<_> =
            batch.pods.iter().map(|pod| request_commit(&self.writer, pod)).collect();
        let mut in_time = Vec::new();
        for (pod, answer) in std::mem::take(&mut batch.pods).into_iter().zip(pending) {
            match in_force(answer, deadline).await {
                Ok(()) => in_time.push(pod),
                Err(reason) => drop(waits.insert(name_of(&pod), reason)),
            }
        }
        batch.pods = in_time;
        let datapath = self.shared.datapath.clone();
        let pods = batch.pods.clone();
        let done = blocking(move || finish(&datapath, &batch)).await;
        match done {
            Ok(flows) if !pods.is_empty() => {
                tracing::info!(pods = pods.len(), flows, "took pods over from another layout");
            }
            Ok(_) => {}
            Err(reason) => waits.extend(pods.iter().map(|pod| (name_of(pod), reason.clone()))),
        }
        // the writer publishes the changed registrations
        let deadline = Instant::now() + COMMIT_TIMEOUT;
        for answer in pods.iter().map(|pod| request_commit(&self.writer, pod)) {
            let _ = in_force(answer, deadline).await;
        }
        self.clear().await;
        waits
    }

    async fn clear(&self) {
        let (datapath, root) = (self.shared.datapath.clone(), self.root.clone());
        if let Err(reason) = blocking(move || clear(&datapath, &root)).await {
            tracing::warn!(reason, "cannot remove another layout's pins, trying again");
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> podgate_bpf::Result<T> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn name_of(registration: &Registration) -> String {
    match registered_pod(registration) {
        Some(pod) => pod.to_string(),
        None => registration.host_interface.clone(),
    }
}

/// Steps 1 to 3: for the pods that an earlier policyd has not finished, else for those of one other layout.
fn begin(datapath: &Datapath, root: &PinRoot, attach: AttachMode) -> podgate_bpf::Result<Batch> {
    let layouts = OtherLayout::all(root)?;
    let mut pods: Vec<Registration> = datapath.maps.registrations()?;
    pods.retain(|pod| pod.startup.is_handover());
    if layouts.is_empty() && pods.is_empty() {
        return Ok(Batch::default());
    }
    // of several layouts with pods the newest first: its programs run first
    for layout in layouts.iter().rev() {
        let found = candidates(datapath, layout, attach);
        if !pods.is_empty() || found.is_empty() {
            continue;
        }
        datapath.prepare_handover(layout)?;
        for registration in found {
            let owner = draw_owner();
            let here = Registration { owner, startup: Startup::Previous, ..registration };
            if datapath.maps.register_new(&here)? {
                pods.push(here);
            }
        }
    }
    pods.retain(|pod| {
        let replaced = replace(datapath, &layouts, pod, attach);
        if let Err(error) = &replaced {
            tracing::warn!(pod = name_of(pod), %error, "cannot put this layout's programs in place");
        }
        replaced.is_ok()
    });
    Ok(Batch { layouts, pods })
}

fn replace(
    datapath: &Datapath,
    layouts: &[OtherLayout],
    pod: &Registration,
    attach: AttachMode,
) -> podgate_bpf::Result<()> {
    for layout in layouts {
        datapath.replace_gate(layout, pod.ifindex, attach)?;
    }
    datapath.verify(pod.ifindex).or_else(|_| datapath.attach(pod.ifindex, attach)).map(drop)
}

/// A layout's pods that are not registered in this one. Registrations there that no longer apply are removed.
fn candidates(datapath: &Datapath, layout: &OtherLayout, attach: AttachMode) -> Vec<Registration> {
    let interfaces = match layout.interfaces() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "cannot take pods over");
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for ifindex in interfaces {
        match candidate(datapath, layout, ifindex, attach) {
            Ok(registration) => found.extend(registration),
            Err(error) => tracing::warn!(ifindex, %error, "cannot take a pod over"),
        }
    }
    found
}

fn candidate(
    datapath: &Datapath,
    layout: &OtherLayout,
    ifindex: u32,
    attach: AttachMode,
) -> podgate_bpf::Result<Option<Registration>> {
    let Some(there) = layout.registration(ifindex)? else { return Ok(None) };
    let is_gone = if_nametoindex(there.host_interface.as_str()) != Ok(ifindex);
    match datapath.maps.registration(ifindex)? {
        _ if is_gone => {}
        Some(here) if here.startup.is_handover() => return Ok(None),
        // registered by this version's plugin, or taken over by a policyd that could not finish
        Some(_) => drop(datapath.attach(ifindex, attach)?),
        // its adoption has not finished there, so it is still open: it is adopted in this layout
        None if there.startup == Startup::Learn => {}
        None => return Ok(Some(there)),
    }
    layout.remove_endpoint(reference(&there))?;
    Ok(None)
}

/// Steps 5 to 9, each for all pods.
fn finish(datapath: &Datapath, batch: &Batch) -> podgate_bpf::Result<usize> {
    if batch.pods.is_empty() {
        return Ok(0);
    }
    set_startup(datapath, batch, |_| Startup::Opening)?;
    let mut flows = copy(datapath, batch)?;
    set_startup(datapath, batch, |_| Startup::Remainder)?;
    flows += copy(datapath, batch)?;
    let ends_as: BTreeMap<u32, Startup> =
        batch.pods.iter().map(|pod| (pod.ifindex, last_startup(batch, pod.ifindex))).collect();
    set_startup(datapath, batch, |pod| {
        ends_as.get(&pod.ifindex).copied().unwrap_or(Startup::Hold)
    })?;
    for (layout, pod) in both(batch) {
        if layout.registration(pod.ifindex)?.is_some() {
            layout.forget(pod.ifindex)?;
        }
    }
    Ok(flows)
}

fn both(batch: &Batch) -> impl Iterator<Item = (&OtherLayout, &Registration)> {
    batch.layouts.iter().flat_map(|layout| batch.pods.iter().map(move |pod| (layout, pod)))
}

/// The startup state that the plugin gave the pod. It applies again if the pod loses its policy map.
fn last_startup(batch: &Batch, ifindex: u32) -> Startup {
    let is_open = |layout: &OtherLayout| {
        let there = layout.registration(ifindex).ok().flatten();
        there.is_some_and(|there| there.startup == Startup::Open)
    };
    match batch.layouts.iter().any(is_open) {
        true => Startup::Open,
        false => Startup::Hold,
    }
}

fn set_startup(
    datapath: &Datapath,
    batch: &Batch,
    startup: impl Fn(&Registration) -> Startup,
) -> podgate_bpf::Result<()> {
    for pod in &batch.pods {
        // false, and no error, if the pod is gone
        datapath.maps.set_startup(reference(pod), startup(pod))?;
    }
    // wait for packets that were judged by the previous state
    thread::sleep(PACKET_DRAIN_TIME);
    Ok(())
}

fn copy(datapath: &Datapath, batch: &Batch) -> podgate_bpf::Result<usize> {
    let mut flows = 0;
    for layout in &batch.layouts {
        let mut owners = Owners::new();
        for pod in &batch.pods {
            if let Some(there) = layout.registration(pod.ifindex)? {
                owners.insert(pod.ifindex, (there.owner, pod.owner));
            }
        }
        flows += datapath.copy_flows(layout, &owners)?;
    }
    Ok(flows)
}

/// Removes the pins of layouts without pods.
fn clear(datapath: &Datapath, root: &PinRoot) -> podgate_bpf::Result<()> {
    if datapath.maps.registrations()?.iter().any(|each| each.startup.is_handover()) {
        return Ok(());
    }
    datapath.end_handover()?;
    for layout in OtherLayout::all(root)? {
        if layout.interfaces().is_ok_and(|left| left.is_empty()) {
            layout.remove()?;
            tracing::info!(layout = %layout.pins().dir().display(), "removed the pins of another layout");
        }
    }
    Ok(())
}
