//! What to say of an address that the gate does not translate and something behind it may.
//!
//! Approximate by nature: at the gate it is not known which endpoint will be picked. So a packet is allowed only if every
//! endpoint that it may lead to is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Backend, Frontend};
use crate::compile::{Class, Compiled, Endpoint, RuleId, Table, Transport};
use crate::model::{Direction, ObjectKey, Protocol};

/// Why a service's packets are not translated at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftReason {
    /// No service is.
    AllAre,
    /// Another proxy than kube-proxy does it, by its own rules.
    OtherProxy,
    /// Only some sources may use the address.
    SourceRanges,
    /// It is a node's address.
    NodePort,
    /// The address is on an interface of this node: what listens there answers for the service.
    NodeLocal,
    /// There is no endpoint (yet).
    NoEndpoint,
    /// Another service has the address here, and has no endpoint (yet).
    Disputed,
}

impl fmt::Display for LeftReason {
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

/// What one service makes of a port of an address that is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The service.
    pub service: ObjectKey,
    /// Why it is not translated.
    pub reason: LeftReason,
    /// Every endpoint that may be picked; all of the address's family.
    pub backends: BTreeSet<Backend>,
    /// Whose packets are translated at all, by their source; `None`: everybody's.
    pub sources: Option<Arc<[IpNet]>>,
}

impl Left {
    /// Whether what listens at the address answers for the service.
    pub fn is_node_local(&self) -> bool {
        self.reason == LeftReason::NodeLocal
    }
}

/// The services that a port of an address may lead to. More than one where several claim it: each may be the one.
pub type Claims = Vec<Arc<Left>>;

/// Ports of one address.
pub type LeftPorts = BTreeMap<(Protocol, u16), Claims>;

/// Every address and port that is left alone, as the pods of one node meet them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftSet {
    /// Ports of single addresses.
    pub ports: BTreeMap<IpAddr, LeftPorts>,
    /// Node ports of the IPv4 (true) and IPv6 (false) addresses in `nodes`; no empty ones.
    pub node_ports: BTreeMap<bool, LeftPorts>,
    /// Addresses of nodes.
    pub nodes: BTreeSet<IpAddr>,
}

impl LeftSet {
    /// Every address that has such ports.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let nodes = self.nodes.iter().copied();
        let nodes = nodes.filter(|address| self.node_ports.contains_key(&address.is_ipv4()));
        self.ports.keys().copied().chain(nodes).collect()
    }

    /// Node ports at an address; `None` if it is no node's or there are none.
    pub fn node_ports_at(&self, address: IpAddr) -> Option<&LeftPorts> {
        self.node_ports.get(&address.is_ipv4()).filter(|_| self.nodes.contains(&address))
    }

    /// All ports at an address.
    pub fn ports_at(&self, address: IpAddr) -> LeftPorts {
        let mut ports = self.ports.get(&address).cloned().unwrap_or_default();
        for (port, claims) in self.node_ports_at(address).into_iter().flatten() {
            ports.entry(*port).or_default().extend(claims.iter().cloned());
        }
        ports
    }

    /// Every endpoint that some port may lead to.
    pub fn backends(&self) -> BTreeSet<IpAddr> {
        let ports = self.ports.values().chain(self.node_ports.values());
        let claims = ports.flat_map(BTreeMap::values).flatten();
        claims.flat_map(|left| &left.backends).map(|backend| backend.address).collect()
    }
}

/// What a pod's gate says of packets to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftAnswer {
    /// Wherever they may lead is allowed; the rule that allows the first of it. `None`: the pod is the only endpoint.
    Allow(Option<RuleId>),
    /// Something of it is not.
    Deny,
}

/// The answer for packets of `endpoint`. `None` where there is nothing to say: it has no table yet, or is not
/// isolated for egress.
pub fn answer_left(
    compiled: &Compiled,
    endpoint: &Endpoint,
    frontend: &Frontend,
    claims: &[Arc<Left>],
) -> Option<LeftAnswer> {
    let table = compiled.tables.get(&endpoint.id)?;
    if table.isolating(Direction::Egress).is_empty() {
        return None;
    }
    let asked = Asked { compiled, table, endpoint, frontend };
    let mut first = None;
    for left in claims {
        match asked.claim(left) {
            LeftAnswer::Allow(rule) => first = first.or(rule),
            LeftAnswer::Deny => return Some(LeftAnswer::Deny),
        }
    }
    Some(LeftAnswer::Allow(first))
}

struct Asked<'a> {
    compiled: &'a Compiled,
    table: &'a Table,
    endpoint: &'a Endpoint,
    frontend: &'a Frontend,
}

impl Asked<'_> {
    fn claim(&self, left: &Left) -> LeftAnswer {
        let Frontend { address, port, protocol } = *self.frontend;
        if left.is_node_local()
            && let Some(rule) = self.lookup(address, Transport::Port(protocol, port))
        {
            return LeftAnswer::Allow(Some(rule));
        }
        let own = &self.endpoint.addresses;
        let may_use = |ranges: &Arc<[IpNet]>| {
            let mut of_family = own.iter().filter(|own| own.is_ipv4() == address.is_ipv4());
            of_family.any(|own| ranges.iter().any(|range| range.contains(own)))
        };
        if left.sources.as_ref().is_some_and(|ranges| !may_use(ranges)) {
            return LeftAnswer::Deny;
        }
        if left.backends.is_empty() {
            // one may come there before it is known here: only where any at all is allowed
            let everything = self.table.lookup(Direction::Egress, Class::ANY, Transport::Other);
            return everything.map_or(LeftAnswer::Deny, |rule| LeftAnswer::Allow(Some(rule)));
        }
        let mut first = None;
        for backend in left.backends.iter().filter(|backend| !own.contains(&backend.address)) {
            match self.lookup(backend.address, Transport::Port(protocol, backend.port)) {
                Some(rule) => first = first.or(Some(rule)),
                None => return LeftAnswer::Deny,
            }
        }
        LeftAnswer::Allow(first)
    }

    fn lookup(&self, address: IpAddr, transport: Transport) -> Option<RuleId> {
        let class = self.compiled.class_of(address);
        self.table.lookup(Direction::Egress, class, transport)
    }
}
