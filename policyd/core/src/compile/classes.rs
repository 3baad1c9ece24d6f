//! Atoms, and numbers for sets of them: the classes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::ids::PeerSetId;
use crate::tables::Class;

/// A condition of a rule that an address meets or does not: it is in the rule's peer set, and for the named port of an
/// egress rule it has that name at this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Atom {
    pub(crate) peer_set: PeerSetId,
    /// The number of the named port; 0 if the set has none.
    pub(crate) number: u16,
}

impl Atom {
    pub(crate) fn plain(peer_set: PeerSetId) -> Self {
        Self { peer_set, number: 0 }
    }
}

/// The classes in use: one number per set of atoms, never reused for another set. The empty set is [`Class::ANY`].
#[derive(Debug)]
pub(crate) struct Classes {
    numbers: HashMap<Arc<[Atom]>, Class>,
    live: BTreeMap<Class, Use>,
    with: BTreeMap<Atom, BTreeSet<Class>>,
    next: u32,
    added: BTreeSet<Class>,
    /// Classes that had no member at some moment since [`Classes::settle`].
    idle: BTreeSet<Class>,
}

#[derive(Debug)]
struct Use {
    atoms: Arc<[Atom]>,
    /// Addresses and prefixes that have the class.
    members: usize,
}

/// The classes that an update added and removed. One that came and went within it is in neither.
#[derive(Debug, Default)]
pub(crate) struct ClassChanges {
    pub(crate) added: BTreeSet<Class>,
    pub(crate) removed: BTreeSet<Class>,
}

impl Classes {
    pub(crate) fn starting_at(first: u32) -> Self {
        Self {
            numbers: HashMap::new(),
            live: BTreeMap::new(),
            with: BTreeMap::new(),
            next: first.max(Class::ANY.0 + 1),
            added: BTreeSet::new(),
            idle: BTreeSet::new(),
        }
    }

    /// The class of a set of atoms (sorted, no duplicates), counted for one more member.
    pub(crate) fn join(&mut self, atoms: &[Atom]) -> Class {
        if atoms.is_empty() {
            return Class::ANY;
        }
        let class = match self.numbers.get(atoms) {
            Some(class) => *class,
            None => self.assign(atoms),
        };
        if let Some(used) = self.live.get_mut(&class) {
            used.members += 1;
        }
        class
    }

    fn assign(&mut self, atoms: &[Atom]) -> Class {
        let class = Class(self.next);
        // Four billion sets later the numbers are used up. `ANY` is the safe class to fall back to: it allows the least.
        if !class.is_compiled() {
            return Class::ANY;
        }
        self.next += 1;
        let atoms: Arc<[Atom]> = atoms.into();
        for atom in atoms.iter() {
            self.with.entry(*atom).or_default().insert(class);
        }
        self.numbers.insert(atoms.clone(), class);
        self.live.insert(class, Use { atoms, members: 0 });
        self.added.insert(class);
        class
    }

    /// One member less. A class without members is removed by [`Classes::settle`].
    pub(crate) fn leave(&mut self, class: Class) {
        if let Some(used) = self.live.get_mut(&class) {
            used.members -= 1;
            if used.members == 0 {
                self.idle.insert(class);
            }
        }
    }

    /// Ends an update: removes the classes without members.
    pub(crate) fn settle(&mut self) -> ClassChanges {
        let mut changes =
            ClassChanges { added: std::mem::take(&mut self.added), removed: BTreeSet::new() };
        for class in std::mem::take(&mut self.idle) {
            if self.live.get(&class).is_none_or(|used| used.members > 0) {
                continue;
            }
            let Some(Use { atoms, .. }) = self.live.remove(&class) else { continue };
            for atom in atoms.iter() {
                if let Some(classes) = self.with.get_mut(atom) {
                    classes.remove(&class);
                    if classes.is_empty() {
                        self.with.remove(atom);
                    }
                }
            }
            self.numbers.remove(&atoms);
            if !changes.added.remove(&class) {
                changes.removed.insert(class);
            }
        }
        changes
    }

    pub(crate) fn atoms(&self, class: Class) -> &[Atom] {
        self.live.get(&class).map_or(&[], |used| &used.atoms)
    }

    /// The classes that have an atom of this peer set.
    pub(crate) fn with(&self, peer_set: PeerSetId) -> impl Iterator<Item = Class> {
        let all = Atom { peer_set, number: 0 }..=Atom { peer_set, number: u16::MAX };
        self.with.range(all).flat_map(|(_, classes)| classes).copied()
    }

    /// All classes in use, ascending.
    pub(crate) fn all(&self) -> impl Iterator<Item = Class> {
        self.live.keys().copied()
    }

    /// The number of classes in use.
    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }
}
