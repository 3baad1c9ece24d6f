//! Keeps the service maps in step with the services of the sources.
//!
//! [`ServiceSync`] keeps a shadow of the maps, as [`super::PolicyMaps`] does for policies, and takes the steps of [`plan`]
//! one by one. A service whose entries cannot be written stays as it was, is reported, and is tried again with the next
//! commit.

mod plan;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use clap::ValueEnum;
use podgate_bpf::abi::BackendState;
use podgate_bpf::services::{Affinity, Frontend, ServiceEntry};
use podgate_bpf::{Datapath, Result};
use podgate_policy::index::Index;
use podgate_policy::model::Protocol;
use podgate_policy::scopes::ZONE_LABEL;
use podgate_policy::services as policy;
use podgate_policy::services::{AffinityNumbers, NodeContext, ServiceTable, UntranslatedSet};

pub use plan::{ServiceState, Step, Wanted};

/// Number of garbage collection steps between two checks for new events.
const GC_BATCH: usize = 256;

/// Whether podgate translates service addresses: `--services`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ServiceMode {
    /// Translated at the gate, so that the endpoint is judged.
    #[default]
    Translate,
    /// Left to kube-proxy. A service's address is allowed only if every ready endpoint behind it is.
    Leave,
}

/// Numbers of services and map entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Services that have an address to translate.
    pub services: usize,
    /// Frontends (address, port, protocol) in the maps.
    pub frontends: usize,
    /// Backends in the maps, counted once for each frontend.
    pub backends: usize,
    /// Frontends whose map entries could not be written.
    pub degraded: usize,
}

/// The service maps, with a shadow of their content and what they should hold.
#[derive(Debug)]
pub struct ServiceSync {
    datapath: Arc<Datapath>,
    mode: ServiceMode,
    table: ServiceTable,
    shadow: ServiceState,
    /// Frontends whose map entries may differ from the table.
    pending: BTreeSet<Frontend>,
    /// Frontends that could not be written, with the error.
    degraded: BTreeMap<Frontend, String>,
    /// The same after the previous commit.
    was_degraded: BTreeMap<Frontend, String>,
    /// Service ids that may have entries which no program reads any more.
    gc_pending: BTreeSet<u32>,
    /// The lowest id that was never used.
    next_id: u32,
    /// Under which numbers clients' endpoints are remembered.
    affinity: AffinityNumbers,
    /// A step was taken since the last [`ServiceSync::take_changed`].
    changed: bool,
}

impl ServiceSync {
    /// Reads what an earlier policyd wrote into the maps and changes nothing: what is no longer wanted is removed by the
    /// first commit, once all sources are synced.
    pub fn recover(datapath: Arc<Datapath>, node: &str, mode: ServiceMode) -> Result<Self> {
        let maps = datapath.maps.services();
        let shadow = ServiceState {
            services: maps.services()?,
            slots: maps.slots()?,
            backends: maps.backends()?,
        };
        let ids = shadow.services.values().map(|entry| entry.id);
        let ids = ids.chain(shadow.slots.keys().map(|(id, _)| *id));
        let gc_pending: BTreeSet<u32> =
            ids.chain(shadow.backends.keys().map(|(id, _)| *id)).collect();
        let mut table = ServiceTable::new(node);
        table.set_node_context(NodeContext {
            translation_off: mode == ServiceMode::Leave,
            ..NodeContext::default()
        });
        Ok(Self {
            datapath,
            mode,
            table,
            pending: shadow.services.keys().copied().collect(),
            degraded: BTreeMap::new(),
            was_degraded: BTreeMap::new(),
            next_id: gc_pending.last().map_or(1, |last| following(*last)),
            gc_pending,
            affinity: AffinityNumbers::default(),
            changed: false,
            shadow,
        })
    }

    /// Follows the changes of the services and of the own node's zone. True if the maps have to change.
    pub fn follow(&mut self, index: &mut Index) -> bool {
        let zone = index.node(self.table.node()).and_then(|node| node.labels.get(ZONE_LABEL));
        self.table.set_zone(index.services(), zone.filter(|zone| !zone.is_empty()).cloned());
        self.table.follow(index.services_mut());
        self.pending.extend(self.table.take_changes().into_iter().map(to_map));
        !self.pending.is_empty()
    }

    /// Sets the node's own addresses, without those that kube-proxy put there, and the addresses of all nodes.
    pub fn set_addresses(&mut self, own: Arc<BTreeSet<IpAddr>>, nodes: Arc<BTreeSet<IpAddr>>) {
        let translation_off = self.mode == ServiceMode::Leave;
        self.table.set_node_context(NodeContext { translation_off, own, nodes });
    }

    /// The untranslated addresses, if they may have changed since the last call.
    pub fn take_untranslated(&mut self) -> Option<UntranslatedSet> {
        self.table.take_untranslated_changed().then(|| self.table.untranslated())
    }

    /// The first half of a commit, before policies change: removes backends that are no longer wanted.
    pub fn retire_backends(&mut self) {
        self.was_degraded = std::mem::take(&mut self.degraded);
        self.retire_where(|wanted| wanted.is_some());
    }

    /// Removes frontends that are no longer translated, once the policy for untranslated addresses is written.
    pub fn retire_frontends(&mut self) {
        self.retire_where(|wanted| wanted.is_none());
    }

    fn retire_where(&mut self, selected: impl Fn(Option<&Wanted>) -> bool) {
        for frontend in &self.pending.clone() {
            let wanted = self.wanted(frontend);
            if !selected(wanted.as_ref()) {
                continue;
            }
            let id = self.shadow.services.get(frontend).map(|entry| entry.id);
            let steps = self.shadow.retire(frontend, wanted.as_ref());
            if steps.is_empty() {
                continue;
            }
            self.gc_pending.extend(id);
            self.take(frontend, steps);
        }
    }

    /// The second half, after policies have changed: adds new frontends and backends.
    pub fn extend(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for frontend in &pending {
            if let Some(wanted) = self.wanted(frontend) {
                let known = self.shadow.services.get(frontend).map(|entry| entry.id);
                let id = known.unwrap_or_else(|| self.new_id());
                let steps = self.shadow.extend(frontend, &wanted, id);
                self.gc_pending.insert(id);
                self.take(frontend, steps);
            }
            let reason = self.degraded.get(frontend);
            if let Some(reason) = reason.filter(|_| reason != self.was_degraded.get(frontend)) {
                tracing::error!(reason, "cannot write service {}", self.describe(frontend));
            }
        }
        self.pending = self.degraded.keys().copied().collect();
    }

    /// Whether no service is in the maps.
    pub fn is_unused(&self) -> bool {
        self.shadow.services.is_empty()
    }

    /// Whether the maps hold what the sources say.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether some step was taken since the last call: then flows have to be revalidated.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Removes some of the entries that no program reads any more. To be called when idle, at least an RCU grace period
    /// after the last commit. True if there is more to do.
    pub fn sweep(&mut self) -> bool {
        let entries = self.shadow.services.values();
        let alive: BTreeMap<u32, ServiceEntry> = entries.map(|entry| (entry.id, *entry)).collect();
        let mut taken = 0;
        while taken < GC_BATCH {
            let Some(id) = self.gc_pending.first().copied() else { break };
            let mut steps = self.shadow.garbage(id, alive.get(&id));
            let whole = steps.len() <= GC_BATCH;
            steps.truncate(GC_BATCH);
            taken += steps.len().max(1);
            for step in &steps {
                if let Err(error) = write::one(self.datapath.maps.services(), step) {
                    // the entry is not used any more: logged, not retried
                    tracing::warn!(%error, "cannot clean up after a service");
                }
                self.shadow.apply(step);
            }
            if whole {
                self.gc_pending.remove(&id);
            }
        }
        if self.gc_pending.is_empty() {
            self.affinity.retain(|service| self.table.contains(service));
        }
        !self.gc_pending.is_empty()
    }

    /// Whether [`ServiceSync::sweep`] has something to do.
    pub fn has_garbage(&self) -> bool {
        !self.gc_pending.is_empty()
    }

    /// Whether services are translated.
    pub fn mode(&self) -> ServiceMode {
        self.mode
    }

    /// The services' frontends and backends.
    pub fn table(&self) -> &ServiceTable {
        &self.table
    }

    /// What the maps hold for a frontend.
    pub fn in_force(&self, frontend: policy::Frontend) -> Option<ServiceEntry> {
        self.shadow.services.get(&to_map(frontend)).copied()
    }

    /// Numbers of services and map entries.
    pub fn counts(&self) -> Counts {
        Counts {
            services: self.table.services(),
            frontends: self.shadow.services.len(),
            backends: self.shadow.backends.len(),
            degraded: self.degraded.len(),
        }
    }

    /// All problems, for users.
    pub fn problems(&self) -> Vec<String> {
        let failed = self.degraded.iter().map(|(frontend, reason)| {
            format!(
                "write service {}: {reason}; it stays as it was, retrying",
                self.describe(frontend)
            )
        });
        failed.chain(self.table.disputes().map(|dispute| dispute.to_string())).collect()
    }

    /// Why a frontend's map entries could not be written.
    pub fn reason(&self, frontend: policy::Frontend) -> Option<&str> {
        self.degraded.get(&to_map(frontend)).map(String::as_str)
    }

    fn wanted(&mut self, frontend: &Frontend) -> Option<Wanted> {
        let frontend = of_map(frontend)?;
        let balance = self.table.translated(&frontend)?;
        let backends = balance.backends.iter().map(|(backend, state)| {
            let policy::Backend { address, port } = *backend;
            let state = match state {
                policy::BackendState::Ready => BackendState::Ready,
                policy::BackendState::Serving => BackendState::Serving,
            };
            (podgate_bpf::services::Backend { address, port }, state)
        });
        let affinity = balance.affinity.map(|seconds| Affinity {
            seconds,
            number: Some(self.affinity.of(&frontend, balance)),
        });
        Some(Wanted { affinity, backends: backends.collect() })
    }

    /// Takes steps of one frontend until one fails.
    fn take(&mut self, frontend: &Frontend, steps: Vec<Step>) {
        let Self { datapath, shadow, changed, degraded, .. } = self;
        let taken = write::all(datapath.maps.services(), &steps, |step| {
            shadow.apply(step);
            *changed = true;
        });
        if let Err(error) = taken {
            degraded.insert(*frontend, error.to_string());
        }
    }

    /// An id that no entry of the maps has.
    fn new_id(&mut self) -> u32 {
        let id = self.next_id;
        // the numbers wrap after 2^31 frontends: then those in use are skipped
        let mut next = following(id);
        while self.gc_pending.contains(&next)
            || next < id && self.shadow.services.values().any(|entry| entry.id == next)
        {
            next = following(next);
        }
        self.next_id = next;
        id
    }

    /// `shop/web on 10.96.0.1:80/TCP`.
    fn describe(&self, frontend: &Frontend) -> impl fmt::Display {
        let Some(known) = of_map(frontend) else {
            return format!("on {} protocol {}", frontend.address, frontend.protocol);
        };
        match self.table.get(&known) {
            Some(balance) => format!("{} on {known}", balance.service),
            None => format!("on {known}"),
        }
    }
}

/// The id after this one.
fn following(id: u32) -> u32 {
    if id < AffinityNumbers::FIRST - 1 { id + 1 } else { 1 }
}

/// The key in the maps.
fn to_map(frontend: policy::Frontend) -> Frontend {
    let policy::Frontend { address, port, protocol } = frontend;
    Frontend { address, port, protocol: protocol.number() }
}

/// `None` for a protocol that no service has.
fn of_map(frontend: &Frontend) -> Option<policy::Frontend> {
    let protocol = Protocol::from_number(frontend.protocol)?;
    Some(policy::Frontend { address: frontend.address, port: frontend.port, protocol })
}
