//! One shared copy of each string that many objects contain.

use std::collections::HashSet;
use std::sync::Arc;

/// How many strings may be added before unused ones are searched for.
const SLACK: usize = 4096;

/// Interns label keys and values and the names of namespaces, nodes and ports.
#[derive(Clone, Debug, Default)]
pub(super) struct Interner {
    known: HashSet<Arc<str>>,
    /// How many strings the last search for unused ones left.
    kept: usize,
}

impl Interner {
    /// The shared copy of this string.
    pub(super) fn share(&mut self, name: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        if self.known.len() > 2 * self.kept + SLACK {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.kept = self.known.len();
        }
        self.known.insert(name.clone());
        name.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_names_are_dropped() {
        let mut interner = Interner::default();
        let used = interner.share(&"used".into());
        for number in 0..10 * SLACK {
            interner.share(&number.to_string().into());
        }
        assert!(interner.known.len() <= 2 * SLACK, "{}", interner.known.len());
        assert!(Arc::ptr_eq(&used, &interner.share(&"used".into())));
    }
}
