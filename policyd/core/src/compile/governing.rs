//! What governs an endpoint, policies of either kind and the node operator's own rules, and the peers that their rules name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clauses::PolicyClauses;
use super::ids::PeerSetId;
use super::peer_sets::PeerSet;
use crate::model::{
    ClusterPolicy, Direction, LocalAction, LocalDefaults, LocalRules, NamedPort, NamespaceScope,
    ObjectKey, Peer, Peers, Policy, PolicyMode, PolicySettings, Port, Ports, Protocol, Rule,
};
use crate::selector::Selector;
use crate::tables::{Effect, PortMatch, RuleId, RuleOrigin};

/// A policy that governs an endpoint.
#[derive(Clone, Debug)]
pub(crate) enum Governing {
    /// A NetworkPolicy.
    Namespaced(Arc<Policy>),
    /// A ClusterNetworkPolicy.
    Cluster(Arc<ClusterPolicy>),
    /// The local rules of one pod.
    Local(Arc<LocalRules>),
    /// The defaults of the node.
    NodeDefaults(Arc<LocalDefaults>),
}

impl Governing {
    /// Identifies a version of a policy: a changed policy is another allocation. Valid while the policy is held.
    pub(crate) fn addr(&self) -> usize {
        match self {
            Self::Namespaced(policy) => Arc::as_ptr(policy) as usize,
            Self::Cluster(policy) => Arc::as_ptr(policy) as usize,
            Self::Local(rules) => Arc::as_ptr(rules) as usize,
            Self::NodeDefaults(defaults) => Arc::as_ptr(defaults) as usize,
        }
    }

    /// What annotations say of it, which only policies have.
    fn settings(&self) -> Option<&PolicySettings> {
        match self {
            Self::Namespaced(policy) => Some(&policy.settings),
            Self::Cluster(policy) => Some(&policy.settings),
            Self::Local(_) | Self::NodeDefaults(_) => None,
        }
    }

    /// Whether the new flows that it decides are reported.
    pub(crate) fn is_logged(&self) -> bool {
        self.settings().is_some_and(|settings| settings.log.is_some())
    }

    pub(crate) fn is_audited(&self) -> bool {
        self.settings().is_some_and(|settings| settings.mode == PolicyMode::Audit)
    }

    /// What becomes of what it denies.
    pub(crate) fn denial(&self) -> Effect {
        match self.settings() {
            Some(settings) if settings.reject => Effect::Reject,
            Some(_) | None => Effect::Deny,
        }
    }

    /// Whether it only allows: a NetworkPolicy in force that is not logged.
    pub(crate) fn only_allows(&self) -> bool {
        matches!(self, Self::Namespaced(policy) if policy.settings == PolicySettings::default())
    }

    /// The peers and ports of each rule of a direction, in order.
    pub(crate) fn rules(&self, direction: Direction) -> Vec<(&Peers, &Ports)> {
        match self {
            Self::Namespaced(policy) => {
                let rules = policy.rules(direction).into_iter().flatten();
                rules.map(|rule| (&rule.peers, &rule.ports)).collect()
            }
            Self::Cluster(policy) => {
                policy.rules(direction).iter().map(|rule| (&rule.peers, &rule.ports)).collect()
            }
            Self::Local(local) => {
                local.rules(direction).map(|rule| (&rule.peers, &rule.ports)).collect()
            }
            Self::NodeDefaults(_) => Vec::new(),
        }
    }

    /// What the number of each rule of a direction names, in the order of [`Governing::rules`].
    pub(crate) fn origins(&self, direction: Direction) -> Vec<RuleOrigin> {
        let indexes = 0..self.rules(direction).len();
        match self {
            Self::Namespaced(policy) => indexes
                .map(|index| RuleOrigin::Policy { policy: policy.id.clone(), direction, index })
                .collect(),
            Self::Cluster(policy) => indexes
                .map(|index| RuleOrigin::Cluster {
                    tier: policy.tier,
                    priority: policy.priority,
                    policy: policy.id.clone(),
                    direction,
                    index,
                })
                .collect(),
            Self::Local(local) => local
                .rules(direction)
                .map(|rule| RuleOrigin::Local { pod: local.pod.clone(), id: rule.id })
                .collect(),
            Self::NodeDefaults(_) => Vec::new(),
        }
    }

    /// What becomes of traffic that nothing speaks of, if this says it.
    pub(crate) fn default(&self, direction: Direction) -> Option<LocalAction> {
        match self {
            Self::Namespaced(_) | Self::Cluster(_) => None,
            Self::Local(local) => local.defaults.of(direction),
            Self::NodeDefaults(defaults) => defaults.of(direction),
        }
    }

    /// The one pod that it governs.
    pub(crate) fn pod(&self) -> Option<&ObjectKey> {
        match self {
            Self::Local(local) => Some(&local.pod),
            Self::Namespaced(_) | Self::Cluster(_) | Self::NodeDefaults(_) => None,
        }
    }

    /// Whether it isolates for a direction, which only a NetworkPolicy does.
    pub(crate) fn isolates(&self, direction: Direction) -> bool {
        matches!(self, Self::Namespaced(policy) if policy.rules(direction).is_some())
    }

    /// The ports that its ingress rules name: they stand for the governed pod's own numbers.
    pub(crate) fn named_ports(&self) -> Vec<(Protocol, Arc<str>)> {
        let mut named = Vec::new();
        for (_, ports) in self.rules(Direction::Ingress) {
            let Ports::Of(ports) = ports else { continue };
            named.extend(ports.iter().filter_map(|port| match port {
                Port::Named(protocol, name) => Some((*protocol, name.clone())),
                Port::All(_) | Port::Of(_) | Port::Numbers(..) => None,
            }));
        }
        named
    }

    /// The peer sets of all rules.
    pub(crate) fn rule_peers(&self) -> Vec<RulePeers> {
        let mut found = Vec::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            for (index, (peers, ports)) in self.rules(direction).into_iter().enumerate() {
                let mut add = |peers: &Arc<[Peer]>, port| {
                    let peer_set = PeerSet { peers: peers.clone(), port };
                    found.push(RulePeers { direction, index, peer_set });
                };
                // an ingress rule's named ports are the subject's own numbers
                if let Peers::Of(peers) = peers
                    && (direction == Direction::Ingress || has_numbers(ports))
                {
                    add(peers, None);
                }
                let Ports::Of(ports) = ports else { continue };
                for port in ports.iter().filter(|_| direction == Direction::Egress) {
                    let Port::Named(protocol, name) = port else { continue };
                    add(&self.named_port_peers(peers), Some((*protocol, name.clone())));
                }
            }
        }
        found
    }

    /// The peers of a named egress port. Only pods have named ports: without `to` it is every pod, and a
    /// ClusterNetworkPolicy's networks and nodes have none, while a NetworkPolicy's block stands for the pods inside it.
    fn named_port_peers(&self, peers: &Peers) -> Arc<[Peer]> {
        match (self, peers) {
            (_, Peers::Any) => {
                let all = Selector::everything;
                let namespaces = NamespaceScope::Matching(all());
                Arc::new([Peer::Pods { namespaces, pods: all() }])
            }
            (Self::Namespaced(_), Peers::Of(peers)) => peers.clone(),
            // local rules have no named ports
            (Self::Cluster(_) | Self::Local(_) | Self::NodeDefaults(_), Peers::Of(peers)) => {
                peers.iter().filter(|peer| matches!(peer, Peer::Pods { .. })).cloned().collect()
            }
        }
    }
}

impl Policy {
    /// The rules of a direction, if the policy isolates for it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// The peers of one rule of a policy in force.
#[derive(Debug)]
pub(crate) struct RulePeers {
    pub(crate) direction: Direction,
    pub(crate) index: usize,
    pub(crate) peer_set: PeerSet,
}

/// Whether ports contain anything besides named ones.
fn has_numbers(ports: &Ports) -> bool {
    match ports {
        Ports::Any => true,
        Ports::Of(ports) => ports.iter().any(|port| !matches!(port, Port::Named(..))),
    }
}

/// The ports of a rule that do not depend on the peer. An ingress named port is the selected pod's own
/// number, or numbers, or nothing; never "any port".
pub(crate) fn numbered_ports(
    direction: Direction,
    ports: &Ports,
    pod: &[NamedPort],
) -> Vec<PortMatch> {
    let ports = match ports {
        Ports::Any => return vec![PortMatch::Everything],
        Ports::Of(ports) => ports,
    };
    let mut numbered = Vec::new();
    for port in ports {
        match port {
            Port::All(protocol) => numbered.push(PortMatch::all(*protocol)),
            Port::Of(protocol) => numbered.push(PortMatch::Numbered(*protocol)),
            Port::Numbers(protocol, range) => numbered.push(PortMatch::Range {
                protocol: *protocol,
                first: *range.start(),
                last: *range.end(),
            }),
            Port::Named(protocol, name) if direction == Direction::Ingress => {
                let own = pod.iter();
                let own = own.filter(|own| own.protocol == *protocol && own.name == *name);
                numbered.extend(own.map(|own| PortMatch::one(*protocol, own.number)));
            }
            Port::Named(..) => {}
        }
    }
    numbered
}

/// A policy in force, with the numbers of its rules and peer sets.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(crate) policy: Governing,
    /// How many endpoints it governs.
    pub(crate) endpoints: usize,
    /// In the order of [`Governing::rule_peers`].
    pub(crate) peer_sets: Vec<(RulePeers, PeerSetId)>,
    pub(crate) rules: BTreeMap<(Direction, usize), RuleId>,
    /// The numbers of [`RuleOrigin::Isolated`], of a NetworkPolicy that isolates for the direction.
    pub(crate) isolated: BTreeMap<Direction, RuleId>,
    /// What becomes of traffic that nothing speaks of, and the number of [`RuleOrigin::LocalDefault`].
    pub(crate) defaults: BTreeMap<Direction, (LocalAction, RuleId)>,
    /// [`Governing::named_ports`].
    pub(crate) named_ports: Vec<(Protocol, Arc<str>)>,
    /// Its clauses, by the ports of pods that it asks for. Made for the first program that needs them.
    pub(crate) clauses: Vec<(Vec<NamedPort>, Arc<PolicyClauses>)>,
}

impl InForce {
    /// Whether what it says of a pod depends on this port of it: an ingress rule asks for it by name.
    pub(crate) fn asks_for(&self, port: &NamedPort) -> bool {
        self.named_ports
            .iter()
            .any(|(protocol, name)| *protocol == port.protocol && *name == port.name)
    }
}
