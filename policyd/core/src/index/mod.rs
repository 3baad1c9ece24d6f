//! What podgate knows of the cluster, and who owns which address.
//!
//! ```text
//!  namespaces   pods ----claims----> addresses     policies ----by namespace and label----> their ids
//!                 +------likeness---> shapes ----by namespace and label----> their pods
//! ```
//!
//! A plain synchronous struct: sources call [`Index::apply`] and learn whether anything changed. Its content
//! is a function of the set of objects, never of the order in which they came: several pods may claim
//! an address, and the claims are kept so that the best one rules at each moment (semantics 11).

mod changes;
mod claims;
mod hosts;
mod names;
mod shapes;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{
    EndpointSlice, Labels, Namespace, ObjectKey, Pod, PodLife, Policy, PolicyId, Service,
};
use crate::selector_index::SelectorIndex;
use crate::services::Catalog;

use claims::Claims;
use hosts::Hosts;
use names::Names;

pub use changes::Changes;
pub(crate) use claims::Claim;
pub(crate) use shapes::{Likeness, ShapeId, Shapes};

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
///
/// Two indexes are equal if they hold the same objects.
#[derive(Clone, Debug, Default)]
pub struct Index {
    namespaces: BTreeMap<Arc<str>, Namespace>,
    pods: BTreeMap<ObjectKey, Held>,
    /// Only of pods that may own addresses at all.
    claims: Claims,
    /// Of the same pods.
    shapes: Shapes,
    policies: BTreeMap<PolicyId, Arc<Policy>>,
    policies_of: HashMap<Arc<str>, NamespacePolicies>,
    names: Names,
    hosts: Hosts,
    services: Catalog,
    /// The node whose pods are `local`.
    node: Option<Arc<str>>,
    /// Of the pods that own addresses, those of this node.
    local: BTreeSet<ObjectKey>,
    /// What happened since [`Index::take_changes`]; nobody has asked yet: not kept.
    changes: Option<Changes>,
}

/// A pod, and its shape if it may own addresses.
#[derive(Clone, Debug)]
struct Held {
    pod: Arc<Pod>,
    shape: Option<ShapeId>,
}

/// The policies of a namespace.
#[derive(Clone, Debug, Default)]
struct NamespacePolicies {
    ids: BTreeSet<PolicyId>,
    by_label: SelectorIndex<PolicyId>,
}

impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        self.namespaces == other.namespaces
            && self.policies == other.policies
            && self.services == other.services
            && self.pods().eq(other.pods())
    }
}

impl Eq for Index {}

impl Index {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty index that knows which pods are on this node.
    pub fn of_node(node: &str) -> Self {
        Self { node: Some(node.into()), ..Self::default() }
    }

    /// What has changed since the last time, for the one engine that follows this index. The first time
    /// it is nothing: an engine that is new looks at everything.
    pub fn take_changes(&mut self) -> Changes {
        self.changes.replace(Changes::default()).unwrap_or_default()
    }

    /// Takes one event in. False if it says nothing new.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::PodSet(pod) => self.set_pod(pod),
            Change::PodGone(key) => self.remove_pod(&key),
            Change::NamespaceSet(namespace) => self.set_namespace(namespace),
            Change::NamespaceGone(name) => {
                self.note(|changes| changes.namespaces.insert(name.clone()));
                self.namespaces.remove(&name).is_some()
            }
            Change::PolicySet(policy) => self.set_policy(policy),
            Change::PolicyGone(id) => self.remove_policy(&id),
            Change::ServiceSet(service) => self.services.set_service(service),
            Change::ServiceGone(key) => self.services.remove_service(&key),
            Change::SliceSet(slice) => self.services.set_slice(slice),
            Change::SliceGone(key) => self.services.remove_slice(&key),
        }
    }

    fn note<T>(&mut self, note: impl FnOnce(&mut Changes) -> T) {
        self.changes.as_mut().map(note);
    }

    fn set_namespace(&mut self, namespace: Namespace) -> bool {
        if self.namespaces.get(&namespace.name) == Some(&namespace) {
            return false;
        }
        let name = self.names.share(&namespace.name);
        self.note(|changes| changes.namespaces.insert(name.clone()));
        self.namespaces.insert(name, namespace);
        true
    }

    fn set_pod(&mut self, mut pod: Pod) -> bool {
        if self.pods.get(&pod.key).is_some_and(|known| *known.pod == pod) {
            return false;
        }
        let before = self.pods.remove(&pod.key);
        pod.node = pod.node.map(|node| self.names.share(&node));
        if !pod.may_own_addresses() {
            pod.key.namespace = self.names.share(&pod.key.namespace);
            self.let_go(before);
            self.hold(Held { pod: Arc::new(pod), shape: None });
            return true;
        }
        let likeness = Likeness {
            namespace: pod.key.namespace.clone(),
            labels: pod.labels.clone(),
            ports: pod.ports.clone(),
        };
        // joins before it leaves: the shape that it keeps, if it does, stays the same
        let (id, new) = self.shapes.join(likeness, pod.key.name.clone(), &mut self.names);
        if let Some(shape) = self.shapes.get(id) {
            pod.key.namespace = shape.likeness.namespace.clone();
            pod.labels = shape.likeness.labels.clone();
            pod.ports = shape.likeness.ports.clone();
        }
        if new {
            self.note(|changes| changes.shapes.insert(id));
        }
        let stays = before.as_ref().is_some_and(|before| before.shape == Some(id));
        self.let_go(before.map(|held| match stays {
            true => Held { shape: None, ..held },
            false => held,
        }));
        let pod = Arc::new(pod);
        for address in &pod.addresses {
            self.claims.add(*address, Claim { pod: pod.clone(), shape: id });
        }
        self.hold(Held { pod, shape: Some(id) });
        true
    }

    fn hold(&mut self, held: Held) {
        let pod = held.pod.clone();
        let is_local = self.node.is_some() && pod.node == self.node;
        if is_local && held.shape.is_some() && !pod.addresses.is_empty() {
            self.local.insert(pod.key.clone());
        }
        self.hosts.add(&pod);
        self.pods.insert(pod.key.clone(), held);
        self.note(|changes| {
            changes.addresses.extend(&pod.addresses);
            changes.pods.insert(pod.key.clone());
        });
    }

    fn let_go(&mut self, held: Option<Held>) {
        let Some(Held { pod, shape }) = held else { return };
        self.local.remove(&pod.key);
        self.hosts.remove(&pod);
        for address in &pod.addresses {
            self.claims.remove(*address, &pod);
        }
        if let Some(shape) = shape
            && self.shapes.leave(shape, &pod.key.name)
        {
            self.note(|changes| changes.shapes.insert(shape));
        }
        self.note(|changes| {
            changes.addresses.extend(&pod.addresses);
            changes.pods.insert(pod.key.clone());
        });
    }

    fn remove_pod(&mut self, key: &ObjectKey) -> bool {
        let held = self.pods.remove(key);
        let known = held.is_some();
        self.let_go(held);
        known
    }

    fn set_policy(&mut self, policy: Policy) -> bool {
        if self.policies.get(&policy.id).is_some_and(|known| **known == policy) {
            return false;
        }
        self.remove_policy(&policy.id);
        let namespace = self.names.share(&policy.id.key.namespace);
        let here = self.policies_of.entry(namespace).or_default();
        here.ids.insert(policy.id.clone());
        here.by_label.insert(&policy.selector, policy.id.clone());
        self.note(|changes| changes.policies.insert(policy.id.clone()));
        self.policies.insert(policy.id.clone(), Arc::new(policy));
        true
    }

    fn remove_policy(&mut self, id: &PolicyId) -> bool {
        let Some(policy) = self.policies.remove(id) else { return false };
        if let Some(here) = self.policies_of.get_mut(&id.key.namespace) {
            here.ids.remove(id);
            here.by_label.remove(&policy.selector, id);
            if here.ids.is_empty() {
                self.policies_of.remove(&id.key.namespace);
            }
        }
        self.note(|changes| changes.policies.insert(id.clone()));
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

    /// The addresses of nodes, as far as pods give them. The same `Arc` until they change.
    pub fn host_addresses(&mut self) -> Arc<BTreeSet<IpAddr>> {
        self.hosts.all()
    }

    /// All pods, by key.
    pub fn pods(&self) -> impl ExactSizeIterator<Item = &Arc<Pod>> {
        self.pods.values().map(|held| &held.pod)
    }

    /// The pods of this index's own node that own addresses, by key: those that should have a gate.
    pub fn local_pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.local.iter().filter_map(|key| self.pod(key))
    }

    /// The pod of this name.
    pub fn pod(&self, key: &ObjectKey) -> Option<&Arc<Pod>> {
        self.pods.get(key).map(|held| &held.pod)
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
        let here = self.policies_of.get(namespace).into_iter();
        here.flat_map(|here| &here.ids).filter_map(|id| self.policies.get(id))
    }

    /// The policies that select a pod, by id. A hostNetwork pod is its node and never selected
    /// (semantics 9). A finished pod is: its interface, while there is one, can be nobody else's.
    pub fn policies_selecting(&self, pod: &Pod) -> Vec<&Arc<Policy>> {
        let here = self.policies_of.get(&pod.key.namespace).filter(|_| !pod.host_network);
        let candidates = here.into_iter().flat_map(|here| here.by_label.candidates(&pod.labels));
        let mut selecting: Vec<_> = candidates
            .filter_map(|id| self.policies.get(id))
            .filter(|policy| policy.selector.matches(&pod.labels))
            .collect();
        selecting.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        selecting
    }

    /// The pod whose address this is: of those that claim it a live one before a terminating one, then
    /// the newest, then the first by name.
    pub fn owner_of(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.claims.best(address).map(|claim| &claim.pod)
    }

    /// Every owned address and its owner, by address.
    pub fn owners(&self) -> impl Iterator<Item = (IpAddr, &Arc<Pod>)> {
        self.claims.range(..).map(|(address, claim)| (address, &claim.pod))
    }

    /// The owner of an address, with its shape.
    pub(crate) fn claim_on(&self, address: IpAddr) -> Option<&Claim> {
        self.claims.best(address)
    }

    /// The owned addresses inside a prefix.
    pub(crate) fn owned_inside(&self, prefix: &IpNet) -> impl Iterator<Item = IpAddr> {
        self.claims.range(prefix.network()..=prefix.broadcast()).map(|(address, _)| address)
    }

    /// The shape of a pod that may own addresses.
    pub(crate) fn shape_of(&self, pod: &ObjectKey) -> Option<ShapeId> {
        self.pods.get(pod)?.shape
    }

    /// The shapes of all pods that may own addresses.
    pub(crate) fn shapes(&self) -> &Shapes {
        &self.shapes
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
