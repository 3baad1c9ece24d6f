//! Compiles the index and the node's endpoints into classes and tables, incrementally.
//!
//! ```text
//!  policies that select an endpoint --> peer sets --> pod terms --> identities --> addresses --> classes --> tables
//!                                            +--> ipBlocks --> prefixes -------^  ^
//!                     what changed in the index -----------------------------------+
//! ```
//!
//! [`Engine::update`] takes what changed since the last update, follows each arrow only from what is different, and
//! returns which addresses, prefixes and tables have changed. A pod event looks at the pod's own
//! addresses; a policy event at the endpoints of its namespace and at the members of those peer sets that no rule used
//! before; a namespace event at the pods of that namespace, if it now matches other namespaceSelectors in force than
//! before. Nothing else is looked at, so that the cost does not grow with the cluster.
//!
//! The result is a function of the index and the endpoints alone, except for the numbers of classes and rules.

mod cidr_index;
mod classes;
mod clauses;
mod columns;
mod delta;
mod governing;
mod ids;
mod local_endpoints;
mod nearest;
mod node_terms;
mod peer_sets;
mod program;
mod ranked;
mod resolve;
mod rules;
mod tabulate;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use crate::diff::EntryKey;
use crate::index::{Changes, Index};
use crate::model::{Direction, NamedPort, ObjectKey, Pod};
use crate::tables::{
    Class, Compiled, Decision, Endpoint, EndpointId, Entry, RuleId, RuleOrigin, Table,
};

use cidr_index::PrefixChange;
use classes::{Atom, Classes};
use clauses::{ClauseIds, PolicyClauses};
use columns::Columns;
use governing::{Governing, InForce};
use local_endpoints::{LocalEndpoint, LocalEndpoints};
use peer_sets::PeerSets;
use program::Program;
use rules::Rules;

pub(crate) use local_endpoints::known_pod;

pub use delta::{EngineDelta, TableDelta};
pub use rules::RuleNames;

/// Follows an index and the node's endpoints. Owned by the writer thread.
#[derive(Debug)]
pub struct Engine {
    compiled: Compiled,
    rules: Rules,
    endpoints: LocalEndpoints,
    /// Endpoints removed or replaced since the last update.
    departed: Vec<LocalEndpoint>,
    /// By [`Governing::addr`].
    in_force: HashMap<usize, InForce>,
    peer_sets: PeerSets,
    classes: Classes,
    /// The addresses of pods that some selector in force matches.
    members: BTreeSet<IpAddr>,
    programs: HashMap<ProgramKey, Weak<Program>>,
    clause_ids: ClauseIds,
}

/// Endpoints with the same policies (by [`Governing::addr`]) and the same ports, as far as those ask for them by name, share
/// one program.
type ProgramKey = (Vec<usize>, Vec<NamedPort>);

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// An engine over empty maps.
    pub fn new() -> Self {
        Self::above([])
    }

    /// An engine that numbers its classes above these, which were found in the kernel's maps: their meaning is not known
    /// any more, so no number may be used again.
    pub fn above(classes: impl IntoIterator<Item = Class>) -> Self {
        let highest = classes.into_iter().filter(|class| class.is_compiled()).max();
        Self {
            compiled: Compiled::default(),
            rules: Rules::new(),
            endpoints: LocalEndpoints::default(),
            departed: Vec::new(),
            in_force: HashMap::new(),
            peer_sets: PeerSets::default(),
            classes: Classes::starting_at(highest.map_or(1, |class| class.0 + 1)),
            members: BTreeSet::new(),
            programs: HashMap::new(),
            clause_ids: ClauseIds::default(),
        }
    }

    /// An engine that has compiled the whole index.
    pub fn of(index: &Index, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let mut engine = Self::new();
        engine.set_endpoints(endpoints);
        engine.update(index, Changes::default());
        engine
    }

    /// What the maps should hold after the last update.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// The rule of a number: one in force, or one of the last that were.
    pub fn origin(&self, rule: RuleId) -> Option<&RuleOrigin> {
        self.rules.origin(rule)
    }

    /// A shared view of the rule numbers, for readers on other threads.
    pub fn rule_names(&self) -> &RuleNames {
        self.rules.names()
    }

    /// The endpoint of this number.
    pub fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.endpoints.get(id).map(|local| &local.endpoint)
    }

    /// All endpoints, by number.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().map(|local| &local.endpoint)
    }

    /// The endpoints of a pod: one for each of its interfaces on this node.
    pub fn endpoints_of(&self, pod: &ObjectKey) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.of_pod(pod).map(|local| &local.endpoint)
    }

    /// The endpoints that have an address.
    pub fn endpoints_at(&self, address: IpAddr) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.at(address.to_canonical()).map(|local| &local.endpoint)
    }

    /// The number of classes in use, without [`Class::ANY`].
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// The atoms of a class as text that is equal in every engine, whatever the numbers: for comparisons in tests.
    pub fn meaning(&self, class: Class) -> BTreeSet<String> {
        let atoms = self.classes.atoms(class).iter();
        atoms
            .map(|atom| format!("{:?} {}", self.peer_sets.get(atom.peer_set), atom.number))
            .collect()
    }

    /// Sets the node's endpoints; [`Engine::update`] takes them into account.
    pub fn set_endpoints(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) {
        let mut gone: BTreeSet<EndpointId> = self.endpoints.ids().collect();
        for endpoint in endpoints {
            gone.remove(&endpoint.id);
            self.departed.extend(self.endpoints.set(endpoint));
        }
        for id in gone {
            self.departed.extend(self.endpoints.remove(id));
        }
    }

    /// Follows the index, which has changed in this way since the last update. Returns what is different in
    /// [`Engine::compiled`].
    pub fn update(&mut self, index: &Index, changes: Changes) -> EngineDelta {
        let Changes {
            pods,
            addresses,
            identities,
            namespaces,
            policies,
            cluster_policies,
            local_rules,
            local_defaults,
            nodes,
            pod_traffic_policies: _,
        } = changes;
        let mut delta = EngineDelta::default();
        let mut dirty = addresses;
        dirty.extend(self.endpoints.take_addresses());

        pods.iter().chain(&local_rules).for_each(|pod| self.endpoints.touch_pod(pod));
        policies.iter().for_each(|id| self.endpoints.touch_namespace(&id.key.namespace));
        if local_defaults {
            self.endpoints.touch_all();
        }
        cluster_policies.iter().for_each(|id| self.endpoints.touch_subjects(id, index));
        if index.cluster_policies().next().is_some() {
            // the subjects of cluster policies depend on labels of namespaces
            namespaces.iter().for_each(|name| self.endpoints.touch_namespace(name));
        }
        let programmed = self.select(index, &mut dirty, &mut delta);
        self.peer_sets.settle();

        let changed = identities.iter().filter_map(|id| index.identities().get(*id));
        let of_identities = changed.map(|identity| identity.key.namespace.clone());
        let namespaces: BTreeSet<Arc<str>> = of_identities.chain(namespaces).collect();
        namespaces.iter().for_each(|name| self.peer_sets.follow_namespace(name, index));
        identities.iter().for_each(|id| self.peer_sets.follow_identity(*id, index));
        nodes.iter().for_each(|name| self.peer_sets.follow_node(name, index));

        for change in self.peer_sets.cidrs.settle() {
            self.classify_prefix(change, index, &mut dirty, &mut delta);
        }
        let mut renamed = self.peer_sets.take_dirty_pods();
        for identity in self.peer_sets.take_dirty() {
            let Some(identity) = index.identities().get(identity) else { continue };
            for name in &identity.pods {
                let key =
                    ObjectKey { namespace: identity.key.namespace.clone(), name: name.clone() };
                renamed.insert(key);
            }
        }
        for key in renamed {
            dirty.extend(index.pod(&key).into_iter().flat_map(|pod| &pod.addresses));
            dirty.extend(self.endpoints.addresses_of(&key));
        }
        for address in dirty {
            self.classify(address, index, &mut delta);
        }
        let class_changes = self.classes.settle();
        let mut columns = Columns::default();
        self.tabulate(&programmed, &class_changes, &mut columns, &mut delta);
        self.judge_self(&programmed, &mut columns, &mut delta);
        delta
    }

    /// Finds the policies of the endpoints that may be selected by others than before, and acquires their peer sets.
    /// Returns the endpoints whose tables must be rebuilt.
    fn select(
        &mut self,
        index: &Index,
        dirty: &mut HashSet<IpAddr>,
        delta: &mut EngineDelta,
    ) -> BTreeSet<EndpointId> {
        let mut programmed = BTreeSet::new();
        let mut released: Vec<Governing> = Vec::new();
        for local in std::mem::take(&mut self.departed) {
            let id = local.endpoint.id;
            if self.compiled.tables.remove(&id).is_some() {
                delta.table(id);
            }
            released.extend(local.policies);
        }
        for id in self.endpoints.take_dirty() {
            let Some(local) = self.endpoints.get(id) else { continue };
            let pod = known_pod(index, &local.endpoint).cloned();
            let policies: Vec<Governing> =
                pod.iter().flat_map(|pod| governing(index, pod)).collect();
            let same_pod = match (&local.pod, &pod) {
                (Some(before), Some(now)) => Arc::ptr_eq(before, now),
                (before, now) => before.is_none() && now.is_none(),
            };
            let addresses = |of: &[Governing]| of.iter().map(Governing::addr).collect::<Vec<_>>();
            let same_policies = addresses(&local.policies) == addresses(&policies);
            let ports = |pod: &Option<Arc<_>>| {
                pod.as_ref().map(|pod: &Arc<crate::model::Pod>| pod.ports.clone())
            };
            let same_ports = ports(&local.pod) == ports(&pod);
            if !same_pod {
                dirty.extend(local.endpoint.addresses.iter().map(IpAddr::to_canonical));
            }
            let has_table = local.endpoint.pod.is_none() || pod.is_some();
            let had_table = local.program.is_some();
            if !same_policies {
                policies.iter().for_each(|policy| self.acquire(policy, index));
            }
            let program = match (has_table, had_table && same_policies && same_ports) {
                (false, _) => None,
                (true, true) => self.endpoints.get(id).and_then(|local| local.program.clone()),
                (true, false) => {
                    programmed.insert(id);
                    let ports = ports(&pod).unwrap_or_default();
                    Some(self.program(&policies, &ports))
                }
            };
            if !has_table && self.compiled.tables.remove(&id).is_some() {
                delta.table(id);
            }
            let Some(local) = self.endpoints.get_mut(id) else { continue };
            (local.pod, local.program) = (pod, program);
            if !same_policies {
                released.extend(std::mem::replace(&mut local.policies, policies));
            }
        }
        // after all have been acquired, so that a peer set that both the old and the new policy use keeps its number
        released.iter().for_each(|policy| self.release(policy));
        if !programmed.is_empty() || !released.is_empty() {
            self.programs.retain(|_, program| program.strong_count() > 0);
        }
        programmed
    }

    fn acquire(&mut self, policy: &Governing, index: &Index) {
        if let Some(in_force) = self.in_force.get_mut(&policy.addr()) {
            in_force.endpoints += 1;
            return;
        }
        let (mut rules, mut isolated, mut defaults) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for direction in [Direction::Ingress, Direction::Egress] {
            for (number, origin) in policy.origins(direction).into_iter().enumerate() {
                rules.insert((direction, number), self.rules.number(origin));
            }
            if let Governing::Namespaced(of) = policy
                && policy.isolates(direction)
            {
                let origin = RuleOrigin::Isolated { policy: of.id.clone(), direction };
                isolated.insert(direction, self.rules.number(origin));
            }
            if let Some(action) = policy.default(direction) {
                let origin = RuleOrigin::LocalDefault { pod: policy.pod().cloned(), direction };
                defaults.insert(direction, (action, self.rules.number(origin)));
            }
        }
        let peer_sets = policy.rule_peers().into_iter().map(|peers| {
            let id = self.peer_sets.acquire(peers.peer_set.clone(), index);
            (peers, id)
        });
        let in_force = InForce {
            peer_sets: peer_sets.collect(),
            policy: policy.clone(),
            endpoints: 1,
            rules,
            isolated,
            defaults,
            named_ports: policy.named_ports(),
            clauses: Vec::new(),
        };
        self.in_force.insert(policy.addr(), in_force);
    }

    fn release(&mut self, policy: &Governing) {
        let Some(in_force) = self.in_force.get_mut(&policy.addr()) else { return };
        in_force.endpoints -= 1;
        if in_force.endpoints > 0 {
            return;
        }
        if let Some(in_force) = self.in_force.remove(&policy.addr()) {
            in_force.peer_sets.iter().for_each(|(_, peer_set)| self.peer_sets.release(*peer_set));
            let defaults = in_force.defaults.into_values().map(|(_, rule)| rule);
            let rules = in_force.rules.into_values().chain(in_force.isolated.into_values());
            let rules = rules.chain(defaults);
            rules.for_each(|rule| self.rules.retire(rule));
        }
    }

    fn program(&mut self, policies: &[Governing], pod_ports: &[NamedPort]) -> Arc<Program> {
        let addresses: Vec<usize> = policies.iter().map(Governing::addr).collect();
        let in_force: Vec<&InForce> =
            addresses.iter().filter_map(|address| self.in_force.get(address)).collect();
        let asked = pod_ports.iter().filter(|port| in_force.iter().any(|of| of.asks_for(port)));
        let key: ProgramKey = (addresses, asked.cloned().collect());
        if let Some(program) = self.programs.get(&key).and_then(Weak::upgrade) {
            return program;
        }
        let (addresses, ports) = &key;
        let ranked: Option<Vec<_>> = match policies.iter().all(Governing::only_allows) {
            true => None,
            false => Some(self.clauses(addresses, ports)),
        };
        let in_force: Vec<&InForce> =
            addresses.iter().filter_map(|address| self.in_force.get(address)).collect();
        let program = Arc::new(Program::new(&in_force, ports, ranked.as_deref()));
        self.programs.insert(key, Arc::downgrade(&program));
        program
    }

    /// What policies in force say of a pod with these ports.
    fn clauses(&mut self, policies: &[usize], ports: &[NamedPort]) -> Vec<Arc<PolicyClauses>> {
        let mut clauses = Vec::with_capacity(policies.len());
        for policy in policies {
            let in_force = self.in_force.get_mut(policy);
            clauses.extend(in_force.map(|of| of.clauses(ports, &mut self.clause_ids)));
        }
        clauses
    }

    /// Gives a prefix its class, and marks the addresses inside it whose classes may change with it.
    fn classify_prefix(
        &mut self,
        change: PrefixChange,
        index: &Index,
        dirty: &mut HashSet<IpAddr>,
        delta: &mut EngineDelta,
    ) {
        let PrefixChange { prefix, mentioned, before, after } = change;
        let was = self.compiled.nets.get(&prefix).copied();
        let class = mentioned.then(|| {
            let plain =
                after.iter().filter(|peer_set| self.peer_sets.has_no_named_port(**peer_set));
            self.classes.join(&plain.map(|peer_set| Atom::plain(*peer_set)).collect::<Vec<_>>())
        });
        match class {
            Some(class) => drop(self.compiled.nets.insert(prefix, class)),
            None => drop(self.compiled.nets.remove(&prefix)),
        }
        was.into_iter().for_each(|class| self.classes.leave(class));
        if was != class {
            delta.nets.insert(prefix);
        }
        if before == after {
            return;
        }
        dirty.extend(self.members.range(prefix.network()..=prefix.broadcast()));
        if before
            .iter()
            .chain(after.iter())
            .any(|peer_set| self.peer_sets.has_named_port(*peer_set))
        {
            dirty.extend(index.owned_inside(&prefix));
            dirty.extend(self.endpoints.addresses_inside(&prefix));
        }
    }

    /// Gives an address its class.
    fn classify(&mut self, address: IpAddr, index: &Index, delta: &mut EngineDelta) {
        let owner = self.endpoints.owner(address, index);
        let net = self.peer_sets.cidrs.at(address);
        let concerned = owner.as_ref().is_some_and(|claim| self.peer_sets.is_selected(claim));
        match concerned {
            true => drop(self.members.insert(address)),
            false => drop(self.members.remove(&address)),
        }
        let mut class = None;
        if let Some(claim) = owner
            && (concerned || net.iter().any(|peer_set| self.peer_sets.has_named_port(*peer_set)))
        {
            let mut atoms = Vec::new();
            for peer_set in self.peer_sets.of_pod(&claim).chain(net.iter().copied()) {
                let Some((protocol, name)) = self.peer_sets.port(peer_set) else {
                    atoms.push(Atom::plain(peer_set));
                    continue;
                };
                let named = claim.pod.ports.iter();
                let named = named.filter(|port| port.protocol == *protocol && port.name == *name);
                atoms.extend(named.map(|port| Atom { peer_set, number: port.number }));
            }
            atoms.sort_unstable();
            atoms.dedup();
            // otherwise it has the class of its longest prefix: no entry of its own is needed
            let plain =
                net.iter().filter(|peer_set| self.peer_sets.has_no_named_port(**peer_set)).copied();
            if !atoms.iter().copied().eq(plain.map(Atom::plain)) {
                class = Some(self.classes.join(&atoms));
            }
        }
        let was = match class {
            Some(class) => self.compiled.hosts.insert(address, class),
            None => self.compiled.hosts.remove(&address),
        };
        was.into_iter().for_each(|class| self.classes.leave(class));
        if was != class {
            delta.hosts.insert(address);
        }
    }
}

impl Table {
    /// The entries of a class.
    pub fn column(&self, class: Class) -> BTreeMap<Entry, Decision> {
        EntryKey::column(&self.entries, class)
    }
}

/// The policies that govern a pod: NetworkPolicies by id, then ClusterNetworkPolicies in the order of their evaluation, then
/// what the node's operator says of the pod and of the node.
fn governing(index: &Index, pod: &Pod) -> Vec<Governing> {
    let namespaced = index.policies_selecting(pod).into_iter().cloned();
    let cluster = index.cluster_policies_selecting(pod).into_iter().cloned();
    let local = index.local_rules(pod).cloned().map(Governing::Local);
    let node = index.local_defaults(pod).cloned().map(Governing::NodeDefaults);
    let policies = namespaced.map(Governing::Namespaced).chain(cluster.map(Governing::Cluster));
    policies.chain(local).chain(node).collect()
}
