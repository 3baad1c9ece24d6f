//! The writer's thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use podgate_bpf::handshake::{EndpointRef, Response};
use podgate_bpf::maps::Net;
use podgate_policy::compile::EndpointId;
use podgate_policy::engine::{Engine, Part, Touched};
use tokio::sync::oneshot;

use super::endpoints::{Delta, Endpoints};
use super::services::Nodes;
use super::standing::Observe;
use super::waiting::{Standing, Waiting};
use super::{Answers, Message, Question};
use crate::sources::Store;
use crate::sync::left::LeftAlone;
use crate::sync::services::ServiceSync;
use crate::sync::{self, Adopted, Kernel, Owners};
use crate::view::{Commits, Shared};

/// How soon something that failed is tried again: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// All state of the thread.
pub(super) struct Run {
    pub(super) shared: Arc<Shared>,
    pub(super) store: Store,
    pub(super) endpoints: Endpoints,
    pub(super) kernel: Kernel,
    pub(super) services: ServiceSync,
    pub(super) left: LeftAlone,
    pub(super) engine: Engine,
    /// What the engine said is different, and the maps may not say yet.
    pending: Touched,
    /// As last told; `None` before the first time.
    pub(super) node_addresses: Option<Arc<BTreeSet<Net>>>,
    nodes: Nodes,
    waiting: Waiting,
    barriers: Vec<oneshot::Sender<()>>,
    questions: Vec<Question>,
    /// Something changed that the maps do not say yet.
    pub(super) dirty: bool,
    /// A first commit has put in force what the sources say.
    pub(super) ready: bool,
    pub(super) degraded: BTreeMap<EndpointId, String>,
    pub(super) stopped: Option<String>,
    retry: Option<Instant>,
    /// The next commit is one.
    retrying: bool,
    delay: Duration,
    /// Policy maps of endpoints that are gone may be left.
    litter: bool,
    pub(super) commits: Commits,
    observe: Observe,
}

impl Run {
    pub(super) fn adopt(
        shared: Arc<Shared>,
        sources: impl IntoIterator<Item = String>,
        observe: Observe,
    ) -> podgate_bpf::Result<Self> {
        let Adopted { kernel, registrations, engine } = Kernel::adopt(shared.gate.clone())?;
        let services = ServiceSync::adopt(shared.gate.clone(), &shared.node, shared.services)?;
        let left = LeftAlone::adopt(shared.gate.clone())?;
        let mut endpoints = Endpoints::default();
        endpoints.refresh_all(&shared.gate.maps)?;
        tracing::info!(
            endpoints = registrations.len(),
            enforced = kernel.shadow().tables.len(),
            peers = kernel.shadow().hosts.len(),
            nets = kernel.shadow().nets.len(),
            "took over the maps"
        );
        let run = Self {
            shared,
            store: Store::new(sources),
            endpoints,
            kernel,
            services,
            left,
            engine,
            pending: Touched::default(),
            node_addresses: None,
            // services must not be translated at a node's own addresses until the first message about these
            nodes: Nodes::new(crate::reconcile::addresses_now()),
            waiting: Waiting::default(),
            barriers: Vec::new(),
            questions: Vec::new(),
            dirty: true,
            ready: false,
            degraded: BTreeMap::new(),
            stopped: None,
            retry: None,
            retrying: false,
            delay: RETRY.0,
            litter: true,
            commits: Commits::default(),
            observe,
        };
        run.shared.publish(run.view());
        Ok(run)
    }

    pub(super) fn run(&mut self, inbox: &mpsc::Receiver<Message>) {
        loop {
            let wait = match (self.litter, self.retry) {
                (true, _) => Duration::from_millis(100),
                (false, Some(at)) => at.saturating_duration_since(Instant::now()),
                (false, None) => Duration::from_secs(3600),
            };
            let first = match inbox.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            if first.is_none() && self.litter {
                self.sweep();
            }
            for message in first.into_iter().chain(std::iter::from_fn(|| inbox.try_recv().ok())) {
                if let Message::Stop = message {
                    return;
                }
                self.take(message);
            }
            if self.retry.is_some_and(|at| at <= Instant::now()) {
                (self.retry, self.retrying, self.dirty) = (None, true, true);
            }
            self.assume();
            if self.dirty && self.store.synced() {
                self.commit();
            }
            self.shared.publish(self.view());
            self.answer();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Source(rank, update) => {
                let was = self.store.synced();
                let endpoints = &self.endpoints;
                let changed = self
                    .store
                    .take(rank, update, &mut self.shared.index_mut(), |pod| endpoints.has(pod));
                self.dirty |= changed || was != self.store.synced();
            }
            Message::Added { endpoints, reply } => self.added(endpoints, reply),
            Message::Removed(endpoints) => {
                for endpoint in endpoints {
                    self.refresh(endpoint.ifindex);
                }
            }
            Message::LinkGone(ifindex) => self.link_gone(ifindex),
            Message::NodeAddresses(addresses) => {
                self.dirty |= self.nodes.set_here(&addresses);
                self.set_node_addresses(addresses.nets());
            }
            Message::Sweep => {
                let delta = self.endpoints.refresh_all(&self.shared.gate.maps);
                self.follow(delta);
                self.litter = true;
            }
            Message::Barrier(reply) => self.barriers.push(reply),
            Message::Ask(question) => self.questions.push(question),
            Message::Stop => {}
        }
    }

    fn added(&mut self, endpoints: Vec<EndpointRef>, reply: oneshot::Sender<Response>) {
        for endpoint in &endpoints {
            self.refresh(endpoint.ifindex);
            let known = self.endpoints.get(EndpointId(endpoint.ifindex));
            if known.is_none_or(|known| known.owner != endpoint.owner) {
                let message = format!(
                    "program interface {}: it has no registration {}",
                    endpoint.ifindex, endpoint.owner
                );
                drop(reply.send(Response::Error { message }));
                return;
            }
        }
        self.waiting.push(endpoints, reply);
    }

    fn refresh(&mut self, ifindex: u32) {
        let delta = self.endpoints.refresh(&self.shared.gate.maps, EndpointId(ifindex));
        self.follow(delta);
    }

    fn follow(&mut self, delta: podgate_bpf::Result<Delta>) {
        let delta = match delta {
            Ok(delta) => delta,
            Err(error) => {
                tracing::error!(%error, "cannot read the registry, trying again at the next sweep");
                return;
            }
        };
        self.dirty |= delta.changed;
        self.litter |= !delta.gone.is_empty();
        for endpoint in delta.gone {
            self.kernel.forget(endpoint);
            self.degraded.remove(&endpoint);
        }
        for pod in delta.left {
            if !self.endpoints.has(&pod) {
                self.dirty |= self.store.release(&pod, &mut self.shared.index_mut());
            }
        }
    }

    /// The interface is gone without a DEL: what was pinned and registered for it goes too, so that
    /// nothing of it can serve the next interface with this number.
    fn link_gone(&mut self, ifindex: u32) {
        self.refresh(ifindex);
        let Some(registration) = self.endpoints.get(EndpointId(ifindex)).cloned() else { return };
        // Who said so looked a while ago. By now the number may be another's, and the gate that would go its.
        if if_nametoindex(registration.host_interface.as_str()) == Ok(ifindex) {
            return tracing::debug!(ifindex, "interface is there again");
        }
        tracing::info!(
            ifindex,
            interface = registration.host_interface,
            "interface is gone, forgetting its endpoint"
        );
        let endpoint = EndpointRef { ifindex, owner: registration.owner };
        if let Err(error) = self.shared.gate.take_away(endpoint) {
            tracing::error!(ifindex, %error, "cannot forget an endpoint, trying again at the next sweep");
        }
        self.refresh(ifindex);
    }

    /// New addresses first: while both are known, probes from either pass.
    fn set_node_addresses(&mut self, addresses: BTreeSet<Net>) {
        let maps = &self.shared.gate.maps;
        let present = match maps.node_nets() {
            Ok(present) => present,
            Err(error) => return tracing::error!(%error, "cannot read the node's addresses"),
        };
        // The plugin adds addresses of bridges that it sees before we do; what we have never seen is only
        // removed at the start, when it is of an earlier life of the node.
        let ours = self.node_addresses.as_deref().unwrap_or(&present);
        let gone: Vec<Net> = ours.difference(&addresses).copied().collect();
        let new: Vec<Net> = addresses.difference(&present).copied().collect();
        let mut failed = None;
        for address in &new {
            failed = failed.or(maps.add_node_net(*address).err());
        }
        for address in &gone {
            failed = failed.or(maps.remove_node_net(*address).err());
        }
        if !new.is_empty() || !gone.is_empty() {
            tracing::debug!(?new, ?gone, "the node's addresses changed");
            maps.control().bump_epoch();
        }
        match failed {
            // not taken as done: the next look at the addresses tries again
            Some(error) => tracing::error!(%error, "cannot write the node's addresses"),
            None => self.node_addresses = Some(Arc::new(addresses)),
        }
    }

    fn sweep(&mut self) {
        match self.kernel.sweep() {
            Ok(more) => self.litter = more | self.services.sweep(),
            Err(error) => {
                tracing::warn!(%error, "cannot remove policy maps of endpoints that are gone");
                self.litter = false;
            }
        }
    }

    fn commit(&mut self) {
        let started = Instant::now();
        let owners: Owners =
            self.endpoints.iter().map(|(id, registration)| (id, registration.owner)).collect();
        let held = self.follow_index(&owners);
        let change = sync::change(&self.engine, &self.pending, &owners);
        let Self { services, left, nodes, engine, pending, kernel, .. } = self;
        let owned = super::services::owned(engine, &owners);
        let compiled = (engine.compiled(), &*pending);
        {
            let mut index = self.shared.index_mut();
            let elsewhere = index.host_addresses();
            let cluster = (index.services_mut(), nodes, elsewhere);
            super::services::before((services, left), cluster, compiled, kernel, &owned);
        }
        let outcome = kernel.commit(&change, &owners, &held);
        let answered = super::services::after(services, left, compiled, &owned);
        // The last policyd may have been killed after a change and before its flows were told: nobody can see that now.
        if answered || self.commits.count == 0 {
            self.shared.gate.maps.control().bump_epoch();
        }
        self.litter |= self.services.is_littered();

        self.dirty = false;
        self.ready |= outcome.stopped.is_none();
        match outcome.stopped {
            None => self.pending = Touched::default(),
            // whoever waited in a transient class is still there, changed or not
            Some(_) => self.kernel.add_stranded(&mut self.pending),
        }
        outcome.degraded.keys().for_each(|endpoint| self.pending.table(*endpoint));
        let took = started.elapsed();
        self.commits.count += 1;
        self.commits.last = took;
        (self.observe)(took);
        for (endpoint, reason) in &outcome.degraded {
            if self.degraded.get(endpoint) != Some(reason) {
                let name = self.shared.view().name_of(endpoint.0);
                tracing::error!(
                    ifindex = endpoint.0,
                    endpoint = name,
                    reason,
                    "cannot program an endpoint"
                );
            }
        }
        if let Some(reason) = outcome.stopped.as_ref().filter(|_| self.stopped != outcome.stopped) {
            tracing::error!(
                reason,
                "cannot change the classes of addresses, the last policies stay in force"
            );
        }
        if outcome.is_complete() && self.services.is_complete() && self.left.is_complete() {
            (self.retry, self.delay) = (None, RETRY.0);
        } else {
            self.commits.incomplete += 1;
            // events that come meanwhile do not put it off
            if self.retry.is_none() {
                self.retry = Some(Instant::now() + self.delay);
                self.delay = (self.delay * 2).min(RETRY.1);
            }
        }
        tracing::debug!(
            steps = outcome.steps,
            swapped = outcome.swapped,
            endpoints = owners.len(),
            micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "committed"
        );
        (self.degraded, self.stopped) = (outcome.degraded, outcome.stopped);
    }

    /// Lets the engine follow what happened, and adds to what the maps may not say yet. Returns the endpoints that are
    /// not worth another try before the next retry.
    fn follow_index(&mut self, owners: &Owners) -> BTreeMap<EndpointId, String> {
        let first = self.commits.count == 0;
        if self.endpoints.take_changed() {
            self.engine.set_endpoints(self.endpoints.compile_input());
        }
        let changes = self.shared.index_mut().take_changes();
        let fresh = self.engine.update(&self.shared.index(), changes);
        let retries = std::mem::take(&mut self.retrying);
        let held = self
            .degraded
            .iter()
            .filter(|(endpoint, _)| !retries && fresh.tables.get(endpoint) != Some(&Part::Whole));
        let held = held.map(|(endpoint, reason)| (*endpoint, reason.clone())).collect();
        self.pending.merge(fresh);
        if first {
            // what an earlier policyd left counts as different, all of it
            let shadow = self.kernel.shadow();
            self.pending.hosts.extend(shadow.hosts.keys());
            self.pending.nets.extend(shadow.nets.keys());
        }
        for (endpoint, owner) in owners {
            if !self.kernel.in_force(*endpoint, *owner) || first {
                self.pending.table(*endpoint);
            }
        }
        held
    }

    fn answer(&mut self) {
        let Self { waiting, kernel, endpoints, degraded, ready, .. } = self;
        waiting.answer(|add| {
            let id = EndpointId(add.ifindex);
            if endpoints.get(id).is_none_or(|known| known.owner != add.owner) {
                let message =
                    format!("program interface {}: it was removed meanwhile", add.ifindex);
                return Standing::Failed(message);
            }
            match degraded.get(&id) {
                Some(reason) => {
                    Standing::Failed(format!("program interface {}: {reason}", add.ifindex))
                }
                None if *ready && kernel.in_force(id, add.owner) => Standing::InForce,
                None => Standing::NotYet,
            }
        });
        for barrier in self.barriers.drain(..) {
            let _ = barrier.send(());
        }
        if !self.questions.is_empty() {
            let index = self.shared.index();
            let answers = Answers { index: &index, engine: &self.engine, services: &self.services };
            for question in self.questions.drain(..) {
                question(&answers);
            }
        }
    }
}
