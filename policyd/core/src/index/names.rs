//! One copy of each name that many objects say.

use std::collections::HashSet;
use std::sync::Arc;

/// How many new names there must be before those that nobody uses are looked for.
const SLACK: usize = 4096;

/// Label keys and values, namespaces, nodes, port names.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    known: HashSet<Arc<str>>,
    /// How many there were after the last search for unused ones.
    kept: usize,
}

impl Names {
    /// The one copy of this name.
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
    fn names_nobody_uses_are_forgotten() {
        let mut names = Names::default();
        let used = names.share(&"used".into());
        for number in 0..10 * SLACK {
            names.share(&number.to_string().into());
        }
        assert!(names.known.len() <= 2 * SLACK, "{}", names.known.len());
        assert!(Arc::ptr_eq(&used, &names.share(&"used".into())));
    }
}
