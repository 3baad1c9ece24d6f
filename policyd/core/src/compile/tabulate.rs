//! From programs and classes to tables, and which of them are others than before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::classes::ClassChanges;
use super::columns::Columns;
use super::local_endpoints::LocalEndpoint;
use super::program::Program;
use super::{Engine, EngineDelta};
use crate::tables::{Class, Decision, EndpointId, Entry, Table};

impl Engine {
    /// Rebuilds the tables of some endpoints, and adds and removes the entries of changed classes in the others.
    pub(super) fn tabulate(
        &mut self,
        programmed: &BTreeSet<EndpointId>,
        changes: &ClassChanges,
        columns: &mut Columns,
        delta: &mut EngineDelta,
    ) {
        let mut made: HashMap<usize, Made> = HashMap::new();
        let mut new: HashMap<(usize, Class), Vec<(Entry, Decision)>> = HashMap::new();
        for local in self.endpoints.iter() {
            let id = local.endpoint.id;
            let Some(program) = &local.program else { continue };
            let address = Arc::as_ptr(program) as usize;
            if programmed.contains(&id) {
                let made = made
                    .entry(address)
                    .or_insert_with(|| Made::new(program.entries(&self.classes, columns)));
                let own = self.to_itself(local, columns);
                let known = self.compiled.tables.get(&id);
                if let Some(table) = made.unless_known(program, own, known) {
                    self.compiled.tables.insert(id, table);
                    delta.table(id);
                }
                continue;
            }
            let Some(table) = self.compiled.tables.get_mut(&id) else { continue };
            for class in &changes.removed {
                let gone = table.column(*class);
                if !gone.is_empty() {
                    let entries = &mut Arc::make_mut(table).entries;
                    for entry in gone.keys() {
                        entries.remove(entry);
                    }
                    delta.column(id, *class);
                }
            }
            for class in &changes.added {
                let atoms = self.classes.atoms(*class);
                if !program.concerns(atoms) {
                    continue;
                }
                let column = new
                    .entry((address, *class))
                    .or_insert_with(|| program.column(*class, atoms, columns));
                if !column.is_empty() {
                    Arc::make_mut(table).entries.extend(column.iter().copied());
                    delta.column(id, *class);
                }
            }
        }
    }

    /// What a pod sends to itself through a service depends on the class of its own address: gives the endpoints whose
    /// addresses have moved their entries for that, unless they were rebuilt.
    pub(super) fn judge_self(
        &mut self,
        programmed: &BTreeSet<EndpointId>,
        columns: &mut Columns,
        delta: &mut EngineDelta,
    ) {
        for local in self.endpoints.iter().filter(|local| local.is_ranked()) {
            let id = local.endpoint.id;
            let mut addresses = local.endpoint.addresses.iter().map(IpAddr::to_canonical);
            let moved = |address: IpAddr| delta.hosts.contains(&address) || !delta.nets.is_empty();
            if programmed.contains(&id) || !addresses.any(moved) {
                continue;
            }
            let mut wanted = self.to_itself(local, columns);
            let Some(table) = self.compiled.tables.get_mut(&id) else { continue };
            for class in [Class::SELF_V4, Class::SELF_V6] {
                let column = wanted.remove(&class).unwrap_or_default();
                let was = table.column(class);
                if was != column {
                    let entries = &mut Arc::make_mut(table).entries;
                    entries.retain(|entry, _| entry.class != class);
                    entries.extend(column);
                    delta.column(id, class);
                }
            }
        }
    }

    /// The entries for what a pod sends to itself through a service, by the class of the family. Only ranked rules make any.
    fn to_itself(
        &self,
        local: &LocalEndpoint,
        columns: &mut Columns,
    ) -> BTreeMap<Class, BTreeMap<Entry, Decision>> {
        let mut wanted: BTreeMap<Class, BTreeMap<Entry, Decision>> = BTreeMap::new();
        let Some(ranked) = local.program.as_ref().and_then(|program| program.ranked()) else {
            return wanted;
        };
        for address in local.endpoint.addresses.iter().map(IpAddr::to_canonical) {
            let class = Class::of_self(address);
            let atoms = self.classes.atoms(self.compiled.class_of(address));
            let column = wanted.entry(class).or_default();
            // of several addresses of a family the first that has any
            if column.is_empty() {
                column.extend(ranked.to_itself(class, atoms, columns));
            }
        }
        wanted
    }
}

/// The entries that a program makes for all its endpoints, and the table of those that need no others.
struct Made {
    entries: Vec<(Entry, Decision)>,
    table: Option<Arc<Table>>,
}

impl Made {
    fn new(entries: Vec<(Entry, Decision)>) -> Self {
        Self { entries, table: None }
    }

    /// The table with an endpoint's own entries added, unless that is the known one.
    fn unless_known(
        &mut self,
        program: &Program,
        own: BTreeMap<Class, BTreeMap<Entry, Decision>>,
        known: Option<&Arc<Table>>,
    ) -> Option<Arc<Table>> {
        let own: Vec<_> = own.into_values().flatten().collect();
        if own.is_empty() {
            let entries = &self.entries;
            if known.is_some_and(|known| program.is_table(known, entries)) {
                return None;
            }
            let table = self.table.get_or_insert_with(|| Arc::new(program.table(entries.clone())));
            return Some(table.clone());
        }
        let mut entries = [&self.entries[..], &own[..]].concat();
        entries.sort_unstable_by_key(|(entry, _)| *entry);
        let is_known = known.is_some_and(|known| program.is_table(known, &entries));
        (!is_known).then(|| Arc::new(program.table(entries)))
    }
}
