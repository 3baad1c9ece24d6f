//! The order of the steps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Change, EntryKey, State, Step, TableChange};
use crate::prefixes::PrefixMap;
use crate::tables::{Class, Decision, EndpointId};

/// The steps for tables that only allow. Class numbers must mean the same in both, which they do if
/// one [`crate::compile::Engine`] made both; `old` may also be where an earlier plan stopped.
///
/// 1. entries added or changed, of classes that need a twin as the twin's
/// 2. vanished exact addresses whose prefixes keep their classes
/// 3. exact addresses inserted or moved
/// 4. vanished prefixes whose addresses fall to what stays around them
/// 5. new prefixes, longest first: a nested one must be there when the outer one comes
/// 6. prefixes that change class
/// 7. the other vanished prefixes, shortest first: a nested one's addresses must not fall to an outer vanished one
/// 8. the other vanished exact addresses
/// 9. the classes with a twin, empty now: entries changed, members moved back
/// 10. new tables
/// 11. entries removed, tables dropped
pub(super) fn plan<K: EntryKey>(old: &State<K>, change: &Change<K>) -> Vec<Step<K>> {
    let mut plan = Plan {
        old,
        change,
        nets: change.nets.iter().map(|(prefix, class)| (*prefix, *class)).collect(),
        edits: edits(old, change),
        twins: BTreeMap::new(),
        twinned: Vec::new(),
        steps: Vec::new(),
    };
    plan.find_twins();
    plan.make()
}

/// The changes of a table that stays.
pub(super) struct Edit<K> {
    pub(super) endpoint: EndpointId,
    /// New keys, and those that name another decision.
    pub(super) set: Vec<(K, Decision)>,
    pub(super) gone: Vec<K>,
}

pub(super) fn edits<K: EntryKey>(old: &State<K>, change: &Change<K>) -> Vec<Edit<K>> {
    let mut edits = Vec::new();
    for (endpoint, wanted) in &change.tables {
        let Some(table) = old.tables.get(endpoint) else { continue };
        let mut edit = Edit { endpoint: *endpoint, set: Vec::new(), gone: Vec::new() };
        match wanted {
            TableChange::Gone => continue,
            TableChange::Whole(wanted) => edit.compare(table, wanted),
            TableChange::Classes(columns) => {
                for (class, wanted) in columns {
                    edit.compare(&K::column(table, *class), wanted);
                }
            }
        }
        if !edit.set.is_empty() || !edit.gone.is_empty() {
            edits.push(edit);
        }
    }
    edits
}

impl<K: EntryKey> Edit<K> {
    pub(super) fn compare(
        &mut self,
        table: &BTreeMap<K, Decision>,
        wanted: &BTreeMap<K, Decision>,
    ) {
        // both are sorted
        let mut old = table.iter().peekable();
        for (key, decision) in wanted {
            while let Some((gone, _)) = old.next_if(|(old, _)| *old < key) {
                self.gone.push(gone.clone());
            }
            let was = old.next_if(|(old, _)| *old == key);
            if was.is_none_or(|(_, was)| was != decision) {
                self.set.push((key.clone(), *decision));
            }
        }
        self.gone.extend(old.map(|(key, _)| key.clone()));
    }
}

struct Plan<'a, K> {
    old: &'a State<K>,
    change: &'a Change<K>,
    /// The prefixes of the change, with longest match.
    nets: PrefixMap<Option<Class>>,
    edits: Vec<Edit<K>>,
    /// The classes that change both entries and members, with their twins.
    twins: BTreeMap<Class, Class>,
    /// The entries of those classes in every table that has or gets any.
    twinned: Vec<Twinned<K>>,
    steps: Vec<Step<K>>,
}

struct Twinned<K> {
    endpoint: EndpointId,
    before: BTreeMap<K, Decision>,
    after: BTreeMap<K, Decision>,
}

impl<K: EntryKey> Plan<'_, K> {
    fn make(mut self) -> Vec<Step<K>> {
        self.add_entries();
        self.move_members();
        self.settle_twins();
        for (endpoint, wanted) in &self.change.tables {
            if let TableChange::Whole(entries) = wanted
                && !self.old.tables.contains_key(endpoint)
            {
                let entries = entries.clone();
                self.steps.push(Step::NewTable { endpoint: *endpoint, entries });
            }
        }
        self.remove_entries();
        self.steps
    }

    fn add_entries(&mut self) {
        for Edit { endpoint, set, .. } in &self.edits {
            for (key, decision) in set {
                if !self.twins.contains_key(&key.class()) {
                    let (endpoint, key, decision) = (*endpoint, key.clone(), *decision);
                    self.steps.push(Step::SetEntry { endpoint, key, decision });
                }
            }
        }
        for Twinned { endpoint, after, .. } in &self.twinned {
            for (key, decision) in after {
                let key = key.with_class(self.by_way_of_twin(key.class()));
                self.steps.push(Step::SetEntry { endpoint: *endpoint, key, decision: *decision });
            }
        }
    }

    fn move_members(&mut self) {
        let (old, change) = (self.old, self.change);
        let gone = change
            .hosts
            .iter()
            .filter(|(address, class)| class.is_none() && old.hosts.contains_key(address));
        let (early, late): (Vec<IpAddr>, Vec<IpAddr>) =
            gone.map(|(address, _)| *address).partition(|address| {
                self.by_way_of_twin(self.net_after(*address)) == net_of(old, *address)
            });
        let remove_host = |address| Step::RemoveHost { address };
        self.steps.extend(early.into_iter().map(remove_host));
        self.set_hosts();
        let gone = self.change_nets();
        self.steps.extend(gone.into_iter().map(|prefix| Step::RemoveNet { prefix }));
        self.steps.extend(late.into_iter().map(remove_host));
    }

    fn set_hosts(&mut self) {
        let (old, change) = (self.old, self.change);
        for (address, class) in &change.hosts {
            let Some(class) = *class else { continue };
            let class = self.by_way_of_twin(class);
            if old.hosts.get(address) != Some(&class) {
                self.steps.push(Step::SetHost { address: *address, class });
            }
        }
        for (address, class) in &old.hosts {
            if let Some(twin) = self.twins.get(class)
                && !change.hosts.contains_key(address)
            {
                self.steps.push(Step::SetHost { address: *address, class: *twin });
            }
        }
    }

    /// Takes all steps of prefixes but the last ones, which are returned: vanished ones that must wait.
    fn change_nets(&mut self) -> Vec<IpNet> {
        let (old, change) = (self.old, self.change);
        let wanted = change.nets.iter().filter_map(|(prefix, class)| Some((*prefix, (*class)?)));
        let (mut kept, mut fresh): (Vec<_>, Vec<_>) =
            wanted.partition(|(prefix, _)| old.nets.contains_key(prefix));
        for (prefix, class) in &old.nets {
            if self.twins.contains_key(class) && !change.nets.contains_key(prefix) {
                kept.push((*prefix, *class));
            }
        }
        let gone = change
            .nets
            .iter()
            .filter(|(prefix, class)| class.is_none() && old.nets.contains_key(prefix));
        let mut gone: Vec<IpNet> = gone.map(|(prefix, _)| *prefix).collect();
        gone.sort_by_key(IpNet::prefix_len);

        let fresh_nets: BTreeSet<IpNet> = fresh.iter().map(|(prefix, _)| *prefix).collect();
        let mut removed: BTreeSet<IpNet> = BTreeSet::new();
        let mut late = Vec::new();
        for prefix in gone {
            let inside = fresh_nets.range(prefix..=IpNet::from(prefix.broadcast())).next();
            let mut around =
                old.nets.around(&prefix).filter(|(outer, _)| !removed.contains(*outer));
            let now = around.next().map_or(Class::ANY, |(_, class)| *class);
            if inside.is_none() && self.by_way_of_twin(self.around_after(&prefix)) == now {
                removed.insert(prefix);
                self.steps.push(Step::RemoveNet { prefix });
            } else {
                late.push(prefix);
            }
        }

        fresh.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        for (prefix, class) in fresh.into_iter().chain(kept) {
            let class = self.by_way_of_twin(class);
            if old.nets.get(&prefix) != Some(&class) {
                self.steps.push(Step::SetNet { prefix, class });
            }
        }
        late
    }

    fn by_way_of_twin(&self, class: Class) -> Class {
        self.twins.get(&class).copied().unwrap_or(class)
    }

    fn settle_twins(&mut self) {
        if self.twins.is_empty() {
            return;
        }
        for Twinned { endpoint, before, after } in &self.twinned {
            let endpoint = *endpoint;
            for key in before.keys().filter(|key| !after.contains_key(key)) {
                self.steps.push(Step::RemoveEntry { endpoint, key: key.clone() });
            }
            for (key, decision) in
                after.iter().filter(|(key, decision)| before.get(key) != Some(decision))
            {
                let (key, decision) = (key.clone(), *decision);
                self.steps.push(Step::SetEntry { endpoint, key, decision });
            }
        }
        let (old, change) = (self.old, self.change);
        let stayed = old.hosts.iter().filter(|(address, _)| !change.hosts.contains_key(address));
        let moved =
            change.hosts.iter().filter_map(|(address, class)| Some((address, class.as_ref()?)));
        for (address, class) in stayed.chain(moved) {
            if self.twins.contains_key(class) {
                self.steps.push(Step::SetHost { address: *address, class: *class });
            }
        }
        let stayed = old.nets.iter().filter(|(prefix, _)| !change.nets.contains_key(prefix));
        let moved =
            change.nets.iter().filter_map(|(prefix, class)| Some((prefix, class.as_ref()?)));
        for (prefix, class) in stayed.chain(moved) {
            if self.twins.contains_key(class) {
                self.steps.push(Step::SetNet { prefix: *prefix, class: *class });
            }
        }
    }

    fn remove_entries(&mut self) {
        for Edit { endpoint, gone, .. } in &self.edits {
            for key in gone {
                // a twinned class's own were removed when it was empty
                if !self.twins.contains_key(&key.class()) {
                    self.steps.push(Step::RemoveEntry { endpoint: *endpoint, key: key.clone() });
                }
            }
        }
        for Twinned { endpoint, after, .. } in &self.twinned {
            for key in after.keys() {
                let key = key.with_class(self.by_way_of_twin(key.class()));
                self.steps.push(Step::RemoveEntry { endpoint: *endpoint, key });
            }
        }
        for (endpoint, wanted) in &self.change.tables {
            if *wanted == TableChange::Gone && self.old.tables.contains_key(endpoint) {
                self.steps.push(Step::DropTable { endpoint: *endpoint });
            }
        }
    }

    /// Finds the classes that need a twin, and a number for each that nothing uses: those that get entries
    /// while a member leaves, which must not profit from them, and those that lose entries while a member
    /// joins, which must not find them. (A class that is new gets entries and members, one that vanishes
    /// loses both.)
    fn find_twins(&mut self) {
        let entries = self.changed_entries();
        if entries.is_empty() {
            return;
        }
        let members = self.changed_members();
        let profiting = entries.more.intersection(&members.less);
        let finding = entries.less.intersection(&members.more);
        let needed: BTreeSet<Class> =
            profiting.chain(finding).copied().filter(|class| *class != Class::ANY).collect();
        if needed.is_empty() {
            return;
        }
        let taken: BTreeSet<Class> =
            self.old.classes().filter(|class| class.is_transient()).collect();
        let free = (Class::TRANSIENT.0..Class::SELF_V4.0)
            .map(Class)
            .filter(|class| !taken.contains(class));
        self.twins = needed.into_iter().zip(free).collect();
        for (endpoint, table) in &self.old.tables {
            let wanted = self.change.tables.get(endpoint);
            if wanted == Some(&TableChange::Gone) {
                continue;
            }
            let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
            for class in self.twins.keys() {
                let column = K::column(table, *class);
                after.extend(match wanted {
                    Some(TableChange::Whole(wanted)) => K::column(wanted, *class),
                    Some(TableChange::Classes(columns)) => {
                        columns.get(class).unwrap_or(&column).clone()
                    }
                    Some(TableChange::Gone) | None => column.clone(),
                });
                before.extend(column);
            }
            self.twinned.push(Twinned { endpoint: *endpoint, before, after });
        }
    }

    /// The classes whose entries differ in a table that stays.
    fn changed_entries(&self) -> Changed {
        let mut changed = Changed::default();
        for edit in &self.edits {
            let table = self.old.tables.get(&edit.endpoint);
            let keys = edit.set.iter().map(|(key, _)| key);
            let new = keys.filter(|key| table.is_none_or(|table| !table.contains_key(key)));
            changed.more.extend(new.map(EntryKey::class));
            changed.less.extend(edit.gone.iter().map(EntryKey::class));
        }
        changed
    }

    /// The classes that some address joins or leaves.
    fn changed_members(&self) -> Changed {
        let (old, change) = (self.old, self.change);
        let mut changed = Changed::default();
        for (address, class) in &change.hosts {
            let from = old.hosts.get(address).copied();
            let to = class.unwrap_or_else(|| self.net_after(*address));
            changed.moves(from.unwrap_or_else(|| net_of(old, *address)), to);
        }
        for (prefix, class) in &change.nets {
            // the addresses of a vanished prefix fall to what is around it
            let from = old.nets.get(prefix).copied();
            let from = from.unwrap_or_else(|| {
                old.nets.around(prefix).next().map_or(Class::ANY, |(_, class)| *class)
            });
            changed.moves(from, class.unwrap_or_else(|| self.around_after(prefix)));
        }
        changed
    }

    /// The class that the prefixes will give an address.
    fn net_after(&self, address: IpAddr) -> Class {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        self.longest_after(address, longest)
    }

    /// The class that the prefixes around one will give its addresses.
    fn around_after(&self, prefix: &IpNet) -> Class {
        let shorter = prefix.prefix_len().checked_sub(1);
        shorter.map_or(Class::ANY, |longest| self.longest_after(prefix.addr(), longest))
    }

    fn longest_after(&self, address: IpAddr, longest: u8) -> Class {
        let mut stayed = self.old.nets.enclosing(address, longest);
        let stayed = stayed.find(|(prefix, _)| !self.change.nets.contains_key(*prefix));
        let than = stayed.map(|(prefix, _)| prefix.prefix_len());
        let mut changed = self.nets.enclosing(address, longest);
        let changed = changed.find_map(|(prefix, class)| Some((prefix, (*class)?)));
        let longer =
            |(prefix, _): &(&IpNet, Class)| than.is_none_or(|than| prefix.prefix_len() > than);
        let better = changed.filter(longer);
        better.map(|(_, class)| class).or(stayed.map(|(_, class)| *class)).unwrap_or(Class::ANY)
    }
}

/// The class that the prefixes give an address.
fn net_of<K: EntryKey>(state: &State<K>, address: IpAddr) -> Class {
    state.classifier().class_of_net(address)
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
