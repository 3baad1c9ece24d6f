//! The writer's thread.

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use podgate_bpf::maps::Net;
use podgate_contract::handshake::{EndpointRef, Response};
use podgate_policy::compile::{Engine, EngineDelta};
use podgate_policy::tables::EndpointId;
use tokio::sync::oneshot;

use super::Observe;
use super::endpoints::{Endpoints, RegistryDelta};
use super::nodes::Nodes;
use super::pending_adds::{PendingAdds, ProgramState};
use super::{Message, Query, QueryContext};
use crate::backoff::Backoff;
use crate::local_rules::LocalUpdate;
use crate::snapshot::{Commits, NodeState};
use crate::sources::Store;
use crate::sync::{Desired, Failed, MapSync, Owners};

/// Delays before a failed commit is retried.
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// The state of the thread.
pub(super) struct WriterLoop {
    pub(super) shared: Arc<NodeState>,
    pub(super) store: Store,
    pub(super) endpoints: Endpoints,
    pub(super) engine: Engine,
    pub(super) maps: MapSync,
    /// The last ones received; `None` before the first message.
    pub(super) node_addresses: Option<Arc<BTreeSet<Net>>>,
    nodes: Nodes,
    pending_adds: PendingAdds,
    settle_waiters: Vec<oneshot::Sender<()>>,
    queries: Vec<Query>,
    /// Something has changed that the maps do not have yet.
    pub(super) dirty: bool,
    /// A first commit has put the sources' objects in force.
    pub(super) ready: bool,
    retry: Option<Instant>,
    /// What the next commit does with endpoints that failed before.
    failed: Failed,
    backoff: Backoff,
    /// Maps of endpoints that are gone may remain to be removed.
    gc_pending: bool,
    pub(super) commits: Commits,
    observe: Observe,
}

impl WriterLoop {
    pub(super) fn recover(
        shared: Arc<NodeState>,
        sources: impl IntoIterator<Item = String>,
        observe: Observe,
    ) -> podgate_bpf::Result<Self> {
        let (maps, engine) =
            MapSync::recover(shared.datapath.clone(), &shared.node, shared.services)?;
        let mut endpoints = Endpoints::default();
        endpoints.refresh_all(&shared.datapath.maps)?;
        let run = Self {
            shared,
            store: Store::new(sources),
            endpoints,
            engine,
            maps,
            node_addresses: None,
            // services must not be translated at a node's own addresses until the first message about these
            nodes: Nodes::new(crate::reconcile::addresses_now()),
            pending_adds: PendingAdds::default(),
            settle_waiters: Vec::new(),
            queries: Vec::new(),
            dirty: true,
            ready: false,
            retry: None,
            failed: Failed::Hold,
            backoff: RETRY_BACKOFF,
            gc_pending: true,
            commits: Commits::default(),
            observe,
        };
        run.shared.publish(run.snapshot());
        Ok(run)
    }

    pub(super) fn run(&mut self, inbox: &mpsc::Receiver<Message>) {
        loop {
            let wait = match (self.gc_pending, self.retry) {
                (true, _) => Duration::from_millis(100),
                (false, Some(at)) => at.saturating_duration_since(Instant::now()),
                (false, None) => Duration::from_secs(3600),
            };
            let first = match inbox.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            if first.is_none() && self.gc_pending {
                self.sweep();
            }
            for message in first.into_iter().chain(std::iter::from_fn(|| inbox.try_recv().ok())) {
                if let Message::Stop = message {
                    return;
                }
                self.take(message);
            }
            if self.retry.is_some_and(|at| at <= Instant::now()) {
                (self.retry, self.failed, self.dirty) = (None, Failed::Retry, true);
            }
            self.set_placeholder_pods();
            if self.dirty && self.store.synced() {
                self.commit();
            }
            self.shared.publish(self.snapshot());
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
            Message::Local(update) => {
                let mut index = self.shared.index_mut();
                self.dirty |= match update {
                    LocalUpdate::Pod(rules) if rules.is_empty() => {
                        index.remove_local_rules(&rules.pod)
                    }
                    LocalUpdate::Pod(rules) => index.set_local_rules(rules),
                    LocalUpdate::Node(defaults) => index.set_local_defaults(defaults),
                };
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
                let delta = self.endpoints.refresh_all(&self.shared.datapath.maps);
                self.follow(delta);
                self.gc_pending = true;
            }
            Message::Settle(reply) => self.settle_waiters.push(reply),
            Message::Query(question) => self.queries.push(question),
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
        self.pending_adds.push(endpoints, reply);
    }

    fn refresh(&mut self, ifindex: u32) {
        let delta = self.endpoints.refresh(&self.shared.datapath.maps, EndpointId(ifindex));
        self.follow(delta);
    }

    fn follow(&mut self, delta: podgate_bpf::Result<RegistryDelta>) {
        let delta = match delta {
            Ok(delta) => delta,
            Err(error) => {
                tracing::error!(%error, "cannot read the endpoints, trying again at the next sweep");
                return;
            }
        };
        self.dirty |= delta.changed;
        self.gc_pending |= !delta.gone.is_empty();
        for endpoint in delta.gone {
            self.maps.forget(endpoint);
        }
        for pod in delta.detached {
            if !self.endpoints.has(&pod) {
                self.dirty |= self.store.release(&pod, &mut self.shared.index_mut());
            }
        }
    }

    /// The interface is gone without a DEL: removes its pins and its registration, so that the next interface with this
    /// number cannot inherit them.
    fn link_gone(&mut self, ifindex: u32) {
        self.refresh(ifindex);
        let Some(registration) = self.endpoints.get(EndpointId(ifindex)).cloned() else { return };
        // The message may be old: by now another interface may have the number, and the gate may be that one's.
        if if_nametoindex(registration.host_interface.as_str()) == Ok(ifindex) {
            return tracing::debug!(ifindex, "interface is there again");
        }
        tracing::info!(
            ifindex,
            interface = registration.host_interface,
            "interface is gone, forgetting its endpoint"
        );
        let endpoint = EndpointRef { ifindex, owner: registration.owner };
        if let Err(error) = self.shared.datapath.remove_endpoint(endpoint) {
            tracing::error!(ifindex, %error, "cannot forget an endpoint, trying again at the next sweep");
        }
        self.refresh(ifindex);
    }

    /// Adds new addresses before it removes old ones: meanwhile probes from either pass.
    fn set_node_addresses(&mut self, addresses: BTreeSet<Net>) {
        let maps = &self.shared.datapath.maps;
        let present = match maps.node_nets() {
            Ok(present) => present,
            Err(error) => return tracing::error!(%error, "cannot read the node's addresses"),
        };
        // The plugin may add the address of a bridge before policyd has seen it. So addresses that policyd has never
        // seen are removed only at the start, when they are left from an earlier run.
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
            // not recorded as done: the next message about addresses tries again
            Some(error) => tracing::error!(%error, "cannot write the node's addresses"),
            None => self.node_addresses = Some(Arc::new(addresses)),
        }
    }

    fn sweep(&mut self) {
        match self.maps.sweep() {
            Ok(more) => self.gc_pending = more,
            Err(error) => {
                tracing::warn!(%error, "cannot remove policy maps of endpoints that are gone");
                self.gc_pending = false;
            }
        }
    }

    fn commit(&mut self) {
        let started = Instant::now();
        let owners: Owners =
            self.endpoints.iter().map(|(id, registration)| (id, registration.owner)).collect();
        let fresh = self.follow_index();
        let failed = std::mem::take(&mut self.failed);
        let desired = Desired { engine: &self.engine, fresh, owners: &owners, failed };
        let done = self.maps.commit(desired);
        self.gc_pending |= self.maps.has_garbage();

        self.dirty = false;
        self.ready |= self.maps.stopped().is_none();
        let took = started.elapsed();
        self.commits.count += 1;
        self.commits.last = took;
        (self.observe)(took);
        for (endpoint, reason) in &done.newly_degraded {
            let name = self.shared.snapshot().name_of(endpoint.0);
            tracing::error!(
                ifindex = endpoint.0,
                endpoint = name,
                reason,
                "cannot program an endpoint"
            );
        }
        if let Some(reason) = &done.newly_stopped {
            tracing::error!(
                reason,
                "cannot change the classes of addresses, the last policies stay in force"
            );
        }
        if done.is_complete {
            self.retry = None;
            self.backoff.reset();
        } else {
            self.commits.incomplete += 1;
            // events in the meantime do not postpone it
            if self.retry.is_none() {
                self.retry = Some(Instant::now() + self.backoff.next_delay());
            }
        }
        tracing::debug!(
            steps = done.steps,
            swapped = done.swapped,
            endpoints = owners.len(),
            micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "committed"
        );
    }

    /// Lets the engine and the services follow the index. Returns what has changed in the engine.
    fn follow_index(&mut self) -> EngineDelta {
        if self.endpoints.take_changed() {
            let endpoints = self.endpoints.compile_input();
            self.maps.limits_mut().set_endpoints(&endpoints);
            self.engine.set_endpoints(endpoints);
        }
        let changes = {
            let mut index = self.shared.index_mut();
            self.nodes.update(index.host_addresses(), &mut self.maps);
            self.maps.follow_services(&mut index);
            index.take_changes()
        };
        let index = self.shared.index();
        self.maps.limits_mut().follow(&index, &changes);
        self.maps.follow_scopes(&index, &changes);
        self.engine.update(&index, changes)
    }

    fn answer(&mut self) {
        let Self { pending_adds, maps, endpoints, ready, .. } = self;
        pending_adds.answer(|add| {
            let id = EndpointId(add.ifindex);
            if endpoints.get(id).is_none_or(|known| known.owner != add.owner) {
                let message =
                    format!("program interface {}: it was removed meanwhile", add.ifindex);
                return ProgramState::Failed(message);
            }
            match maps.degraded(id) {
                Some(reason) => {
                    ProgramState::Failed(format!("program interface {}: {reason}", add.ifindex))
                }
                None if *ready && maps.in_force(id, add.owner) => ProgramState::InForce,
                None => ProgramState::Pending,
            }
        });
        for barrier in self.settle_waiters.drain(..) {
            let _ = barrier.send(());
        }
        if !self.queries.is_empty() {
            let index = self.shared.index();
            let context = QueryContext {
                index: &index,
                engine: &self.engine,
                services: self.maps.services(),
            };
            for query in self.queries.drain(..) {
                query(&context);
            }
        }
    }
}
