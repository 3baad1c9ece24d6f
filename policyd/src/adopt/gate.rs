//! Gating pods that run. The order, and what a packet meets if policyd dies after each step:
//!
//! 1. Register in the startup state "learn". No program is attached: packets pass unseen, as before.
//! 2. Attach. Everything passes and every flow gets an entry; those that begin from now on with the right direction.
//! 3. Have the writer put the policy map in force. The programs do not look it up while the endpoint is learning.
//! 4. Learn for a moment, so that replies to what was sent before step 2 still arrive.
//! 5. Seed the flows that were open before, from conntrack and the pod's sockets. Correct the direction of those whose
//!    first packet seen by the programs was a reply.
//! 6. End learning, which bumps the epoch. From its next packet on each flow is judged, by its true direction.
//! 7. Seed once more: flows that began between the reading of 5 and 6, with their translation by kube-proxy.
//!
//! Until step 6 the pod is open as it was, even if policyd dies; after it, policy is enforced and all its flows are known.
//! A policyd that finds a learning endpoint continues with step 2. A step that fails is undone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use podgate_bpf::Datapath;
use podgate_bpf::abi::ip_protocol::UDP;
use podgate_bpf::abi::{Addr, FlowState, Startup};
use podgate_bpf::attach::AttachMode;
use podgate_bpf::maps::Registration;
use podgate_bpf::seeding::{Seed, Seeded};
use podgate_contract::handshake::{EndpointRef, Response};
use tokio::sync::oneshot;

use super::seeds::{SeedTarget, SeedTargets};
use super::sockets::Connected;
use super::{Adopter, conntrack, discover};
use crate::writer::{Handle, Message};

/// How long the writer may take. It commits all of a batch at once.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a pod's endpoint learns flows before its policy is enforced.
const LEARN_TIME: Duration = Duration::from_secs(1);

/// How many flows were seeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flows {
    /// Without an entry so far.
    pub(super) new: usize,
    /// With an entry of the wrong direction, made for a reply.
    pub(super) corrected: usize,
}

/// Each registration with the flows that were seeded, or why it is not adopted.
type Results = Vec<(Registration, Result<Flows, String>)>;

impl Adopter {
    /// Gates all of them step by step together, so that the slow parts (grace periods, the commit, reading conntrack) are
    /// paid once.
    pub(super) async fn gate_all(&self, batch: Vec<Registration>) -> Results {
        if batch.is_empty() {
            return Vec::new();
        }
        let mode = self.attach;
        let mut results = self
            .each(batch, move |datapath, registration| {
                attach_endpoint(datapath, registration, mode)
            })
            .await;
        self.commit(&mut results).await;
        if results.iter().any(|(_, result)| result.is_ok()) {
            tokio::time::sleep(LEARN_TIME).await;
        }
        let (attached, mut failed): (Vec<_>, Vec<_>) =
            results.into_iter().partition(|(_, result)| result.is_ok());
        let attached = attached.into_iter().map(|(registration, _)| registration).collect();
        let datapath = self.shared.datapath.clone();
        let enforced = tokio::task::spawn_blocking(move || enforce(&datapath, attached)).await;
        let mut done = enforced.unwrap_or_else(|error| {
            tracing::error!(%error, "adopting running pods was interrupted, trying again");
            Vec::new()
        });
        done.append(&mut failed);
        self.republish(&done).await;
        done
    }

    async fn each(
        &self,
        batch: Vec<Registration>,
        work: impl Fn(&Datapath, &Registration) -> Result<(), String> + Send + 'static,
    ) -> Results {
        let datapath = self.shared.datapath.clone();
        let worked = tokio::task::spawn_blocking(move || {
            let one = |registration: Registration| {
                let done = work(&datapath, &registration).map(|()| Flows::default());
                undo_failed(&datapath, registration, done)
            };
            batch.into_iter().map(one).collect()
        });
        worked.await.unwrap_or_default()
    }

    /// Waits until the policy maps are in force.
    async fn commit(&self, results: &mut Results) {
        let deadline = tokio::time::Instant::now() + COMMIT_TIMEOUT;
        let mut pending = Vec::new();
        for (at, (registration, result)) in results.iter().enumerate() {
            if result.is_ok() {
                pending.push((at, request_commit(&self.writer, registration)));
            }
        }
        for (at, answer) in pending {
            let Err(reason) = in_force(answer, deadline).await else { continue };
            let (registration, result) = &mut results[at];
            let (datapath, endpoint) = (self.shared.datapath.clone(), reference(registration));
            let _ = tokio::task::spawn_blocking(move || undo(&datapath, endpoint)).await;
            *result = Err(reason);
        }
    }

    /// Has the writer read the registrations again and publish them.
    async fn republish(&self, results: &Results) {
        let pending: Vec<_> =
            results.iter().filter_map(|(each, _)| request_commit(&self.writer, each)).collect();
        let deadline = tokio::time::Instant::now() + COMMIT_TIMEOUT;
        for answer in pending {
            let _ = tokio::time::timeout_at(deadline, answer).await;
        }
    }
}

/// Has the writer read a registration and put its policy in force. `None` if the writer has stopped.
pub(super) fn request_commit(
    writer: &Handle,
    registration: &Registration,
) -> Option<oneshot::Receiver<Response>> {
    let (reply, answer) = oneshot::channel();
    let endpoints = vec![reference(registration)];
    writer.send(Message::Added { endpoints, reply }).ok()?;
    Some(answer)
}

/// Waits until the policy is in force. The error says why it is not.
pub(super) async fn in_force(
    answer: Option<oneshot::Receiver<Response>>,
    deadline: tokio::time::Instant,
) -> Result<(), String> {
    let stopped = || Err("the writer has stopped".to_owned());
    let Some(answer) = answer else { return stopped() };
    match tokio::time::timeout_at(deadline, answer).await {
        Ok(Ok(Response::Ok)) => Ok(()),
        Ok(Ok(Response::Error { message })) => Err(message),
        Ok(Ok(Response::Pending { reason })) => Err(reason),
        Ok(Err(_)) => stopped(),
        Err(_) => Err("its policy was not in force in time".to_owned()),
    }
}

pub(super) fn reference(registration: &Registration) -> EndpointRef {
    EndpointRef { ifindex: registration.ifindex, owner: registration.owner }
}

/// Steps 1 and 2.
fn attach_endpoint(
    datapath: &Datapath,
    registration: &Registration,
    mode: AttachMode,
) -> Result<(), String> {
    let ifindex = registration.ifindex;
    let mine = |found: &Registration| found.owner == registration.owner;
    match datapath.maps.registration(ifindex).map_err(|e| e.to_string())? {
        // registered in an earlier round, or by an earlier policyd
        Some(found) if mine(&found) => {}
        Some(_) => return Err("its plugin has just registered it".to_owned()),
        None if !datapath.maps.register_new(registration).map_err(|e| e.to_string())? => {
            return Err("its plugin has just registered it".to_owned());
        }
        None => {}
    }
    // While a device gets its first clsact qdisc the kernel deactivates it for a moment, and packets sent to it are lost.
    // A new pod has no traffic yet; for this one TCX is tried first, although creating links takes longer.
    let attached = match mode {
        AttachMode::Auto => datapath.attach(ifindex, AttachMode::Tcx).or_else(|error| {
            tracing::debug!(ifindex, %error, "cannot attach a running pod by TCX");
            datapath.attach(ifindex, AttachMode::Auto)
        }),
        mode => datapath.attach(ifindex, mode),
    };
    attached.and_then(|_| datapath.verify(ifindex)).map_err(|e| e.to_string())?;
    Ok(())
}

/// Steps 5 to 7.
fn enforce(datapath: &Datapath, batch: Vec<Registration>) -> Results {
    if batch.is_empty() {
        return Vec::new();
    }
    let seeded = datapath.maps.node_addrs().map_err(|e| e.to_string()).and_then(|node| {
        let targets: Vec<SeedTarget> = batch.iter().map(seed_target).collect();
        let flows = seed(datapath, &targets, &SeedTargets::new(&targets, &node))?;
        Ok((node, targets, flows))
    });
    let (node, targets, flows) = match seeded {
        Ok(seeded) => seeded,
        Err(reason) => {
            let failed = |each| undo_failed(datapath, each, Err(reason.clone()));
            return batch.into_iter().map(failed).collect();
        }
    };
    let end = |registration: Registration| {
        let endpoint = reference(&registration);
        let ended = match datapath.maps.set_startup(endpoint, Startup::Hold) {
            Ok(true) => Ok(flows.get(&endpoint).copied().unwrap_or_default()),
            Ok(false) => Err("it is gone".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        undo_failed(datapath, registration, ended)
    };
    let results = batch.into_iter().map(end).collect();
    if let Err(reason) = seed(datapath, &targets, &SeedTargets::new(&targets, &node)) {
        tracing::warn!(reason, "cannot seed flows once more");
    }
    results
}

/// With the pod's sockets if its namespace can still be entered; otherwise conntrack alone has to do.
fn seed_target(registration: &Registration) -> SeedTarget {
    let sockets = discover::sockets(Path::new(&registration.netns)).unwrap_or_else(|reason| {
        let interface = &registration.host_interface;
        tracing::warn!(interface, reason, "cannot list a running pod's sockets");
        Default::default()
    });
    let addresses = registration.addresses.clone();
    SeedTarget { endpoint: reference(registration), addresses, sockets }
}

/// Interface, pod's side, peer's side and IP protocol of a flow.
type FlowId = (u32, SocketAddr, SocketAddr, u8);

fn flow_id(seed: &Seed) -> FlowId {
    (seed.endpoint.ifindex, seed.pod, seed.peer, seed.protocol)
}

fn seed(
    datapath: &Datapath,
    targets: &[SeedTarget],
    by_address: &SeedTargets<'_>,
) -> Result<BTreeMap<EndpointRef, Flows>, String> {
    let mut seeds: BTreeMap<FlowId, Vec<Seed>> = BTreeMap::new();
    let mut tracked = BTreeSet::new();
    conntrack::each(|entry| {
        for seed in by_address.of_tracked(&entry) {
            tracked.insert(seed.endpoint);
            seeds.entry(flow_id(&seed)).or_default().push(seed);
        }
    })
    .map_err(|e| format!("list tracked connections: {e}"))?;
    for target in targets {
        for socket in &target.sockets.connected {
            let Some(seed) = by_address.of_socket(target, socket) else { continue };
            seeds.entry(flow_id(&seed)).or_insert_with(|| vec![seed]);
        }
    }
    let untracked: Vec<&SeedTarget> =
        targets.iter().filter(|each| !tracked.contains(&each.endpoint)).collect();
    for seed in learned(datapath, &untracked, by_address).map_err(|e| e.to_string())? {
        seeds.entry(flow_id(&seed)).or_insert_with(|| vec![seed]);
    }
    let mut flows: BTreeMap<EndpointRef, Flows> = BTreeMap::new();
    for seed in seeds.values().flatten() {
        let of = flows.entry(seed.endpoint).or_default();
        match datapath.maps.seed(seed).map_err(|e| e.to_string())? {
            Seeded::New => of.new += 1,
            Seeded::Corrected => of.corrected += 1,
            Seeded::Known => {}
        }
    }
    Ok(flows)
}

/// UDP flows that the programs have learned and conntrack does not have. Their ports show which side opened them.
fn learned(
    datapath: &Datapath,
    targets: &[&SeedTarget],
    by_address: &SeedTargets<'_>,
) -> podgate_bpf::Result<Vec<Seed>> {
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let by_index: BTreeMap<u32, &SeedTarget> =
        targets.iter().map(|target| (target.endpoint.ifindex, *target)).collect();
    let read = |ifindex: u32, protocol: u8, local: SocketAddr, remote: SocketAddr, owner: u32| {
        let target = by_index.get(&ifindex)?;
        let ours = protocol == UDP && owner == target.endpoint.owner;
        let state = FlowState::Established;
        ours.then(|| by_address.of_socket(target, &Connected { protocol, local, remote, state }))?
    };
    let port = u16::from_be_bytes;
    let v6 = |addr: Addr| IpAddr::from(addr.bytes);
    let mut found = Vec::new();
    for (key, flow) in datapath.maps.flow_table().flows4()? {
        let pod = SocketAddr::new(key.pod.into(), port(key.pod_port));
        let peer = SocketAddr::new(key.peer.into(), port(key.peer_port));
        found.extend(read(key.ifindex, key.protocol, pod, peer, flow.owner));
    }
    for (key, flow) in datapath.maps.flow_table().flows6()? {
        let pod = SocketAddr::new(v6(key.pod), port(key.pod_port));
        let peer = SocketAddr::new(v6(key.peer), port(key.peer_port));
        found.extend(read(key.ifindex, key.protocol, pod, peer, flow.owner));
    }
    Ok(found)
}

fn undo_failed(
    datapath: &Datapath,
    registration: Registration,
    result: Result<Flows, String>,
) -> (Registration, Result<Flows, String>) {
    if result.is_err() {
        undo(datapath, reference(&registration));
    }
    (registration, result)
}

/// Removes the gate of an endpoint that is still learning. One that is not is enforced already, even if an error was
/// reported for it.
fn undo(datapath: &Datapath, endpoint: EndpointRef) {
    let undone = datapath.maps.registration(endpoint.ifindex).and_then(|found| match found {
        Some(found) if found.owner == endpoint.owner && found.startup == Startup::Learn => {
            datapath.remove_endpoint(endpoint)
        }
        _ => Ok(()),
    });
    if let Err(error) = undone {
        // it is still learning, so the pod is open as before; the next round finds it
        tracing::warn!(ifindex = endpoint.ifindex, %error, "cannot undo the adoption of a pod");
    }
}
