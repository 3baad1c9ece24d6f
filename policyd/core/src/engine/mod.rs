//! From the index and the node's endpoints to classes and tables, step by step (design.md section 4).
//!
//! ```text
//!  policies that select an endpoint --> asks --> terms --> shapes --> addresses --> classes --> tables
//!                                            +-> blocks -> prefixes -----^  ^
//!                     what changed in the index ----------------------------+
//! ```
//!
//! [`Engine::update`] takes what changed since the last time, walks each arrow only from what is different, and
//! says which addresses, prefixes and tables came out differently. A pod event looks at the pod's own
//! addresses; a policy event at the endpoints of its namespace and at what its rules ask that nobody asked
//! before; a namespace event at the pods of that namespace, if a namespaceSelector in force tells it apart
//! from before. Nothing else is looked at, so that the cost does not grow with the cluster.
//!
//! What comes out is a function of the index and the endpoints alone, but for the numbers of classes and rules.

mod asks;
mod blocks;
mod classes;
mod program;
mod rules;
mod subjects;
mod touched;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use crate::compile::{
    Class, Compiled, Endpoint, EndpointId, Entry, PortMatch, RuleId, RuleOrigin, Table,
};
use crate::index::{Changes, Index};
use crate::model::{Direction, NamedPort, Policy};

use asks::Asks;
use blocks::Moved;
use classes::{Atom, Classes, Turnover};
use program::{InForce, Program, wanted};
use rules::Rules;
use subjects::{Subject, Subjects, known_pod};

pub use rules::RuleNames;
pub use touched::{Part, Touched};

/// Follows an index and the node's endpoints. Held by the one writer of the maps.
#[derive(Debug)]
pub struct Engine {
    compiled: Compiled,
    rules: Rules,
    subjects: Subjects,
    /// Endpoints that are gone or another's since the last update.
    departed: Vec<Subject>,
    /// By the place of the policy in memory: a changed policy is another one.
    in_force: HashMap<usize, InForce>,
    asks: Asks,
    classes: Classes,
    /// Addresses of pods that some selector in force matches.
    members: BTreeSet<IpAddr>,
    programs: HashMap<Likeness, Weak<Program>>,
}

/// Endpoints that are alike have the same program.
type Likeness = (Vec<usize>, Arc<[NamedPort]>);

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

    /// An engine whose classes begin above these, found in the kernel's maps: what those meant is not known
    /// any more.
    pub fn above(classes: impl IntoIterator<Item = Class>) -> Self {
        let highest = classes.into_iter().filter(|class| !class.is_transient()).max();
        Self {
            compiled: Compiled::default(),
            rules: Rules::new(),
            subjects: Subjects::default(),
            departed: Vec::new(),
            in_force: HashMap::new(),
            asks: Asks::default(),
            classes: Classes::starting_at(highest.map_or(1, |class| class.0 + 1)),
            members: BTreeSet::new(),
            programs: HashMap::new(),
        }
    }

    /// An engine that has looked at everything.
    pub fn of(index: &Index, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let mut engine = Self::new();
        engine.set_endpoints(endpoints);
        engine.update(index, Changes::default());
        engine
    }

    /// What the maps should hold, as of the last update.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// What a rule number stands for, or stood for not too long ago.
    pub fn origin(&self, rule: RuleId) -> Option<&RuleOrigin> {
        self.rules.origin(rule)
    }

    /// The same, for those who do not hold the engine.
    pub fn rule_names(&self) -> &RuleNames {
        self.rules.names()
    }

    /// The endpoint of this number.
    pub fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.subjects.get(id).map(|subject| &subject.endpoint)
    }

    /// All endpoints, by number.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.subjects.iter().map(|subject| &subject.endpoint)
    }

    /// How many classes are in use, beside [`Class::ANY`].
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// What the members of a class have in common, in words that mean the same in every engine.
    pub fn meaning(&self, class: Class) -> BTreeSet<String> {
        let atoms = self.classes.atoms(class).iter();
        atoms.map(|atom| format!("{:?} {}", self.asks.get(atom.ask), atom.number)).collect()
    }

    /// These are the node's endpoints from the next update on.
    pub fn set_endpoints(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) {
        let mut gone: BTreeSet<EndpointId> = self.subjects.ids().collect();
        for endpoint in endpoints {
            gone.remove(&endpoint.id);
            self.departed.extend(self.subjects.set(endpoint));
        }
        for id in gone {
            self.departed.extend(self.subjects.remove(id));
        }
    }

    /// Follows the index, which has changed in this way since the last update. Says what came out differently.
    pub fn update(&mut self, index: &Index, changes: Changes) -> Touched {
        let Changes { pods, addresses, shapes, namespaces, policies } = changes;
        let mut touched = Touched::default();
        let mut dirty = addresses;
        dirty.extend(self.subjects.take_addresses());

        pods.iter().for_each(|pod| self.subjects.touch_pod(pod));
        policies.iter().for_each(|id| self.subjects.touch_namespace(&id.key.namespace));
        let programmed = self.select(index, &mut dirty, &mut touched);
        self.asks.settle();

        let likenesses = shapes.iter().filter_map(|id| index.shapes().get(*id));
        let of_shapes = likenesses.map(|shape| shape.likeness.namespace.clone());
        let namespaces: BTreeSet<Arc<str>> = of_shapes.chain(namespaces).collect();
        namespaces.iter().for_each(|name| self.asks.follow_namespace(name, index));
        shapes.iter().for_each(|id| self.asks.follow_shape(*id, index));

        for moved in self.asks.blocks.settle() {
            self.move_prefix(moved, index, &mut dirty, &mut touched);
        }
        for shape in self.asks.take_dirty() {
            let Some(shape) = index.shapes().get(shape) else { continue };
            for name in &shape.pods {
                let key = crate::model::ObjectKey {
                    namespace: shape.likeness.namespace.clone(),
                    name: name.clone(),
                };
                dirty.extend(index.pod(&key).into_iter().flat_map(|pod| &pod.addresses));
                dirty.extend(self.subjects.addresses_of(&key));
            }
        }
        for address in dirty {
            self.classify(address, index, &mut touched);
        }
        let turnover = self.classes.settle();
        self.tabulate(&programmed, &turnover, &mut touched);
        touched
    }

    /// Finds the policies of the endpoints that may have got others, and what these ask. Returns the endpoints
    /// whose tables must be made anew.
    fn select(
        &mut self,
        index: &Index,
        dirty: &mut HashSet<IpAddr>,
        touched: &mut Touched,
    ) -> BTreeSet<EndpointId> {
        let mut programmed = BTreeSet::new();
        let mut released: Vec<Arc<Policy>> = Vec::new();
        for subject in std::mem::take(&mut self.departed) {
            let id = subject.endpoint.id;
            if self.compiled.tables.remove(&id).is_some() {
                touched.table(id);
            }
            released.extend(subject.policies);
        }
        for id in self.subjects.take_dirty() {
            let Some(subject) = self.subjects.get(id) else { continue };
            let pod = known_pod(index, &subject.endpoint).cloned();
            let selecting = pod.iter().flat_map(|pod| index.policies_selecting(pod));
            let policies: Vec<Arc<Policy>> = selecting.cloned().collect();
            let same_pod = match (&subject.pod, &pod) {
                (Some(before), Some(now)) => Arc::ptr_eq(before, now),
                (before, now) => before.is_none() && now.is_none(),
            };
            let same = |a: &[Arc<Policy>], b: &[Arc<Policy>]| {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
            };
            let same_policies = same(&subject.policies, &policies);
            let ports = |pod: &Option<Arc<_>>| {
                pod.as_ref().map(|pod: &Arc<crate::model::Pod>| pod.ports.clone())
            };
            let same_ports = ports(&subject.pod) == ports(&pod);
            if !same_pod {
                dirty.extend(subject.endpoint.addresses.iter().map(IpAddr::to_canonical));
            }
            let has_table = subject.endpoint.pod.is_none() || pod.is_some();
            let had_table = subject.program.is_some();
            if !same_policies {
                policies.iter().for_each(|policy| self.acquire(policy, index));
            }
            let program = match (has_table, had_table && same_policies && same_ports) {
                (false, _) => None,
                (true, true) => self.subjects.get(id).and_then(|subject| subject.program.clone()),
                (true, false) => {
                    programmed.insert(id);
                    let ports = ports(&pod).unwrap_or_default();
                    Some(self.program(&policies, ports))
                }
            };
            if !has_table && self.compiled.tables.remove(&id).is_some() {
                touched.table(id);
            }
            let Some(subject) = self.subjects.get_mut(id) else { continue };
            (subject.pod, subject.program) = (pod, program);
            if !same_policies {
                released.extend(std::mem::replace(&mut subject.policies, policies));
            }
        }
        // after all have been acquired: what both the old and the new ask keeps its number
        released.iter().for_each(|policy| self.release(policy));
        if !programmed.is_empty() || !released.is_empty() {
            self.programs.retain(|_, program| program.strong_count() > 0);
        }
        programmed
    }

    fn acquire(&mut self, policy: &Arc<Policy>, index: &Index) {
        if let Some(in_force) = self.in_force.get_mut(&place(policy)) {
            in_force.endpoints += 1;
            return;
        }
        let mut rules = std::collections::BTreeMap::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            for number in 0..policy.rules(direction).map_or(0, <[_]>::len) {
                rules.insert((direction, number), self.rules.number(&policy.id, direction, number));
            }
        }
        let asks = wanted(policy).into_iter().map(|wanted| {
            let id = self.asks.acquire(wanted.ask.clone(), index);
            (wanted, id)
        });
        let in_force =
            InForce { asks: asks.collect(), policy: policy.clone(), endpoints: 1, rules };
        self.in_force.insert(place(policy), in_force);
    }

    fn release(&mut self, policy: &Arc<Policy>) {
        let Some(in_force) = self.in_force.get_mut(&place(policy)) else { return };
        in_force.endpoints -= 1;
        if in_force.endpoints > 0 {
            return;
        }
        if let Some(in_force) = self.in_force.remove(&place(policy)) {
            in_force.asks.iter().for_each(|(_, ask)| self.asks.release(*ask));
            in_force.rules.into_values().for_each(|rule| self.rules.retire(rule));
        }
    }

    fn program(&mut self, policies: &[Arc<Policy>], ports: Arc<[NamedPort]>) -> Arc<Program> {
        let likeness = (policies.iter().map(place).collect(), ports);
        if let Some(program) = self.programs.get(&likeness).and_then(Weak::upgrade) {
            return program;
        }
        let in_force = policies.iter().filter_map(|policy| self.in_force.get(&place(policy)));
        let program = Arc::new(Program::new(in_force, &likeness.1));
        self.programs.insert(likeness, Arc::downgrade(&program));
        program
    }

    /// Gives a prefix its class, and finds the addresses inside whose classes may be others now.
    fn move_prefix(
        &mut self,
        moved: Moved,
        index: &Index,
        dirty: &mut HashSet<IpAddr>,
        touched: &mut Touched,
    ) {
        let Moved { prefix, there, before, after } = moved;
        let was = self.compiled.nets.get(&prefix).copied();
        let class = there.then(|| {
            let plain = after.iter().filter(|ask| self.asks.is_plain(**ask));
            self.classes.join(&plain.map(|ask| Atom::plain(*ask)).collect::<Vec<_>>())
        });
        match class {
            Some(class) => drop(self.compiled.nets.insert(prefix, class)),
            None => drop(self.compiled.nets.remove(&prefix)),
        }
        was.into_iter().for_each(|class| self.classes.leave(class));
        if was != class {
            touched.nets.insert(prefix);
        }
        if before == after {
            return;
        }
        dirty.extend(self.members.range(prefix.network()..=prefix.broadcast()));
        if before.iter().chain(after.iter()).any(|ask| self.asks.names_port(*ask)) {
            dirty.extend(index.owned_inside(&prefix));
            dirty.extend(self.subjects.addresses_inside(&prefix));
        }
    }

    /// Gives an address its class.
    fn classify(&mut self, address: IpAddr, index: &Index, touched: &mut Touched) {
        let owner = self.subjects.owner(address, index);
        let net = self.asks.blocks.at(address);
        let concerned = owner.as_ref().is_some_and(|claim| self.asks.concern(claim.shape));
        match concerned {
            true => drop(self.members.insert(address)),
            false => drop(self.members.remove(&address)),
        }
        let mut class = None;
        if let Some(claim) = owner
            && (concerned || net.iter().any(|ask| self.asks.names_port(*ask)))
        {
            let mut atoms = Vec::new();
            for ask in self.asks.of_shape(claim.shape).chain(net.iter().copied()) {
                let Some((protocol, name)) = self.asks.port(ask) else {
                    atoms.push(Atom::plain(ask));
                    continue;
                };
                let named = claim.pod.ports.iter();
                let named = named.filter(|port| port.protocol == *protocol && port.name == *name);
                atoms.extend(named.map(|port| Atom { ask, number: port.number }));
            }
            atoms.sort_unstable();
            atoms.dedup();
            // else its class is that of its blocks, which is what `nets` says
            let plain = net.iter().filter(|ask| self.asks.is_plain(**ask)).copied();
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
            touched.hosts.insert(address);
        }
    }

    /// Makes the tables of some endpoints anew, and writes into the others what new classes are allowed.
    fn tabulate(
        &mut self,
        programmed: &BTreeSet<EndpointId>,
        turnover: &Turnover,
        touched: &mut Touched,
    ) {
        let mut made: HashMap<usize, Arc<Table>> = HashMap::new();
        let mut columns: HashMap<(usize, Class), Vec<(Entry, RuleId)>> = HashMap::new();
        for subject in self.subjects.iter() {
            let id = subject.endpoint.id;
            let Some(program) = &subject.program else { continue };
            let place = Arc::as_ptr(program) as usize;
            if programmed.contains(&id) {
                let table = made.entry(place).or_insert_with(|| Arc::new(self.table(program)));
                if self.compiled.tables.get(&id) != Some(&*table) {
                    self.compiled.tables.insert(id, table.clone());
                    touched.table(id);
                }
                continue;
            }
            let Some(table) = self.compiled.tables.get_mut(&id) else { continue };
            for class in &turnover.died {
                let gone = table.column(*class);
                if !gone.is_empty() {
                    let entries = &mut Arc::make_mut(table).entries;
                    for entry in &gone {
                        entries.remove(entry);
                    }
                    touched.column(id, *class);
                }
            }
            for class in &turnover.born {
                let atoms = self.classes.atoms(*class);
                if !program.concerns(atoms) {
                    continue;
                }
                let column = columns
                    .entry((place, *class))
                    .or_insert_with(|| program.column(*class, atoms).into_iter().collect());
                if !column.is_empty() {
                    Arc::make_mut(table).entries.extend(column.iter().copied());
                    touched.column(id, *class);
                }
            }
        }
    }

    fn table(&self, program: &Program) -> Table {
        let mut table = program.table();
        let classes: BTreeSet<Class> =
            program.asks().flat_map(|ask| self.classes.with(ask)).collect();
        for class in classes {
            table.entries.extend(program.column(class, self.classes.atoms(class)));
        }
        table
    }
}

impl Table {
    /// The entries of a class.
    pub fn column(&self, class: Class) -> Vec<Entry> {
        let of = |direction| {
            let first = Entry { direction, class, ports: PortMatch::Everything };
            let entries = self.entries.range(first..).map(|(entry, _)| *entry);
            entries.take_while(move |e| e.direction == direction && e.class == class)
        };
        of(Direction::Ingress).chain(of(Direction::Egress)).collect()
    }
}

fn place(policy: &Arc<Policy>) -> usize {
    Arc::as_ptr(policy) as usize
}
