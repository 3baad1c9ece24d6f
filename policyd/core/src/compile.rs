//! Turns the index and the node's endpoints into classes and tables (design.md section 4).
//!
//! An *atom* is one peer that some policy of a local pod names. The *class* of an address is the exact
//! set of atoms that match it; class 0 is "no atom matches". A table says, per direction and class,
//! which protocol and ports are allowed; entries of class 0 hold for every peer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Direction, ObjectKey, PolicyId, Protocol};

/// The number of a class. Never reused while a process lives; [`Class::ANY`] is also the strangers' class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Class(pub u32);

impl Class {
    /// Matched by no atom. A table's entries for it hold for every peer.
    pub const ANY: Self = Self(0);
}

/// The number of a rule, kept in every table entry: names what decided. Stable while a process lives; 0 is "no rule".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId(pub u32);

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
    pub nets: BTreeMap<IpNet, Class>,
    /// One table per endpoint whose pod is known. An endpoint without a table stays in its startup state.
    pub tables: BTreeMap<EndpointId, Table>,
}

/// The transport part of a packet, for judging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, UDP or SCTP to this destination port.
    Port(Protocol, u16),
    /// ICMP and every other protocol.
    Other,
}
