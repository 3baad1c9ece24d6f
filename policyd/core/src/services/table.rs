//! From services and slices to frontends and their backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::backends::{Spread, backend_set, reachable};
use super::locality::Place;
use super::{
    BackendSet, Catalog, Claims, Dispute, Frontend, Untranslated, UntranslatedReason,
    UntranslatedSet,
};
use crate::model::{ObjectKey, Protocol, Service, ServicePort, TrafficPolicy};

/// The backends of every frontend, as seen from one node. Follows a [`Catalog`]: an event of a service or of one of its
/// slices recomputes that service and nothing else.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    place: Place,
    context: NodeContext,
    /// The frontends that each service claims, whether or not it is the one that has them.
    services: BTreeMap<ObjectKey, ServiceFrontends>,
    /// The services that claim a frontend that can be translated; the first by name has it. No empty sets.
    claims: BTreeMap<Frontend, BTreeSet<ObjectKey>>,
    /// Those of `claims` with more than one claimant.
    disputed: BTreeSet<Frontend>,
    /// Those of `claims` without a backend.
    without_backend: BTreeSet<Frontend>,
    /// The services with addresses that are never translated, node ports included.
    with_untranslated: BTreeSet<ObjectKey>,
    changed: BTreeSet<Frontend>,
    untranslated_changed: bool,
}

/// What decides on this node, besides the services themselves, whether an address is translated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeContext {
    /// No service is translated: `--services leave`.
    pub translation_off: bool,
    /// The node's own addresses, without those that kube-proxy put there itself.
    pub own: Arc<BTreeSet<IpAddr>>,
    /// The addresses of all nodes, as far as they are known: where node ports are.
    pub nodes: Arc<BTreeSet<IpAddr>>,
}

/// The backends of a frontend, if it has any.
type Backends = Option<Arc<BackendSet>>;

/// The frontends of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ServiceFrontends {
    /// The frontends that can be translated; `None`: no usable backend.
    frontends: BTreeMap<Frontend, Backends>,
    /// The cluster addresses among them, as opposed to those of load balancers and external ones.
    cluster: Vec<IpAddr>,
    /// Frontends at addresses that are never translated.
    untranslated: BTreeMap<Frontend, Arc<Untranslated>>,
    /// Its node ports: IPv4 or not, protocol, number.
    node_ports: BTreeMap<(bool, Protocol, u16), Arc<Untranslated>>,
}

impl ServiceFrontends {
    fn has_untranslated(&self) -> bool {
        !self.untranslated.is_empty() || !self.node_ports.is_empty()
    }
}

impl ServiceTable {
    /// An empty table of the node of this name (as slices name it).
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self { place: Place { node: node.into(), zone: None }, ..Self::default() }
    }

    /// A table of everything that a catalog holds.
    pub fn of(catalog: &Catalog, node: impl Into<Arc<str>>) -> Self {
        let mut table = Self::new(node);
        for service in catalog.services() {
            table.update(catalog, &service.key);
        }
        table
    }

    /// The node's name, as slices give it.
    pub fn node(&self) -> &str {
        &self.place.node
    }

    /// Recomputes the services that changed in the catalog since the last call.
    pub fn follow(&mut self, catalog: &mut Catalog) {
        for service in catalog.take_touched() {
            self.update(catalog, &service);
        }
    }

    /// Sets the context of the node.
    pub fn set_node_context(&mut self, context: NodeContext) {
        if self.context == context {
            return;
        }
        let before = std::mem::replace(&mut self.context, context);
        let moved: Vec<IpAddr> =
            before.own.symmetric_difference(&self.context.own).copied().collect();
        for address in moved {
            let frontends = self.at(address).collect::<Vec<_>>();
            self.changed.extend(frontends);
        }
        self.untranslated_changed = true;
    }

    /// Sets the node's zone, as hints name it; `None`: it has none. Recomputes the services with zone hints if it changed.
    pub fn set_zone(&mut self, catalog: &Catalog, zone: Option<Arc<str>>) {
        if self.place.zone == zone {
            return;
        }
        self.place.zone = zone;
        let hinted = |service: &ObjectKey| {
            let mut endpoints = catalog.slices_of(service).flat_map(|slice| &slice.endpoints);
            endpoints.any(|endpoint| !endpoint.hints.zones.is_empty())
        };
        let hinted: Vec<ObjectKey> =
            self.services.keys().filter(|service| hinted(service)).cloned().collect();
        for service in &hinted {
            self.update(catalog, service);
        }
    }

    /// The claimed frontends of an address.
    fn at(&self, address: IpAddr) -> impl Iterator<Item = Frontend> + '_ {
        let first = Frontend { address, port: 0, protocol: Protocol::Tcp };
        let from = self.claims.range(first..).map(|(frontend, _)| *frontend);
        from.take_while(move |frontend| frontend.address == address)
    }

    /// Recomputes one service.
    fn update(&mut self, catalog: &Catalog, key: &ObjectKey) {
        let new = catalog.service(key).map(|service| self.of_one(catalog, service));
        let new = new.unwrap_or_default();
        let old = self.services.remove(key).unwrap_or_default();
        for frontend in old.frontends.keys().filter(|of| !new.frontends.contains_key(of)) {
            self.unclaim(*frontend, key);
        }
        for (frontend, backends) in &new.frontends {
            match old.frontends.get(frontend) {
                Some(before) if before == backends => {}
                Some(_) => self.note(*frontend, key),
                None => self.claim(*frontend, key),
            }
        }
        if new.has_untranslated() {
            self.with_untranslated.insert(key.clone());
        } else {
            self.with_untranslated.remove(key);
        }
        self.untranslated_changed |= self.context.translation_off && old.frontends != new.frontends
            || old.untranslated != new.untranslated
            || old.node_ports != new.node_ports
            || old.cluster != new.cluster;
        let frontends: BTreeMap<Frontend, bool> = (old
            .frontends
            .keys()
            .chain(new.frontends.keys()))
        .map(|frontend| (*frontend, old.frontends.get(frontend) != new.frontends.get(frontend)))
        .collect();
        if new != ServiceFrontends::default() {
            self.services.insert(key.clone(), new);
        }
        for (frontend, differs) in frontends {
            let leads = !self.claims.contains_key(&frontend) || self.get(&frontend).is_some();
            let other = match leads {
                true => self.without_backend.remove(&frontend),
                false => self.without_backend.insert(frontend),
            };
            // where the service that has it leads nowhere, a proxy may go by any of the others
            self.untranslated_changed |=
                other || differs && !leads || self.context.own.contains(&frontend.address);
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

    /// A service's backends at a frontend changed: a change of the frontend if the service is the one that has it.
    fn note(&mut self, frontend: Frontend, service: &ObjectKey) {
        if self.claims.get(&frontend).and_then(BTreeSet::first) == Some(service) {
            self.changed.insert(frontend);
        }
    }

    fn of_one(&self, catalog: &Catalog, service: &Service) -> ServiceFrontends {
        let cluster = service.addressing.cluster();
        let mut of = ServiceFrontends::default();
        if cluster.is_empty() {
            return of;
        }
        of.cluster = cluster.to_vec();
        for port in &service.ports {
            self.node_ports(catalog, (service, port), &mut of);
            if service.other_proxy {
                let all = cluster.iter().chain(&service.external).chain(&service.guarded);
                let reason = UntranslatedReason::OtherProxy;
                add_untranslated(catalog, (service, port), all, reason, &mut of);
            } else {
                self.frontends(catalog, (service, port), &mut of);
                let reason = UntranslatedReason::SourceRanges;
                add_untranslated(catalog, (service, port), service.guarded.iter(), reason, &mut of);
            }
        }
        of
    }

    fn node_ports(
        &self,
        catalog: &Catalog,
        of: (&Service, &ServicePort),
        found: &mut ServiceFrontends,
    ) {
        let Some(number) = of.1.node_port else { return };
        for v4 in [true, false] {
            if found.cluster.iter().any(|address| address.is_ipv4() == v4) {
                let vip = untranslated(catalog, of, v4, UntranslatedReason::NodePort);
                found.node_ports.insert((v4, of.1.protocol, number), Arc::new(vip));
            }
        }
    }

    fn frontends(
        &self,
        catalog: &Catalog,
        of: (&Service, &ServicePort),
        found: &mut ServiceFrontends,
    ) {
        let (service, port) = of;
        // From a pod, traffic to an external address counts as local to the cluster: as with kube-proxy, it may go to any
        // endpoint, whatever externalTrafficPolicy says.
        let external = service.external.iter().map(|address| (*address, TrafficPolicy::Cluster));
        let cluster = service.addressing.cluster().iter();
        let addresses = external.chain(cluster.map(|address| (*address, service.internal)));
        // addresses of one family and one traffic policy share one set of backends
        let mut shared: Vec<((bool, TrafficPolicy), Backends)> = Vec::new();
        for (address, policy) in addresses {
            let group = (address.is_ipv4(), policy);
            let backends = match shared.iter().find(|(of, _)| *of == group) {
                Some((_, backends)) => backends.clone(),
                None => {
                    let backends = backend_set(catalog, &self.place, of, group).map(Arc::new);
                    shared.push((group, backends.clone()));
                    backends
                }
            };
            let frontend = Frontend { address, port: port.port, protocol: port.protocol };
            found.frontends.insert(frontend, backends);
        }
    }

    /// The frontends whose backends have changed since the last call.
    pub fn take_changes(&mut self) -> BTreeSet<Frontend> {
        std::mem::take(&mut self.changed)
    }

    /// Whether [`ServiceTable::untranslated`] may have changed since the last call.
    pub fn take_untranslated_changed(&mut self) -> bool {
        std::mem::take(&mut self.untranslated_changed)
    }

    /// The backends of a frontend; `None` if there are none or it is no frontend.
    pub fn get(&self, frontend: &Frontend) -> Option<&Arc<BackendSet>> {
        let owner = self.claims.get(frontend)?.first()?;
        self.services.get(owner)?.frontends.get(frontend)?.as_ref()
    }

    /// The backends that packets for a frontend are translated to; `None` if they are not translated.
    pub fn translated(&self, frontend: &Frontend) -> Option<&Arc<BackendSet>> {
        let is_translated = !self.context.translation_off && !self.is_node_local(frontend);
        self.get(frontend).filter(|_| is_translated)
    }

    /// Whether a frontend is at a service's own address which the node has on an interface, as NodeLocal DNSCache puts
    /// it there. External addresses are not meant: kube-proxy translates those although they are the node's.
    fn is_node_local(&self, frontend: &Frontend) -> bool {
        let owner = self.claims.get(frontend).and_then(BTreeSet::first);
        let of = owner.and_then(|owner| self.services.get(owner));
        of.is_some_and(|of| self.is_local_to(of, frontend))
    }

    fn is_local_to(&self, of: &ServiceFrontends, frontend: &Frontend) -> bool {
        let address = &frontend.address;
        self.context.own.contains(address) && of.cluster.contains(address)
    }

    /// An untranslated frontend, with its reason corrected if the node has the address on an interface.
    fn node_local(
        &self,
        of: &ServiceFrontends,
        frontend: &Frontend,
        vip: &Arc<Untranslated>,
    ) -> Arc<Untranslated> {
        match self.is_local_to(of, frontend) {
            true => {
                Arc::new(Untranslated { reason: UntranslatedReason::NodeLocal, ..(**vip).clone() })
            }
            false => vip.clone(),
        }
    }

    /// Every untranslated address and port, with the backends that it may reach.
    pub fn untranslated(&self) -> UntranslatedSet {
        let mut set =
            UntranslatedSet { nodes: (*self.context.nodes).clone(), ..UntranslatedSet::default() };
        let mut add = |frontend: Frontend, vip: Arc<Untranslated>| {
            let ports = set.ports.entry(frontend.address).or_default();
            ports.entry((frontend.protocol, frontend.port)).or_default().push(vip);
        };
        let all = self.claims.keys().filter(|_| self.context.translation_off).copied();
        let own = self.context.own.iter().flat_map(|address| self.at(*address));
        let frontends: BTreeSet<Frontend> =
            all.chain(own).chain(self.without_backend.iter().copied()).collect();
        for frontend in frontends {
            self.untranslated_claims(&frontend).into_iter().for_each(|vip| add(frontend, vip));
        }
        for of in self.with_untranslated.iter().filter_map(|key| self.services.get(key)) {
            for (frontend, vip) in &of.untranslated {
                // if another service has the frontend and is translated, no proxy sees these packets
                if self.translated(frontend).is_none() {
                    add(*frontend, self.node_local(of, frontend, vip));
                }
            }
            for ((v4, protocol, number), vip) in &of.node_ports {
                let ports = set.node_ports.entry(*v4).or_default();
                ports.entry((*protocol, *number)).or_default().push(vip.clone());
            }
        }
        set
    }

    /// The services that a frontend may belong to for a proxy; none if it is translated, or is no frontend.
    pub fn untranslated_at(&self, frontend: &Frontend) -> Claims {
        let mut claims = self.untranslated_claims(frontend);
        let is_node = self.context.nodes.contains(&frontend.address);
        let node_port = (frontend.address.is_ipv4(), frontend.protocol, frontend.port);
        let translated = self.translated(frontend).is_some();
        for of in self.with_untranslated.iter().filter_map(|key| self.services.get(key)) {
            let vip = of.untranslated.get(frontend).filter(|_| !translated);
            claims.extend(vip.map(|vip| self.node_local(of, frontend, vip)));
            let at_node = of.node_ports.get(&node_port).filter(|_| is_node && !translated);
            claims.extend(at_node.cloned());
        }
        claims
    }

    /// The services that claim a frontend that could be translated but is not: for a proxy any of them may have it.
    fn untranslated_claims(&self, frontend: &Frontend) -> Claims {
        if self.translated(frontend).is_some() {
            return Claims::new();
        }
        let claims = self.claims.get(frontend).into_iter().flatten();
        let vip = |key: &ObjectKey| {
            let of = self.services.get(key)?;
            let backends = of.frontends.get(frontend)?.as_ref();
            let reason = match backends {
                _ if self.is_local_to(of, frontend) => UntranslatedReason::NodeLocal,
                None => UntranslatedReason::NoEndpoint,
                Some(_) if self.context.translation_off => UntranslatedReason::AllAre,
                Some(_) => UntranslatedReason::Disputed,
            };
            let backends =
                backends.into_iter().flat_map(|backends| backends.ready_anywhere()).collect();
            Some(Arc::new(Untranslated { service: key.clone(), reason, backends, sources: None }))
        };
        claims.filter_map(vip).collect()
    }

    /// Every frontend that has backends, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (Frontend, &Arc<BackendSet>)> {
        self.claims.keys().filter_map(|frontend| Some((*frontend, self.get(frontend)?)))
    }

    /// The frontends that a service has, with their backends. Without those that another service has.
    pub fn of_service<'a>(
        &'a self,
        service: &'a ObjectKey,
    ) -> impl Iterator<Item = (Frontend, Option<&'a Arc<BackendSet>>)> {
        let of = self.services.get(service).into_iter().flat_map(|of| &of.frontends);
        of.filter(|(frontend, _)| {
            self.claims.get(frontend).and_then(BTreeSet::first) == Some(service)
        })
        .map(|(frontend, backends)| (*frontend, backends.as_ref()))
    }

    /// The frontends of a service that are never translated.
    pub fn untranslated_of_service(
        &self,
        service: &ObjectKey,
    ) -> impl Iterator<Item = (Frontend, &Arc<Untranslated>)> {
        let of = self.services.get(service).into_iter().flat_map(|of| &of.untranslated);
        of.map(|(frontend, vip)| (*frontend, vip))
    }

    /// Whether a service has frontends, with or without backends.
    pub fn contains(&self, service: &ObjectKey) -> bool {
        self.services.contains_key(service)
    }

    /// The number of services with frontends, with or without backends.
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

/// Adds the addresses of a service port that are never translated.
fn add_untranslated<'a>(
    catalog: &Catalog,
    of: (&Service, &ServicePort),
    addresses: impl Iterator<Item = &'a IpAddr>,
    reason: UntranslatedReason,
    found: &mut ServiceFrontends,
) {
    let mut shared: Vec<(bool, Arc<Untranslated>)> = Vec::new();
    for address in addresses {
        let v4 = address.is_ipv4();
        let vip = match shared.iter().find(|(of, _)| *of == v4) {
            Some((_, vip)) => vip.clone(),
            None => {
                let new = Arc::new(untranslated(catalog, of, v4, reason));
                shared.push((v4, new.clone()));
                new
            }
        };
        let frontend = Frontend { address: *address, port: of.1.port, protocol: of.1.protocol };
        found.untranslated.insert(frontend, vip);
    }
}

/// A service port at untranslated addresses of one family.
fn untranslated(
    catalog: &Catalog,
    of: (&Service, &ServicePort),
    v4: bool,
    reason: UntranslatedReason,
) -> Untranslated {
    let service = of.0;
    let spread = match service.inbound {
        _ if service.other_proxy => Spread::Unknown,
        TrafficPolicy::Cluster => Spread::Cluster,
        TrafficPolicy::Local => Spread::Node,
    };
    let guarded = reason == UntranslatedReason::SourceRanges;
    Untranslated {
        service: service.key.clone(),
        reason,
        backends: reachable(catalog, of, v4, spread),
        sources: guarded.then(|| service.source_ranges.clone()),
    }
}
