//! What podgate knows of the cluster, and who owns which address.
//!
//! ```text
//!  namespaces   pods ----claims----> addresses     policies ----by namespace----> their ids
//! ```
//!
//! A plain synchronous struct: sources call [`Index::apply`] and learn whether anything changed. Its content
//! is a function of the set of objects, never of the order in which they came: several pods may claim
//! an address, and the claims are kept so that the best one rules at each moment (semantics 11).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{
    EndpointSlice, Labels, Namespace, ObjectKey, Pod, PodLife, Policy, PolicyId, Service,
};
use crate::services::Catalog;

/// One event of a source.
#[derive(Clone, Debug)]
pub enum Change {
    /// A pod is new or changed.
    PodSet(Pod),
    /// A pod is gone.
    PodGone(ObjectKey),
    /// A namespace is new or changed.
    NamespaceSet(Namespace),
    /// A namespace is gone.
    NamespaceGone(Arc<str>),
    /// A policy is new or changed.
    PolicySet(Policy),
    /// A policy is gone.
    PolicyGone(PolicyId),
    /// A service is new or changed.
    ServiceSet(Service),
    /// A service is gone.
    ServiceGone(ObjectKey),
    /// An EndpointSlice is new or changed.
    SliceSet(EndpointSlice),
    /// An EndpointSlice is gone.
    SliceGone(ObjectKey),
}

/// The cluster. Holds objects by their names; objects are shared, not copied, with whoever reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    namespaces: BTreeMap<Arc<str>, Namespace>,
    pods: BTreeMap<ObjectKey, Arc<Pod>>,
    /// Who claims an address. Sorted, never empty; holds only pods that may own an address at all.
    claims: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    policies: BTreeMap<PolicyId, Arc<Policy>>,
    /// The ids of `policies` by their namespaces; no empty sets.
    policies_of: BTreeMap<Arc<str>, BTreeSet<PolicyId>>,
    services: Catalog,
}

impl Index {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one event in. False if it says nothing new.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::PodSet(pod) => self.set_pod(pod),
            Change::PodGone(key) => self.remove_pod(&key),
            Change::NamespaceSet(namespace) => {
                if self.namespaces.get(&namespace.name) == Some(&namespace) {
                    return false;
                }
                self.namespaces.insert(namespace.name.clone(), namespace);
                true
            }
            Change::NamespaceGone(name) => self.namespaces.remove(&name).is_some(),
            Change::PolicySet(policy) => self.set_policy(policy),
            Change::PolicyGone(id) => self.remove_policy(&id),
            Change::ServiceSet(service) => self.services.set_service(service),
            Change::ServiceGone(key) => self.services.remove_service(&key),
            Change::SliceSet(slice) => self.services.set_slice(slice),
            Change::SliceGone(key) => self.services.remove_slice(&key),
        }
    }

    fn set_pod(&mut self, pod: Pod) -> bool {
        if self.pods.get(&pod.key).is_some_and(|known| **known == pod) {
            return false;
        }
        self.remove_pod(&pod.key);
        if pod.may_own_addresses() {
            for address in &pod.addresses {
                self.claims.entry(*address).or_default().insert(pod.key.clone());
            }
        }
        self.pods.insert(pod.key.clone(), Arc::new(pod));
        true
    }

    fn remove_pod(&mut self, key: &ObjectKey) -> bool {
        let Some(pod) = self.pods.remove(key) else { return false };
        for address in &pod.addresses {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.remove(key);
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
        }
        true
    }

    fn set_policy(&mut self, policy: Policy) -> bool {
        if self.policies.get(&policy.id).is_some_and(|known| **known == policy) {
            return false;
        }
        let namespace = policy.id.key.namespace.clone();
        self.policies_of.entry(namespace).or_default().insert(policy.id.clone());
        self.policies.insert(policy.id.clone(), Arc::new(policy));
        true
    }

    fn remove_policy(&mut self, id: &PolicyId) -> bool {
        if self.policies.remove(id).is_none() {
            return false;
        }
        if let Some(ids) = self.policies_of.get_mut(&id.key.namespace) {
            ids.remove(id);
            if ids.is_empty() {
                self.policies_of.remove(&id.key.namespace);
            }
        }
        true
    }

    /// The services.
    pub fn services(&self) -> &Catalog {
        &self.services
    }

    /// The services, for who takes note of what was touched.
    pub fn services_mut(&mut self) -> &mut Catalog {
        &mut self.services
    }

    /// All pods, by key.
    pub fn pods(&self) -> impl ExactSizeIterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// The pod of this name.
    pub fn pod(&self, key: &ObjectKey) -> Option<&Arc<Pod>> {
        self.pods.get(key)
    }

    /// All namespaces, by name.
    pub fn namespaces(&self) -> impl ExactSizeIterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// The namespace of this name, if its object is known.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// The labels of a namespace. Of one whose object is not known (yet): the one label that every
    /// namespace has.
    pub fn namespace_labels(&self, name: &Arc<str>) -> Labels {
        match self.namespaces.get(name) {
            Some(namespace) => namespace.labels.clone(),
            None => Namespace::new(name.clone(), Labels::new()).labels,
        }
    }

    /// All policies, by id.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// The policy of this id.
    pub fn policy(&self, id: &PolicyId) -> Option<&Arc<Policy>> {
        self.policies.get(id)
    }

    /// The policies of a namespace, by id.
    pub fn policies_of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        let ids = self.policies_of.get(namespace).into_iter().flatten();
        ids.filter_map(|id| self.policies.get(id))
    }

    /// The policies that select a pod, by id. A hostNetwork pod is its node and never selected
    /// (semantics 9). A finished pod is: its interface, while there is one, can be nobody else's.
    pub fn policies_selecting<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies_of(&pod.key.namespace)
            .filter(|policy| !pod.host_network && policy.selector.matches(&pod.labels))
    }

    /// The pod whose address this is: of those that claim it a live one before a terminating one, then
    /// the newest, then the first by name.
    pub fn owner_of(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.claims.get(&address).and_then(|claims| self.best(claims))
    }

    /// Every owned address and its owner, by address.
    pub fn owners(&self) -> impl Iterator<Item = (IpAddr, &Arc<Pod>)> {
        self.claims.iter().filter_map(|(address, claims)| Some((*address, self.best(claims)?)))
    }

    fn best<'a>(&'a self, claims: &BTreeSet<ObjectKey>) -> Option<&'a Arc<Pod>> {
        claims.iter().filter_map(|key| self.pods.get(key)).min_by_key(|pod| pod.claim_rank())
    }
}

impl Pod {
    /// Whether an address can be this pod's: a finished pod's may be somebody else's by now, a
    /// hostNetwork pod's is its node's.
    pub fn may_own_addresses(&self) -> bool {
        self.life != PodLife::Finished && !self.host_network
    }

    /// Of two pods that claim one address, the one with the lower rank has it.
    pub fn claim_rank(&self) -> (PodLife, Reverse<i64>, &ObjectKey) {
        (self.life, Reverse(self.created), &self.key)
    }
}
