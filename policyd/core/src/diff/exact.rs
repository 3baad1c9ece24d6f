//! The order of the steps where entries may deny.
//!
//! With denials, an added entry may take something away and a removed one may give something, so adding first and removing
//! last is not enough. What is promised here is more than elsewhere: **each verdict changes at most once, from that of
//! the old state to that of the new one.** Three observations give it:
//!
//! - In one column, entries set from the most specific to the least, and then removed from the least specific to the most,
//!   change the verdict on each packet once: a packet's new entry is found as soon as no other of its new entries can be,
//!   and its old one until nothing that is to go is left beneath it.
//! - The entries of [`Class::ANY`] are below those of every class, as if they were less specific still.
//! - While no address changes its class, that is all there is. While no entry changes that some address can meet, an address
//!   may change its class freely.
//!
//! So where a commit does both, each address that moves is given a transient class of its own kind, by the pair of the
//! classes that it leaves and joins: its column says what the first says in the old tables, then, edited with all
//! others, what the second says in the new ones. The addresses join it before the edits and leave it after them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::plan::{Edit, edits};
use super::{Change, EntryKey, State, Step, TableChange};
use crate::prefixes::PrefixMap;
use crate::tables::{Class, Decision, Effect, EndpointId};

/// The steps that make `change` of `old`, in order. Costs what the change names, and one look at every address if it edits
/// tables.
pub(super) fn plan<K: EntryKey>(old: &State<K>, change: &Change<K>) -> Vec<Step<K>> {
    let edits = edits(old, change);
    // where no address changes its class, it does not matter which of them have members
    let members = change.moves(old).then(|| Members::of_edited(&edits, old, change));
    let (mut early, mut met, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for edit in edits {
        let Some(members) = &members else {
            met.push(edit);
            continue;
        };
        let (edits_met, others) = edit.partition(|class| members.meet(class));
        met.push(edits_met);
        let (of_leavers, of_joiners) = others.partition(|class| members.before(class));
        late.push(of_leavers);
        early.push(of_joiners);
    }
    let any_met = met.iter().any(|edit| !edit.is_empty());
    let moves = Moves::between(old, change, any_met);
    let columns = moves.columns(old, change);

    let mut steps = Vec::new();
    // of classes that no address has yet, in any order
    early.into_iter().for_each(|edit| edit.take_alone(&mut steps));
    for Column { endpoint, before, .. } in &columns {
        let set = before.iter().map(|(key, decision)| (key.clone(), *decision));
        steps.extend(set.map(|(key, decision)| Step::SetEntry {
            endpoint: *endpoint,
            key,
            decision,
        }));
    }
    moves.depart(&mut steps);
    met.extend(columns.iter().map(Column::edit));
    take(met, &mut steps);
    moves.arrive(&mut steps);
    for (endpoint, wanted) in &change.tables {
        if let TableChange::Whole(entries) = wanted
            && !old.tables.contains_key(endpoint)
        {
            let entries = entries.clone();
            steps.push(Step::NewTable { endpoint: *endpoint, entries });
        }
    }
    // of classes that no address has any more
    late.into_iter().for_each(|edit| edit.take_alone(&mut steps));
    for Column { endpoint, after, .. } in columns {
        let gone = after.into_keys().map(|key| Step::RemoveEntry { endpoint, key });
        steps.extend(gone);
    }
    for (endpoint, wanted) in &change.tables {
        if *wanted == TableChange::Gone && old.tables.contains_key(endpoint) {
            steps.push(Step::DropTable { endpoint: *endpoint });
        }
    }
    steps
}

/// How many addresses and prefixes have each class whose entries are edited, in the old state and in the new one.
struct Members(BTreeMap<Class, (usize, usize)>);

impl Members {
    fn of_edited<K: EntryKey>(edits: &[Edit<K>], old: &State<K>, change: &Change<K>) -> Self {
        let edited = edits.iter().flat_map(|edit| {
            let set = edit.set.iter().map(|(key, _)| key);
            set.chain(&edit.gone)
        });
        let edited = edited.map(EntryKey::class).filter(|class| !is_always_met(*class));
        let mut counts: BTreeMap<Class, (usize, usize)> =
            edited.map(|class| (class, (0, 0))).collect();
        if counts.is_empty() {
            return Self(counts);
        }
        for class in old.hosts.values().chain(old.nets.values()) {
            if let Some((before, after)) = counts.get_mut(class) {
                *before += 1;
                *after += 1;
            }
        }
        let hosts = change.hosts.iter().map(|(of, class)| (old.hosts.get(of), class));
        let nets = change.nets.iter().map(|(of, class)| (old.nets.get(of), class));
        for (was, is) in hosts.chain(nets) {
            if let Some((_, after)) = was.and_then(|class| counts.get_mut(class)) {
                *after -= 1;
            }
            if let Some((_, after)) = is.and_then(|class| counts.get_mut(&class)) {
                *after += 1;
            }
        }
        Self(counts)
    }

    fn before(&self, class: Class) -> bool {
        self.0.get(&class).is_some_and(|(before, _)| *before > 0)
    }

    /// Whether packets may meet the entries of a class all the time.
    fn meet(&self, class: Class) -> bool {
        let both = |(before, after): &(usize, usize)| *before > 0 && *after > 0;
        is_always_met(class) || self.0.get(&class).is_some_and(both)
    }
}

/// Whether the entries of a class are met whatever class addresses have.
fn is_always_met(class: Class) -> bool {
    class == Class::ANY || class.is_self()
}

/// Edits that packets can meet, between which no address changes its class.
fn take<K: EntryKey>(edits: Vec<Edit<K>>, steps: &mut Vec<Step<K>>) {
    let (mut set, mut gone) = (Vec::new(), Vec::new());
    for Edit { endpoint, set: added, gone: removed } in edits {
        set.extend(added.into_iter().map(|(key, decision)| (endpoint, key, decision)));
        gone.extend(removed.into_iter().map(|key| (endpoint, key)));
    }
    // those of every peer are beneath those of all classes
    let level = |key: &K| (key.class() != Class::ANY, key.depth());
    set.sort_by_key(|(_, key, _)| Reverse(level(key)));
    gone.sort_by_key(|(_, key)| level(key));
    let set =
        set.into_iter().map(|(endpoint, key, decision)| Step::SetEntry { endpoint, key, decision });
    steps.extend(set);
    steps.extend(gone.into_iter().map(|(endpoint, key)| Step::RemoveEntry { endpoint, key }));
}

impl<K: EntryKey> Edit<K> {
    /// Splits it by the classes of its entries.
    fn partition(self, first: impl Fn(Class) -> bool) -> (Self, Self) {
        let Self { endpoint, set, gone } = self;
        let (set, other_set) =
            set.into_iter().partition(|(key, _): &(K, Decision)| first(key.class()));
        let (gone, other_gone) = gone.into_iter().partition(|key| first(key.class()));
        (Self { endpoint, set, gone }, Self { endpoint, set: other_set, gone: other_gone })
    }

    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.gone.is_empty()
    }

    fn take_alone(self, steps: &mut Vec<Step<K>>) {
        take(vec![self], steps);
    }
}

/// An address or a prefix whose class changes.
struct Move<T> {
    name: T,
    /// The class that its packets have in the old state; for a new prefix that of what is around it.
    from: Class,
    to: Class,
    /// Whether it has an entry of its own in the new state.
    stays: bool,
}

/// All addresses and prefixes that change.
struct Moves {
    hosts: Vec<Move<IpAddr>>,
    /// Longest prefixes first.
    nets: Vec<Move<IpNet>>,
    /// The transient class of each pair of classes; empty if the moves need none.
    by_way_of: BTreeMap<(Class, Class), Class>,
}

impl Moves {
    /// `met`: whether entries change meanwhile that some address meets.
    fn between<K: EntryKey>(old: &State<K>, change: &Change<K>, met: bool) -> Self {
        let mut new = old.nets.clone();
        for (prefix, class) in &change.nets {
            match class {
                Some(class) => drop(new.insert(*prefix, *class)),
                None => drop(new.remove(prefix)),
            }
        }
        // what an address has that is in this prefix and in no longer one
        let class = |nets: &PrefixMap<Class>, prefix: &IpNet| {
            let mut around = nets.enclosing(prefix.addr(), prefix.prefix_len());
            around.next().map_or(Class::ANY, |(_, class)| *class)
        };
        let hosts: Vec<_> = change
            .hosts
            .iter()
            .filter(|(address, class)| old.hosts.get(address) != class.as_ref())
            .map(|(address, wanted)| Move {
                name: *address,
                from: old.classifier().class_of(*address),
                to: wanted.unwrap_or_else(|| class(&new, &IpNet::from(*address))),
                stays: wanted.is_some(),
            })
            .collect();
        let mut nets: Vec<_> = change
            .nets
            .iter()
            .filter(|(prefix, class)| old.nets.get(prefix) != class.as_ref())
            .map(|(prefix, wanted)| Move {
                name: *prefix,
                from: class(&old.nets, prefix),
                to: class(&new, prefix),
                stays: wanted.is_some(),
            })
            .collect();
        nets.sort_by_key(|of| Reverse(of.name.prefix_len()));
        let of_hosts = hosts.iter().map(|of| (of.from, of.to));
        let pairs = of_hosts.chain(nets.iter().map(|of| (of.from, of.to)));
        let pairs: BTreeSet<_> = pairs.filter(|(from, to)| met && from != to).collect();
        let mut by_way_of = BTreeMap::new();
        if !pairs.is_empty() {
            let taken: BTreeSet<Class> =
                old.classes().filter(|class| class.is_transient()).collect();
            let free =
                (Class::TRANSIENT.0..Class::SELF_V4.0).map(Class).filter(|of| !taken.contains(of));
            by_way_of = pairs.into_iter().zip(free).collect();
        }
        Self { hosts, nets, by_way_of }
    }

    /// The columns of the transient classes, in the tables that stay.
    fn columns<K: EntryKey>(&self, old: &State<K>, change: &Change<K>) -> Vec<Column<K>> {
        if self.by_way_of.is_empty() {
            return Vec::new();
        }
        let mut columns = Vec::new();
        for (endpoint, table) in &old.tables {
            let new = match change.tables.get(endpoint) {
                Some(TableChange::Gone) => continue,
                None => table.clone(),
                Some(TableChange::Whole(entries)) => entries.clone(),
                Some(TableChange::Classes(wanted)) => {
                    let mut new = table.clone();
                    new.retain(|key, _| !wanted.contains_key(&key.class()));
                    new.extend(wanted.values().flatten().map(|(key, of)| (key.clone(), *of)));
                    new
                }
            };
            let (then, now) = (CompleteColumns::of(table), CompleteColumns::of(&new));
            for ((from, to), class) in &self.by_way_of {
                let column = |columns: &CompleteColumns<'_, K>, of| {
                    let column = columns.get(of).into_iter();
                    column.map(|(key, of)| (key.with_class(*class), of)).collect()
                };
                let (before, after) = (column(&then, *from), column(&now, *to));
                columns.push(Column { endpoint: *endpoint, before, after });
            }
        }
        columns
    }

    fn way(&self, from: Class, to: Class) -> Class {
        self.by_way_of.get(&(from, to)).copied().unwrap_or(to)
    }

    /// Where a transient class stands between: all that moves joins it. No verdict changes.
    fn depart<K: EntryKey>(&self, steps: &mut Vec<Step<K>>) {
        if self.by_way_of.is_empty() {
            return;
        }
        // addresses first: one that gets an entry of its own must not go with the prefix that it is in
        for Move { name, from, to, .. } in &self.hosts {
            steps.push(Step::SetHost { address: *name, class: self.way(*from, *to) });
        }
        for Move { name, from, to, .. } in &self.nets {
            steps.push(Step::SetNet { prefix: *name, class: self.way(*from, *to) });
        }
    }

    /// All that moves joins its new class.
    fn arrive<K: EntryKey>(&self, steps: &mut Vec<Step<K>>) {
        // as above, and one that loses its entry must find its prefixes in their new classes
        for Move { name, to, .. } in self.hosts.iter().filter(|of| of.stays) {
            steps.push(Step::SetHost { address: *name, class: *to });
        }
        // longest first: nested new prefixes must be there when the outer ones come
        for Move { name, to, .. } in self.nets.iter().filter(|of| of.stays) {
            steps.push(Step::SetNet { prefix: *name, class: *to });
        }
        // shortest first: what falls to an outer one that is to go as well would have its old class
        for Move { name, .. } in self.nets.iter().rev().filter(|of| !of.stays) {
            steps.push(Step::RemoveNet { prefix: *name });
        }
        for Move { name, .. } in self.hosts.iter().filter(|of| !of.stays) {
            steps.push(Step::RemoveHost { address: *name });
        }
    }
}

/// What a transient class says in one table, before and after the edits.
struct Column<K> {
    endpoint: EndpointId,
    before: BTreeMap<K, Decision>,
    after: BTreeMap<K, Decision>,
}

impl<K: EntryKey> Column<K> {
    fn edit(&self) -> Edit<K> {
        let mut edit = Edit { endpoint: self.endpoint, set: Vec::new(), gone: Vec::new() };
        edit.compare(&self.before, &self.after);
        edit
    }
}

/// The columns of a table, each with what it inherits from [`Class::ANY`].
#[derive(Debug)]
pub struct CompleteColumns<'a, K> {
    table: &'a BTreeMap<K, Decision>,
    any: BTreeMap<K, Decision>,
    only_allows: bool,
}

impl<'a, K: EntryKey> CompleteColumns<'a, K> {
    /// Of this table.
    pub fn of(table: &'a BTreeMap<K, Decision>) -> Self {
        let only_allows = table.values().all(|decision| decision.effect == Effect::Allow);
        Self { table, any: K::column(table, Class::ANY), only_allows }
    }

    /// Whether no entry denies.
    pub fn only_allows(&self) -> bool {
        self.only_allows
    }

    /// What decides on packets of a class, as entries of that class alone.
    pub fn get(&self, class: Class) -> BTreeMap<K, Decision> {
        let mut column = match class {
            Class::ANY => BTreeMap::new(),
            class => K::column(self.table, class),
        };
        let own: Vec<K> = column.keys().cloned().collect();
        for (key, decision) in &self.any {
            // what a more specific entry of the class leaves of it is decided by it
            if !own.iter().any(|of_class| of_class.covers(key)) {
                column.insert(key.with_class(class), *decision);
            }
        }
        column
    }
}
