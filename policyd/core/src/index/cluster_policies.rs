//! The ClusterNetworkPolicies, by name and in the order of their evaluation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{ClusterPolicy, ClusterPolicyId, Labels, Subject, Tier};
use crate::selector::Selector;
use crate::selector_index::SelectorIndex;

/// Tier, priority, name: the order in which policies are evaluated.
type Order = (Tier, u16, ClusterPolicyId);

/// Every cluster policy. Two are equal if they hold the same policies.
#[derive(Clone, Debug, Default)]
pub(super) struct ClusterPolicies {
    by_id: BTreeMap<ClusterPolicyId, Arc<ClusterPolicy>>,
    order: BTreeSet<Order>,
    /// By the labels that their subjects require of a pod.
    by_label: SelectorIndex<ClusterPolicyId>,
    /// Those that require nothing of a pod, by the labels that they require of its namespace.
    by_namespace: SelectorIndex<ClusterPolicyId>,
}

impl PartialEq for ClusterPolicies {
    fn eq(&self, other: &Self) -> bool {
        self.by_id == other.by_id
    }
}

impl Eq for ClusterPolicies {}

impl ClusterPolicies {
    /// False if the policy was known so.
    pub(super) fn set(&mut self, policy: ClusterPolicy) -> bool {
        if self.by_id.get(&policy.id).is_some_and(|known| **known == policy) {
            return false;
        }
        self.remove(&policy.id);
        self.order.insert(order(&policy));
        let (index, selector) = self.filed(&policy.subject);
        index.insert(selector, policy.id.clone());
        self.by_id.insert(policy.id.clone(), Arc::new(policy));
        true
    }

    /// False if it was not known.
    pub(super) fn remove(&mut self, id: &ClusterPolicyId) -> bool {
        let Some(policy) = self.by_id.remove(id) else { return false };
        self.order.remove(&order(&policy));
        let (index, selector) = self.filed(&policy.subject);
        index.remove(selector, id);
        true
    }

    /// Where a policy with this subject is found, and by which of its selectors.
    fn filed<'a>(
        &mut self,
        subject: &'a Subject,
    ) -> (&mut SelectorIndex<ClusterPolicyId>, &'a Selector) {
        match subject.pods.is_everything() {
            true => (&mut self.by_namespace, &subject.namespaces),
            false => (&mut self.by_label, &subject.pods),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) fn get(&self, id: &ClusterPolicyId) -> Option<&Arc<ClusterPolicy>> {
        self.by_id.get(id)
    }

    /// All, in the order of evaluation.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ClusterPolicy>> {
        self.order.iter().filter_map(|(_, _, id)| self.by_id.get(id))
    }

    /// Those whose subject is a pod with these labels in a namespace with those, in the order of evaluation.
    pub(super) fn selecting(&self, namespace: &Labels, pod: &Labels) -> Vec<&Arc<ClusterPolicy>> {
        let candidates =
            self.by_label.candidates(pod).chain(self.by_namespace.candidates(namespace));
        let candidates = candidates.filter_map(|id| self.by_id.get(id));
        let mut selecting: Vec<_> =
            candidates.filter(|policy| policy.subject.selects(namespace, pod)).collect();
        selecting.sort_unstable_by(|a, b| place(a).cmp(&place(b)));
        selecting
    }
}

fn order(policy: &ClusterPolicy) -> Order {
    let (tier, priority, id) = place(policy);
    (tier, priority, id.clone())
}

fn place(policy: &ClusterPolicy) -> (Tier, u16, &ClusterPolicyId) {
    (policy.tier, policy.priority, &policy.id)
}
