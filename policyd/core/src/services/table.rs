//! From services and slices to what a packet meets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::backends::{Spread, balance, reachable};
use super::{Balance, Catalog, Claims, Dispute, Frontend, Left, LeftReason, LeftSet};
use crate::model::{ObjectKey, Protocol, Service, ServicePort, TrafficPolicy};

/// What each frontend of each service leads to, seen from one node. Follows a [`Catalog`]: an event of a service or
/// of one of its slices works out that service again and nothing else.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    node: Arc<str>,
    view: View,
    /// What each service has to say, whether or not it has the frontend.
    services: BTreeMap<ObjectKey, OfService>,
    /// Who claims a frontend that the gate can translate; the first one has it. No empty sets.
    claims: BTreeMap<Frontend, BTreeSet<ObjectKey>>,
    /// Those of `claims` with more than one claimant.
    disputed: BTreeSet<Frontend>,
    /// Those of `claims` that lead nowhere.
    nowhere: BTreeSet<Frontend>,
    /// The services with something to say of addresses that the gate never translates, node ports included.
    leaving: BTreeSet<ObjectKey>,
    changed: BTreeSet<Frontend>,
    left_changed: bool,
}

/// What a node knows of addresses, besides services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Nothing is translated at the gates.
    pub leaves_all: bool,
    /// The node's own addresses, without those that kube-proxy put there itself.
    pub own: Arc<BTreeSet<IpAddr>>,
    /// The addresses of all nodes, as far as they are known: where node ports are.
    pub nodes: Arc<BTreeSet<IpAddr>>,
}

/// Where a frontend leads, if anywhere.
type Answer = Option<Arc<Balance>>;

/// What one service has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OfService {
    /// What its addresses lead to, those that the gate can translate; `None`: no usable endpoint.
    answers: BTreeMap<Frontend, Answer>,
    /// The addresses of those that are the service's own, as opposed to a balancer's and the like.
    cluster: Vec<IpAddr>,
    /// Its other addresses.
    left: BTreeMap<Frontend, Arc<Left>>,
    /// Its node ports: IPv4 or not, protocol, number.
    node_ports: BTreeMap<(bool, Protocol, u16), Arc<Left>>,
}

impl OfService {
    fn leaves(&self) -> bool {
        !self.left.is_empty() || !self.node_ports.is_empty()
    }
}

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

    /// What the node knows of addresses is different.
    pub fn set_view(&mut self, view: View) {
        if self.view == view {
            return;
        }
        let before = std::mem::replace(&mut self.view, view);
        let moved: Vec<IpAddr> = before.own.symmetric_difference(&self.view.own).copied().collect();
        for address in moved {
            let frontends = self.at(address).collect::<Vec<_>>();
            self.changed.extend(frontends);
        }
        self.left_changed = true;
    }

    /// What the node knows of addresses.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The claimed frontends of an address.
    fn at(&self, address: IpAddr) -> impl Iterator<Item = Frontend> + '_ {
        let first = Frontend { address, port: 0, protocol: Protocol::Tcp };
        let from = self.claims.range(first..).map(|(frontend, _)| *frontend);
        from.take_while(move |frontend| frontend.address == address)
    }

    /// Works out one service.
    fn update(&mut self, catalog: &Catalog, key: &ObjectKey) {
        let new = catalog.service(key).map(|service| self.of_one(catalog, service));
        let new = new.unwrap_or_default();
        let old = self.services.remove(key).unwrap_or_default();
        for frontend in old.answers.keys().filter(|of| !new.answers.contains_key(of)) {
            self.unclaim(*frontend, key);
        }
        for (frontend, answer) in &new.answers {
            match old.answers.get(frontend) {
                Some(before) if before == answer => {}
                Some(_) => self.note(*frontend, key),
                None => self.claim(*frontend, key),
            }
        }
        if new.leaves() {
            self.leaving.insert(key.clone());
        } else {
            self.leaving.remove(key);
        }
        self.left_changed |= self.view.leaves_all && old.answers != new.answers
            || old.left != new.left
            || old.node_ports != new.node_ports
            || old.cluster != new.cluster;
        let frontends: Vec<Frontend> =
            old.answers.keys().chain(new.answers.keys()).copied().collect();
        if new != OfService::default() {
            self.services.insert(key.clone(), new);
        }
        for frontend in frontends {
            let leads = !self.claims.contains_key(&frontend) || self.get(&frontend).is_some();
            let other = match leads {
                true => self.nowhere.remove(&frontend),
                false => self.nowhere.insert(frontend),
            };
            self.left_changed |= other || self.view.own.contains(&frontend.address);
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

    fn of_one(&self, catalog: &Catalog, service: &Service) -> OfService {
        let cluster = service.addressing.cluster();
        let mut of = OfService::default();
        if cluster.is_empty() {
            return of;
        }
        of.cluster = cluster.to_vec();
        for port in &service.ports {
            self.node_ports(catalog, (service, port), &mut of);
            if service.other_proxy {
                let all = cluster.iter().chain(&service.external).chain(&service.guarded);
                let reason = LeftReason::OtherProxy;
                leave(catalog, (service, port), all, reason, &mut of);
            } else {
                self.answers(catalog, (service, port), &mut of);
                let reason = LeftReason::SourceRanges;
                leave(catalog, (service, port), service.guarded.iter(), reason, &mut of);
            }
        }
        of
    }

    fn node_ports(&self, catalog: &Catalog, of: (&Service, &ServicePort), found: &mut OfService) {
        let Some(number) = of.1.node_port else { return };
        for v4 in [true, false] {
            if found.cluster.iter().any(|address| address.is_ipv4() == v4) {
                let left = left(catalog, of, v4, LeftReason::NodePort);
                found.node_ports.insert((v4, of.1.protocol, number), Arc::new(left));
            }
        }
    }

    fn answers(&self, catalog: &Catalog, of: (&Service, &ServicePort), found: &mut OfService) {
        let (service, port) = of;
        // From a pod, traffic to an external address is the node's own: whatever externalTrafficPolicy says, it
        // may go to any endpoint, as with kube-proxy.
        let external = service.external.iter().map(|address| (*address, TrafficPolicy::Cluster));
        let cluster = service.addressing.cluster().iter();
        let addresses = external.chain(cluster.map(|address| (*address, service.internal)));
        // addresses of one family and one policy share one answer
        let mut shared: Vec<((bool, TrafficPolicy), Answer)> = Vec::new();
        for (address, policy) in addresses {
            let group = (address.is_ipv4(), policy);
            let answer = match shared.iter().find(|(of, _)| *of == group) {
                Some((_, answer)) => answer.clone(),
                None => {
                    let answer = balance(catalog, &self.node, of, group).map(Arc::new);
                    shared.push((group, answer.clone()));
                    answer
                }
            };
            let frontend = Frontend { address, port: port.port, protocol: port.protocol };
            found.answers.insert(frontend, answer);
        }
    }

    /// The frontends that lead elsewhere, to other backends, or nowhere, since the last call.
    pub fn take_changes(&mut self) -> BTreeSet<Frontend> {
        std::mem::take(&mut self.changed)
    }

    /// Whether [`ServiceTable::left`] may be another one since the last call.
    pub fn take_left_changed(&mut self) -> bool {
        std::mem::take(&mut self.left_changed)
    }

    /// Where a frontend leads; `None` if it is none, or leads nowhere.
    pub fn get(&self, frontend: &Frontend) -> Option<&Arc<Balance>> {
        let owner = self.claims.get(frontend)?.first()?;
        self.services.get(owner)?.answers.get(frontend)?.as_ref()
    }

    /// Where the gate is to send packets for a frontend; `None` if they are left as they are.
    pub fn translated(&self, frontend: &Frontend) -> Option<&Arc<Balance>> {
        let leaves = self.view.leaves_all || self.is_node_local(frontend);
        self.get(frontend).filter(|_| !leaves)
    }

    /// Whether a frontend is at a service's own address which the node has on an interface, as NodeLocal DNSCache puts
    /// it there. External addresses are not meant: kube-proxy translates those although they are the node's.
    fn is_node_local(&self, frontend: &Frontend) -> bool {
        let owner = self.claims.get(frontend).and_then(BTreeSet::first);
        let of = owner.and_then(|owner| self.services.get(owner));
        of.is_some_and(|of| self.is_local_to(of, frontend))
    }

    fn is_local_to(&self, of: &OfService, frontend: &Frontend) -> bool {
        let address = &frontend.address;
        self.view.own.contains(address) && of.cluster.contains(address)
    }

    /// The same for an address that the gate never translates.
    fn node_local(&self, of: &OfService, frontend: &Frontend, left: &Arc<Left>) -> Arc<Left> {
        match self.is_local_to(of, frontend) {
            true => Arc::new(Left { reason: LeftReason::NodeLocal, ..(**left).clone() }),
            false => left.clone(),
        }
    }

    /// What is left alone, and to what it may lead.
    pub fn left(&self) -> LeftSet {
        let mut set = LeftSet { nodes: (*self.view.nodes).clone(), ..LeftSet::default() };
        let mut add = |frontend: Frontend, left: Arc<Left>| {
            let ports = set.ports.entry(frontend.address).or_default();
            ports.entry((frontend.protocol, frontend.port)).or_default().push(left);
        };
        let all = self.claims.keys().filter(|_| self.view.leaves_all).copied();
        let own = self.view.own.iter().flat_map(|address| self.at(*address));
        let frontends: BTreeSet<Frontend> =
            all.chain(own).chain(self.nowhere.iter().copied()).collect();
        for frontend in frontends {
            self.untranslated(&frontend).into_iter().for_each(|left| add(frontend, left));
        }
        for of in self.leaving.iter().filter_map(|key| self.services.get(key)) {
            for (frontend, left) in &of.left {
                // where another service has the frontend, nobody behind the gate sees it
                if self.translated(frontend).is_none() {
                    add(*frontend, self.node_local(of, frontend, left));
                }
            }
            for ((v4, protocol, number), left) in &of.node_ports {
                let ports = set.node_ports.entry(*v4).or_default();
                ports.entry((*protocol, *number)).or_default().push(left.clone());
            }
        }
        set
    }

    /// The services that a frontend may lead to behind the gate; none if it is translated, or is none.
    pub fn left_at(&self, frontend: &Frontend) -> Claims {
        let mut claims = self.untranslated(frontend);
        let is_node = self.view.nodes.contains(&frontend.address);
        let node_port = (frontend.address.is_ipv4(), frontend.protocol, frontend.port);
        let translated = self.translated(frontend).is_some();
        for of in self.leaving.iter().filter_map(|key| self.services.get(key)) {
            let left = of.left.get(frontend).filter(|_| !translated);
            claims.extend(left.map(|left| self.node_local(of, frontend, left)));
            let at_node = of.node_ports.get(&node_port).filter(|_| is_node && !translated);
            claims.extend(at_node.cloned());
        }
        claims
    }

    /// What a claimed frontend that is not translated may lead to: behind the gate each claimant may be the one that has it.
    fn untranslated(&self, frontend: &Frontend) -> Claims {
        if self.translated(frontend).is_some() {
            return Claims::new();
        }
        let claims = self.claims.get(frontend).into_iter().flatten();
        let left = |key: &ObjectKey| {
            let of = self.services.get(key)?;
            let balance = of.answers.get(frontend)?.as_ref();
            let reason = match balance {
                _ if self.is_local_to(of, frontend) => LeftReason::NodeLocal,
                None => LeftReason::NoEndpoint,
                Some(_) if self.view.leaves_all => LeftReason::AllAre,
                Some(_) => LeftReason::Disputed,
            };
            let backends = balance.into_iter().flat_map(|balance| balance.ready()).collect();
            Some(Arc::new(Left { service: key.clone(), reason, backends, sources: None }))
        };
        claims.filter_map(left).collect()
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
        let of = self.services.get(service).into_iter().flat_map(|of| &of.answers);
        of.filter(|(frontend, _)| {
            self.claims.get(frontend).and_then(BTreeSet::first) == Some(service)
        })
        .map(|(frontend, balance)| (*frontend, balance.as_ref()))
    }

    /// The frontends of a service that the gate never translates, and what each may lead to.
    pub fn left_of_service(
        &self,
        service: &ObjectKey,
    ) -> impl Iterator<Item = (Frontend, &Arc<Left>)> {
        let of = self.services.get(service).into_iter().flat_map(|of| &of.left);
        of.map(|(frontend, left)| (*frontend, left))
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

/// Addresses of a service port that the gate never translates.
fn leave<'a>(
    catalog: &Catalog,
    of: (&Service, &ServicePort),
    addresses: impl Iterator<Item = &'a IpAddr>,
    reason: LeftReason,
    found: &mut OfService,
) {
    let mut shared: Vec<(bool, Arc<Left>)> = Vec::new();
    for address in addresses {
        let v4 = address.is_ipv4();
        let left = match shared.iter().find(|(of, _)| *of == v4) {
            Some((_, left)) => left.clone(),
            None => {
                let new = Arc::new(left(catalog, of, v4, reason));
                shared.push((v4, new.clone()));
                new
            }
        };
        let frontend = Frontend { address: *address, port: of.1.port, protocol: of.1.protocol };
        found.left.insert(frontend, left);
    }
}

/// What a service port may lead to at addresses of one family that are left alone.
fn left(catalog: &Catalog, of: (&Service, &ServicePort), v4: bool, reason: LeftReason) -> Left {
    let service = of.0;
    let spread = match service.inbound {
        _ if service.other_proxy => Spread::Unknown,
        TrafficPolicy::Cluster => Spread::Cluster,
        TrafficPolicy::Local => Spread::Node,
    };
    let guarded = reason == LeftReason::SourceRanges;
    Left {
        service: service.key.clone(),
        reason,
        backends: reachable(catalog, of, v4, spread),
        sources: guarded.then(|| service.source_ranges.clone()),
    }
}
