//! Atoms, and numbers for sets of them: the classes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::asks::AskId;
use crate::compile::Class;

/// Something that a rule of a local pod says of a peer, and that an address matches or does not: the peers of
/// the rule, and for the named port of an egress rule the number that the peer has under this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Atom {
    pub(crate) ask: AskId,
    /// 0, which is no port, where the rule names none.
    pub(crate) number: u16,
}

impl Atom {
    pub(crate) fn plain(ask: AskId) -> Self {
        Self { ask, number: 0 }
    }
}

/// The classes in use. A number always means the same set, and is never given twice; the empty set is [`Class::ANY`].
#[derive(Debug)]
pub(crate) struct Classes {
    numbers: HashMap<Arc<[Atom]>, Class>,
    live: BTreeMap<Class, Use>,
    with: BTreeMap<Atom, BTreeSet<Class>>,
    next: u32,
    born: BTreeSet<Class>,
    /// Nobody's, perhaps only for a moment.
    idle: BTreeSet<Class>,
}

#[derive(Debug)]
struct Use {
    atoms: Arc<[Atom]>,
    /// Addresses and prefixes that have the class.
    members: usize,
}

/// What became of the classes in the course of an update.
#[derive(Debug, Default)]
pub(crate) struct Turnover {
    pub(crate) born: BTreeSet<Class>,
    pub(crate) died: BTreeSet<Class>,
}

impl Classes {
    pub(crate) fn starting_at(first: u32) -> Self {
        Self {
            numbers: HashMap::new(),
            live: BTreeMap::new(),
            with: BTreeMap::new(),
            next: first.max(Class::ANY.0 + 1),
            born: BTreeSet::new(),
            idle: BTreeSet::new(),
        }
    }

    /// The class of a set of atoms, sorted and without repetitions, for one more member.
    pub(crate) fn join(&mut self, atoms: &[Atom]) -> Class {
        if atoms.is_empty() {
            return Class::ANY;
        }
        let class = match self.numbers.get(atoms) {
            Some(class) => *class,
            None => self.give(atoms),
        };
        if let Some(used) = self.live.get_mut(&class) {
            used.members += 1;
        }
        class
    }

    fn give(&mut self, atoms: &[Atom]) -> Class {
        let class = Class(self.next);
        // After four billion sets the numbers are used up. A stranger's class only ever allows less.
        if class.is_transient() {
            return Class::ANY;
        }
        self.next += 1;
        let atoms: Arc<[Atom]> = atoms.into();
        for atom in atoms.iter() {
            self.with.entry(*atom).or_default().insert(class);
        }
        self.numbers.insert(atoms.clone(), class);
        self.live.insert(class, Use { atoms, members: 0 });
        self.born.insert(class);
        class
    }

    /// One member less.
    pub(crate) fn leave(&mut self, class: Class) {
        if let Some(used) = self.live.get_mut(&class) {
            used.members -= 1;
            if used.members == 0 {
                self.idle.insert(class);
            }
        }
    }

    /// Ends an update: classes without members are gone.
    pub(crate) fn settle(&mut self) -> Turnover {
        let mut turnover = Turnover { born: std::mem::take(&mut self.born), died: BTreeSet::new() };
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
            if !turnover.born.remove(&class) {
                turnover.died.insert(class);
            }
        }
        turnover
    }

    pub(crate) fn atoms(&self, class: Class) -> &[Atom] {
        self.live.get(&class).map_or(&[], |used| &used.atoms)
    }

    /// The classes that have an atom of this ask.
    pub(crate) fn with(&self, ask: AskId) -> impl Iterator<Item = Class> {
        let all = Atom { ask, number: 0 }..=Atom { ask, number: u16::MAX };
        self.with.range(all).flat_map(|(_, classes)| classes).copied()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }
}
