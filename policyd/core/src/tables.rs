//! From the policies that select a pod to its table.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::classes::{Atom, Numbering, Used};
use crate::compile::{Class, Entry, PortMatch, RuleId, RuleOrigin, Table};
use crate::model::{Direction, NamedPort, Peers, Pod, Policy, PolicyId, Port, Ports, Rule};
use crate::peers::PeerIndex;

/// Numbers of rules, given once and kept while the process lives: flows and counters name them.
#[derive(Debug)]
pub(crate) struct Rules {
    ids: BTreeMap<RuleOrigin, RuleId>,
    origins: BTreeMap<RuleId, RuleOrigin>,
}

impl Rules {
    pub(crate) fn new() -> Self {
        let mut rules = Self { ids: BTreeMap::new(), origins: BTreeMap::new() };
        for direction in [Direction::Ingress, Direction::Egress] {
            rules.insert(RuleId::not_isolated(direction), RuleOrigin::NotIsolated(direction));
        }
        rules
    }

    fn insert(&mut self, id: RuleId, origin: RuleOrigin) {
        self.ids.insert(origin.clone(), id);
        self.origins.insert(id, origin);
    }

    pub(crate) fn origin(&self, id: RuleId) -> Option<&RuleOrigin> {
        self.origins.get(&id)
    }

    pub(crate) fn number(
        &mut self,
        policy: &PolicyId,
        direction: Direction,
        index: usize,
    ) -> RuleId {
        let origin = RuleOrigin::Policy { policy: policy.clone(), direction, index };
        if let Some(id) = self.ids.get(&origin) {
            return *id;
        }
        let last = self.origins.last_key_value().map_or(0, |(id, _)| id.0);
        let id = RuleId(last + 1);
        self.insert(id, origin);
        id
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

/// Makes the tables of one compilation. Pods with the same policies and port names have the same table,
/// as replicas do.
pub(crate) struct TableMaker<'a> {
    pub(crate) peers: &'a PeerIndex<'a>,
    pub(crate) numbering: &'a Numbering,
    pub(crate) used: &'a Used,
    pub(crate) rules: &'a mut Rules,
    pub(crate) made: HashMap<(Vec<PolicyId>, Arc<[NamedPort]>), Table>,
}

impl TableMaker<'_> {
    /// The table of an endpoint that is no pod, or none that a policy could select.
    pub(crate) fn not_isolated() -> Table {
        let mut table = Table::default();
        for direction in [Direction::Ingress, Direction::Egress] {
            allow_everything(&mut table, direction);
        }
        table
    }

    /// The table of a pod that these policies select, given by id.
    pub(crate) fn table(&mut self, pod: &Pod, policies: &[&Arc<Policy>]) -> Table {
        let ids: Vec<PolicyId> = policies.iter().map(|policy| policy.id.clone()).collect();
        let replica = (ids, pod.ports.clone());
        if let Some(made) = self.made.get(&replica) {
            return made.clone();
        }
        let mut table = Table::default();
        for direction in [Direction::Ingress, Direction::Egress] {
            let mut isolating = Vec::new();
            for policy in policies {
                let Some(rules) = policy.rules(direction) else { continue };
                isolating.push(policy.id.clone());
                for (index, rule) in rules.iter().enumerate() {
                    let id = self.rules.number(&policy.id, direction, index);
                    self.add(&mut table, direction, rule, id, pod);
                }
            }
            if isolating.is_empty() {
                allow_everything(&mut table, direction);
            }
            match direction {
                Direction::Ingress => table.ingress = isolating,
                Direction::Egress => table.egress = isolating,
            }
        }
        self.made.insert(replica, table.clone());
        table
    }

    fn add(&self, table: &mut Table, direction: Direction, rule: &Rule, id: RuleId, pod: &Pod) {
        let mut allow = |class: Class, ports: PortMatch| {
            table.entries.entry(Entry { direction, class, ports }).or_insert(id);
        };
        let ports = numbered_ports(direction, &rule.ports, pod);
        if !ports.is_empty() {
            match &rule.peers {
                Peers::Any => ports.iter().for_each(|ports| allow(Class::ANY, *ports)),
                Peers::Of(peers) => {
                    for peer in peers.iter() {
                        for class in self.classes(&Atom::Peer(peer.clone())) {
                            ports.iter().for_each(|ports| allow(class, *ports));
                        }
                    }
                }
            }
        }
        if direction == Direction::Egress {
            for named in rule.named_peers() {
                for number in self.peers.numbers(&named) {
                    let atom = Atom::Named { of: named.clone(), number };
                    for class in self.classes(&atom) {
                        allow(class, PortMatch::one(named.protocol, number));
                    }
                }
            }
        }
    }

    fn classes(&self, atom: &Atom) -> impl Iterator<Item = Class> {
        self.numbering.known(atom).into_iter().flat_map(|atom| self.used.with(atom))
    }
}

/// The ports of a rule that do not depend on the peer. An ingress named port is the selected pod's own
/// number, or numbers, or nothing; never "any port".
fn numbered_ports(direction: Direction, ports: &Ports, pod: &Pod) -> Vec<PortMatch> {
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
                let own = pod.ports.iter();
                let own = own.filter(|own| own.protocol == *protocol && own.name == *name);
                numbered.extend(own.map(|own| PortMatch::one(*protocol, own.number)));
            }
            Port::Named(..) => {}
        }
    }
    numbered
}

fn allow_everything(table: &mut Table, direction: Direction) {
    let entry = Entry { direction, class: Class::ANY, ports: PortMatch::Everything };
    table.entries.insert(entry, RuleId::not_isolated(direction));
}
