//! Pods that ran before podgate came, and those that started while it was not in the runtime's configuration: found,
//! gated and enforced, without a restart and without breaking a connection.
//!
//! ```text
//!   find      host ends of veths that nobody registered, and what is behind them; cache: libcni's notes
//!   identify  whose each is; who has to wait
//!   gate      the order in which a pod that runs is gated
//!   seeds     the flows it has open (conntrack: as the kernel tracks them; sockets: as its own sockets show them)
//! ```

mod cache;
mod conntrack;
mod find;
mod gate;
mod identify;
mod seeds;
mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podgate_bpf::abi::Startup;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::maps::Registration;
use podgate_policy::model::ObjectKey;
use tokio::time::Instant;

pub use find::Places;

use crate::view::{Shared, Unenforced};
use crate::writer::Handle;
use find::Veth;
use identify::{Finding, identify, local_pods};

/// How often the node's links are compared with the registry.
const TICK: Duration = Duration::from_secs(2);
/// How old a veth must be that may still be in the middle of its ADD, or of its DEL: then the plugin gates it, or
/// it goes.
const PATIENCE: Duration = Duration::from_secs(3);
/// How soon a veth that cannot be adopted is looked at again: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(16));
/// How often all pods are gone through for those of this node without a gate.
const REPORT: Duration = Duration::from_secs(10);

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
    /// Whether adopted pods may only send from their own addresses.
    pub anti_spoofing: bool,
}

/// What is known of veths that have no gate, by the index of their host end.
#[derive(Debug, Default)]
struct Ungated {
    veths: BTreeMap<u32, Candidate>,
    reported: Option<Instant>,
}

#[derive(Debug)]
struct Candidate {
    host_interface: String,
    since: Instant,
    due: Instant,
    delay: Duration,
    /// Why it is not adopted, if it is a pod's.
    reason: Option<(ObjectKey, String)>,
}

impl Adopter {
    /// Runs until the task is dropped. A pod whose adoption that interrupts is taken up by the next policyd.
    pub async fn run(self) {
        let mut ungated = Ungated::default();
        loop {
            // which policy a pod has is not known before
            if self.shared.view().ready {
                self.round(&mut ungated).await;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    async fn round(&self, ungated: &mut Ungated) {
        let mut batch = self.begun();
        batch.extend(self.found(ungated).await);
        let active = !batch.is_empty();
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
        if active || ungated.reported.is_none_or(|at| at.elapsed() >= REPORT) {
            self.report(ungated);
        }
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
        let places = self.places.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let found = find::ungated(&places, &known);
            (found, known)
        });
        let (veths, known) = match looked.await {
            Ok((Ok(veths), known)) => (veths, known),
            Ok((Err(error), _)) => {
                tracing::warn!(%error, "cannot look for pods without a gate, trying again");
                return Vec::new();
            }
            Err(error) => {
                tracing::error!(%error, "cannot look for pods without a gate, trying again");
                return Vec::new();
            }
        };
        let there: BTreeSet<u32> = veths.iter().map(|veth| veth.host.index).collect();
        ungated.veths.retain(|ifindex, _| there.contains(ifindex) || known.contains(ifindex));
        veths.iter().filter_map(|veth| self.decide(veth, ungated)).collect()
    }

    fn decide(&self, veth: &Veth, ungated: &mut Ungated) -> Option<Registration> {
        let finding = identify(veth, &self.shared.index(), &self.shared.node, self.anti_spoofing);
        let candidate = ungated.candidate(veth.host.index, &veth.host.name);
        match finding {
            Finding::Pod { registration, settled } => {
                if settled || candidate.since.elapsed() >= PATIENCE {
                    return Some(registration);
                }
                candidate.due = candidate.since + PATIENCE;
            }
            Finding::Waits { pod, reason } => candidate.wait(Some((pod, reason))),
            Finding::Stranger => candidate.wait(None),
        }
        None
    }

    /// Tells who reads of the pods of this node that have no gate.
    fn report(&self, ungated: &mut Ungated) {
        ungated.reported = Some(Instant::now());
        let view = self.shared.view();
        let gated: BTreeSet<ObjectKey> = view
            .endpoints
            .values()
            .filter(|endpoint| endpoint.registration.startup != Startup::Watch)
            .filter_map(|endpoint| key_of(&endpoint.registration))
            .collect();
        let mut without: BTreeMap<ObjectKey, String> = {
            let index = self.shared.index();
            let without = local_pods(&index, &self.shared.node);
            without
                .filter(|pod| !gated.contains(&pod.key))
                .map(|pod| (pod.key.clone(), self.unseen(&pod.addresses)))
                .collect()
        };
        let reasons = ungated.veths.values().filter_map(|candidate| {
            let (pod, reason) = candidate.reason.clone()?;
            Some((pod, format!("{reason} (at {})", candidate.host_interface)))
        });
        without.extend(reasons.filter(|(pod, _)| !gated.contains(pod)));
        let unenforced =
            without.into_iter().map(|(pod, reason)| Unenforced { pod, reason }).collect();
        self.shared.set_unenforced(unenforced);
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
            reason: None,
        });
        if candidate.host_interface != host_interface {
            // the number is another's by now
            *candidate = Candidate {
                host_interface: host_interface.to_owned(),
                since: now,
                due: now,
                delay: RETRY.0,
                reason: None,
            };
        }
        candidate
    }
}

impl Candidate {
    fn wait(&mut self, reason: Option<(ObjectKey, String)>) {
        self.reason = reason;
        self.due = Instant::now() + self.delay;
        self.delay = (self.delay * 2).min(RETRY.1);
    }
}

fn key_of(registration: &Registration) -> Option<ObjectKey> {
    let pod = registration.pod.as_ref()?;
    Some(ObjectKey::new(pod.namespace.as_str(), pod.name.as_str()))
}
