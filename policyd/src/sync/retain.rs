//! Expresses an endpoint's old policy in new classes.
//!
//! If the entries of one endpoint cannot be written, the commit continues for the others and addresses change their
//! classes. The endpoint's old entries name old classes, so they are copied for the classes into which the peers move:
//! its policy keeps applying to the same peers.

use std::collections::{BTreeMap, BTreeSet};

use podgate_policy::diff::{CompleteColumns, EntryKey};
use podgate_policy::tables::{Class, Decision};

use crate::encode::MapKey;

/// New class -> the classes that its addresses had before.
pub(super) type Moves = BTreeMap<Class, BTreeSet<Class>>;

/// The entries to add to `last` for the classes that a change introduces (above `known`). A class whose addresses come
/// from several classes gets what denies in any of those and what allows in all, so that no address is allowed more than before. Older
/// classes still stand for the same set of rule peers, so their entries in `last` apply to any address that gets them now.
pub(super) fn translate(
    last: &BTreeMap<MapKey, Decision>,
    moves: &Moves,
    known: u32,
) -> BTreeMap<MapKey, Decision> {
    let mut retained = BTreeMap::new();
    let complete = CompleteColumns::of(last);
    for (class, origins) in moves {
        if class.0 <= known {
            continue;
        }
        let of = |origin: &Class| {
            let column = match *origin {
                // where entries only allow, those of every peer apply to the new class as they do to all
                Class::ANY if complete.only_allows() => BTreeMap::new(),
                origin if complete.only_allows() => MapKey::column(last, origin),
                origin => complete.get(origin),
            };
            column.into_iter().map(|(key, decision)| (key.with_class(*class), decision))
        };
        let columns: Vec<BTreeMap<MapKey, Decision>> =
            origins.iter().map(|origin| of(origin).collect()).collect();
        let keys: BTreeSet<MapKey> =
            columns.iter().flat_map(|column| column.keys().copied()).collect();
        let common = keys.into_iter().filter_map(|key| {
            let of_key = || columns.iter().map(|column| column.get(&key).copied());
            let denied = of_key().flatten().find(|decision| !decision.effect.passes());
            let allowed = || of_key().all(|of| of.is_some()).then(|| of_key().flatten().next());
            denied.or_else(|| allowed().flatten()).map(|decision| (key, decision))
        });
        retained.extend(common);
    }
    retained
}

#[cfg(test)]
mod tests {
    use podgate_bpf::abi::PolicyKey;
    use podgate_policy::tables::RuleId;

    use super::*;

    fn key(class: u32, port: u16) -> MapKey {
        let port = port.to_be_bytes();
        MapKey(PolicyKey { prefixlen: 96, owner: 1, class, direction: 1, protocol: 6, port })
    }

    /// From pairs of (old class, new class).
    fn moves(moves: &[(u32, u32)]) -> Moves {
        let mut all = Moves::new();
        for (from, to) in moves {
            all.entry(Class(*to)).or_default().insert(Class(*from));
        }
        all
    }

    fn table(keys: &[(u32, u16)]) -> BTreeMap<MapKey, Decision> {
        keys.iter().map(|(class, port)| (key(*class, *port), Decision::allow(RuleId(9)))).collect()
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
    fn what_one_of_them_denied_stays_denied() {
        let mut last = table(&[(1, 80), (2, 80), (2, 22), (0, 80)]);
        last.insert(key(1, 22), Decision::deny(RuleId(9)));
        let mut wanted = table(&[(5, 80)]);
        wanted.insert(key(5, 22), Decision::deny(RuleId(9)));
        assert_eq!(translate(&last, &moves(&[(1, 5), (2, 5)]), 2), wanted);
    }

    #[test]
    fn an_address_without_a_class_gains_nothing() {
        assert_eq!(translate(&table(&[(1, 80)]), &moves(&[(1, 5), (0, 5)]), 1), table(&[]));
    }

    #[test]
    fn older_classes_are_not_changed() {
        let last = table(&[(1, 80), (2, 443)]);
        assert_eq!(translate(&last, &moves(&[(2, 1), (1, 7)]), 2), table(&[(7, 80)]));
    }
}
