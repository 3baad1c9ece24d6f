//! What the node's operator says of single pods and of the node.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{LocalDefaults, LocalRules, ObjectKey, Pod};

/// The rules by pod, and the node's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LocalRuleSets {
    of: BTreeMap<ObjectKey, Arc<LocalRules>>,
    node: Arc<LocalDefaults>,
}

impl LocalRuleSets {
    /// False if that was known.
    pub(super) fn set(&mut self, rules: LocalRules) -> bool {
        if self.of.get(&rules.pod).is_some_and(|known| **known == rules) {
            return false;
        }
        self.of.insert(rules.pod.clone(), Arc::new(rules));
        true
    }

    /// False if there were none.
    pub(super) fn remove(&mut self, pod: &ObjectKey) -> bool {
        self.of.remove(pod).is_some()
    }

    /// False if that was known.
    pub(super) fn set_defaults(&mut self, defaults: LocalDefaults) -> bool {
        let new = *self.node != defaults;
        if new {
            self.node = Arc::new(defaults);
        }
        new
    }

    pub(super) fn of(&self, pod: &Pod) -> Option<&Arc<LocalRules>> {
        self.of.get(&pod.key).filter(|_| !pod.host_network)
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &ObjectKey> {
        self.of.keys()
    }

    pub(super) fn defaults(&self, pod: &Pod) -> Option<&Arc<LocalDefaults>> {
        Some(&self.node).filter(|node| !node.is_empty() && !pod.host_network)
    }
}
