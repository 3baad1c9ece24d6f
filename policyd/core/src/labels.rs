//! Labels: few, sorted, and shared among all replicas that carry the same ones.

use std::sync::Arc;

/// Labels of a pod or a namespace. A clone shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// No labels.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let place = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(place).map(|(_, value)| value)
    }

    /// Sets one label. Those that shared these labels keep theirs.
    pub fn insert(&mut self, key: Arc<str>, value: Arc<str>) {
        *self = self.iter().map(|(k, v)| (k.clone(), v.clone())).chain([(key, value)]).collect();
    }

    /// All of them, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &Arc<str>)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

impl FromIterator<(Arc<str>, Arc<str>)> for Labels {
    /// Of two with one key the last counts.
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Arc<str>)>>(labels: I) -> Self {
        let mut labels: Vec<_> = labels.into_iter().collect();
        labels.reverse();
        labels.sort_by(|(a, _), (b, _)| a.cmp(b));
        labels.dedup_by(|(later, _), (first, _)| later == first);
        Self(labels.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_two_values_counts() {
        let label = |key: &str, value: &str| (Arc::<str>::from(key), Arc::<str>::from(value));
        let mut labels: Labels =
            [label("b", "1"), label("a", "1"), label("b", "2")].into_iter().collect();
        assert_eq!(labels.get("b").map(|value| &**value), Some("2"));
        labels.insert("a".into(), "3".into());
        let shown: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(shown, ["a=3", "b=2"]);
        assert_eq!(labels.get("c"), None);
    }
}
