//! The policies of an endpoint as a program: from the atoms of a class to the table entries of that class.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::classes::{Atom, Classes};
use super::clauses::PolicyClauses;
use super::columns::Columns;
use super::governing::{Governing, InForce, RulePeers, numbered_ports};
use super::ids::PeerSetId;
use super::ranked::RankedProgram;
use crate::model::{Direction, NamedPort, Peers, PolicyId, Protocol};
use crate::tables::{Class, Decision, Entry, PortMatch, RuleId, Table};

/// What some policies say of the traffic of a pod with certain named ports. Replicas share one program.
#[derive(Debug)]
pub(crate) struct Program {
    /// The NetworkPolicies in force that isolate for ingress.
    ingress: Vec<PolicyId>,
    egress: Vec<PolicyId>,
    rules: Rules,
    /// Keeps the policies alive: their addresses in memory are the key under which programs are shared.
    _policies: Vec<Governing>,
}

/// The rules about certain peers.
#[derive(Debug)]
enum Rules {
    /// Of policies that only allow, so that their order does not matter.
    Allowing {
        /// The entries of [`Class::ANY`].
        any: Vec<(Entry, Decision)>,
        clauses: ClausesOf,
    },
    Ranked(RankedProgram),
}

/// By the peer set that they are about.
type ClausesOf = HashMap<PeerSetId, Vec<Clause>>;

/// Ports that a rule allows to the peers of one peer set.
#[derive(Debug)]
struct Clause {
    /// Of two rules that allow the same, the entry names the one with the lower order.
    order: u32,
    rule: RuleId,
    direction: Direction,
    ports: RulePorts,
}

/// The ports of a rule.
#[derive(Debug)]
pub(super) enum RulePorts {
    Ports(Arc<[PortMatch]>),
    /// The port of this protocol whose number is in the atom.
    Named(Protocol),
}

impl Program {
    /// The program of a pod with these ports under these policies, in the order of their evaluation. `ranked`: their
    /// clauses, if their order matters.
    pub(crate) fn new(
        policies: &[&InForce],
        pod_ports: &[NamedPort],
        ranked: Option<&[Arc<PolicyClauses>]>,
    ) -> Self {
        let isolating = |direction| {
            let of = policies.iter().filter(|of| !of.policy.is_audited());
            let isolating = of.filter_map(|of| match &of.policy {
                Governing::Namespaced(policy) if policy.rules(direction).is_some() => {
                    Some(policy.id.clone())
                }
                Governing::Namespaced(_)
                | Governing::Cluster(_)
                | Governing::Local(_)
                | Governing::NodeDefaults(_) => None,
            });
            isolating.collect::<Vec<_>>()
        };
        let (ingress, egress) = (isolating(Direction::Ingress), isolating(Direction::Egress));
        let rules = match ranked {
            None => {
                let (any, clauses) = allowing(policies, pod_ports);
                Rules::Allowing { any, clauses }
            }
            Some(clauses) => Rules::Ranked(RankedProgram::new(clauses)),
        };
        let policies = policies.iter().map(|of| of.policy.clone()).collect();
        Self { ingress, egress, rules, _policies: policies }
    }

    /// The rules, if they are ranked.
    pub(crate) fn ranked(&self) -> Option<&RankedProgram> {
        match &self.rules {
            Rules::Allowing { .. } => None,
            Rules::Ranked(ranked) => Some(ranked),
        }
    }

    /// Whether some rule is about peers with one of these atoms.
    pub(crate) fn concerns(&self, atoms: &[Atom]) -> bool {
        match &self.rules {
            Rules::Allowing { clauses, .. } => {
                atoms.iter().any(|atom| clauses.contains_key(&atom.peer_set))
            }
            Rules::Ranked(ranked) => ranked.concerns(atoms),
        }
    }

    /// The entries for a class with these atoms.
    pub(crate) fn column(
        &self,
        class: Class,
        atoms: &[Atom],
        columns: &mut Columns,
    ) -> Vec<(Entry, Decision)> {
        match &self.rules {
            Rules::Allowing { clauses, .. } => allowed(clauses, class, atoms).collect(),
            Rules::Ranked(ranked) => ranked.column(class, atoms, columns),
        }
    }

    /// All entries of its table but those for what the pod sends to itself. Sorted.
    pub(crate) fn entries(
        &self,
        classes: &Classes,
        columns: &mut Columns,
    ) -> Vec<(Entry, Decision)> {
        let (any, clauses) = match &self.rules {
            Rules::Ranked(ranked) => return ranked.entries(classes, columns),
            Rules::Allowing { any, clauses } => (any, clauses),
        };
        let concerned: BTreeSet<Class> =
            clauses.keys().flat_map(|peer_set| classes.with(*peer_set)).collect();
        let of_class = |class| allowed(clauses, class, classes.atoms(class));
        let mut entries = any.clone();
        entries.extend(concerned.into_iter().flat_map(of_class));
        entries.sort_unstable_by_key(|(entry, _)| *entry);
        entries
    }

    /// A table with these entries.
    pub(crate) fn table(&self, entries: impl IntoIterator<Item = (Entry, Decision)>) -> Table {
        Table {
            ingress: self.ingress.clone(),
            egress: self.egress.clone(),
            ranked: self.ranked().is_some(),
            entries: entries.into_iter().collect(),
        }
    }

    /// Whether a table has these entries, which are sorted, and all else by this program.
    pub(crate) fn is_table(&self, table: &Table, entries: &[(Entry, Decision)]) -> bool {
        let Table { ingress, egress, ranked, entries: held } = table;
        (&self.ingress, &self.egress, self.ranked().is_some()) == (ingress, egress, *ranked)
            && held.iter().eq(entries.iter().map(|(entry, decision)| (entry, decision)))
    }
}

/// The entries that clauses about some peers make for a class with these atoms.
fn allowed(
    clauses: &ClausesOf,
    class: Class,
    atoms: &[Atom],
) -> impl Iterator<Item = (Entry, Decision)> + use<> {
    let mut column: BTreeMap<Entry, (u32, RuleId)> = BTreeMap::new();
    for atom in atoms {
        for clause in clauses.get(&atom.peer_set).into_iter().flatten() {
            let mut allow = |ports: PortMatch| {
                let entry = Entry { direction: clause.direction, class, ports };
                let first = column.entry(entry).or_insert((clause.order, clause.rule));
                *first = (*first).min((clause.order, clause.rule));
            };
            match &clause.ports {
                RulePorts::Ports(ports) => ports.iter().copied().for_each(allow),
                RulePorts::Named(protocol) => allow(PortMatch::one(*protocol, atom.number)),
            }
        }
    }
    column.into_iter().map(|(entry, (_, rule))| (entry, Decision::allow(rule)))
}

/// The entries for every peer, and the clauses for the others, of policies that only allow.
fn allowing(policies: &[&InForce], pod_ports: &[NamedPort]) -> (Vec<(Entry, Decision)>, ClausesOf) {
    let mut any: BTreeMap<Entry, RuleId> = BTreeMap::new();
    let mut clauses = ClausesOf::new();
    let mut order = 0;
    for in_force in policies {
        let policy = &in_force.policy;
        for direction in [Direction::Ingress, Direction::Egress] {
            for (index, (peers, ports)) in policy.rules(direction).into_iter().enumerate() {
                let Some(id) = in_force.rules.get(&(direction, index)).copied() else { continue };
                if *peers == Peers::Any {
                    for ports in numbered_ports(direction, ports, pod_ports) {
                        any.entry(Entry { direction, class: Class::ANY, ports }).or_insert(id);
                    }
                }
            }
        }
        for (peers, peer_set) in &in_force.peer_sets {
            let RulePeers { direction, index, .. } = *peers;
            let rules = policy.rules(direction);
            let rule = in_force.rules.get(&(direction, index)).copied();
            let (Some((_, ports)), Some(rule)) = (rules.get(index), rule) else { continue };
            let ports = match &peers.peer_set.port {
                Some((protocol, _)) => RulePorts::Named(*protocol),
                None => RulePorts::Ports(numbered_ports(direction, ports, pod_ports).into()),
            };
            order += 1;
            clauses.entry(*peer_set).or_default().push(Clause { order, rule, direction, ports });
        }
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        if !policies.iter().any(|of| of.policy.isolates(direction)) {
            let entry = Entry { direction, class: Class::ANY, ports: PortMatch::Everything };
            any.insert(entry, RuleId::not_isolated(direction));
        }
    }
    let any = any.into_iter().map(|(entry, rule)| (entry, Decision::allow(rule))).collect();
    (any, clauses)
}
