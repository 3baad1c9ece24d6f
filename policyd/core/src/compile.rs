//! Turns the index and the node's endpoints into classes and tables (design.md section 4).
//!
//! An *atom* is one peer that some policy of a local pod names. The *class* of an address is the exact
//! set of atoms that match it; class 0 is "no atom matches". A table says, per direction and class,
//! which protocol and ports are allowed; entries of class 0 hold for every peer.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Direction, ObjectKey, PolicyId, Protocol};
use crate::prefixes::PrefixMap;

/// The number of a class. Never reused while a process lives; [`Class::ANY`] is also the strangers' class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Class(pub u32);

impl Class {
    /// Matched by no atom. A table's entries for it hold for every peer.
    pub const ANY: Self = Self(0);

    /// From here on numbers are not given to any set of atoms: [`crate::diff::plan`] uses them within a plan.
    pub const TRANSIENT: Self = Self(0xF000_0000);

    /// Whether it is a number of [`crate::diff::plan`]'s own. A daemon that starts over a kernel's maps
    /// must not count such numbers when it looks for the highest class in use.
    pub fn is_transient(self) -> bool {
        self >= Self::TRANSIENT
    }
}

/// The number of a rule, kept in every table entry: names what decided. Stable while a process lives; 0 is "no rule".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId(pub u32);

impl RuleId {
    /// Of the entry that stands for "no policy isolates the pod in this direction". The same in every process.
    pub fn not_isolated(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self(1),
            Direction::Egress => Self(2),
        }
    }
}

/// An endpoint's number: the host veth's ifindex on a node, any number offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointId(pub u32);

/// A local pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its number.
    pub id: EndpointId,
    /// The pod it belongs to; `None` for a container that is no pod, which no policy can select.
    pub pod: Option<ObjectKey>,
    /// The pod's uid as the runtime gave it; empty if unknown. A pod object with another non-empty
    /// uid is a namesake, not this pod.
    pub uid: Arc<str>,
    /// Its addresses by the CNI result: known before the API server knows them, and counted as the pod's.
    pub addresses: Vec<IpAddr>,
}

/// What a rule number stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RuleOrigin {
    /// No policy isolates the pod in this direction.
    NotIsolated(Direction),
    /// Item `index` (from 0) of the policy's `ingress` or `egress`.
    Policy {
        /// The policy.
        policy: PolicyId,
        /// Which list.
        direction: Direction,
        /// Which item of it.
        index: usize,
    },
}

impl fmt::Display for RuleOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIsolated(direction) => write!(f, "not isolated for {direction}"),
            Self::Policy { policy, direction, index } => write!(f, "{policy} {direction}[{index}]"),
        }
    }
}

/// Which packets of a class an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortMatch {
    /// Every protocol, those without ports included.
    Everything,
    /// `first..=last` of the protocol; 0..=65535 is "all ports".
    Range {
        /// The protocol.
        protocol: Protocol,
        /// First port, host byte order.
        first: u16,
        /// Last port, inclusive.
        last: u16,
    },
}

/// One allowed combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// Of which direction.
    pub direction: Direction,
    /// For which peers.
    pub class: Class,
    /// To which ports.
    pub ports: PortMatch,
}

/// What one endpoint allows, whole: what no entry matches is denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Policies that isolate it for ingress, sorted; empty: not isolated.
    pub ingress: Vec<PolicyId>,
    /// Policies that isolate it for egress, sorted.
    pub egress: Vec<PolicyId>,
    /// Allowed combinations and the rule (the first by policy, then index) that allows each.
    pub entries: BTreeMap<Entry, RuleId>,
}

/// Everything the maps should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Classes of exact addresses, consulted first. Only addresses that some pod atom matches, or whose
    /// class differs from what `nets` says.
    pub hosts: BTreeMap<IpAddr, Class>,
    /// Classes of prefixes (every cidr and except of a block atom), longest match.
    pub nets: PrefixMap<Class>,
    /// One table per endpoint whose pod is known. An endpoint without a table stays in its startup state.
    pub tables: BTreeMap<EndpointId, Arc<Table>>,
}

/// The transport part of a packet, for judging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, UDP or SCTP to this destination port.
    Port(Protocol, u16),
    /// ICMP and every other protocol.
    Other,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "{port}/{protocol}"),
            Self::Other => f.write_str("a protocol without ports"),
        }
    }
}

impl PortMatch {
    /// All ports of a protocol.
    pub fn all(protocol: Protocol) -> Self {
        Self::Range { protocol, first: 0, last: u16::MAX }
    }

    /// One port.
    pub fn one(protocol: Protocol, port: u16) -> Self {
        Self::Range { protocol, first: port, last: port }
    }

    /// Whether a packet is one of those it is about. ICMP and other protocols without ports are matched
    /// by [`PortMatch::Everything`] only.
    pub fn matches(self, transport: Transport) -> bool {
        match (self, transport) {
            (Self::Everything, _) => true,
            (Self::Range { .. }, Transport::Other) => false,
            (Self::Range { protocol, first, last }, Transport::Port(sent, port)) => {
                protocol == sent && (first..=last).contains(&port)
            }
        }
    }
}

impl Table {
    /// The policies that isolate the endpoint in a direction; none: it is not isolated.
    pub fn isolating(&self, direction: Direction) -> &[PolicyId] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The rule that allows a packet of a peer in `class`, or `None`: it is denied. Of several rules: one
    /// for the class before one for every peer, then the first entry in their order.
    pub fn lookup(
        &self,
        direction: Direction,
        class: Class,
        transport: Transport,
    ) -> Option<RuleId> {
        let of = |class| {
            let first = Entry { direction, class, ports: PortMatch::Everything };
            self.entries
                .range(first..)
                .take_while(move |(entry, _)| entry.direction == direction && entry.class == class)
                .find(|(entry, _)| entry.ports.matches(transport))
                .map(|(_, rule)| *rule)
        };
        of(class).or_else(|| if class == Class::ANY { None } else { of(Class::ANY) })
    }
}

impl Compiled {
    /// The class of an address, as the kernel finds it: exact addresses first, then the longest prefix.
    pub fn class_of(&self, address: IpAddr) -> Class {
        self.classifier().class_of(address)
    }

    /// For many questions about addresses.
    pub fn classifier(&self) -> Classifier<'_> {
        Classifier::new(&self.hosts, &self.nets)
    }

    /// Which rule allows a packet of the endpoint, or which policies isolate it. `None` if the endpoint has
    /// no table. Replies, the endpoint's own addresses and its node are the caller's matter: they are
    /// always allowed and no table says so.
    pub fn judge(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        peer: IpAddr,
        transport: Transport,
    ) -> Option<Judgement<'_>> {
        let table = self.tables.get(&endpoint)?;
        let class = self.class_of(peer);
        let rule = table.lookup(direction, class, transport);
        Some(Judgement { class, rule, isolating: table.isolating(direction) })
    }
}

/// What a table says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement<'a> {
    /// The peer's class.
    pub class: Class,
    /// The rule that allows it; `None`: it is denied.
    pub rule: Option<RuleId>,
    /// The policies that isolate the endpoint in the direction, sorted.
    pub isolating: &'a [PolicyId],
}

impl Judgement<'_> {
    /// Whether the packet may pass.
    pub fn allowed(&self) -> bool {
        self.rule.is_some()
    }
}

/// Answers for the class of an address from the two class maps.
#[derive(Clone, Copy, Debug)]
pub struct Classifier<'a> {
    hosts: &'a BTreeMap<IpAddr, Class>,
    nets: &'a PrefixMap<Class>,
}

impl<'a> Classifier<'a> {
    /// A classifier over these maps.
    pub fn new(hosts: &'a BTreeMap<IpAddr, Class>, nets: &'a PrefixMap<Class>) -> Self {
        Self { hosts, nets }
    }

    /// The class of an address: exact addresses first, then the longest prefix, else a stranger's.
    pub fn class_of(&self, address: IpAddr) -> Class {
        let address = address.to_canonical();
        self.hosts.get(&address).copied().unwrap_or_else(|| self.class_of_net(address))
    }

    /// The class that the prefixes alone give an address.
    pub fn class_of_net(&self, address: IpAddr) -> Class {
        self.nets.longest_match(address).map_or(Class::ANY, |(_, class)| *class)
    }
}
