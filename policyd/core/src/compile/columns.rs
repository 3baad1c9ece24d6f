//! The columns of ranked programs, resolved once for all programs of an update.
//!
//! What a column says follows from the clauses that are about the peers of its class, and from how the evaluation ends.
//! Most classes of a program have the same clauses as others, and most programs share them with others: a
//! ClusterNetworkPolicy about every pod is the same in all. So lists of clauses are numbered, and each pair of a list and
//! of what the program says of every peer is resolved once.

use std::collections::HashMap;
use std::sync::Arc;

use super::classes::Classes;
use super::clauses::ClauseId;
use super::ids::PeerSetId;
use super::resolve::Ends;
use crate::model::Direction;
use crate::tables::{Class, Decision, PortMatch};

/// The entries of a column without their class, sorted.
pub(super) type Column = Arc<[(PortMatch, Decision)]>;

/// A clause about a peer, and the number that the peer has under its named port, or 0.
pub(super) type Concerned = (ClauseId, u16);

/// The number of a list of clauses about a peer, in the order of their evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ListId(u32);

/// The number of a [`Base`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BaseId(u32);

/// What the flow to be judged is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum With {
    Peers,
    /// Of a pod to itself through a service: local rules do not concern it, and NetworkPolicy lets it pass
    /// (docs/semantics.md 10.12).
    Itself,
}

/// What a program says of flows whatever their peers are. Programs in which it is the same evaluate the same clauses in the
/// same order: that of two policies does not depend on the pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Base {
    pub(super) direction: Direction,
    pub(super) with: With,
    /// The clauses about every peer, in order.
    pub(super) every: Vec<ClauseId>,
    pub(super) ends: Ends,
    /// If some policies are audited, the same with them.
    pub(super) with_audited: Option<Ends>,
}

/// Columns that are known. Lives as long as no class changes.
#[derive(Debug, Default)]
pub(super) struct Columns {
    by_atom: Option<Arc<ClassesByAtom>>,
    /// A list with one clause more.
    longer: HashMap<(ListId, Concerned), ListId>,
    /// Of each list but the empty one, by number: the list before its last clause, and that clause.
    lists: Vec<(ListId, Concerned)>,
    bases: HashMap<Base, BaseId>,
    resolved: HashMap<(BaseId, ListId), Column>,
}

impl ListId {
    pub(super) const EMPTY: Self = Self(0);
}

impl Columns {
    /// The classes by their atoms.
    pub(super) fn by_atom(&mut self, classes: &Classes) -> Arc<ClassesByAtom> {
        self.by_atom.get_or_insert_with(|| Arc::new(ClassesByAtom::of(classes))).clone()
    }

    /// The list with one clause more at its end.
    pub(super) fn append(&mut self, list: ListId, clause: Concerned) -> ListId {
        let Self { longer, lists, .. } = self;
        *longer.entry((list, clause)).or_insert_with(|| {
            lists.push((list, clause));
            ListId(lists.len() as u32)
        })
    }

    pub(super) fn base(&mut self, base: Base) -> BaseId {
        let next = BaseId(self.bases.len() as u32);
        *self.bases.entry(base).or_insert(next)
    }

    /// The column of these clauses above a base. `resolve` works it out, if it is not known.
    pub(super) fn get(
        &mut self,
        base: BaseId,
        list: ListId,
        resolve: impl FnOnce(&[Concerned]) -> Column,
    ) -> Column {
        let Self { lists, resolved, .. } = self;
        let column = resolved.entry((base, list)).or_insert_with(|| {
            let mut clauses = Vec::new();
            let mut at = list;
            while let Some((before, clause)) =
                at.0.checked_sub(1).and_then(|n| lists.get(n as usize))
            {
                clauses.push(*clause);
                at = *before;
            }
            clauses.reverse();
            resolve(&clauses)
        });
        column.clone()
    }
}

/// The classes in use by their atoms, for whoever needs those of many peer sets.
#[derive(Debug)]
pub(super) struct ClassesByAtom {
    /// Ascending.
    classes: Vec<Class>,
    /// Peer set, number of the named port, place of the class; sorted.
    of: Vec<(PeerSetId, u16, u32)>,
}

impl ClassesByAtom {
    fn of(classes: &Classes) -> Self {
        let all: Vec<Class> = classes.all().collect();
        let atoms = |(place, class): (u32, &Class)| {
            let atoms = classes.atoms(*class).iter();
            atoms.map(move |atom| (atom.peer_set, atom.number, place))
        };
        let mut of: Vec<_> = (0..).zip(&all).flat_map(atoms).collect();
        of.sort_unstable();
        Self { classes: all, of }
    }

    /// All classes. Places refer to these.
    pub(super) fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The number under a named port and the place of each class with an atom of this peer set, ascending.
    pub(super) fn with(&self, peer_set: PeerSetId) -> impl Iterator<Item = (u16, usize)> {
        let first = self.of.partition_point(|(of, _, _)| *of < peer_set);
        let of = self.of.get(first..).into_iter().flatten();
        let of = of.take_while(move |(of, _, _)| *of == peer_set);
        of.map(|(_, number, place)| (*number, *place as usize))
    }
}
