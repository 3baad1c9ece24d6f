//! From services and slices to what a packet meets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::Catalog;
use crate::model::{Condition, ObjectKey, Protocol, Service, ServicePort, TrafficPolicy};

/// What a pod sends to: an address of a service, a port and a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The service's address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// Where a frontend leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address, of the frontend's family.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// Which flows a backend is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendState {
    /// Those it has: it is not picked for new ones.
    Serving,
    /// New ones too.
    Ready,
}

/// The endpoints among which a frontend's flows are spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Whose frontend it is.
    pub service: ObjectKey,
    /// The service port's name, empty if it has none.
    pub port: Arc<str>,
    /// For how many seconds a client keeps its endpoint, if it does.
    pub affinity: Option<NonZeroU32>,
    /// At least one of them is [`BackendState::Ready`].
    pub backends: BTreeMap<Backend, BackendState>,
}

impl Balance {
    /// The backends that may be picked, in their order.
    pub fn ready(&self) -> impl Iterator<Item = Backend> + '_ {
        let ready = self.backends.iter().filter(|(_, state)| **state == BackendState::Ready);
        ready.map(|(backend, _)| *backend)
    }
}

/// A frontend that several services claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// Which.
    pub frontend: Frontend,
    /// Who has it: the first by name.
    pub winner: ObjectKey,
    /// Who does not.
    pub losers: Vec<ObjectKey>,
}

impl fmt::Display for Dispute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let losers: Vec<_> = self.losers.iter().map(ToString::to_string).collect();
        write!(
            f,
            "service {}: {} is also claimed by {}: the first by name has it, change the others' address or port",
            self.winner,
            self.frontend,
            losers.join(", ")
        )
    }
}

/// What each frontend of each service leads to, seen from one node. Follows a [`Catalog`]: an event of a service or
/// of one of its slices works out that service again and nothing else.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    node: Arc<str>,
    /// What each service has to say, whether or not it has the frontend; `None`: no usable endpoint.
    services: BTreeMap<ObjectKey, Answers>,
    /// Who claims a frontend; the first one has it. No empty sets.
    claims: BTreeMap<Frontend, BTreeSet<ObjectKey>>,
    /// Those of `claims` with more than one claimant.
    disputed: BTreeSet<Frontend>,
    changed: BTreeSet<Frontend>,
}

/// Where a frontend leads, if anywhere.
type Answer = Option<Arc<Balance>>;
type Answers = BTreeMap<Frontend, Answer>;

impl ServiceTable {
    /// An empty table of the node of this name (as slices name it).
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    /// A table of everything that a catalog holds.
    pub fn of(catalog: &Catalog, node: impl Into<Arc<str>>) -> Self {
        let mut table = Self::new(node);
        for service in catalog.services() {
            table.update(catalog, &service.key);
        }
        table
    }

    /// Works out again what was touched since the last time.
    pub fn follow(&mut self, catalog: &mut Catalog) {
        for service in catalog.take_touched() {
            self.update(catalog, &service);
        }
    }

    /// Works out one service.
    fn update(&mut self, catalog: &Catalog, key: &ObjectKey) {
        let new = catalog.service(key).map(|service| self.answers(catalog, service));
        let new = new.unwrap_or_default();
        let old = self.services.remove(key).unwrap_or_default();
        for frontend in old.keys().filter(|frontend| !new.contains_key(frontend)) {
            self.unclaim(*frontend, key);
        }
        for (frontend, answer) in &new {
            match old.get(frontend) {
                Some(before) if before == answer => {}
                Some(_) => self.note(*frontend, key),
                None => self.claim(*frontend, key),
            }
        }
        if !new.is_empty() {
            self.services.insert(key.clone(), new);
        }
    }

    fn claim(&mut self, frontend: Frontend, service: &ObjectKey) {
        let claims = self.claims.entry(frontend).or_default();
        claims.insert(service.clone());
        if claims.len() > 1 {
            self.disputed.insert(frontend);
        }
        self.note(frontend, service);
    }

    fn unclaim(&mut self, frontend: Frontend, service: &ObjectKey) {
        self.note(frontend, service);
        let Some(claims) = self.claims.get_mut(&frontend) else { return };
        claims.remove(service);
        if claims.len() < 2 {
            self.disputed.remove(&frontend);
        }
        if claims.is_empty() {
            self.claims.remove(&frontend);
        }
    }

    /// What a service says of a frontend changed: that matters if the frontend is its own.
    fn note(&mut self, frontend: Frontend, service: &ObjectKey) {
        if self.claims.get(&frontend).and_then(BTreeSet::first) == Some(service) {
            self.changed.insert(frontend);
        }
    }

    fn answers(&self, catalog: &Catalog, service: &Service) -> Answers {
        let cluster = service.addressing.cluster();
        if cluster.is_empty() {
            return Answers::new();
        }
        // From a pod, traffic to an external address is the node's own: whatever externalTrafficPolicy says, it
        // may go to any endpoint, as with kube-proxy.
        let external = service.external.iter().map(|address| (*address, TrafficPolicy::Cluster));
        let addresses: Vec<_> =
            external.chain(cluster.iter().map(|address| (*address, service.internal))).collect();
        let mut answers = Answers::new();
        for port in &service.ports {
            // addresses of one family and one policy share one answer
            let mut shared: Vec<((bool, TrafficPolicy), Answer)> = Vec::new();
            for (address, policy) in &addresses {
                let group = (address.is_ipv4(), *policy);
                let balance = match shared.iter().find(|(of, _)| *of == group) {
                    Some((_, balance)) => balance.clone(),
                    None => {
                        let balance = self.balance(catalog, service, port, group).map(Arc::new);
                        shared.push((group, balance.clone()));
                        balance
                    }
                };
                let frontend =
                    Frontend { address: *address, port: port.port, protocol: port.protocol };
                answers.insert(frontend, balance);
            }
        }
        answers
    }

    fn balance(
        &self,
        catalog: &Catalog,
        service: &Service,
        port: &ServicePort,
        (v4, policy): (bool, TrafficPolicy),
    ) -> Option<Balance> {
        let mut conditions: BTreeMap<Backend, Condition> = BTreeMap::new();
        for slice in catalog.slices_of(&service.key) {
            let numbers = slice
                .ports
                .iter()
                .filter(|of| of.name == port.name && of.protocol == port.protocol)
                .map(|of| of.number);
            for number in numbers {
                for endpoint in slice.endpoints.iter().filter(|of| of.address.is_ipv4() == v4) {
                    let here = endpoint.node.as_ref() == Some(&self.node);
                    if policy == TrafficPolicy::Local && !here {
                        continue;
                    }
                    let backend = Backend { address: endpoint.address, port: number };
                    // while a pod moves from one slice to another both have it: the better word counts
                    let known = conditions.entry(backend).or_insert(endpoint.condition);
                    *known = endpoint.condition.max(*known);
                }
            }
        }
        let best = conditions.values().copied().max()?;
        let usable = match best {
            Condition::Ready | Condition::Draining => best,
            Condition::Serving | Condition::Unready => return None,
        };
        let state = |condition: Condition| match condition {
            Condition::Unready => None,
            condition if condition >= usable => Some(BackendState::Ready),
            _ => Some(BackendState::Serving),
        };
        let backends = conditions.into_iter();
        Some(Balance {
            service: service.key.clone(),
            port: port.name.clone(),
            affinity: service.affinity,
            backends: backends.filter_map(|(backend, of)| Some((backend, state(of)?))).collect(),
        })
    }

    /// The frontends that lead elsewhere, to other backends, or nowhere, since the last call.
    pub fn take_changes(&mut self) -> BTreeSet<Frontend> {
        std::mem::take(&mut self.changed)
    }

    /// Where a frontend leads; `None` if it is none, or left alone.
    pub fn get(&self, frontend: &Frontend) -> Option<&Arc<Balance>> {
        let owner = self.claims.get(frontend)?.first()?;
        self.services.get(owner)?.get(frontend)?.as_ref()
    }

    /// Every frontend that leads somewhere, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (Frontend, &Arc<Balance>)> {
        self.claims.keys().filter_map(|frontend| Some((*frontend, self.get(frontend)?)))
    }

    /// The frontends of a service, and where each leads. Those that another service has are not among them.
    pub fn of_service<'a>(
        &'a self,
        service: &'a ObjectKey,
    ) -> impl Iterator<Item = (Frontend, Option<&'a Arc<Balance>>)> {
        let answers = self.services.get(service).into_iter().flatten();
        answers
            .filter(|(frontend, _)| {
                self.claims.get(frontend).and_then(BTreeSet::first) == Some(service)
            })
            .map(|(frontend, balance)| (*frontend, balance.as_ref()))
    }

    /// How many services have frontends, usable or not.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// The frontends that several services claim.
    pub fn disputes(&self) -> impl Iterator<Item = Dispute> + '_ {
        self.disputed.iter().filter_map(|frontend| {
            let mut claims = self.claims.get(frontend)?.iter().cloned();
            let winner = claims.next()?;
            Some(Dispute { frontend: *frontend, winner, losers: claims.collect() })
        })
    }
}
