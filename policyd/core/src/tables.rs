//! What the compiler produces, peer classes and one table per endpoint, and the verdict on a packet that follows.
//!
//! An *atom* is one condition on a peer: to be in the peer set of a rule, and for a named egress port to have that name at
//! a certain number. The *class* of an address is the exact set of atoms that match it; class 0 is "no atom
//! matches". A table says, per direction and class, which protocol and ports are allowed; entries of class 0 hold for
//! every peer.
//!
//! Where only NetworkPolicies apply, entries only allow, and what no entry matches is denied. Where ranked rules apply as
//! well (local rules, ClusterNetworkPolicies, or policies that are audited or logged), the rules are resolved before they become
//! entries ([`crate::compile`]). Then an entry may deny, the most specific of several that match a packet decides, and a
//! class that has entries for a direction has them for every packet, so that those of [`Class::ANY`] do not matter to it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{ClusterPolicyId, Direction, IpProtocol, ObjectKey, PolicyId, Protocol, Tier};
use crate::prefixes::PrefixMap;

/// The number of a class. Never reused while a process lives. [`Class::ANY`] is also the class of every address that
/// no policy mentions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Class(pub u32);

impl Class {
    /// Matched by no atom. A table's entries for it hold for every peer.
    pub const ANY: Self = Self(0);

    /// The first number of the *transient* classes, which [`crate::diff::plan`] uses within a plan. The engine
    /// numbers its classes below.
    pub const TRANSIENT: Self = Self(0xF000_0000);

    /// No address has it: what a pod sends to itself through a service over IPv4 is judged by the entries of this class.
    /// Without one it passes. `PG_CLASS_SELF4` of the datapath. Plans number their classes below.
    pub const SELF_V4: Self = Self(0xF7FF_FFFE);

    /// The same over IPv6: a pod's two addresses may be of two classes.
    pub const SELF_V6: Self = Self(0xF7FF_FFFF);

    /// The first number of the classes of untranslated service addresses ([`crate::services::Untranslated`]).
    pub const VIP: Self = Self(0xF800_0000);

    /// Whether it is one of the classes that the engine numbers, [`Class::ANY`] included.
    pub fn is_compiled(self) -> bool {
        self < Self::TRANSIENT
    }

    /// The class by which a pod's packets to itself through a service are judged, over the family of this address.
    pub fn of_self(family_of: IpAddr) -> Self {
        if family_of.to_canonical().is_ipv4() { Self::SELF_V4 } else { Self::SELF_V6 }
    }

    /// Whether it is one of the two for what a pod sends to itself.
    pub fn is_self(self) -> bool {
        (Self::SELF_V4..Self::VIP).contains(&self)
    }

    /// Whether it is a class of a plan. A commit that was aborted may leave members in it.
    pub fn is_transient(self) -> bool {
        (Self::TRANSIENT..Self::SELF_V4).contains(&self)
    }

    /// Whether it is a class of an untranslated service address.
    pub fn is_vip(self) -> bool {
        self >= Self::VIP
    }
}

/// The number of a rule, kept in every table entry: names what decided. Stable while a process lives; 0 is "no rule".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId(pub u32);

impl RuleId {
    /// No rule.
    pub const NONE: Self = Self(0);

    /// The rule of the entry that allows everything where no policy isolates the pod. The same in every process.
    pub fn not_isolated(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self(1),
            Direction::Egress => Self(2),
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Effect {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
    /// It passes; if the policies that are only audited were in force, the rule would deny it.
    Audit,
    /// It is dropped, and its sender is told: a RST, or "administratively prohibited".
    Reject,
}

impl Effect {
    /// Whether the packet passes.
    pub fn passes(self) -> bool {
        match self {
            Self::Allow | Self::Audit => true,
            Self::Deny | Self::Reject => false,
        }
    }
}

/// What an entry does, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Decision {
    /// What becomes of the packet.
    pub effect: Effect,
    /// The rule that decides.
    pub rule: RuleId,
    /// Whether each new flow that the entry decides is reported, because the policy of the rule asks for it.
    pub log: bool,
}

impl Decision {
    /// Allows, by this rule.
    pub fn allow(rule: RuleId) -> Self {
        Self { effect: Effect::Allow, rule, log: false }
    }

    /// Denies, by this rule.
    pub fn deny(rule: RuleId) -> Self {
        Self { effect: Effect::Deny, rule, log: false }
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

/// The rule that a number names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RuleOrigin {
    /// No policy isolates the pod in this direction.
    NotIsolated(Direction),
    /// Item `index` (from 0) of the policy's `ingress` or `egress`.
    Policy {
        /// The policy.
        policy: PolicyId,
        /// The list: `ingress` or `egress`.
        direction: Direction,
        /// The item of the list, from 0.
        index: usize,
    },
    /// The policy isolates the pod in this direction, and no rule of any policy allows the packet. Of several policies that
    /// do, the first.
    Isolated {
        /// The policy.
        policy: PolicyId,
        /// The direction.
        direction: Direction,
    },
    /// Item `index` (from 0) of a ClusterNetworkPolicy's `ingress` or `egress`.
    Cluster {
        /// The policy's tier.
        tier: Tier,
        /// Its priority in the tier.
        priority: u16,
        /// The policy.
        policy: ClusterPolicyId,
        /// The list: `ingress` or `egress`.
        direction: Direction,
        /// The item of the list, from 0.
        index: usize,
    },
    /// A local rule of the pod.
    Local {
        /// The pod.
        pod: ObjectKey,
        /// The rule's number.
        id: u32,
    },
    /// Nothing speaks of the packet, and the node's operator has said what becomes of such.
    LocalDefault {
        /// The pod of which that was said; `None`: of all pods of the node.
        pod: Option<ObjectKey>,
        /// The direction.
        direction: Direction,
    },
}

impl fmt::Display for RuleOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIsolated(direction) => write!(f, "not isolated for {direction}"),
            Self::Policy { policy, direction, index } => write!(f, "{policy} {direction}[{index}]"),
            Self::Isolated { policy, direction } => write!(f, "{policy} isolates for {direction}"),
            Self::Cluster { tier, priority, policy, direction, index } => {
                write!(f, "{tier} policy {policy} (priority {priority}) {direction}[{index}]")
            }
            Self::Local { pod, id } => write!(f, "local rule {id} of {pod}"),
            Self::LocalDefault { pod: Some(pod), direction } => {
                write!(f, "the local default of {pod} for {direction}")
            }
            Self::LocalDefault { pod: None, direction } => {
                write!(f, "the local default of the node for {direction}")
            }
        }
    }
}

/// Which packets of a class an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortMatch {
    /// Every protocol, those without ports included.
    Everything,
    /// Every packet of a protocol that is none of [`Protocol`]'s.
    Numbered(IpProtocol),
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

/// The packets that an entry is about: its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// Direction of the flow.
    pub direction: Direction,
    /// Class of the peer.
    pub class: Class,
    /// Protocol and destination ports.
    pub ports: PortMatch,
}

/// The policy of one endpoint, whole: what no entry matches is denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Policies that isolate it for ingress, sorted; empty: not isolated.
    pub ingress: Vec<PolicyId>,
    /// Policies that isolate it for egress, sorted.
    pub egress: Vec<PolicyId>,
    /// Whether ranked rules apply: then entries may deny, and those of a class are complete for each direction.
    pub ranked: bool,
    /// The entries. Where several rules allow the same, the entry names the first by policy, then index.
    pub entries: BTreeMap<Entry, Decision>,
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
    /// A protocol without ports.
    Number(IpProtocol),
    /// To [`Compiled::judge`] ICMP, or ICMPv6 where the peer's address is IPv6. To a table a protocol that none of its entries
    /// names.
    Other,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "{port}/{protocol}"),
            Self::Number(protocol) => write!(f, "protocol {protocol}"),
            Self::Other => f.write_str("a protocol without ports"),
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("any"),
            Self::Numbered(protocol) => protocol.fmt(f),
            Self::Range { protocol, first: 0, last: u16::MAX } => protocol.fmt(f),
            Self::Range { protocol, first, last } if first == last => {
                write!(f, "{protocol} {first}")
            }
            Self::Range { protocol, first, last } => write!(f, "{protocol} {first}-{last}"),
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

    /// Whether it is about all ports of a protocol, or of all.
    pub fn is_all_of_a_protocol(self) -> bool {
        matches!(
            self,
            Self::Everything | Self::Numbered(_) | Self::Range { first: 0, last: u16::MAX, .. }
        )
    }

    /// Whether it matches every packet that `other` matches.
    pub(crate) fn covers(self, other: Self) -> bool {
        match (self, other) {
            (Self::Everything, _) => true,
            (Self::Numbered(protocol), Self::Numbered(of)) => protocol == of,
            (Self::Numbered(_), _) | (Self::Range { .. }, Self::Everything | Self::Numbered(_)) => {
                false
            }
            (
                Self::Range { protocol, first, last },
                Self::Range { protocol: of, first: from, last: to },
            ) => protocol == of && first <= from && to <= last,
        }
    }

    /// How much it matches: the number of ports, or more than any.
    pub(crate) fn width(self) -> u32 {
        match self {
            Self::Everything => u32::MAX,
            Self::Numbered(_) => u32::from(u16::MAX),
            Self::Range { first, last, .. } => u32::from(last) - u32::from(first),
        }
    }

    /// Whether a packet is one of those it is about.
    pub fn matches(self, transport: Transport) -> bool {
        match (self, transport) {
            (Self::Everything, _) => true,
            (Self::Numbered(protocol), Transport::Number(sent)) => protocol == sent,
            (Self::Numbered(_), Transport::Port(..) | Transport::Other)
            | (Self::Range { .. }, Transport::Number(_) | Transport::Other) => false,
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

    /// What decides on a packet of a peer in `class`, or `None`: no entry matches, it is denied. Entries for the class come
    /// before those for every peer, and the most specific one before others, as in the kernel's map.
    pub fn lookup(
        &self,
        direction: Direction,
        class: Class,
        transport: Transport,
    ) -> Option<Decision> {
        let own = self.of_class(direction, class, transport);
        own.or_else(|| self.of_class(direction, Class::ANY, transport))
    }

    /// What decides on a packet of the pod to itself through a service; `None`: it passes.
    pub fn lookup_self(
        &self,
        direction: Direction,
        family_of: IpAddr,
        transport: Transport,
    ) -> Option<Decision> {
        self.of_class(direction, Class::of_self(family_of), transport)
    }

    /// Whether an entry for a peer denies anything in a direction.
    pub(crate) fn denies(&self, direction: Direction) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|(entry, decision)| entry.direction == direction && !decision.effect.passes())
    }

    fn of_class(
        &self,
        direction: Direction,
        class: Class,
        transport: Transport,
    ) -> Option<Decision> {
        let first = Entry { direction, class, ports: PortMatch::Everything };
        self.entries
            .range(first..)
            .take_while(move |(entry, _)| entry.direction == direction && entry.class == class)
            .filter(|(entry, _)| entry.ports.matches(transport))
            .min_by_key(|(entry, _)| entry.ports.width())
            .map(|(_, decision)| *decision)
    }
}

impl Compiled {
    /// Whether ranked rules apply to any endpoint.
    pub fn is_ranked(&self) -> bool {
        self.tables.values().any(|table| table.ranked)
    }

    /// The class of an address, as the kernel finds it: exact addresses first, then the longest prefix.
    pub fn class_of(&self, address: IpAddr) -> Class {
        self.classifier().class_of(address)
    }

    /// A classifier over the two class maps.
    pub fn classifier(&self) -> Classifier<'_> {
        Classifier::new(&self.hosts, &self.nets)
    }

    /// What decides on a packet of the endpoint, and the policies that isolate it. `None` if the endpoint has no table.
    /// Replies, the endpoint's own addresses and its node are always allowed; no table contains that, the caller has to know.
    pub fn judge(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        peer: IpAddr,
        transport: Transport,
    ) -> Option<Judgement<'_>> {
        let table = self.tables.get(&endpoint)?;
        let class = self.class_of(peer);
        let transport = match (transport, peer.to_canonical()) {
            (Transport::Other, IpAddr::V4(_)) => Transport::Number(IpProtocol::ICMP),
            (Transport::Other, IpAddr::V6(_)) => Transport::Number(IpProtocol::ICMPV6),
            (known, _) => known,
        };
        let decision = table.lookup(direction, class, transport);
        Some(Judgement { class, decision, isolating: table.isolating(direction) })
    }
}

/// The verdict of a table on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement<'a> {
    /// The peer's class.
    pub class: Class,
    /// What decides; `None`: no rule allows it, it is denied.
    pub decision: Option<Decision>,
    /// The policies that isolate the endpoint in the direction, sorted.
    pub isolating: &'a [PolicyId],
}

impl Judgement<'_> {
    /// Whether the packet may pass.
    pub fn allowed(&self) -> bool {
        self.decision.is_some_and(|decision| decision.effect.passes())
    }
}

/// Finds the class of an address in the two class maps.
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

    /// The class of an address: exact addresses first, then the longest prefix, else [`Class::ANY`].
    pub fn class_of(&self, address: IpAddr) -> Class {
        let address = address.to_canonical();
        self.hosts.get(&address).copied().unwrap_or_else(|| self.class_of_net(address))
    }

    /// The class that the prefixes alone give an address.
    pub fn class_of_net(&self, address: IpAddr) -> Class {
        self.nets.longest_match(address).map_or(Class::ANY, |(_, class)| *class)
    }
}
