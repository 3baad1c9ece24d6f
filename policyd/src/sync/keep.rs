//! An endpoint's old policy in terms of new classes.
//!
//! When an endpoint cannot have its new entries, the others go on, and addresses change their classes all the
//! same. Its old entries name old classes; so that they go on meaning the same peers they are repeated for
//! the classes into which those peers move.

use std::collections::{BTreeMap, BTreeSet};

use podgate_policy::compile::{Class, RuleId};
use podgate_policy::diff::EntryKey;

use crate::encode::MapKey;

/// Classes that some addresses get, each with the classes that its addresses come from.
pub(super) type Moves = BTreeMap<Class, BTreeSet<Class>>;

/// The entries to add to `last` for the classes that are new in a change (above `known`), into which addresses
/// move as `moves` says. A class whose addresses come from several gets what all of those had, so that no
/// address gains anything. Classes that were there before mean the same peers' properties as ever, and their
/// entries still say what the old policy says of whoever has them now.
pub(super) fn translate(
    last: &BTreeMap<MapKey, RuleId>,
    moves: &Moves,
    known: u32,
) -> BTreeMap<MapKey, RuleId> {
    let mut kept = BTreeMap::new();
    for (class, origins) in moves {
        if class.0 <= known {
            continue;
        }
        let of = |origin: &Class| match *origin {
            Class::ANY => BTreeMap::new(),
            origin => {
                let column = MapKey::column(last, origin);
                column.into_iter().map(|(key, rule)| (key.with_class(*class), rule)).collect()
            }
        };
        let mut origins = origins.iter().map(of);
        let Some(first) = origins.next() else { continue };
        let rest: Vec<BTreeMap<MapKey, RuleId>> = origins.collect();
        let common =
            first.into_iter().filter(|(key, _)| rest.iter().all(|other| other.contains_key(key)));
        kept.extend(common);
    }
    kept
}

#[cfg(test)]
mod tests {
    use podgate_bpf::abi::PolicyKey;

    use super::*;

    fn key(class: u32, port: u16) -> MapKey {
        let port = port.to_be_bytes();
        MapKey(PolicyKey { prefixlen: 96, owner: 1, class, direction: 1, protocol: 6, port })
    }

    /// From, to.
    fn moves(moves: &[(u32, u32)]) -> Moves {
        let mut all = Moves::new();
        for (from, to) in moves {
            all.entry(Class(*to)).or_default().insert(Class(*from));
        }
        all
    }

    fn table(keys: &[(u32, u16)]) -> BTreeMap<MapKey, RuleId> {
        keys.iter().map(|(class, port)| (key(*class, *port), RuleId(9))).collect()
    }

    #[test]
    fn a_class_that_splits_keeps_its_entries() {
        let last = table(&[(1, 80), (0, 53)]);
        assert_eq!(translate(&last, &moves(&[(1, 1), (1, 5)]), 1), table(&[(5, 80)]));
    }

    #[test]
    fn classes_that_merge_keep_what_both_had() {
        let last = table(&[(1, 80), (1, 443), (2, 80), (2, 22)]);
        assert_eq!(translate(&last, &moves(&[(1, 5), (2, 5)]), 2), table(&[(5, 80)]));
    }

    #[test]
    fn a_stranger_gains_nothing() {
        assert_eq!(translate(&table(&[(1, 80)]), &moves(&[(1, 5), (0, 5)]), 1), table(&[]));
    }

    #[test]
    fn known_classes_are_left_alone() {
        let last = table(&[(1, 80), (2, 443)]);
        assert_eq!(translate(&last, &moves(&[(2, 1), (1, 7)]), 2), table(&[(7, 80)]));
    }
}
