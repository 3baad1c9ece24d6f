//! An endpoint's old policy in terms of new classes.
//!
//! When an endpoint cannot have its new entries, the others go on, and addresses change their classes all the
//! same. Its old entries name old classes; so that they go on meaning the same peers they are repeated for
//! the classes into which those peers move.

use std::collections::{BTreeMap, BTreeSet};

use podgate_policy::compile::{Class, RuleId};
use podgate_policy::diff::EntryKey;

use super::MapState;
use crate::encode::MapKey;

/// The entries to add to `last`, which is of `before`, for the classes that are new in `after`. A class
/// whose addresses come from several gets what all of those had, so that no address gains anything.
/// Classes that were there before mean the same peers' properties as ever, and their entries still say what
/// the old policy says of whoever has them now.
pub(super) fn translate(
    last: &BTreeMap<MapKey, RuleId>,
    before: &MapState,
    after: &MapState,
) -> BTreeMap<MapKey, RuleId> {
    let mut of: BTreeMap<Class, BTreeMap<MapKey, RuleId>> = BTreeMap::new();
    for (key, rule) in last {
        of.entry(key.class()).or_default().insert(key.with_class(Class::ANY), *rule);
    }
    let nothing = BTreeMap::new();
    let known: BTreeSet<Class> = super::classes(before).collect();
    let mut kept = BTreeMap::new();
    for (class, origins) in origins(before, after) {
        if class == Class::ANY || known.contains(&class) {
            continue;
        }
        let mut origins = origins.iter().map(|origin| match *origin {
            Class::ANY => &nothing,
            origin => of.get(&origin).unwrap_or(&nothing),
        });
        let Some(first) = origins.next() else { continue };
        let rest: Vec<_> = origins.collect();
        for (key, rule) in first {
            if rest.iter().all(|other| other.contains_key(key)) {
                kept.insert(key.with_class(class), *rule);
            }
        }
    }
    kept
}

/// For each class of `after` the classes that its addresses had in `before`.
fn origins(before: &MapState, after: &MapState) -> BTreeMap<Class, BTreeSet<Class>> {
    let (old, new) = (before.classifier(), after.classifier());
    let mut origins: BTreeMap<Class, BTreeSet<Class>> = BTreeMap::new();
    for address in before.hosts.keys().chain(after.hosts.keys()) {
        origins.entry(new.class_of(*address)).or_default().insert(old.class_of(*address));
    }
    for prefix in before.nets.keys().chain(after.nets.keys()) {
        let now = after.nets.get(prefix).copied().unwrap_or_else(|| new.class_around(prefix));
        let then = before.nets.get(prefix).copied().unwrap_or_else(|| old.class_around(prefix));
        origins.entry(now).or_default().insert(then);
    }
    origins
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use podgate_bpf::abi::PolicyKey;

    use super::*;

    fn key(class: u32, port: u16) -> MapKey {
        let port = port.to_be_bytes();
        MapKey(PolicyKey { prefixlen: 96, owner: 1, class, direction: 1, protocol: 6, port })
    }

    fn state(hosts: &[(&str, u32)], nets: &[(&str, u32)]) -> MapState {
        MapState {
            hosts: hosts.iter().map(|(a, c)| (a.parse::<IpAddr>().unwrap(), Class(*c))).collect(),
            nets: nets.iter().map(|(n, c)| (n.parse().unwrap(), Class(*c))).collect(),
            tables: BTreeMap::new(),
        }
    }

    fn table(keys: &[(u32, u16)]) -> BTreeMap<MapKey, RuleId> {
        keys.iter().map(|(class, port)| (key(*class, *port), RuleId(9))).collect()
    }

    #[test]
    fn a_class_that_splits_keeps_its_entries() {
        let before = state(&[("10.0.0.1", 1), ("10.0.0.2", 1)], &[]);
        let after = state(&[("10.0.0.1", 1), ("10.0.0.2", 5)], &[]);
        assert_eq!(translate(&table(&[(1, 80), (0, 53)]), &before, &after), table(&[(5, 80)]));
    }

    #[test]
    fn classes_that_merge_keep_what_both_had() {
        let before = state(&[("10.0.0.1", 1), ("10.0.0.2", 2)], &[]);
        let after = state(&[("10.0.0.1", 5), ("10.0.0.2", 5)], &[]);
        let last = table(&[(1, 80), (1, 443), (2, 80), (2, 22)]);
        assert_eq!(translate(&last, &before, &after), table(&[(5, 80)]));
    }

    #[test]
    fn a_stranger_gains_nothing() {
        let before = state(&[("10.0.0.1", 1)], &[]);
        let after = state(&[("10.0.0.1", 5), ("10.0.0.2", 5)], &[]);
        assert_eq!(translate(&table(&[(1, 80)]), &before, &after), table(&[]));
    }

    #[test]
    fn prefixes_count_too_and_known_classes_are_left_alone() {
        let before = state(&[("10.0.0.1", 2)], &[("10.0.0.0/8", 1)]);
        let after = state(&[("10.0.0.1", 1)], &[("10.0.0.0/8", 1), ("10.1.0.0/16", 7)]);
        let last = table(&[(1, 80), (2, 443)]);
        assert_eq!(translate(&last, &before, &after), table(&[(7, 80)]));
    }
}
