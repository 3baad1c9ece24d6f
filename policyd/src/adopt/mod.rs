//! Adopts running pods without a gate, from before podgate was installed or while it was missing in the runtime's
//! configuration: finds them, attaches a gate and enforces policy, without a restart and without breaking a connection.
//!
//! ```text
//!   discover  host ends of veths without a registration, and the pod's end of each
//!   identify  which pod each belongs to; which have to wait
//!   gate      the order of the steps in which a running pod is gated
//!   takeover  pods whose gate uses another map layout
//!   seeds     the flows that a pod has open (conntrack: from the kernel's table; sockets: from its own sockets)
//! ```

mod conntrack;
mod discover;
mod gate;
mod identify;
mod seeds;
mod sockets;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podgate_bpf::PinRoot;
use podgate_bpf::abi::Startup;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::maps::Registration;
use podgate_policy::model::{ObjectKey, Pod, PodLife};
use tokio::time::Instant;

pub use discover::SearchPaths;
pub use takeover::Takeover;

use crate::backoff::Backoff;
use crate::cni_cache;
use crate::pod_key::{pod_key, registered_pod};
use crate::snapshot::NodeState;
use crate::ungated::{AdoptionStatus, Finding, registered};
use crate::writer::Handle;
use discover::Veth;
use identify::{Decision, identify};

/// How often the node's links are compared with the registry.
const SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// How long a veth is left to the plugin that may still be at work on it: an ADD that gates it, or a DEL that removes it.
const PLUGIN_GRACE_PERIOD: Duration = Duration::from_secs(3);
/// Delays after which a veth that cannot be adopted is tried again.
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(16));
/// How often it is checked whether the first commit is done.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long policyd's readiness waits for the pods that ran before it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

const TAKEOVER_PENDING: &str = "its gate uses another map layout, with the policies that it had: it is being \
    taken over";

/// The task that adopts.
#[derive(Clone, Debug)]
pub struct Adopter {
    /// Which endpoints are registered and which pods exist.
    pub shared: Arc<NodeState>,
    /// The writer, which puts policy in force.
    pub writer: Handle,
    /// How gates are attached.
    pub attach: AttachMode,
    /// Where pods' network namespaces are looked for.
    pub paths: SearchPaths,
    /// The pins of all layouts. Pods of another one are taken over, not adopted.
    pub root: PinRoot,
    /// Whether adopted pods may only send from their own addresses.
    pub anti_spoofing: bool,
}

/// Veths without a gate, by the index of their host end, and pods without a veth.
#[derive(Debug, Default)]
struct Ungated {
    veths: BTreeMap<u32, Candidate>,
    /// Pods of this node whose veth was not found, and since when.
    missing: BTreeMap<ObjectKey, Instant>,
    /// Why the last search failed.
    failed: Option<String>,
    /// When adoption began.
    began: Option<Instant>,
    settled: bool,
}

#[derive(Debug)]
struct Candidate {
    host_interface: String,
    since: Instant,
    due: Instant,
    backoff: Backoff,
    /// The pod that it belongs to, if any, and why that has no gate yet.
    pod: Option<(ObjectKey, Finding)>,
}

/// Progress of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Pods are being gated, some of which an earlier policyd has registered.
    Gating,
    /// All pods that could be gated are.
    Done,
}

impl Adopter {
    /// Runs until the task is dropped. The next policyd continues the adoption of a pod that this interrupts.
    pub async fn run(self) {
        let mut ungated = Ungated::default();
        loop {
            // before the first commit it is not known which policies a pod has
            let ready = self.shared.snapshot().ready;
            if ready {
                self.round(&mut ungated).await;
            }
            tokio::time::sleep(if ready { SCAN_INTERVAL } else { READY_POLL_INTERVAL }).await;
        }
    }

    async fn round(&self, ungated: &mut Ungated) {
        let mut batch = self.unfinished();
        batch.extend(self.new_candidates(ungated).await);
        if !batch.is_empty() {
            // attaching and seeding take a while
            self.report(ungated, Progress::Gating).await;
        }
        for (registration, result) in self.gate_all(batch).await {
            let Some(pod) = registered_pod(&registration) else { continue };
            match result {
                Ok(flows) => {
                    ungated.veths.remove(&registration.ifindex);
                    tracing::info!(
                        %pod, ifindex = registration.ifindex, interface = registration.host_interface,
                        flows.new, flows.corrected, "adopted a running pod"
                    );
                }
                Err(reason) => {
                    tracing::warn!(
                        %pod, ifindex = registration.ifindex, interface = registration.host_interface,
                        reason, "cannot adopt a running pod yet, it stays as it was"
                    );
                    let candidate =
                        ungated.candidate(registration.ifindex, &registration.host_interface);
                    candidate.wait(Some((pod, reason)));
                }
            }
        }
        self.report(ungated, Progress::Done).await;
    }

    /// Endpoints that an earlier policyd or an earlier round has registered and not finished. The snapshot may be out of
    /// date, so each is compared with the registry: one that is enforced by now is done, and one that was undone starts
    /// again with a new owner number, because under the old one the writer might take its policy for being in force.
    fn unfinished(&self) -> Vec<Registration> {
        let snapshot = self.shared.snapshot();
        let registrations = snapshot.endpoints.values().map(|endpoint| &*endpoint.registration);
        let learning = registrations.filter(|each| each.startup == Startup::Learn);
        let maps = &self.shared.datapath.maps;
        let is_current = |each: &&Registration| {
            maps.registration(each.ifindex).is_ok_and(|now| now.as_ref() == Some(*each))
        };
        learning.filter(is_current).cloned().collect()
    }

    /// Veths to adopt that were found now, or whose retry is due.
    async fn new_candidates(&self, ungated: &mut Ungated) -> Vec<Registration> {
        let now = Instant::now();
        let mut known: BTreeSet<u32> =
            self.shared.snapshot().endpoints.keys().map(|endpoint| endpoint.0).collect();
        ungated.veths.retain(|ifindex, _| !known.contains(ifindex));
        known.extend(ungated.veths.iter().filter(|(_, c)| c.due > now).map(|(index, _)| *index));
        let (paths, root) = (self.paths.clone(), self.root.clone());
        let searched = tokio::task::spawn_blocking(move || {
            let found = match takeover::in_other_layouts(&root) {
                Ok(taken_over) => {
                    known.extend(taken_over.into_keys());
                    discover::unregistered_veths(&paths, &known).map_err(|e| e.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            (found, known)
        });
        let searched = match searched.await {
            Ok((Ok(veths), known)) => Ok((veths, known)),
            Ok((Err(error), _)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let (veths, known) = match searched {
            Ok(searched) => searched,
            Err(error) => {
                tracing::warn!(error, "cannot search for pods without a gate, trying again");
                ungated.failed = Some(error);
                return Vec::new();
            }
        };
        ungated.failed = None;
        let present: BTreeSet<u32> = veths.iter().map(|veth| veth.host.index).collect();
        ungated.veths.retain(|ifindex, _| present.contains(ifindex) || known.contains(ifindex));
        veths.iter().filter_map(|veth| self.decide(veth, ungated)).collect()
    }

    fn decide(&self, veth: &Veth, ungated: &mut Ungated) -> Option<Registration> {
        let decision = identify(veth, &self.shared.index(), &self.shared.node, self.anti_spoofing);
        let candidate = ungated.candidate(veth.host.index, &veth.host.name);
        match decision {
            Decision::Adopt { registration, settled } => {
                let pending = |reason: &str| Finding::Pending(reason.to_owned());
                let pod = registered_pod(&registration);
                if settled || candidate.since.elapsed() >= PLUGIN_GRACE_PERIOD {
                    candidate.pod = pod.map(|pod| (pod, pending("it is being gated")));
                    return Some(registration);
                }
                let reason = "its runtime may be about to gate or to remove it";
                candidate.pod = pod.map(|pod| (pod, pending(reason)));
                candidate.due = candidate.since + PLUGIN_GRACE_PERIOD;
            }
            Decision::Wait { pod, reason } => candidate.wait(Some((pod, reason))),
            Decision::NotOurs => candidate.wait(None),
        }
        None
    }

    /// Publishes the pods of this node that have no gate, and why.
    async fn report(&self, ungated: &mut Ungated, progress: Progress) {
        let now = Instant::now();
        let registered = registered(&self.shared.snapshot());
        let veths: BTreeMap<ObjectKey, Finding> = ungated
            .veths
            .values()
            .filter_map(|candidate| {
                let (pod, finding) = candidate.pod.clone()?;
                let at = |reason| format!("{reason} (at {})", candidate.host_interface);
                Some(match finding {
                    Finding::Ungated(reason) => (pod, Finding::Ungated(at(reason))),
                    finding => (pod, finding),
                })
            })
            .collect();
        let missing: Vec<Arc<Pod>> = {
            let index = self.shared.index();
            let has_veth = |pod: &ObjectKey| registered.contains(pod) || veths.contains_key(pod);
            index.local_pods().filter(|pod| !has_veth(&pod.key)).cloned().collect()
        };
        let keys: BTreeSet<&ObjectKey> = missing.iter().map(|pod| &pod.key).collect();
        ungated.missing.retain(|pod, _| keys.contains(pod));
        for pod in keys {
            ungated.missing.entry(pod.clone()).or_insert(now);
        }
        let recorded = self.recorded(&missing).await;
        let taken_over = self.in_other_layouts().await;
        let finding_of = |pod: Arc<Pod>| {
            let finding = match taken_over.contains(&pod.key) {
                true => Finding::Pending(TAKEOVER_PENDING.to_owned()),
                false => self.missing(&pod, recorded.contains(&pod.key), ungated),
            };
            (pod.key.clone(), finding)
        };
        let local = missing.into_iter().map(finding_of).collect();
        let mut adoption = AdoptionStatus { settled: false, local, veths, not_adopted: None };
        let began = *ungated.began.get_or_insert(now);
        let is_done = progress == Progress::Done && !adoption.is_pending();
        if !ungated.settled && (is_done || began.elapsed() >= SETTLE_TIMEOUT) {
            ungated.settled = true;
            let without = adoption.without_gate();
            if !without.is_empty() {
                tracing::warn!(
                    pods = without,
                    "ready, but some pods have no gate: see podgatectl status"
                );
            }
        }
        adoption.settled = ungated.settled;
        self.shared.set_adoption(adoption);
    }

    /// What to report of a pod of this node whose veth was not found.
    fn missing(&self, pod: &Pod, is_recorded: bool, ungated: &Ungated) -> Finding {
        // manifests may describe pods that do not run; in an API server only a running pod has an address
        let runs = is_recorded || !self.shared.servers().is_empty();
        if !runs || pod.life == PodLife::Terminating && !is_recorded {
            return Finding::Absent;
        }
        let since = ungated.missing.get(&pod.key);
        let is_old = since.is_some_and(|since| since.elapsed() >= PLUGIN_GRACE_PERIOD);
        let reason = match &ungated.failed {
            Some(error) => format!("cannot search for its veth: {error}"),
            None => self.unseen(&pod.addresses),
        };
        match (is_old, ungated.settled) {
            (true, _) => Finding::Ungated(reason),
            (false, false) => Finding::Pending(reason),
            // its plugin may be at work, or its runtime has just removed it
            (false, true) => Finding::Absent,
        }
    }

    /// The pods in libcni's cache; not read if no pod is missing.
    async fn recorded(&self, missing: &[Arc<Pod>]) -> BTreeSet<ObjectKey> {
        if missing.is_empty() {
            return BTreeSet::new();
        }
        let dir = self.paths.cni_cache.clone();
        let read = tokio::task::spawn_blocking(move || {
            let pods =
                cni_cache::attachments(&dir).into_iter().filter_map(|attachment| attachment.pod);
            pods.map(|pod| pod_key(&pod)).collect()
        });
        // fails only after a panic, which is logged
        read.await.unwrap_or_default()
    }

    /// Pods whose gate is another layout's.
    async fn in_other_layouts(&self) -> BTreeSet<ObjectKey> {
        let root = self.root.clone();
        let found = tokio::task::spawn_blocking(move || takeover::in_other_layouts(&root)).await;
        // the takeover logs its errors itself
        let found = found.ok().and_then(Result::ok).unwrap_or_default();
        found.into_values().flatten().collect()
    }

    fn unseen(&self, addresses: &[std::net::IpAddr]) -> String {
        let list = |items: Vec<String>| items.join(", ");
        format!(
            "no veth leads to its address {} in the network namespaces under {}",
            list(addresses.iter().map(ToString::to_string).collect()),
            list(self.paths.netns.iter().map(|dir| dir.display().to_string()).collect()),
        )
    }
}

impl Ungated {
    fn candidate(&mut self, ifindex: u32, host_interface: &str) -> &mut Candidate {
        let now = Instant::now();
        let new = || Candidate {
            host_interface: host_interface.to_owned(),
            since: now,
            due: now,
            backoff: RETRY_BACKOFF,
            pod: None,
        };
        let candidate = self.veths.entry(ifindex).or_insert_with(new);
        if candidate.host_interface != host_interface {
            // the index was reused for another interface
            *candidate = new();
        }
        candidate
    }
}

impl Candidate {
    fn wait(&mut self, pod: Option<(ObjectKey, String)>) {
        self.pod = pod.map(|(pod, reason)| (pod, Finding::Ungated(reason)));
        self.due = Instant::now() + self.backoff.next_delay();
    }
}
