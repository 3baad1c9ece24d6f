//! The PodTrafficPolicies, by name and by the labels that they select.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::model::{Pod, PodTrafficPolicy, PolicyId};
use crate::selector_index::SelectorIndex;

/// Every PodTrafficPolicy. Two are equal if they hold the same policies.
#[derive(Clone, Debug, Default)]
pub(super) struct PodTrafficPolicies {
    by_id: BTreeMap<PolicyId, Arc<PodTrafficPolicy>>,
    /// By namespace.
    by_label: HashMap<Arc<str>, SelectorIndex<PolicyId>>,
}

impl PartialEq for PodTrafficPolicies {
    fn eq(&self, other: &Self) -> bool {
        self.by_id == other.by_id
    }
}

impl Eq for PodTrafficPolicies {}

impl PodTrafficPolicies {
    /// False if the policy was known so.
    pub(super) fn set(&mut self, policy: PodTrafficPolicy) -> bool {
        if self.by_id.get(&policy.id).is_some_and(|known| **known == policy) {
            return false;
        }
        self.remove(&policy.id);
        let here = self.by_label.entry(policy.id.key.namespace.clone()).or_default();
        here.insert(&policy.selector, policy.id.clone());
        self.by_id.insert(policy.id.clone(), Arc::new(policy));
        true
    }

    /// False if it was not known.
    pub(super) fn remove(&mut self, id: &PolicyId) -> bool {
        let Some(policy) = self.by_id.remove(id) else { return false };
        if let Some(here) = self.by_label.get_mut(&id.key.namespace) {
            here.remove(&policy.selector, id);
            if here.is_empty() {
                self.by_label.remove(&id.key.namespace);
            }
        }
        true
    }

    pub(super) fn get(&self, id: &PolicyId) -> Option<&Arc<PodTrafficPolicy>> {
        self.by_id.get(id)
    }

    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = &Arc<PodTrafficPolicy>> {
        self.by_id.values()
    }

    /// Those that select a pod, in the order of precedence.
    pub(super) fn selecting(&self, pod: &Pod) -> Vec<&Arc<PodTrafficPolicy>> {
        let here = self.by_label.get(&pod.key.namespace).into_iter();
        let candidates = here.flat_map(|here| here.candidates(&pod.labels));
        let candidates = candidates.filter_map(|id| self.by_id.get(id));
        let mut selecting: Vec<_> =
            candidates.filter(|policy| policy.selector.matches(&pod.labels)).collect();
        selecting.sort_unstable_by(|a, b| a.rank().cmp(&b.rank()));
        selecting
    }
}
