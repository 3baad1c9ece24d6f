//! From one state of the maps to another, in an order that no flow notices (design.md section 4).
//!
//! Every step is one change of one map. A verdict comes from two of them, the class of the peer's address
//! and the entries of that class, and the promise is about each moment in between: **a flow that both
//! states allow is never refused, and one that both refuse is never allowed.**
//!
//! Adding entries first, moving addresses between classes then and removing entries last keeps the first
//! half. The second half needs more, for a class may change its entries and its members at once: of pods
//! `a` in class 1 and `b` in class 2, let a policy that allowed class 2 now allow class 1, while `a` loses
//! the label that made it class 1. New entries of class 1 added before `a` has left would let `a` in,
//! which no state does. Just so a pod that joins a class must not find entries there that are about to go.
//! Such a class (it gets entries and loses members, or loses entries and gets members) is edited only
//! while nobody is in it: its new entries are written for a *transient* twin first, those who stay or
//! come go to the twin, the empty class is edited, and they move back.
//!
//! [`Class::ANY`] needs no twin: its entries hold for every peer, so old ones are no more than what the old
//! state allows everybody, and new ones no more than what the new one does.
//!
//! An endpoint's first table comes when the classes have settled, so that its first verdict is its final one;
//! until then it is in its startup state. No class can be referenced before its entries exist.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::compile::{Class, Classifier, Compiled, EndpointId, Entry, RuleId, Table};

/// The key of a table's entry, as the maps have it.
///
/// Entries only ever allow. What an entry allows must depend on its key alone, and be the same for two
/// keys that differ in their classes only.
pub trait EntryKey: Clone + Ord {
    /// For which peers it is.
    fn class(&self) -> Class;
    /// The same for other peers.
    #[must_use]
    fn with_class(&self, class: Class) -> Self;
}

impl EntryKey for Entry {
    fn class(&self) -> Class {
        self.class
    }

    fn with_class(&self, class: Class) -> Self {
        Self { class, ..*self }
    }
}

/// What the maps hold. `K` is an entry's key: [`Entry`], or how the kernel's map spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State<K> {
    /// Classes of exact addresses.
    pub hosts: BTreeMap<IpAddr, Class>,
    /// Classes of prefixes.
    pub nets: BTreeMap<IpNet, Class>,
    /// Each endpoint's entries, and the rule that each names.
    pub tables: BTreeMap<EndpointId, BTreeMap<K, RuleId>>,
}

/// One change of one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<K> {
    /// Adds an entry, or changes the rule that it names.
    SetEntry {
        /// Whose.
        endpoint: EndpointId,
        /// Which.
        key: K,
        /// The rule.
        rule: RuleId,
    },
    /// Gives an exact address its class, or another one.
    SetHost {
        /// Which.
        address: IpAddr,
        /// Its class from now on.
        class: Class,
    },
    /// Gives a prefix its class, or another one.
    SetNet {
        /// Which.
        prefix: IpNet,
        /// Its class from now on.
        class: Class,
    },
    /// Takes a prefix away: its addresses fall to the next shorter one.
    RemoveNet {
        /// Which.
        prefix: IpNet,
    },
    /// Takes an exact address away: it falls to its prefix.
    RemoveHost {
        /// Which.
        address: IpAddr,
    },
    /// Gives an endpoint its first table, whole.
    NewTable {
        /// Whose.
        endpoint: EndpointId,
        /// All its entries.
        entries: BTreeMap<K, RuleId>,
    },
    /// Takes an entry away.
    RemoveEntry {
        /// Whose.
        endpoint: EndpointId,
        /// Which.
        key: K,
    },
    /// Takes an endpoint's table away.
    DropTable {
        /// Whose.
        endpoint: EndpointId,
    },
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self { hosts: BTreeMap::new(), nets: BTreeMap::new(), tables: BTreeMap::new() }
    }
}

impl<K: EntryKey> State<K> {
    /// The state that a compilation asks for; `encode` spells a table's entries as the maps have them.
    pub fn of(
        compiled: &Compiled,
        encode: impl Fn(EndpointId, &Table) -> BTreeMap<K, RuleId>,
    ) -> Self {
        let tables = compiled.tables.iter();
        Self {
            hosts: compiled.hosts.clone(),
            nets: compiled.nets.clone(),
            tables: tables.map(|(id, table)| (*id, encode(*id, table))).collect(),
        }
    }

    /// Takes one step. A shadow of the maps takes each step that the maps took, so that it is right even
    /// when a plan stops half way.
    pub fn apply(&mut self, step: Step<K>) {
        match step {
            Step::SetEntry { endpoint, key, rule } => {
                self.tables.entry(endpoint).or_default().insert(key, rule);
            }
            Step::SetHost { address, class } => {
                self.hosts.insert(address, class);
            }
            Step::SetNet { prefix, class } => {
                self.nets.insert(prefix, class);
            }
            Step::RemoveNet { prefix } => {
                self.nets.remove(&prefix);
            }
            Step::RemoveHost { address } => {
                self.hosts.remove(&address);
            }
            Step::NewTable { endpoint, entries } => {
                self.tables.insert(endpoint, entries);
            }
            Step::RemoveEntry { endpoint, key } => {
                if let Some(table) = self.tables.get_mut(&endpoint) {
                    table.remove(&key);
                }
            }
            Step::DropTable { endpoint } => {
                self.tables.remove(&endpoint);
            }
        }
    }

    /// For questions about addresses.
    pub fn classifier(&self) -> Classifier<'_> {
        Classifier::new(&self.hosts, &self.nets)
    }

    fn classes(&self) -> impl Iterator<Item = Class> {
        let keys = self.tables.values().flat_map(BTreeMap::keys);
        let members = self.hosts.values().chain(self.nets.values()).copied();
        members.chain(keys.map(EntryKey::class))
    }
}

/// The steps from `old` to `new`, in order. Class numbers must mean the same in both, which they do if one
/// [`crate::compile::Compiler`] made both; `old` may also be where an earlier plan stopped.
///
/// 1. entries added or changed, of classes that need a twin as the twin's
/// 2. exact addresses inserted or moved
/// 3. new prefixes, longest first: a nested one must be there when the outer one comes
/// 4. prefixes that change class
/// 5. vanished prefixes, shortest first: a nested one's addresses must not fall to an outer vanished one
/// 6. vanished exact addresses
/// 7. the classes with a twin, empty now: entries changed, members moved back
/// 8. new tables
/// 9. entries removed, tables dropped
pub fn plan<K: EntryKey>(old: &State<K>, new: &State<K>) -> Vec<Step<K>> {
    Plan { old, new, twins: twins(old, new), steps: Vec::new() }.make()
}

struct Plan<'a, K> {
    old: &'a State<K>,
    new: &'a State<K>,
    /// Classes that change their entries and their members, and their stand-ins.
    twins: BTreeMap<Class, Class>,
    steps: Vec<Step<K>>,
}

/// A table that is in both states: its endpoint, its old and its new entries.
type KeptTable<'a, K> = (EndpointId, &'a BTreeMap<K, RuleId>, &'a BTreeMap<K, RuleId>);

impl<'a, K: EntryKey> Plan<'a, K> {
    fn make(mut self) -> Vec<Step<K>> {
        self.add_entries();
        self.move_members();
        self.settle_twins();
        for (endpoint, entries) in &self.new.tables {
            if !self.old.tables.contains_key(endpoint) {
                let entries = entries.clone();
                self.steps.push(Step::NewTable { endpoint: *endpoint, entries });
            }
        }
        self.remove_entries();
        self.steps
    }

    fn kept_tables(&self) -> Vec<KeptTable<'a, K>> {
        let (old, new) = (self.old.tables.iter(), &self.new.tables);
        old.filter_map(|(id, old)| Some((*id, old, new.get(id)?))).collect()
    }

    fn add_entries(&mut self) {
        for (endpoint, old, new) in self.kept_tables() {
            for (key, rule) in new {
                let rule = *rule;
                if let Some(twin) = self.twins.get(&key.class()) {
                    let key = key.with_class(*twin);
                    self.steps.push(Step::SetEntry { endpoint, key, rule });
                } else if old.get(key) != Some(&rule) {
                    self.steps.push(Step::SetEntry { endpoint, key: key.clone(), rule });
                }
            }
        }
    }

    fn move_members(&mut self) {
        let (old, new) = (self.old, self.new);
        for (address, class) in &new.hosts {
            let class = self.by_way_of_twin(*class);
            if old.hosts.get(address) != Some(&class) {
                self.steps.push(Step::SetHost { address: *address, class });
            }
        }
        let (kept, mut fresh): (Vec<_>, Vec<_>) =
            new.nets.iter().partition(|(prefix, _)| old.nets.contains_key(prefix));
        fresh.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        for (prefix, class) in fresh.into_iter().chain(kept) {
            let class = self.by_way_of_twin(*class);
            if old.nets.get(prefix) != Some(&class) {
                self.steps.push(Step::SetNet { prefix: *prefix, class });
            }
        }
        let gone = old.nets.keys().filter(|prefix| !new.nets.contains_key(prefix));
        let mut gone: Vec<IpNet> = gone.copied().collect();
        gone.sort_by_key(IpNet::prefix_len);
        self.steps.extend(gone.into_iter().map(|prefix| Step::RemoveNet { prefix }));
        let gone = old.hosts.keys().filter(|address| !new.hosts.contains_key(address));
        self.steps.extend(gone.map(|address| Step::RemoveHost { address: *address }));
    }

    fn by_way_of_twin(&self, class: Class) -> Class {
        self.twins.get(&class).copied().unwrap_or(class)
    }

    fn settle_twins(&mut self) {
        if self.twins.is_empty() {
            return;
        }
        for (endpoint, old, new) in self.kept_tables() {
            for key in old.keys().filter(|key| self.twins.contains_key(&key.class())) {
                if !new.contains_key(key) {
                    self.steps.push(Step::RemoveEntry { endpoint, key: key.clone() });
                }
            }
            for (key, rule) in new.iter().filter(|(key, _)| self.twins.contains_key(&key.class())) {
                if old.get(key) != Some(rule) {
                    let key = key.clone();
                    self.steps.push(Step::SetEntry { endpoint, key, rule: *rule });
                }
            }
        }
        for (address, class) in &self.new.hosts {
            if self.twins.contains_key(class) {
                self.steps.push(Step::SetHost { address: *address, class: *class });
            }
        }
        for (prefix, class) in &self.new.nets {
            if self.twins.contains_key(class) {
                self.steps.push(Step::SetNet { prefix: *prefix, class: *class });
            }
        }
    }

    fn remove_entries(&mut self) {
        for (endpoint, old, new) in self.kept_tables() {
            for key in old.keys() {
                // a twinned class's own were removed when it was empty
                if !new.contains_key(key) && !self.twins.contains_key(&key.class()) {
                    self.steps.push(Step::RemoveEntry { endpoint, key: key.clone() });
                }
            }
            for key in new.keys() {
                if let Some(twin) = self.twins.get(&key.class()) {
                    let key = key.with_class(*twin);
                    self.steps.push(Step::RemoveEntry { endpoint, key });
                }
            }
        }
        let gone = self.old.tables.keys().filter(|id| !self.new.tables.contains_key(id));
        self.steps.extend(gone.map(|endpoint| Step::DropTable { endpoint: *endpoint }));
    }
}

/// The classes that need a twin, each with a number that nothing uses: those that get entries while a
/// member leaves, which must not profit from them, and those that lose entries while a member joins,
/// which must not find them. (A class that is new gets entries and members, one that vanishes loses both.)
fn twins<K: EntryKey>(old: &State<K>, new: &State<K>) -> BTreeMap<Class, Class> {
    let entries = changed_entries(old, new);
    if entries.is_empty() {
        return BTreeMap::new();
    }
    let members = changed_members(old, new);
    let profiting = entries.more.intersection(&members.less);
    let finding = entries.less.intersection(&members.more);
    let needed: BTreeSet<Class> =
        profiting.chain(finding).copied().filter(|class| *class != Class::ANY).collect();
    let taken: BTreeSet<Class> =
        old.classes().chain(new.classes()).filter(|class| class.is_transient()).collect();
    let free = (Class::TRANSIENT.0..=u32::MAX).map(Class).filter(|class| !taken.contains(class));
    needed.into_iter().zip(free).collect()
}

/// Classes that get more of something, and classes that get less.
#[derive(Default)]
struct Changed {
    more: BTreeSet<Class>,
    less: BTreeSet<Class>,
}

impl Changed {
    fn is_empty(&self) -> bool {
        self.more.is_empty() && self.less.is_empty()
    }

    fn moves(&mut self, from: Class, to: Class) {
        if from != to {
            self.less.insert(from);
            self.more.insert(to);
        }
    }
}

/// The classes whose entries differ in a table of both states.
fn changed_entries<K: EntryKey>(old: &State<K>, new: &State<K>) -> Changed {
    let mut changed = Changed::default();
    for (endpoint, before) in &old.tables {
        let Some(after) = new.tables.get(endpoint) else { continue };
        let added = after.keys().filter(|key| !before.contains_key(key));
        changed.more.extend(added.map(EntryKey::class));
        let removed = before.keys().filter(|key| !after.contains_key(key));
        changed.less.extend(removed.map(EntryKey::class));
    }
    changed
}

/// The classes that some address joins or leaves.
fn changed_members<K: EntryKey>(old: &State<K>, new: &State<K>) -> Changed {
    let (before, after) = (old.classifier(), new.classifier());
    let mut changed = Changed::default();
    for address in old.hosts.keys().chain(new.hosts.keys()) {
        changed.moves(before.class_of(*address), after.class_of(*address));
    }
    for (prefix, class) in &old.nets {
        // the addresses of a vanished prefix fall to what is around it
        let to = new.nets.get(prefix).copied();
        changed.moves(*class, to.unwrap_or_else(|| after.class_around(prefix)));
    }
    for (prefix, class) in &new.nets {
        let from = old.nets.get(prefix).copied();
        changed.moves(from.unwrap_or_else(|| before.class_around(prefix)), *class);
    }
    changed
}
