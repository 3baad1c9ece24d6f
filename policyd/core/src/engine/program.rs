//! What the policies of an endpoint say, ready to be asked about one class after the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::asks::{Ask, AskId};
use super::classes::Atom;
use crate::compile::{Class, Entry, PortMatch, RuleId, Table};
use crate::model::{
    Direction, NamedPort, NamespaceScope, Peer, Peers, Policy, PolicyId, Port, Ports, Protocol,
    Rule,
};
use crate::selector::Selector;

impl Policy {
    /// The rules of a direction, if the policy isolates for it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// What a rule of a policy in force asks.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) direction: Direction,
    pub(crate) index: usize,
    pub(crate) ask: Ask,
}

/// Everything that a policy asks.
pub(crate) fn wanted(policy: &Policy) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for (index, rule) in policy.rules(direction).into_iter().flatten().enumerate() {
            let mut ask = |peers: &Arc<[Peer]>, port| {
                let ask = Ask { peers: peers.clone(), port };
                wanted.push(Wanted { direction, index, ask });
            };
            // an ingress rule's named ports are the selected pod's own numbers
            if let Peers::Of(peers) = &rule.peers
                && (direction == Direction::Ingress || rule.has_numbers())
            {
                ask(peers, None);
            }
            let Ports::Of(ports) = &rule.ports else { continue };
            for port in ports.iter().filter(|_| direction == Direction::Egress) {
                let Port::Named(protocol, name) = port else { continue };
                let named = Some((*protocol, name.clone()));
                match &rule.peers {
                    Peers::Of(peers) => ask(peers, named),
                    Peers::Any => ask(&every_pod(), named),
                }
            }
        }
    }
    wanted
}

/// Only pods have names for their ports.
fn every_pod() -> Arc<[Peer]> {
    let all = Selector::everything;
    Arc::new([Peer::Pods { namespaces: NamespaceScope::Matching(all()), pods: all() }])
}

impl Rule {
    /// Whether it allows anything beside named ports.
    fn has_numbers(&self) -> bool {
        match &self.ports {
            Ports::Any => true,
            Ports::Of(ports) => ports.iter().any(|port| !matches!(port, Port::Named(..))),
        }
    }
}

/// A policy in force, with the numbers of its rules and asks.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(crate) policy: Arc<Policy>,
    /// How many endpoints it selects.
    pub(crate) endpoints: usize,
    /// In the order of [`wanted`].
    pub(crate) asks: Vec<(Wanted, AskId)>,
    pub(crate) rules: BTreeMap<(Direction, usize), RuleId>,
}

/// The rules that apply to the pods that some policies select and whose ports have these names. Replicas share it.
#[derive(Debug)]
pub(crate) struct Program {
    ingress: Vec<PolicyId>,
    egress: Vec<PolicyId>,
    /// What is allowed to every peer.
    any: Vec<(Entry, RuleId)>,
    clauses: HashMap<AskId, Vec<Clause>>,
    /// What it was made of. Keeps the policies alive, whose places in memory name the program.
    _policies: Vec<Arc<Policy>>,
}

/// What a rule allows whom its ask names.
#[derive(Debug)]
struct Clause {
    /// Of two rules that allow the same the one that comes first is named.
    order: u32,
    rule: RuleId,
    direction: Direction,
    what: What,
}

#[derive(Debug)]
enum What {
    Ports(Arc<[PortMatch]>),
    /// The port of this protocol that the atom says.
    Named(Protocol),
}

impl Program {
    /// The program of a pod with these ports under these policies, given by id.
    pub(crate) fn new<'a>(
        policies: impl IntoIterator<Item = &'a InForce>,
        pod_ports: &[NamedPort],
    ) -> Self {
        let mut program = Self {
            ingress: Vec::new(),
            egress: Vec::new(),
            any: Vec::new(),
            clauses: HashMap::new(),
            _policies: Vec::new(),
        };
        let mut any: BTreeMap<Entry, RuleId> = BTreeMap::new();
        let mut order = 0;
        for in_force in policies {
            let policy = &in_force.policy;
            program._policies.push(policy.clone());
            for direction in [Direction::Ingress, Direction::Egress] {
                let Some(rules) = policy.rules(direction) else { continue };
                match direction {
                    Direction::Ingress => program.ingress.push(policy.id.clone()),
                    Direction::Egress => program.egress.push(policy.id.clone()),
                }
                for (index, rule) in rules.iter().enumerate() {
                    let Some(id) = in_force.rules.get(&(direction, index)).copied() else {
                        continue;
                    };
                    if rule.peers == Peers::Any {
                        for ports in numbered_ports(direction, &rule.ports, pod_ports) {
                            any.entry(Entry { direction, class: Class::ANY, ports }).or_insert(id);
                        }
                    }
                }
            }
            for (wanted, ask) in &in_force.asks {
                let Wanted { direction, index, .. } = *wanted;
                let rule = policy.rules(direction).and_then(|rules| rules.get(index));
                let (Some(rule), Some(id)) = (rule, in_force.rules.get(&(direction, index))) else {
                    continue;
                };
                let what = match &wanted.ask.port {
                    Some((protocol, _)) => What::Named(*protocol),
                    None => What::Ports(numbered_ports(direction, &rule.ports, pod_ports).into()),
                };
                order += 1;
                let clause = Clause { order, rule: *id, direction, what };
                program.clauses.entry(*ask).or_default().push(clause);
            }
        }
        for (direction, isolating) in
            [(Direction::Ingress, &program.ingress), (Direction::Egress, &program.egress)]
        {
            if isolating.is_empty() {
                let entry = Entry { direction, class: Class::ANY, ports: PortMatch::Everything };
                any.insert(entry, RuleId::not_isolated(direction));
            }
        }
        program.any = any.into_iter().collect();
        program
    }

    /// Everything it asks.
    pub(crate) fn asks(&self) -> impl Iterator<Item = AskId> {
        self.clauses.keys().copied()
    }

    /// Whether it says anything of a class with these atoms.
    pub(crate) fn concerns(&self, atoms: &[Atom]) -> bool {
        atoms.iter().any(|atom| self.clauses.contains_key(&atom.ask))
    }

    /// The entries for a class with these atoms.
    pub(crate) fn column(&self, class: Class, atoms: &[Atom]) -> BTreeMap<Entry, RuleId> {
        let mut column: BTreeMap<Entry, (u32, RuleId)> = BTreeMap::new();
        for atom in atoms {
            for clause in self.clauses.get(&atom.ask).into_iter().flatten() {
                let mut allow = |ports: PortMatch| {
                    let entry = Entry { direction: clause.direction, class, ports };
                    let first = column.entry(entry).or_insert((clause.order, clause.rule));
                    *first = (*first).min((clause.order, clause.rule));
                };
                match &clause.what {
                    What::Ports(ports) => ports.iter().copied().for_each(allow),
                    What::Named(protocol) => allow(PortMatch::one(*protocol, atom.number)),
                }
            }
        }
        column.into_iter().map(|(entry, (_, rule))| (entry, rule)).collect()
    }

    /// The table without any class.
    pub(crate) fn table(&self) -> Table {
        Table {
            ingress: self.ingress.clone(),
            egress: self.egress.clone(),
            entries: self.any.iter().copied().collect(),
        }
    }
}

/// The ports of a rule that do not depend on the peer. An ingress named port is the selected pod's own
/// number, or numbers, or nothing; never "any port".
fn numbered_ports(direction: Direction, ports: &Ports, pod: &[NamedPort]) -> Vec<PortMatch> {
    let ports = match ports {
        Ports::Any => return vec![PortMatch::Everything],
        Ports::Of(ports) => ports,
    };
    let mut numbered = Vec::new();
    for port in ports {
        match port {
            Port::All(protocol) => numbered.push(PortMatch::all(*protocol)),
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
