//! Gating pods that run. The order, and what a packet meets if policyd dies after each step:
//!
//! 1. Register, as "watch". No program is attached: packets pass unseen, as before.
//! 2. Attach. Everything passes, and every flow is remembered: from now on each new one with its true direction.
//! 3. Have the writer put the policy map in force. The programs do not ask it while the endpoint is watched.
//! 4. Watch for a moment, so that answers to what was asked before step 2 still come in.
//! 5. Seed the flows that were open before, from the kernel's table and the pod's sockets; turn those round that the
//!    programs took for the answerer's because they met an answer first.
//! 6. End watching, which bumps the epoch. From its next packet on each flow is judged, by its true direction.
//! 7. Seed once more: what began between the reading of 5 and 6, as far as others translate it.
//!
//! Until step 6 the pod is open as it was, whatever happens; after it, it is enforced with all its flows known. A policyd
//! that finds a watched endpoint goes on with step 2. Whatever fails is undone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use podgate_bpf::Gate;
use podgate_bpf::abi::{Addr, FlowState, Startup};
use podgate_bpf::attach::AttachMode;
use podgate_bpf::handshake::{EndpointRef, Response};
use podgate_bpf::maps::Registration;
use podgate_bpf::seeding::{Seed, Seeded};
use tokio::sync::oneshot;

use super::seeds::protocol::UDP;
use super::seeds::{Subject, Subjects};
use super::sockets::Connected;
use super::{Adopter, conntrack, find};
use crate::writer::{Handle, Message};

/// How long the writer may take. It commits all of a batch at once.
const COMMIT: Duration = Duration::from_secs(10);
/// How long a pod is watched before it is judged.
const WATCH: Duration = Duration::from_secs(1);

/// Flows that were open before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flows {
    /// Not met yet.
    pub(super) new: usize,
    /// Met by an answer first.
    pub(super) corrected: usize,
}

/// Each with what came of it, or why it is not adopted.
type Results = Vec<(Registration, Result<Flows, String>)>;

impl Adopter {
    /// Gates all of them, at the same pace: the slow parts (grace periods, the commit, the kernel's table) are paid once.
    pub(super) async fn gate_all(&self, batch: Vec<Registration>) -> Results {
        if batch.is_empty() {
            return Vec::new();
        }
        let mode = self.attach;
        let mut results =
            self.each(batch, move |gate, registration| stand(gate, registration, mode)).await;
        self.commit(&mut results).await;
        if results.iter().any(|(_, result)| result.is_ok()) {
            tokio::time::sleep(WATCH).await;
        }
        let (standing, mut failed): (Vec<_>, Vec<_>) =
            results.into_iter().partition(|(_, result)| result.is_ok());
        let standing = standing.into_iter().map(|(registration, _)| registration).collect();
        let gate = self.shared.gate.clone();
        let enforced = tokio::task::spawn_blocking(move || enforce(&gate, standing)).await;
        let mut done = enforced.unwrap_or_else(|error| {
            tracing::error!(%error, "adopting running pods broke off, taking it up again");
            Vec::new()
        });
        done.append(&mut failed);
        self.tell(&done).await;
        done
    }

    async fn each(
        &self,
        batch: Vec<Registration>,
        work: impl Fn(&Gate, &Registration) -> Result<(), String> + Send + 'static,
    ) -> Results {
        let gate = self.shared.gate.clone();
        let worked = tokio::task::spawn_blocking(move || {
            let one = |registration: Registration| {
                let done = work(&gate, &registration).map(|()| Flows::default());
                undo_failed(&gate, registration, done)
            };
            batch.into_iter().map(one).collect()
        });
        worked.await.unwrap_or_default()
    }

    /// Waits until the policy maps are in force.
    async fn commit(&self, results: &mut Results) {
        let deadline = tokio::time::Instant::now() + COMMIT;
        let mut asked = Vec::new();
        for (at, (registration, result)) in results.iter().enumerate() {
            if result.is_ok() {
                asked.push((at, ask(&self.writer, registration)));
            }
        }
        for (at, answer) in asked {
            let Err(reason) = in_force(answer, deadline).await else { continue };
            let (registration, result) = &mut results[at];
            let (gate, endpoint) = (self.shared.gate.clone(), reference(registration));
            let _ = tokio::task::spawn_blocking(move || undo(&gate, endpoint)).await;
            *result = Err(reason);
        }
    }

    /// Has the writer look at the registrations again, and publish them as they are now.
    async fn tell(&self, results: &Results) {
        let asked: Vec<_> =
            results.iter().filter_map(|(each, _)| ask(&self.writer, each)).collect();
        let deadline = tokio::time::Instant::now() + COMMIT;
        for answer in asked {
            let _ = tokio::time::timeout_at(deadline, answer).await;
        }
    }
}

/// Has the writer look at a registration and put its policy in force. `None`: it has stopped.
pub(super) fn ask(
    writer: &Handle,
    registration: &Registration,
) -> Option<oneshot::Receiver<Response>> {
    let (reply, answer) = oneshot::channel();
    let endpoints = vec![reference(registration)];
    writer.send(Message::Added { endpoints, reply }).ok()?;
    Some(answer)
}

/// Waits until the policy is in force; or why it is not.
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
fn stand(gate: &Gate, registration: &Registration, mode: AttachMode) -> Result<(), String> {
    let ifindex = registration.ifindex;
    let mine = |found: &Registration| found.owner == registration.owner;
    match gate.maps.registration(ifindex).map_err(|e| e.to_string())? {
        // begun earlier
        Some(found) if mine(&found) => {}
        Some(_) => return Err("its plugin has just registered it".to_owned()),
        None if !gate.maps.register_new(registration).map_err(|e| e.to_string())? => {
            return Err("its plugin has just registered it".to_owned());
        }
        None => {}
    }
    // The kernel takes a device out of service for a moment while it gets its first clsact qdisc, and what is sent to it
    // then is lost. No one notices at a new pod; at this one, links cost ADD's time where nobody waits.
    let attached = match mode {
        AttachMode::Auto => gate.attach(ifindex, AttachMode::Tcx).or_else(|error| {
            tracing::debug!(ifindex, %error, "no TCX for a running pod");
            gate.attach(ifindex, AttachMode::Auto)
        }),
        mode => gate.attach(ifindex, mode),
    };
    attached.and_then(|_| gate.verify(ifindex)).map_err(|e| e.to_string())?;
    Ok(())
}

/// Steps 5 to 7.
fn enforce(gate: &Gate, batch: Vec<Registration>) -> Results {
    if batch.is_empty() {
        return Vec::new();
    }
    let seeded = gate.maps.node_addrs().map_err(|e| e.to_string()).and_then(|node| {
        let subjects: Vec<Subject> = batch.iter().map(subject).collect();
        let subjects_at = Subjects::new(&subjects, &node);
        let flows = seed(gate, &subjects, &subjects_at)?;
        Ok((node, subjects, flows))
    });
    let (node, subjects, flows) = match seeded {
        Ok(seeded) => seeded,
        Err(reason) => {
            let failed = |each| undo_failed(gate, each, Err(reason.clone()));
            return batch.into_iter().map(failed).collect();
        }
    };
    let end = |registration: Registration| {
        let endpoint = reference(&registration);
        let ended = match gate.maps.set_startup(endpoint, Startup::Hold) {
            Ok(true) => Ok(flows.get(&endpoint).copied().unwrap_or_default()),
            Ok(false) => Err("it went away meanwhile".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        undo_failed(gate, registration, ended)
    };
    let results = batch.into_iter().map(end).collect();
    if let Err(reason) = seed(gate, &subjects, &Subjects::new(&subjects, &node)) {
        tracing::warn!(reason, "cannot look for connections once more");
    }
    results
}

/// Its sockets are asked for, where its namespace can still be entered; without, the kernel's table has to do.
fn subject(registration: &Registration) -> Subject {
    let sockets = find::sockets(Path::new(&registration.netns)).unwrap_or_else(|reason| {
        let interface = &registration.host_interface;
        tracing::warn!(interface, reason, "cannot ask for a running pod's sockets");
        Default::default()
    });
    let addresses = registration.addresses.clone();
    Subject { endpoint: reference(registration), addresses, sockets }
}

/// A flow's ends.
type Ends = (u32, SocketAddr, SocketAddr, u8);

fn ends(seed: &Seed) -> Ends {
    (seed.endpoint.ifindex, seed.pod, seed.peer, seed.protocol)
}

fn seed(
    gate: &Gate,
    subjects: &[Subject],
    at: &Subjects<'_>,
) -> Result<BTreeMap<EndpointRef, Flows>, String> {
    let mut seeds: BTreeMap<Ends, Vec<Seed>> = BTreeMap::new();
    let mut tracked = BTreeSet::new();
    conntrack::each(|entry| {
        for seed in at.of_tracked(&entry) {
            tracked.insert(seed.endpoint);
            seeds.entry(ends(&seed)).or_default().push(seed);
        }
    })
    .map_err(|e| format!("list tracked connections: {e}"))?;
    for subject in subjects {
        for socket in &subject.sockets.connected {
            let Some(seed) = at.of_socket(subject, socket) else { continue };
            seeds.entry(ends(&seed)).or_insert_with(|| vec![seed]);
        }
    }
    let untracked: Vec<&Subject> =
        subjects.iter().filter(|each| !tracked.contains(&each.endpoint)).collect();
    for seed in learned(gate, &untracked, at).map_err(|e| e.to_string())? {
        seeds.entry(ends(&seed)).or_insert_with(|| vec![seed]);
    }
    let mut flows: BTreeMap<EndpointRef, Flows> = BTreeMap::new();
    for seed in seeds.values().flatten() {
        let of = flows.entry(seed.endpoint).or_default();
        match gate.maps.seed(seed).map_err(|e| e.to_string())? {
            Seeded::New => of.new += 1,
            Seeded::Corrected => of.corrected += 1,
            Seeded::Known => {}
        }
    }
    Ok(flows)
}

/// Datagram flows that the programs have met and nobody else tracks: their ports tell who asks and who answers.
fn learned(
    gate: &Gate,
    subjects: &[&Subject],
    at: &Subjects<'_>,
) -> podgate_bpf::Result<Vec<Seed>> {
    if subjects.is_empty() {
        return Ok(Vec::new());
    }
    let by_index: BTreeMap<u32, &Subject> =
        subjects.iter().map(|subject| (subject.endpoint.ifindex, *subject)).collect();
    let read = |ifindex: u32, protocol: u8, local: SocketAddr, remote: SocketAddr, owner: u32| {
        let subject = by_index.get(&ifindex)?;
        let ours = protocol == UDP && owner == subject.endpoint.owner;
        let state = FlowState::Established;
        ours.then(|| at.of_socket(subject, &Connected { protocol, local, remote, state }))?
    };
    let port = u16::from_be_bytes;
    let v6 = |addr: Addr| IpAddr::from(addr.bytes);
    let mut found = Vec::new();
    for (key, flow) in gate.maps.flow_table().flows4()? {
        let pod = SocketAddr::new(key.pod.into(), port(key.pod_port));
        let peer = SocketAddr::new(key.peer.into(), port(key.peer_port));
        found.extend(read(key.ifindex, key.protocol, pod, peer, flow.owner));
    }
    for (key, flow) in gate.maps.flow_table().flows6()? {
        let pod = SocketAddr::new(v6(key.pod), port(key.pod_port));
        let peer = SocketAddr::new(v6(key.peer), port(key.peer_port));
        found.extend(read(key.ifindex, key.protocol, pod, peer, flow.owner));
    }
    Ok(found)
}

fn undo_failed(
    gate: &Gate,
    registration: Registration,
    result: Result<Flows, String>,
) -> (Registration, Result<Flows, String>) {
    if result.is_err() {
        undo(gate, reference(&registration));
    }
    (registration, result)
}

/// Takes the gate away from a pod that is still watched: one that is not is enforced, whatever failed to say so.
fn undo(gate: &Gate, endpoint: EndpointRef) {
    let undone = gate.maps.registration(endpoint.ifindex).and_then(|found| match found {
        Some(found) if found.owner == endpoint.owner && found.startup == Startup::Watch => {
            gate.take_away(endpoint)
        }
        _ => Ok(()),
    });
    if let Err(error) = undone {
        // it is watched, so it is open as it was; the next round finds it
        tracing::warn!(ifindex = endpoint.ifindex, %error, "cannot undo the adoption of a pod");
    }
}
