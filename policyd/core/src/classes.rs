//! Numbers for atoms and for sets of atoms: the classes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::compile::Class;
use crate::model::{Peer, Protocol};

/// Something that a rule of a local pod says of a peer, and that an address matches or does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Atom {
    /// An item of `from` or `to`.
    Peer(Peer),
    /// A pod of these peers (`None`: any pod) whose port of this name has this number: what an egress
    /// rule's named port comes to, for the number is the destination's to say.
    Named {
        /// Who.
        of: NamedPeers,
        /// The number.
        number: u16,
    },
}

/// The peers of an egress named port, and the port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NamedPeers {
    /// One item of `to`; `None`: every pod.
    pub(crate) peer: Option<Peer>,
    /// The port's protocol.
    pub(crate) protocol: Protocol,
    /// The port's name.
    pub(crate) name: Arc<str>,
}

/// An atom's number. Means nothing outside the process.
pub(crate) type AtomId = u32;

/// Gives atoms and sets of atoms their numbers, and never one number twice.
///
/// A class number that stands in the kernel's maps therefore always means the same set, whichever
/// compilation wrote it. The empty set is [`Class::ANY`].
#[derive(Debug)]
pub(crate) struct Numbering {
    atoms: HashMap<Atom, AtomId>,
    next_atom: AtomId,
    classes: HashMap<Vec<AtomId>, Class>,
    next_class: u32,
}

impl Numbering {
    pub(crate) fn starting_at(first_class: u32) -> Self {
        let next_class = first_class.max(Class::ANY.0 + 1);
        Self { atoms: HashMap::new(), next_atom: 0, classes: HashMap::new(), next_class }
    }

    pub(crate) fn atom(&mut self, atom: Atom) -> AtomId {
        *self.atoms.entry(atom).or_insert_with(|| {
            self.next_atom += 1;
            self.next_atom
        })
    }

    /// The number of an atom that has one.
    pub(crate) fn known(&self, atom: &Atom) -> Option<AtomId> {
        self.atoms.get(atom).copied()
    }

    fn class(&mut self, atoms: Vec<AtomId>) -> Class {
        if atoms.is_empty() {
            return Class::ANY;
        }
        let next = &mut self.next_class;
        *self.classes.entry(atoms).or_insert_with(|| {
            let class = Class(*next);
            // After four billion sets the numbers are used up. A stranger's class only ever allows less.
            if class.is_transient() {
                return Class::ANY;
            }
            *next += 1;
            class
        })
    }

    /// Forgets what `used` does not use, once most of what is remembered is of that kind: names come and go
    /// on a cluster that lives for years. A forgotten set that returns gets a new number.
    pub(crate) fn forget_all_but(&mut self, used: &Used) {
        let known = self.classes.len() + self.atoms.len();
        if known < 2 * (used.classes.len() + used.atoms.len()) + 4096 {
            return;
        }
        self.classes.retain(|_, class| used.classes.contains(class));
        self.atoms.retain(|_, atom| used.atoms.contains_key(atom));
    }
}

/// The classes of one compilation, by the atoms in them.
#[derive(Debug, Default)]
pub(crate) struct Used {
    classes: BTreeSet<Class>,
    atoms: BTreeMap<AtomId, BTreeSet<Class>>,
}

impl Used {
    /// The class of a set of atoms, given in any order.
    pub(crate) fn class(&mut self, numbering: &mut Numbering, mut atoms: Vec<AtomId>) -> Class {
        atoms.sort_unstable();
        atoms.dedup();
        let class = numbering.class(atoms.clone());
        if class != Class::ANY && self.classes.insert(class) {
            for atom in atoms {
                self.atoms.entry(atom).or_default().insert(class);
            }
        }
        class
    }

    /// The classes that have an atom.
    pub(crate) fn with(&self, atom: AtomId) -> impl Iterator<Item = Class> {
        self.atoms.get(&atom).into_iter().flatten().copied()
    }
}
