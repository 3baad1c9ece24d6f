//! From labels to the selectors that may match them, without evaluating every selector.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::Labels;
use crate::selector::{Operator, Selector};

/// The one requirement by which a selector is filed: labels that lack it cannot match.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor<'a> {
    /// The key must have one of these values.
    Values(&'a Arc<str>, &'a BTreeSet<Arc<str>>),
    /// The key must be there.
    Key(&'a Arc<str>),
    /// Nothing must be there.
    Nothing,
}

impl Selector {
    /// The requirement that leaves the fewest candidates, as far as the selector alone can tell.
    pub(crate) fn anchor(&self) -> Anchor<'_> {
        let mut best = Anchor::Nothing;
        for requirement in self.requirements() {
            match (&requirement.operator, best) {
                (Operator::In(values), Anchor::Values(_, fewest))
                    if values.len() >= fewest.len() => {}
                (Operator::In(values), _) => best = Anchor::Values(&requirement.key, values),
                (Operator::Exists, Anchor::Nothing) => best = Anchor::Key(&requirement.key),
                _ => {}
            }
        }
        best
    }
}

/// Things that have a selector each, filed by its [`Anchor`].
#[derive(Clone, Debug)]
pub(crate) struct SelectorIndex<T> {
    by_value: HashMap<Arc<str>, HashMap<Arc<str>, BTreeSet<T>>>,
    by_key: HashMap<Arc<str>, BTreeSet<T>>,
    /// Those that require nothing to be there.
    rest: BTreeSet<T>,
}

impl<T> Default for SelectorIndex<T> {
    fn default() -> Self {
        Self { by_value: HashMap::new(), by_key: HashMap::new(), rest: BTreeSet::new() }
    }
}

impl<T: Clone + Ord> SelectorIndex<T> {
    pub(crate) fn insert(&mut self, selector: &Selector, thing: T) {
        match selector.anchor() {
            Anchor::Values(key, values) => {
                let of_key = self.by_value.entry(key.clone()).or_default();
                for value in values {
                    of_key.entry(value.clone()).or_default().insert(thing.clone());
                }
            }
            Anchor::Key(key) => drop(self.by_key.entry(key.clone()).or_default().insert(thing)),
            Anchor::Nothing => drop(self.rest.insert(thing)),
        }
    }

    pub(crate) fn remove(&mut self, selector: &Selector, thing: &T) {
        match selector.anchor() {
            Anchor::Values(key, values) => {
                let Some(of_key) = self.by_value.get_mut(key) else { return };
                for value in values {
                    if let Some(things) = of_key.get_mut(value) {
                        things.remove(thing);
                        if things.is_empty() {
                            of_key.remove(value);
                        }
                    }
                }
                if of_key.is_empty() {
                    self.by_value.remove(key);
                }
            }
            Anchor::Key(key) => {
                if let Some(things) = self.by_key.get_mut(key) {
                    things.remove(thing);
                    if things.is_empty() {
                        self.by_key.remove(key);
                    }
                }
            }
            Anchor::Nothing => drop(self.rest.remove(thing)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_value.is_empty() && self.by_key.is_empty() && self.rest.is_empty()
    }

    /// The values whose selectors may match, each once. The selector itself must still be evaluated.
    pub(crate) fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a T> {
        let by_label = labels.iter().flat_map(|(key, value)| {
            let of_value = self.by_value.get(key).and_then(|of_key| of_key.get(value));
            of_value.into_iter().chain(self.by_key.get(key)).flatten()
        });
        by_label.chain(&self.rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::selector::Requirement;

    fn text() -> impl Strategy<Value = Arc<str>> {
        select(vec!["a", "b", "c", ""]).prop_map(Arc::from)
    }

    fn selector() -> impl Strategy<Value = Selector> {
        let values = prop::collection::btree_set(text(), 1..3);
        let operator = (0..4, values).prop_map(|(which, values)| match which {
            0 => Operator::In(values),
            1 => Operator::NotIn(values),
            2 => Operator::Exists,
            _ => Operator::DoesNotExist,
        });
        let requirement =
            (text(), operator).prop_map(|(key, operator)| Requirement { key, operator });
        prop::collection::vec(requirement, 0..3).prop_map(Selector::new)
    }

    proptest! {
        #[test]
        fn every_match_is_among_the_candidates_once(
            selectors in prop::collection::vec(selector(), 0..12),
            gone in prop::collection::vec(any::<bool>(), 12),
            labels in prop::collection::vec((text(), text()), 0..4),
        ) {
            let labels: Labels = labels.into_iter().collect();
            let mut index = SelectorIndex::default();
            for (number, selector) in selectors.iter().enumerate() {
                index.insert(selector, number);
            }
            for (number, selector) in selectors.iter().enumerate().filter(|(n, _)| gone[*n]) {
                index.remove(selector, &number);
            }
            let mut found: Vec<usize> = index.candidates(&labels).copied().collect();
            found.retain(|number| selectors[*number].matches(&labels));
            found.sort_unstable();
            let all = selectors.iter().enumerate().filter(|(number, _)| !gone[*number]);
            let expected = all.filter(|(_, selector)| selector.matches(&labels));
            prop_assert_eq!(found, expected.map(|(number, _)| number).collect::<Vec<_>>());
            for (number, selector) in selectors.iter().enumerate() {
                index.remove(selector, &number);
            }
            prop_assert!(index.is_empty());
        }
    }
}
