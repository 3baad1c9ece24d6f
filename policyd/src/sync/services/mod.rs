//! The maps of services follow what the sources say of them.
//!
//! [`ServiceSync`] is the writer's: it keeps a shadow of the maps, as [`super::Kernel`] does for policies, and takes
//! the steps of [`plan`] one by one. A service whose entries cannot be written stays as it was, is
//! reported, and is tried again with the next commit.

mod plan;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use clap::ValueEnum;
use podgate_bpf::abi::BackendState;
use podgate_bpf::services::{Frontend, ServiceEntry};
use podgate_bpf::{Gate, Result};
use podgate_policy::model::Protocol;
use podgate_policy::services as policy;
use podgate_policy::services::{Catalog, LeftSet, ServiceTable, View};

pub use plan::{ServiceState, Step, Wanted};

/// Steps of cleaning up that are taken without a look at new events.
const AT_ONCE: usize = 256;

/// What becomes of services: `--services`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ServiceMode {
    /// Translated at the gate, so that the endpoint is judged.
    #[default]
    Translate,
    /// Left to kube-proxy. A service's address is allowed only if every ready endpoint behind it is.
    Leave,
}

/// What the services come to, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Services that have an address to translate.
    pub services: usize,
    /// Their addresses and ports that lead to an endpoint, as the maps have them.
    pub frontends: usize,
    /// Endpoints behind those, each once for each frontend, as the maps have them.
    pub backends: usize,
    /// Frontends that are not as they should be.
    pub degraded: usize,
}

/// The maps of services, and what should be in them. Owned by the writer.
#[derive(Debug)]
pub struct ServiceSync {
    gate: Arc<Gate>,
    mode: ServiceMode,
    table: ServiceTable,
    shadow: ServiceState,
    /// Frontends that the maps may not hold as the table says.
    pending: BTreeSet<Frontend>,
    /// Frontends that could not be written, and why.
    degraded: BTreeMap<Frontend, String>,
    /// The same before the commit under way.
    was_degraded: BTreeMap<Frontend, String>,
    /// Ids that left something behind.
    littered: BTreeSet<u32>,
    /// Not used by anybody yet, as are those above it.
    next_id: u32,
    /// A step was taken since the last [`ServiceSync::take_changed`].
    changed: bool,
}

impl ServiceSync {
    /// Takes over what an earlier policyd left in the maps. Changes nothing: what is not wanted any more goes with the
    /// first commit, when every source has spoken.
    pub fn adopt(gate: Arc<Gate>, node: &str, mode: ServiceMode) -> Result<Self> {
        let maps = gate.maps.services();
        let shadow = ServiceState {
            services: maps.services()?,
            slots: maps.slots()?,
            backends: maps.backends()?,
        };
        let ids = shadow.services.values().map(|entry| entry.id);
        let ids = ids.chain(shadow.slots.keys().map(|(id, _)| *id));
        let littered: BTreeSet<u32> =
            ids.chain(shadow.backends.keys().map(|(id, _)| *id)).collect();
        let mut table = ServiceTable::new(node);
        table.set_view(View { leaves_all: mode == ServiceMode::Leave, ..View::default() });
        Ok(Self {
            gate,
            mode,
            table,
            pending: shadow.services.keys().copied().collect(),
            degraded: BTreeMap::new(),
            was_degraded: BTreeMap::new(),
            next_id: littered.last().map_or(1, |last| last.saturating_add(1)),
            littered,
            changed: false,
            shadow,
        })
    }

    /// Takes note of what changed about services. True if the maps are not as they should be.
    pub fn follow(&mut self, catalog: &mut Catalog) -> bool {
        self.table.follow(catalog);
        self.pending.extend(self.table.take_changes().into_iter().map(to_map));
        !self.pending.is_empty()
    }

    /// The node's own addresses, without those that kube-proxy put there, and the addresses of all nodes.
    pub fn set_addresses(&mut self, own: Arc<BTreeSet<IpAddr>>, nodes: Arc<BTreeSet<IpAddr>>) {
        let leaves_all = self.mode == ServiceMode::Leave;
        self.table.set_view(View { leaves_all, own, nodes });
    }

    /// The addresses that are left alone, if they may be other ones than the last time.
    pub fn take_left(&mut self) -> Option<LeftSet> {
        self.table.take_left_changed().then(|| self.table.left())
    }

    /// The first half of a commit, before policies change: endpoints that no longer count go.
    pub fn retire(&mut self) {
        self.was_degraded = std::mem::take(&mut self.degraded);
        self.retire_those(|wanted| wanted.is_some());
    }

    /// After the addresses that are left alone have their answers: frontends that are not translated any more go.
    pub fn retire_whole(&mut self) {
        self.retire_those(|wanted| wanted.is_none());
    }

    fn retire_those(&mut self, meant: impl Fn(Option<&Wanted>) -> bool) {
        for frontend in &self.pending.clone() {
            let wanted = self.wanted(frontend);
            if !meant(wanted.as_ref()) {
                continue;
            }
            let id = self.shadow.services.get(frontend).map(|entry| entry.id);
            let steps = self.shadow.retire(frontend, wanted.as_ref());
            if steps.is_empty() {
                continue;
            }
            self.littered.extend(id);
            self.take(frontend, steps);
        }
    }

    /// The second half, after policies have changed: what is new comes.
    pub fn extend(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for frontend in &pending {
            if let Some(wanted) = self.wanted(frontend) {
                let known = self.shadow.services.get(frontend).map(|entry| entry.id);
                let id = known.unwrap_or_else(|| self.new_id());
                let steps = self.shadow.extend(frontend, &wanted, id);
                self.littered.insert(id);
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

    /// Whether some step was taken since the last call: flows must look again.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Removes some of what no program can look at any more; for idle moments, later than a grace period after the
    /// last commit. True if there is more.
    pub fn sweep(&mut self) -> bool {
        let entries = self.shadow.services.values();
        let alive: BTreeMap<u32, ServiceEntry> = entries.map(|entry| (entry.id, *entry)).collect();
        let mut taken = 0;
        while taken < AT_ONCE {
            let Some(id) = self.littered.first().copied() else { return false };
            let mut steps = self.shadow.litter(id, alive.get(&id));
            let whole = steps.len() <= AT_ONCE;
            steps.truncate(AT_ONCE);
            taken += steps.len().max(1);
            for step in &steps {
                if let Err(error) = write::one(self.gate.maps.services(), step) {
                    // never looked at again: worth a line, not a retry
                    tracing::warn!(%error, "cannot clean up after a service");
                }
                self.shadow.apply(step);
            }
            if whole {
                self.littered.remove(&id);
            }
        }
        !self.littered.is_empty()
    }

    /// Whether [`ServiceSync::sweep`] has something to do.
    pub fn is_littered(&self) -> bool {
        !self.littered.is_empty()
    }

    /// Whether services are translated.
    pub fn mode(&self) -> ServiceMode {
        self.mode
    }

    /// What the services lead to.
    pub fn table(&self) -> &ServiceTable {
        &self.table
    }

    /// What the maps hold for a frontend.
    pub fn in_force(&self, frontend: policy::Frontend) -> Option<ServiceEntry> {
        self.shadow.services.get(&to_map(frontend)).copied()
    }

    /// What the services come to.
    pub fn counts(&self) -> Counts {
        Counts {
            services: self.table.services(),
            frontends: self.shadow.services.len(),
            backends: self.shadow.backends.len(),
            degraded: self.degraded.len(),
        }
    }

    /// Everything that is not as it should be, for people.
    pub fn problems(&self) -> Vec<String> {
        let failed = self.degraded.iter().map(|(frontend, reason)| {
            format!(
                "write service {}: {reason}; it stays as it was, retrying",
                self.describe(frontend)
            )
        });
        failed.chain(self.table.disputes().map(|dispute| dispute.to_string())).collect()
    }

    /// Why a frontend is not as it should be.
    pub fn reason(&self, frontend: policy::Frontend) -> Option<&str> {
        self.degraded.get(&to_map(frontend)).map(String::as_str)
    }

    fn wanted(&self, frontend: &Frontend) -> Option<Wanted> {
        let balance = self.table.translated(&of_map(frontend)?)?;
        let backends = balance.backends.iter().map(|(backend, state)| {
            let policy::Backend { address, port } = *backend;
            let state = match state {
                policy::BackendState::Ready => BackendState::Ready,
                policy::BackendState::Serving => BackendState::Serving,
            };
            (podgate_bpf::services::Backend { address, port }, state)
        });
        Some(Wanted {
            affinity_seconds: balance.affinity.map_or(0, std::num::NonZeroU32::get),
            backends: backends.collect(),
        })
    }

    /// Takes steps of one frontend until one fails.
    fn take(&mut self, frontend: &Frontend, steps: Vec<Step>) {
        let Self { gate, shadow, changed, degraded, .. } = self;
        let taken = write::all(gate.maps.services(), &steps, |step| {
            shadow.apply(step);
            *changed = true;
        });
        if let Err(error) = taken {
            degraded.insert(*frontend, error.to_string());
        }
    }

    /// An id that nothing in the maps carries.
    fn new_id(&mut self) -> u32 {
        let id = self.next_id;
        // After four thousand million services the numbers begin again; those few that are taken then are known.
        let mut next = id.wrapping_add(1).max(1);
        while self.littered.contains(&next)
            || next < id && self.shadow.services.values().any(|entry| entry.id == next)
        {
            next = next.wrapping_add(1).max(1);
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

/// As the maps spell it.
fn to_map(frontend: policy::Frontend) -> Frontend {
    let policy::Frontend { address, port, protocol } = frontend;
    Frontend { address, port, protocol: protocol.number() }
}

/// `None` for a protocol that no service has.
fn of_map(frontend: &Frontend) -> Option<policy::Frontend> {
    let protocol = Protocol::from_number(frontend.protocol)?;
    Some(policy::Frontend { address: frontend.address, port: frontend.port, protocol })
}
