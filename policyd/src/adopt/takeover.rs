//! Pods whose gate is another layout's: an upgrade that changed the maps, or the way back from one. The policies that
//! they had stay in force until this layout's are, and their connections come along. The order stands at
//! [`podgate_bpf::handover`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use podgate_bpf::abi::Startup;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::gating::draw_owner;
use podgate_bpf::handover::{OtherLayout, Owners};
use podgate_bpf::maps::Registration;
use podgate_bpf::netns::Route;
use podgate_bpf::{Gate, PinRoot};
use podgate_policy::model::ObjectKey;
use tokio::time::Instant;

use super::gate::{ask, in_force, reference};
use super::key_of;
use crate::view::Shared;
use crate::writer::Handle;

/// How often other layouts are looked for: an earlier plugin may still be called.
const TICK: Duration = Duration::from_secs(2);
/// How often until the first commit, which all waits for.
const SOON: Duration = Duration::from_millis(50);
/// How long the writer may take. A pod that no source knows is tried again, and does not hold up others.
const COMMIT: Duration = Duration::from_secs(3);
/// Longer than a packet is on its way through the programs.
const IN_FLIGHT: Duration = Duration::from_millis(20);

/// The task that takes pods over.
#[derive(Clone, Debug)]
pub struct Takeover {
    /// What is registered.
    pub shared: Arc<Shared>,
    /// Who puts policy in force.
    pub writer: Handle,
    /// How gates are attached.
    pub attach: AttachMode,
    /// Where the layouts are.
    pub root: PinRoot,
}

/// Interfaces whose gate is another layout's, with their pods as far as they are known.
pub(super) fn behind(root: &PinRoot) -> podgate_bpf::Result<BTreeMap<u32, Option<ObjectKey>>> {
    let mut behind = BTreeMap::new();
    for layout in OtherLayout::all(root)? {
        match layout.interfaces() {
            Ok(interfaces) => behind.extend(interfaces.into_iter().map(|ifindex| {
                let registration = layout.registration(ifindex).ok().flatten();
                (ifindex, registration.as_ref().and_then(key_of))
            })),
            // its maps cannot be read: where its programs are can be
            Err(_) => {
                let links = Route::here().and_then(|route| route.links()).unwrap_or_default();
                for link in links {
                    if layout.stands_at(link.index)? {
                        behind.insert(link.index, None);
                    }
                }
            }
        }
    }
    Ok(behind)
}

/// Pods of one round, and the layouts that are there.
#[derive(Debug, Default)]
struct Batch {
    layouts: Vec<OtherLayout>,
    pods: Vec<Registration>,
}

impl Takeover {
    /// Runs until the task is dropped. Pods that it has begun with are taken up by the next policyd.
    pub async fn run(self) {
        let mut reported = BTreeMap::new();
        loop {
            let view = self.shared.view();
            // without the node's own addresses its probes would be denied
            if view.ready && !view.node_addresses.is_empty() {
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
                tokio::time::sleep(TICK).await;
            } else {
                tokio::time::sleep(SOON).await;
            }
        }
    }

    /// Takes over what can be; returns who waits, and why.
    async fn round(&self) -> BTreeMap<String, String> {
        let mut waits = BTreeMap::new();
        let (gate, root) = (self.shared.gate.clone(), self.root.clone());
        let attach = self.attach;
        let begun = blocking(move || begin(&gate, &root, attach)).await;
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
        let deadline = Instant::now() + COMMIT;
        let asked: Vec<_> = batch.pods.iter().map(|pod| ask(&self.writer, pod)).collect();
        let mut in_time = Vec::new();
        for (pod, answer) in std::mem::take(&mut batch.pods).into_iter().zip(asked) {
            match in_force(answer, deadline).await {
                Ok(()) => in_time.push(pod),
                Err(reason) => drop(waits.insert(name_of(&pod), reason)),
            }
        }
        batch.pods = in_time;
        let gate = self.shared.gate.clone();
        let pods = batch.pods.clone();
        let done = blocking(move || finish(&gate, &batch)).await;
        match done {
            Ok(flows) if !pods.is_empty() => {
                tracing::info!(pods = pods.len(), flows, "took pods over from another layout");
            }
            Ok(_) => {}
            Err(reason) => waits.extend(pods.iter().map(|pod| (name_of(pod), reason.clone()))),
        }
        // the writer publishes the registrations as they are now
        let deadline = Instant::now() + COMMIT;
        for answer in pods.iter().map(|pod| ask(&self.writer, pod)) {
            let _ = in_force(answer, deadline).await;
        }
        self.clear().await;
        waits
    }

    async fn clear(&self) {
        let (gate, root) = (self.shared.gate.clone(), self.root.clone());
        if let Err(reason) = blocking(move || clear(&gate, &root)).await {
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
    match key_of(registration) {
        Some(pod) => pod.to_string(),
        None => registration.host_interface.clone(),
    }
}

/// Steps 1 to 3: for the pods that an earlier policyd has begun with, else for those of one other layout.
fn begin(gate: &Gate, root: &PinRoot, attach: AttachMode) -> podgate_bpf::Result<Batch> {
    let layouts = OtherLayout::all(root)?;
    let mut pods: Vec<Registration> = gate.maps.registrations()?;
    pods.retain(|pod| pod.startup.is_handover());
    if layouts.is_empty() && pods.is_empty() {
        return Ok(Batch::default());
    }
    // where several have pods, the newest layout's first: its programs are those in front
    for layout in layouts.iter().rev() {
        let found = candidates(gate, layout, attach);
        if !pods.is_empty() || found.is_empty() {
            continue;
        }
        gate.prepare_handover(layout)?;
        for registration in found {
            let owner = draw_owner();
            let here = Registration { owner, startup: Startup::Previous, ..registration };
            if gate.maps.register_new(&here)? {
                pods.push(here);
            }
        }
    }
    pods.retain(|pod| {
        let replaced = replace(gate, &layouts, pod, attach);
        if let Err(error) = &replaced {
            tracing::warn!(pod = name_of(pod), %error, "cannot put this layout's programs in place");
        }
        replaced.is_ok()
    });
    Ok(Batch { layouts, pods })
}

fn replace(
    gate: &Gate,
    layouts: &[OtherLayout],
    pod: &Registration,
    attach: AttachMode,
) -> podgate_bpf::Result<()> {
    for layout in layouts {
        gate.replace_gate(layout, pod.ifindex, attach)?;
    }
    gate.verify(pod.ifindex).or_else(|_| gate.attach(pod.ifindex, attach)).map(drop)
}

/// Those of a layout that are not registered here. What is left there of others is removed.
fn candidates(gate: &Gate, layout: &OtherLayout, attach: AttachMode) -> Vec<Registration> {
    let interfaces = match layout.interfaces() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "cannot take pods over");
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for ifindex in interfaces {
        match candidate(gate, layout, ifindex, attach) {
            Ok(registration) => found.extend(registration),
            Err(error) => tracing::warn!(ifindex, %error, "cannot take a pod over"),
        }
    }
    found
}

fn candidate(
    gate: &Gate,
    layout: &OtherLayout,
    ifindex: u32,
    attach: AttachMode,
) -> podgate_bpf::Result<Option<Registration>> {
    let Some(there) = layout.registration(ifindex)? else { return Ok(None) };
    let is_gone = if_nametoindex(there.host_interface.as_str()) != Ok(ifindex);
    match gate.maps.registration(ifindex)? {
        _ if is_gone => {}
        Some(here) if here.startup.is_handover() => return Ok(None),
        // registered by this version's plugin, or taken over by a policyd that could not finish
        Some(_) => drop(gate.attach(ifindex, attach)?),
        // its adoption had just begun there, so it is open: it is adopted here
        None if there.startup == Startup::Watch => {}
        None => return Ok(Some(there)),
    }
    layout.take_away(reference(&there))?;
    Ok(None)
}

/// Steps 5 to 9, for all at the same pace.
fn finish(gate: &Gate, batch: &Batch) -> podgate_bpf::Result<usize> {
    if batch.pods.is_empty() {
        return Ok(0);
    }
    set_startup(gate, batch, |_| Startup::Opening)?;
    let mut flows = copy(gate, batch)?;
    set_startup(gate, batch, |_| Startup::Remainder)?;
    flows += copy(gate, batch)?;
    let ends_as: BTreeMap<u32, Startup> =
        batch.pods.iter().map(|pod| (pod.ifindex, last_startup(batch, pod.ifindex))).collect();
    set_startup(gate, batch, |pod| ends_as.get(&pod.ifindex).copied().unwrap_or(Startup::Hold))?;
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

/// What the plugin gave the pod, which one that is without a policy again would fall back to.
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
    gate: &Gate,
    batch: &Batch,
    startup: impl Fn(&Registration) -> Startup,
) -> podgate_bpf::Result<()> {
    for pod in &batch.pods {
        // one that went away meanwhile has no registration to change
        gate.maps.set_startup(reference(pod), startup(pod))?;
    }
    // a packet that has met the state before is through
    thread::sleep(IN_FLIGHT);
    Ok(())
}

fn copy(gate: &Gate, batch: &Batch) -> podgate_bpf::Result<usize> {
    let mut flows = 0;
    for layout in &batch.layouts {
        let mut owners = Owners::new();
        for pod in &batch.pods {
            if let Some(there) = layout.registration(pod.ifindex)? {
                owners.insert(pod.ifindex, (there.owner, pod.owner));
            }
        }
        flows += gate.copy_flows(layout, &owners)?;
    }
    Ok(flows)
}

/// Removes the pins of layouts that no pod is left in.
fn clear(gate: &Gate, root: &PinRoot) -> podgate_bpf::Result<()> {
    if gate.maps.registrations()?.iter().any(|each| each.startup.is_handover()) {
        return Ok(());
    }
    gate.end_handover()?;
    for layout in OtherLayout::all(root)? {
        if layout.interfaces().is_ok_and(|left| left.is_empty()) {
            layout.remove()?;
            tracing::info!(layout = %layout.pins().dir().display(), "removed the pins of another layout");
        }
    }
    Ok(())
}
