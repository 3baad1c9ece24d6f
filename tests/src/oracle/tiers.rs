//! The tiers of ClusterNetworkPolicies (15).
//!
//! Policies are read from JSON values: a type would pass over the fields that it does not know. A rule of which some peer or
//! protocol item cannot be read fails closed as a whole: Accept matches nothing, every other action denies everything.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Decider, Flow, Gate, L4, Policies, Ruling, World, cidr_holds, declares, is_audited, labels,
    matches, namespace_labels, owner_of,
};

/// A ClusterNetworkPolicy.
#[derive(Clone, Debug)]
pub struct ClusterPolicy {
    /// As it was written.
    pub object: Value,
    name: String,
    is_audited: bool,
    tier: String,
    priority: i64,
    subject: Pods,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

impl From<Value> for ClusterPolicy {
    /// # Panics
    ///
    /// If the API's schema would not allow it.
    fn from(object: Value) -> Self {
        let (metadata, spec): (ObjectMeta, _) = (read(&object["metadata"]), &object["spec"]);
        let rules = |list: &str, gate| {
            spec[list].as_array().into_iter().flatten().map(|rule| Rule::of(rule, gate)).collect()
        };
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            is_audited: is_audited(&metadata),
            tier: read(&spec["tier"]),
            priority: read(&spec["priority"]),
            subject: Pods::of(&spec["subject"]).unwrap_or_else(|| panic!("{object}: no subject")),
            ingress: rules("ingress", Gate::Ingress),
            egress: rules("egress", Gate::Egress),
            object,
        }
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"))
}

/// What the policies of a tier say of a flow: nothing if no rule matches, or the first that does passes it on.
pub(super) fn tier(
    world: &World,
    tier: &str,
    flow: Flow<'_>,
    policies: Policies,
) -> Option<Ruling> {
    let mut of_tier: Vec<&ClusterPolicy> = world
        .cluster_policies
        .iter()
        .filter(|policy| policy.tier == tier)
        .filter(|policy| policies == Policies::AndAudited || !policy.is_audited)
        .filter(|policy| policy.subject.contain(world, &flow.pod.metadata))
        .collect();
    of_tier.sort_by_key(|policy| (policy.priority, &policy.name));
    for policy in of_tier {
        let rules = match flow.gate {
            Gate::Ingress => &policy.ingress,
            Gate::Egress => &policy.egress,
        };
        for (rule, of) in rules.iter().enumerate() {
            let by = Decider::Cluster { policy: policy.name.clone(), rule };
            match of.action {
                _ if !of.matches(world, flow) => {}
                Action::Accept => return Some(Ruling { passes: true, rejects: false, by }),
                Action::Deny => return Some(Ruling { passes: false, rejects: false, by }),
                Action::Pass => return None,
            }
        }
    }
    None
}

/// Pods, as a subject or a peer names them.
#[derive(Clone, Debug)]
struct Pods {
    namespaces: LabelSelector,
    pods: LabelSelector,
}

impl Pods {
    /// Of exactly one of `namespaces` and `pods`.
    fn of(item: &Value) -> Option<Self> {
        match only_field(item)? {
            ("namespaces", selector) => {
                Some(Self { namespaces: read(selector), pods: LabelSelector::default() })
            }
            ("pods", of) => Some(Self {
                namespaces: of.get("namespaceSelector").map(read).unwrap_or_default(),
                pods: read(&of["podSelector"]),
            }),
            _ => None,
        }
    }

    fn contain(&self, world: &World, pod: &ObjectMeta) -> bool {
        matches(&self.namespaces, &namespace_labels(world, pod))
            && matches(&self.pods, &labels(pod))
    }
}

/// The name and the value of a field that has no other beside it.
fn only_field(value: &Value) -> Option<(&str, &Value)> {
    let fields = value.as_object()?;
    let (name, value) = fields.iter().next()?;
    (fields.len() == 1).then_some((name, value))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Accept,
    Deny,
    Pass,
}

#[derive(Clone, Debug)]
struct Rule {
    action: Action,
    peers: Vec<Peer>,
    /// `None`: every protocol.
    protocols: Option<Vec<Protocol>>,
}

impl Rule {
    fn of(rule: &Value, gate: Gate) -> Self {
        let action = match rule["action"].as_str() {
            Some("Accept") => Action::Accept,
            Some("Pass") => Action::Pass,
            _ => Action::Deny, // also what is not known
        };
        let list = if gate == Gate::Ingress { "from" } else { "to" };
        let items = rule[list].as_array().into_iter().flatten();
        let peers = items.map(|item| Peer::of(item, gate, action)).collect();
        let protocols = rule.get("protocols").map(|items| {
            items.as_array().into_iter().flatten().map(Protocol::of).collect::<Option<Vec<_>>>()
        });
        match (peers, protocols, action) {
            (Some(peers), None, _) => Self { action, peers, protocols: None },
            (Some(peers), Some(Some(protocols)), _) => {
                Self { action, peers, protocols: Some(protocols) }
            }
            (.., Action::Accept) => Self { action, peers: Vec::new(), protocols: None },
            _ => Self { action: Action::Deny, peers: vec![Peer::Everybody], protocols: None },
        }
    }

    /// Whether one peer matches together with one protocol item.
    fn matches(&self, world: &World, flow: Flow<'_>) -> bool {
        if self.peers.iter().any(|peer| matches!(peer, Peer::Names)) {
            return false; // no name is resolved
        }
        self.peers.iter().any(|peer| {
            peer.matches(world, flow)
                && self
                    .protocols
                    .as_ref()
                    .is_none_or(|items| items.iter().any(|item| item.matches(world, peer, flow)))
        })
    }
}

#[derive(Clone, Debug)]
enum Peer {
    Pods(Pods),
    Networks(Vec<String>),
    Nodes(LabelSelector),
    /// `domainNames`.
    Names,
    /// What a rule that fails closed denies.
    Everybody,
}

impl Peer {
    /// `None` if it is not known.
    fn of(item: &Value, gate: Gate, action: Action) -> Option<Self> {
        match (only_field(item)?, gate) {
            (("networks", cidrs), Gate::Egress) => Some(Self::Networks(read(cidrs))),
            (("nodes", selector), Gate::Egress) => Some(Self::Nodes(read(selector))),
            (("domainNames", _), Gate::Egress) => (action == Action::Accept).then_some(Self::Names),
            _ => Pods::of(item).map(Self::Pods),
        }
    }

    fn matches(&self, world: &World, flow: Flow<'_>) -> bool {
        match self {
            Self::Pods(pods) => {
                owner_of(world, flow.peer).is_some_and(|pod| pods.contain(world, &pod.metadata))
            }
            Self::Networks(cidrs) => cidrs.iter().any(|cidr| cidr_holds(cidr, flow.peer)),
            Self::Nodes(selector) => world.nodes.iter().any(|node| {
                let addresses = node.status.iter().flat_map(|of| of.addresses.iter().flatten());
                matches(selector, &labels(&node.metadata))
                    && addresses.into_iter().any(|of| of.address.parse::<IpAddr>() == Ok(flow.peer))
            }),
            Self::Names => false,
            Self::Everybody => true,
        }
    }
}

#[derive(Clone, Debug)]
enum Protocol {
    /// The protocol, the first port and the last.
    Ports(String, u16, u16),
    Named(String),
}

impl Protocol {
    /// `None` if it is not known.
    fn of(item: &Value) -> Option<Self> {
        let (name, of) = only_field(item)?;
        if name == "destinationNamedPort" {
            return Some(Self::Named(read(of)));
        }
        if !["tcp", "udp", "sctp"].contains(&name) {
            return None;
        }
        let (first, last) = match of.get("destinationPort") {
            None if of.as_object().is_some_and(|fields| fields.is_empty()) => (0, u16::MAX),
            None => return None,
            Some(port) => match only_field(port)? {
                ("number", number) => (read(number), read(number)),
                ("range", range) => (read(&range["start"]), read(&range["end"])),
                _ => return None,
            },
        };
        Some(Self::Ports(name.to_uppercase(), first, last))
    }

    /// `peer`: the item of the rule that matches. A named port is one of pods, and networks and nodes have none.
    fn matches(&self, world: &World, peer: &Peer, flow: Flow<'_>) -> bool {
        let L4::Port(protocol, port) = flow.l4 else { return false };
        match self {
            Self::Ports(of, first, last) => of == protocol && (*first..=*last).contains(&port),
            Self::Named(name) => {
                matches!(peer, Peer::Pods(_))
                    && flow.destination(world).is_some_and(|of| declares(of, name, protocol, port))
            }
        }
    }
}
