//! Pods that ran before podgate came, and those that started while it was not in the runtime's configuration: found,
//! gated and enforced, without a restart and without breaking a connection.
//!
//! ```text
//!   find      host ends of veths that nobody registered, and what is behind them; cache: libcni's notes
//!   identify  whose each is; who has to wait
//!   gate      the order in which a pod that runs is gated
//!   takeover  pods whose gate is another layout's
//!   seeds     the flows it has open (conntrack: as the kernel tracks them; sockets: as its own sockets show them)
//! ```

mod cache;
mod conntrack;
mod find;
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

pub use find::Places;
pub use takeover::Takeover;

use crate::ungated::{Finding, Lookout, registered};
use crate::view::Shared;
use crate::writer::Handle;
use find::Veth;
use identify::identify;

/// How often the node's links are compared with the registry.
const TICK: Duration = Duration::from_secs(2);
/// How old a veth must be that may still be in the middle of its ADD, or of its DEL: then the plugin gates it, or
/// it goes.
const PATIENCE: Duration = Duration::from_secs(3);
/// How soon a veth that cannot be adopted is looked at again: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(16));
/// How soon after its start policyd looks whether the sources have been read.
const SOON: Duration = Duration::from_millis(100);
/// By then policyd is ready, whether every pod that ran before has its gate or not.
const SETTLE: Duration = Duration::from_secs(60);

const BEHIND: &str = "the gate of another layout of the maps stands, with the policies that it had: \
    it is being taken over";

/// The task that adopts.
#[derive(Clone, Debug)]
pub struct Adopter {
    /// What is registered, and which pods there are.
    pub shared: Arc<Shared>,
    /// Who puts policy in force.
    pub writer: Handle,
    /// How gates are attached.
    pub attach: AttachMode,
    /// Where to look.
    pub places: Places,
    /// Where another layout may have pods: those are taken over, not adopted.
    pub root: PinRoot,
    /// Whether adopted pods may only send from their own addresses.
    pub anti_spoofing: bool,
}

/// What is known of veths that have no gate, by the index of their host end.
#[derive(Debug, Default)]
struct Ungated {
    veths: BTreeMap<u32, Candidate>,
    /// Pods of this node whose veth was not found, and since when.
    missing: BTreeMap<ObjectKey, Instant>,
    /// Why the last look failed.
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
    delay: Duration,
    /// How it stands, if it is a pod's.
    pod: Option<(ObjectKey, Finding)>,
}

/// How far a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Pods are being gated, some of which an earlier policyd has registered.
    Gating,
    /// All that could be gated now are.
    Done,
}

impl Adopter {
    /// Runs until the task is dropped. A pod whose adoption that interrupts is taken up by the next policyd.
    pub async fn run(self) {
        let mut ungated = Ungated::default();
        loop {
            // which policy a pod has is not known before
            let ready = self.shared.view().ready;
            if ready {
                self.round(&mut ungated).await;
            }
            tokio::time::sleep(if ready { TICK } else { SOON }).await;
        }
    }

    async fn round(&self, ungated: &mut Ungated) {
        let mut batch = self.begun();
        batch.extend(self.found(ungated).await);
        if !batch.is_empty() {
            // that takes a while
            self.report(ungated, Progress::Gating).await;
        }
        for (registration, result) in self.gate_all(batch).await {
            let Some(pod) = key_of(&registration) else { continue };
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

    /// Those that an earlier policyd, or an earlier round, has begun with. What the writer published last may be late:
    /// one that is enforced by now is done, and one that was given up is begun anew, with a number of its own. Under
    /// the old one the writer might believe it in force.
    fn begun(&self) -> Vec<Registration> {
        let view = self.shared.view();
        let registrations = view.endpoints.values().map(|endpoint| &*endpoint.registration);
        let watched = registrations.filter(|each| each.startup == Startup::Watch);
        let maps = &self.shared.gate.maps;
        let still = |each: &&Registration| {
            maps.registration(each.ifindex).is_ok_and(|now| now.as_ref() == Some(*each))
        };
        watched.filter(still).cloned().collect()
    }

    /// New ones whose turn it is.
    async fn found(&self, ungated: &mut Ungated) -> Vec<Registration> {
        let now = Instant::now();
        let mut known: BTreeSet<u32> =
            self.shared.view().endpoints.keys().map(|endpoint| endpoint.0).collect();
        ungated.veths.retain(|ifindex, _| !known.contains(ifindex));
        known.extend(ungated.veths.iter().filter(|(_, c)| c.due > now).map(|(index, _)| *index));
        let (places, root) = (self.places.clone(), self.root.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let found = match takeover::behind(&root) {
                Ok(behind) => {
                    known.extend(behind.into_keys());
                    find::ungated(&places, &known).map_err(|e| e.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            (found, known)
        });
        let looked = match looked.await {
            Ok((Ok(veths), known)) => Ok((veths, known)),
            Ok((Err(error), _)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let (veths, known) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                tracing::warn!(error, "cannot look for pods without a gate, trying again");
                ungated.failed = Some(error);
                return Vec::new();
            }
        };
        ungated.failed = None;
        let there: BTreeSet<u32> = veths.iter().map(|veth| veth.host.index).collect();
        ungated.veths.retain(|ifindex, _| there.contains(ifindex) || known.contains(ifindex));
        veths.iter().filter_map(|veth| self.decide(veth, ungated)).collect()
    }

    fn decide(&self, veth: &Veth, ungated: &mut Ungated) -> Option<Registration> {
        let finding = identify(veth, &self.shared.index(), &self.shared.node, self.anti_spoofing);
        let candidate = ungated.candidate(veth.host.index, &veth.host.name);
        match finding {
            identify::Finding::Pod { registration, settled } => {
                let pending = |reason: &str| Finding::Pending(reason.to_owned());
                let pod = key_of(&registration);
                if settled || candidate.since.elapsed() >= PATIENCE {
                    candidate.pod = pod.map(|pod| (pod, pending("it is being gated")));
                    return Some(registration);
                }
                let reason = "its runtime may be about to gate it, or to end it";
                candidate.pod = pod.map(|pod| (pod, pending(reason)));
                candidate.due = candidate.since + PATIENCE;
            }
            identify::Finding::Waits { pod, reason } => candidate.wait(Some((pod, reason))),
            identify::Finding::Stranger => candidate.wait(None),
        }
        None
    }

    /// Publishes how the pods of this node stand that have no gate.
    async fn report(&self, ungated: &mut Ungated, progress: Progress) {
        let now = Instant::now();
        let registered = registered(&self.shared.view());
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
        let noted = self.noted(&missing).await;
        let behind = self.behind().await;
        let say = |pod: Arc<Pod>| {
            let finding = match behind.contains(&pod.key) {
                true => Finding::Pending(BEHIND.to_owned()),
                false => self.missing(&pod, noted.contains(&pod.key), ungated),
            };
            (pod.key.clone(), finding)
        };
        let local = missing.into_iter().map(say).collect();
        let mut lookout = Lookout { settled: false, local, veths, unsought: None };
        let began = *ungated.began.get_or_insert(now);
        let is_done = progress == Progress::Done && !lookout.is_pending();
        if !ungated.settled && (is_done || began.elapsed() >= SETTLE) {
            ungated.settled = true;
            let without = lookout.without_gate();
            if !without.is_empty() {
                tracing::warn!(
                    pods = without,
                    "ready, but no gate stands at some pods: see podgatectl status"
                );
            }
        }
        lookout.settled = ungated.settled;
        self.shared.set_lookout(lookout);
    }

    /// What there is to say of a pod of this node whose veth was not found.
    fn missing(&self, pod: &Pod, is_noted: bool, ungated: &Ungated) -> Finding {
        // manifests may speak of pods that nobody runs; an API server says an address only of one that runs
        let is_told = is_noted || !self.shared.servers().is_empty();
        if !is_told || pod.life == PodLife::Terminating && !is_noted {
            return Finding::Absent;
        }
        let since = ungated.missing.get(&pod.key);
        let is_old = since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let reason = match &ungated.failed {
            Some(error) => format!("cannot look for its veth: {error}"),
            None => self.unseen(&pod.addresses),
        };
        match (is_old, ungated.settled) {
            (true, _) => Finding::Ungated(reason),
            (false, false) => Finding::Pending(reason),
            // its plugin is at work, or its runtime has just ended it
            (false, true) => Finding::Absent,
        }
    }

    /// The pods that libcni knows of, where that matters.
    async fn noted(&self, missing: &[Arc<Pod>]) -> BTreeSet<ObjectKey> {
        if missing.is_empty() {
            return BTreeSet::new();
        }
        let dir = self.places.cni_cache.clone();
        let read = tokio::task::spawn_blocking(move || {
            let pods = cache::read(&dir).into_iter().filter_map(|attachment| attachment.pod);
            pods.map(|pod| ObjectKey::new(pod.namespace.as_str(), pod.name.as_str())).collect()
        });
        // only by a panic, of which the log tells
        read.await.unwrap_or_default()
    }

    /// Pods whose gate is another layout's.
    async fn behind(&self) -> BTreeSet<ObjectKey> {
        let root = self.root.clone();
        let looked = tokio::task::spawn_blocking(move || takeover::behind(&root)).await;
        // what cannot be looked at is in the log of the takeover
        let behind = looked.ok().and_then(Result::ok).unwrap_or_default();
        behind.into_values().flatten().collect()
    }

    fn unseen(&self, addresses: &[std::net::IpAddr]) -> String {
        let list = |items: Vec<String>| items.join(", ");
        format!(
            "no veth leads to its address {} in the network namespaces under {}",
            list(addresses.iter().map(ToString::to_string).collect()),
            list(self.places.netns.iter().map(|dir| dir.display().to_string()).collect()),
        )
    }
}

impl Ungated {
    fn candidate(&mut self, ifindex: u32, host_interface: &str) -> &mut Candidate {
        let now = Instant::now();
        let candidate = self.veths.entry(ifindex).or_insert_with(|| Candidate {
            host_interface: host_interface.to_owned(),
            since: now,
            due: now,
            delay: RETRY.0,
            pod: None,
        });
        if candidate.host_interface != host_interface {
            // the number is another's by now
            *candidate = Candidate {
                host_interface: host_interface.to_owned(),
                since: now,
                due: now,
                delay: RETRY.0,
                pod: None,
            };
        }
        candidate
    }
}

impl Candidate {
    fn wait(&mut self, pod: Option<(ObjectKey, String)>) {
        self.pod = pod.map(|(pod, reason)| (pod, Finding::Ungated(reason)));
        self.due = Instant::now() + self.delay;
        self.delay = (self.delay * 2).min(RETRY.1);
    }
}

fn key_of(registration: &Registration) -> Option<ObjectKey> {
    let pod = registration.pod.as_ref()?;
    Some(ObjectKey::new(pod.namespace.as_str(), pod.name.as_str()))
}
