//! The program of an endpoint that ranked rules govern: local rules, ClusterNetworkPolicies, or policies that are audited or
//! logged.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::classes::{Atom, Classes};
use super::clauses::{Clause, DIRECTIONS, PolicyClauses};
use super::columns::{Base, BaseId, ClassesByAtom, Column, Columns, Concerned, ListId, With};
use super::ids::PeerSetId;
use super::program::RulePorts;
use super::resolve::{Ends, STAGES, Stage, Statement, resolve};
use crate::model::{Direction, IpProtocol};
use crate::tables::{Class, Decision, Effect, Entry, PortMatch, RuleId};

/// The clauses of all policies, in the order of their evaluation.
#[derive(Debug, Default)]
pub(super) struct RankedProgram {
    policies: Vec<Arc<PolicyClauses>>,
    /// The clauses that are not about every peer: their peer sets and places. Sorted.
    of_peers: Vec<(PeerSetId, Place)>,
    /// By what the policies in force isolate.
    isolated: BTreeMap<Direction, Decision>,
    /// By what they and the audited ones isolate.
    isolated_with_audited: BTreeMap<Direction, Decision>,
    /// What becomes of what nothing speaks of, where that is said.
    defaults: BTreeMap<Direction, Decision>,
    /// The first rule in force that denies anybody, by direction: it denies what cannot be judged.
    denying: BTreeMap<Direction, RuleId>,
    has_audited: bool,
}

/// The place of a policy, and that of the clause in it. Their order is that of evaluation.
type Place = (usize, usize);

impl RankedProgram {
    /// `policies` in the order of their evaluation within each kind.
    pub(super) fn new(policies: &[Arc<PolicyClauses>]) -> Self {
        let mut program = Self::default();
        for stage in STAGES {
            policies.iter().filter(|of| of.stage == stage).for_each(|of| program.add(of));
        }
        program.of_peers.sort_unstable();
        program
    }

    fn add(&mut self, policy: &Arc<PolicyClauses>) {
        self.has_audited |= policy.audited;
        for (direction, decision) in &policy.isolated {
            let note = |isolated: &mut BTreeMap<Direction, Decision>| {
                let first = isolated.entry(*direction).or_insert(*decision);
                // of several that isolate, one that asks to be told of it, and for all if one tells the sender
                let effect = first.effect.max(decision.effect);
                if decision.log && !first.log {
                    *first = *decision;
                }
                first.effect = effect;
            };
            if !policy.audited {
                note(&mut self.isolated);
            }
            note(&mut self.isolated_with_audited);
        }
        for (direction, decision) in &policy.defaults {
            // the pod's come before the node's
            self.defaults.entry(*direction).or_insert(*decision);
        }
        for (direction, rule) in policy.denying.iter().filter(|_| !policy.audited) {
            self.denying.entry(*direction).or_insert(*rule);
        }
        let places = policy.clauses.iter().zip(0..);
        let of_peers =
            places.filter_map(|(of, clause)| Some((of.peer_set?, (self.policies.len(), clause))));
        self.of_peers.extend(of_peers);
        self.policies.push(policy.clone());
    }

    /// Whether some clause is about peers with one of these atoms.
    pub(super) fn concerns(&self, atoms: &[Atom]) -> bool {
        atoms.iter().any(|atom| self.about(atom.peer_set).next().is_some())
    }

    /// The clauses about the peers of a set.
    fn about(&self, peer_set: PeerSetId) -> impl Iterator<Item = (Place, &Clause)> {
        let first = self.of_peers.partition_point(|(of, _)| *of < peer_set);
        let places = self.of_peers.get(first..).into_iter().flatten();
        let places = places.take_while(move |(of, _)| *of == peer_set);
        places.filter_map(|(_, place)| {
            Some((*place, self.policies.get(place.0)?.clauses.get(place.1)?))
        })
    }

    /// All entries of its table but those for what the pod sends to itself: for every peer that has none of its own, and for
    /// each class that some clause is about. Sorted.
    pub(super) fn entries(
        &self,
        classes: &Classes,
        columns: &mut Columns,
    ) -> Vec<(Entry, Decision)> {
        let mut entries = Vec::new();
        let classes = columns.by_atom(classes);
        let lists = self.lists(&classes, columns);
        for (direction, lists) in DIRECTIONS.into_iter().zip(lists) {
            let base = columns.base(self.base(direction, With::Peers));
            entries.extend(self.of_every_peer(direction, base, columns));
            for (class, list) in classes.classes().iter().zip(lists) {
                if list != ListId::EMPTY {
                    let column = self.resolved(direction, With::Peers, (base, list), columns);
                    entries.extend(of_class(direction, *class, &column));
                }
            }
        }
        entries
    }

    fn of_every_peer(
        &self,
        direction: Direction,
        base: BaseId,
        columns: &mut Columns,
    ) -> Vec<(Entry, Decision)> {
        let column = self.resolved(direction, With::Peers, (base, ListId::EMPTY), columns);
        let mut entries: Vec<_> = of_class(direction, Class::ANY, &column).collect();
        // The programs look up packets that cannot be judged, whose peer may be any, as protocol 255 of every peer: they
        // may pass only where nobody is denied anything (docs/semantics.md 8.6).
        if let Some(rule) = self.denying.get(&direction) {
            let ports = PortMatch::Numbered(IpProtocol::UNREADABLE);
            let entry = Entry { direction, class: Class::ANY, ports };
            entries.retain(|(of, _)| *of != entry);
            entries.push((entry, Decision::deny(*rule)));
            entries.sort_unstable_by_key(|(entry, _)| *entry);
        }
        entries
    }

    /// For each class the clauses of each direction about its peers.
    fn lists(&self, classes: &ClassesByAtom, columns: &mut Columns) -> [Vec<ListId>; 2] {
        let mut lists = DIRECTIONS.map(|_| vec![ListId::EMPTY; classes.classes().len()]);
        // most classes have few different lists: what the last steps made is nearly always what the next one asks for
        let mut known: Vec<((ListId, u16), ListId)> = Vec::new();
        for clause in self.policies.iter().flat_map(|policy| &policy.clauses) {
            let Some(peer_set) = clause.peer_set else { continue };
            let [ingress, egress] = &mut lists;
            let lists = match clause.direction {
                Direction::Ingress => ingress,
                Direction::Egress => egress,
            };
            known.clear();
            for (number, place) in classes.with(peer_set) {
                let Some(list) = lists.get_mut(place) else { continue };
                let from = (*list, number);
                *list = match known.iter().find(|(of, _)| *of == from) {
                    Some((_, longer)) => *longer,
                    None => {
                        let longer = columns.append(*list, (clause.id, number));
                        known.push((from, longer));
                        longer
                    }
                };
            }
        }
        lists
    }

    /// The entries for a class with these atoms: none for a direction in which no clause is about such peers, else for
    /// every packet.
    pub(super) fn column(
        &self,
        class: Class,
        atoms: &[Atom],
        columns: &mut Columns,
    ) -> Vec<(Entry, Decision)> {
        let mut entries = Vec::new();
        for direction in DIRECTIONS {
            let list = self.list(direction, atoms, columns);
            if list != ListId::EMPTY {
                let base = columns.base(self.base(direction, With::Peers));
                let column = self.resolved(direction, With::Peers, (base, list), columns);
                entries.extend(of_class(direction, class, &column));
            }
        }
        entries
    }

    /// The entries for what the pod, whose own address has these atoms, sends to itself through a service. None if it all
    /// passes.
    pub(super) fn to_itself(
        &self,
        class: Class,
        atoms: &[Atom],
        columns: &mut Columns,
    ) -> Vec<(Entry, Decision)> {
        let resolved = DIRECTIONS.map(|direction| {
            let list = self.list(direction, atoms, columns);
            let base = columns.base(self.base(direction, With::Itself));
            (direction, self.resolved(direction, With::Itself, (base, list), columns))
        });
        let mut all = resolved.iter().flat_map(|(_, column)| column.iter());
        if all.all(|(_, decision)| decision.effect == Effect::Allow) {
            return Vec::new();
        }
        let entries = resolved.iter().flat_map(|(direction, of)| of_class(*direction, class, of));
        entries.collect()
    }

    /// The clauses of a direction that are about peers with these atoms. Those that are about every peer are not among them.
    fn list(&self, direction: Direction, atoms: &[Atom], columns: &mut Columns) -> ListId {
        let mut clauses: Vec<(Place, Concerned)> = Vec::new();
        for atom in atoms {
            let about = self.about(atom.peer_set);
            let about = about.filter(|(_, clause)| clause.direction == direction);
            clauses.extend(about.map(|(place, clause)| (place, (clause.id, atom.number))));
        }
        clauses.sort_unstable_by_key(|(place, (_, number))| (*place, *number));
        clauses.iter().fold(ListId::EMPTY, |list, (_, clause)| columns.append(list, *clause))
    }

    fn base(&self, direction: Direction, with: With) -> Base {
        let clauses = self.policies.iter().flat_map(|policy| &policy.clauses);
        let every = clauses.filter(|of| of.direction == direction && of.peer_set.is_none());
        let ends = |isolated: &BTreeMap<Direction, Decision>| {
            let passes = Decision::allow(RuleId::not_isolated(direction));
            let isolated = isolated.get(&direction).copied();
            match with {
                With::Peers => {
                    let default = self.defaults.get(&direction).copied().unwrap_or(passes);
                    Ends { isolated, default }
                }
                With::Itself => Ends { isolated: isolated.map(|_| passes), default: passes },
            }
        };
        Base {
            direction,
            with,
            every: every.map(|clause| clause.id).collect(),
            ends: ends(&self.isolated),
            with_audited: self.has_audited.then(|| ends(&self.isolated_with_audited)),
        }
    }

    fn resolved(
        &self,
        direction: Direction,
        with: With,
        (base, list): (BaseId, ListId),
        columns: &mut Columns,
    ) -> Column {
        columns.get(base, list, |concerned| {
            let Base { ends, with_audited, .. } = self.base(direction, with);
            let statements = |audited| self.statements(direction, with, concerned, audited);
            let now = resolve(&statements(false), ends);
            let resolved = match with_audited {
                None => now,
                Some(ends) => now.audited(resolve(&statements(true), ends)),
            };
            let mut column = resolved.column();
            column.sort_unstable_by_key(|(ports, _)| *ports);
            column.into()
        })
    }

    /// What the clauses about every peer and those `concerned` say, in the order of their evaluation.
    fn statements(
        &self,
        direction: Direction,
        with: With,
        concerned: &[Concerned],
        audited: bool,
    ) -> Vec<Statement> {
        let mut statements = Vec::new();
        let mut concerned = concerned.iter().peekable();
        for policy in &self.policies {
            let PolicyClauses { stage, audited: is_audited, clauses, .. } = &**policy;
            let own_address = with == With::Itself && *stage == Stage::Local;
            let is_silent = (*is_audited && !audited) || own_address;
            for clause in clauses.iter().filter(|clause| clause.direction == direction) {
                let Clause { action, decision, .. } = *clause;
                let mut say = |number| {
                    let mut say = |ports| {
                        statements.push(Statement { stage: *stage, action, ports, decision })
                    };
                    match &clause.ports {
                        RulePorts::Ports(ports) => ports.iter().copied().for_each(say),
                        RulePorts::Named(protocol) => say(PortMatch::one(*protocol, number)),
                    }
                };
                if clause.peer_set.is_none() && !is_silent {
                    say(0);
                }
                while let Some((_, number)) = concerned.next_if(|(of, _)| *of == clause.id) {
                    if !is_silent {
                        say(*number);
                    }
                }
            }
        }
        statements
    }
}

/// The entries of a column for a class.
fn of_class(
    direction: Direction,
    class: Class,
    column: &[(PortMatch, Decision)],
) -> impl Iterator<Item = (Entry, Decision)> {
    column.iter().map(move |(ports, of)| (Entry { direction, class, ports: *ports }, *of))
}
