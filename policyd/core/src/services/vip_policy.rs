//! The verdict on packets to a service address (VIP) that the datapath does not translate but a proxy may.
//!
//! It is an approximation: which backend the proxy will select is not known here. So a packet is allowed only if policy
//! allows every backend that it may reach.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Backend, Frontend};
use crate::model::{Direction, ObjectKey, Protocol};
use crate::tables::{Class, Compiled, Endpoint, RuleId, Table, Transport};

/// Why the packets to a service address are not translated by the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UntranslatedReason {
    /// Translation is off: `--services leave`.
    AllAre,
    /// Another proxy than kube-proxy translates the service, by its own rules.
    OtherProxy,
    /// The address is restricted to `loadBalancerSourceRanges`.
    SourceRanges,
    /// A port of a node's address.
    NodePort,
    /// The address is on an interface of this node, and a process that listens there answers, as with NodeLocal DNSCache.
    NodeLocal,
    /// The service has no ready endpoint.
    NoEndpoint,
    /// Another service, which has no ready endpoint, claims the same address and port.
    Disputed,
}

impl fmt::Display for UntranslatedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllAre => "--services leave: kube-proxy translates; allowed where policy allows every endpoint",
            Self::OtherProxy => "label service-proxy-name: another proxy translates; allowed where policy allows every endpoint",
            Self::SourceRanges => "loadBalancerSourceRanges: kube-proxy translates for pods in them; allowed where policy allows every endpoint",
            Self::NodePort => "a NodePort: kube-proxy translates; allowed where policy allows every endpoint",
            Self::NodeLocal => "the address is this node's own: what listens there answers; allowed where policy allows the address or every endpoint",
            Self::NoEndpoint => "no endpoint that is ready",
            Self::Disputed => "another service, which has no endpoint that is ready, claims the address too",
        })
    }
}

/// One service at a port of an untranslated address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untranslated {
    /// The service.
    pub service: ObjectKey,
    /// Why it is not translated.
    pub reason: UntranslatedReason,
    /// Every backend that may be selected; all of the address's family.
    pub backends: BTreeSet<Backend>,
    /// Only packets from these sources are translated; `None`: all packets.
    pub sources: Option<Arc<[IpNet]>>,
}

impl Untranslated {
    /// Whether a process of this node answers for the service.
    pub fn is_node_local(&self) -> bool {
        self.reason == UntranslatedReason::NodeLocal
    }
}

/// The services that a port of an address may belong to. Several may claim it; which one the proxy takes is not known.
pub type Claims = Vec<Arc<Untranslated>>;

/// The ports of one address.
pub type UntranslatedPorts = BTreeMap<(Protocol, u16), Claims>;

/// Every untranslated address and port, as seen by the pods of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UntranslatedSet {
    /// Ports of single addresses.
    pub ports: BTreeMap<IpAddr, UntranslatedPorts>,
    /// Node ports of the IPv4 (true) and IPv6 (false) addresses in `nodes`; no empty maps.
    pub node_ports: BTreeMap<bool, UntranslatedPorts>,
    /// Addresses of nodes.
    pub nodes: BTreeSet<IpAddr>,
}

impl UntranslatedSet {
    /// Every address that has untranslated ports.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let nodes = self.nodes.iter().copied();
        let nodes = nodes.filter(|address| self.node_ports.contains_key(&address.is_ipv4()));
        self.ports.keys().copied().chain(nodes).collect()
    }

    /// The node ports at an address; `None` if there are none or it is no node's address.
    pub fn node_ports_at(&self, address: IpAddr) -> Option<&UntranslatedPorts> {
        self.node_ports.get(&address.is_ipv4()).filter(|_| self.nodes.contains(&address))
    }

    /// All ports at an address.
    pub fn ports_at(&self, address: IpAddr) -> UntranslatedPorts {
        let mut ports = self.ports.get(&address).cloned().unwrap_or_default();
        for (port, claims) in self.node_ports_at(address).into_iter().flatten() {
            ports.entry(*port).or_default().extend(claims.iter().cloned());
        }
        ports
    }

    /// The addresses of all backends.
    pub fn backends(&self) -> BTreeSet<IpAddr> {
        let ports = self.ports.values().chain(self.node_ports.values());
        let claims = ports.flat_map(BTreeMap::values).flatten();
        claims.flat_map(|vip| &vip.backends).map(|backend| backend.address).collect()
    }
}

/// The verdict on a pod's packets to an untranslated frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VipVerdict {
    /// Every backend is allowed, the first of them by this rule. `None`: the pod itself is the only backend.
    Allow(Option<RuleId>),
    /// Some backend is not allowed.
    Deny,
}

/// The verdict on packets of `endpoint`. `None` if it has no table yet, or nothing restricts its egress: then the verdict
/// does not depend on the backends.
pub fn vip_verdict(
    compiled: &Compiled,
    endpoint: &Endpoint,
    frontend: &Frontend,
    claims: &[Arc<Untranslated>],
) -> Option<VipVerdict> {
    let table = compiled.tables.get(&endpoint.id)?;
    if table.isolating(Direction::Egress).is_empty() && !table.ranked {
        return None;
    }
    let query = Query { compiled, table, endpoint, frontend };
    let mut first = None;
    for vip in claims {
        match query.claim(vip) {
            VipVerdict::Allow(rule) => first = first.or(rule),
            VipVerdict::Deny => return Some(VipVerdict::Deny),
        }
    }
    Some(VipVerdict::Allow(first))
}

struct Query<'a> {
    compiled: &'a Compiled,
    table: &'a Table,
    endpoint: &'a Endpoint,
    frontend: &'a Frontend,
}

impl Query<'_> {
    fn claim(&self, vip: &Untranslated) -> VipVerdict {
        let Frontend { address, port, protocol } = *self.frontend;
        if vip.is_node_local()
            && let Some(rule) = self.lookup(address, Transport::Port(protocol, port))
        {
            return VipVerdict::Allow(Some(rule));
        }
        let own = &self.endpoint.addresses;
        let may_use = |ranges: &Arc<[IpNet]>| {
            let mut of_family = own.iter().filter(|own| own.is_ipv4() == address.is_ipv4());
            of_family.any(|own| ranges.iter().any(|range| range.contains(own)))
        };
        if vip.sources.as_ref().is_some_and(|ranges| !may_use(ranges)) {
            return VipVerdict::Deny;
        }
        if vip.backends.is_empty() {
            // the proxy may learn of a backend earlier than podgate: allowed only if egress to any peer is
            // and, where rules deny, nobody is denied anything: the backend may be anybody
            let denies = self.table.ranked && self.table.denies(Direction::Egress);
            let everything = self.allowed(Class::ANY, Transport::Other).filter(|_| !denies);
            return everything.map_or(VipVerdict::Deny, |rule| VipVerdict::Allow(Some(rule)));
        }
        let mut first = None;
        for backend in &vip.backends {
            let transport = Transport::Port(protocol, backend.port);
            if own.contains(&backend.address) {
                let itself = self.table.lookup_self(Direction::Egress, backend.address, transport);
                if itself.is_some_and(|decision| !decision.effect.passes()) {
                    return VipVerdict::Deny;
                }
                continue;
            }
            match self.lookup(backend.address, transport) {
                Some(rule) => first = first.or(Some(rule)),
                None => return VipVerdict::Deny,
            }
        }
        VipVerdict::Allow(first)
    }

    fn lookup(&self, address: IpAddr, transport: Transport) -> Option<RuleId> {
        let class = self.compiled.class_of(address);
        self.allowed(class, transport)
    }

    /// The rule that lets packets to this class pass.
    fn allowed(&self, class: Class, transport: Transport) -> Option<RuleId> {
        let decision = self.table.lookup(Direction::Egress, class, transport);
        decision.filter(|decision| decision.effect.passes()).map(|decision| decision.rule)
    }
}
