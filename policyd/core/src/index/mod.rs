//! What podgate knows of the cluster, and who owns which address.
//!
//! ```text
//!  namespaces   pods ----claims----> addresses     policies ----by namespace and label----> their ids
//!                 +------labels-> identities ----by namespace and label----> their pods
//! ```
//!
//! A plain synchronous struct: the writer calls [`Index::apply`] with each event of a source. Its content is a function
//! of the set of objects, never of the order of events: several pods may claim an address, and all claims are kept so
//! that the best one left always owns it (docs/semantics.md 11.5).

mod changes;
mod claims;
mod cluster_policies;
mod hosts;
mod interner;
mod label_identities;
mod local_rules;
mod pod_traffic_policies;
mod problems;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::limits::{self, Effective};
use crate::model::{
    ClusterPolicy, ClusterPolicyId, EndpointSlice, Labels, LocalDefaults, LocalRules, Namespace,
    Node, ObjectKey, Pod, PodLife, PodTrafficPolicy, Policy, PolicyId, PolicySettings, Service,
    Subject,
};
use crate::object::{Event, Object, ObjectId};
use crate::selector_index::SelectorIndex;
use crate::services::Catalog;

use claims::Claims;
use cluster_policies::ClusterPolicies;
use hosts::Hosts;
use interner::Interner;
use local_rules::LocalRuleSets;
use pod_traffic_policies::PodTrafficPolicies;

pub use changes::Changes;
pub(crate) use claims::Claim;
pub use hosts::NodeRef;
pub(crate) use label_identities::{IdentityId, IdentityKey, LabelIdentities};
pub use problems::{Problem, Sort};

/// The cluster: all objects, by name. Readers get shared references to them, not copies.
///
/// Two indexes are equal if they hold the same objects.
#[derive(Clone, Debug, Default)]
pub struct Index {
    namespaces: BTreeMap<Arc<str>, Namespace>,
    pods: BTreeMap<ObjectKey, PodEntry>,
    /// Of the pods that may own addresses.
    claims: Claims,
    /// Of the same pods.
    identities: LabelIdentities,
    policies: BTreeMap<PolicyId, PolicyEntry>,
    policies_of: HashMap<Arc<str>, NamespacePolicies>,
    cluster_policies: ClusterPolicies,
    pod_traffic_policies: PodTrafficPolicies,
    /// The objects of which something could not be read.
    with_problems: BTreeSet<ObjectId>,
    local_rules: LocalRuleSets,
    interner: Interner,
    hosts: Hosts,
    services: Catalog,
    /// The node whose pods are in `local`.
    node: Option<Arc<str>>,
    /// The pods of this node that own addresses.
    local: BTreeSet<ObjectKey>,
    /// What changed since [`Index::take_changes`]. `None` before its first call: no engine follows yet.
    changes: Option<Changes>,
}

/// A pod, with its identity if it may own addresses.
#[derive(Clone, Debug)]
struct PodEntry {
    pod: Arc<Pod>,
    identity: Option<IdentityId>,
}

/// A policy, with the settings that hold for it in its namespace, and its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PolicyEntry {
    policy: Arc<Policy>,
    own: PolicySettings,
}

/// The policies of a namespace, all and by the labels that they select.
#[derive(Clone, Debug, Default)]
struct NamespacePolicies {
    ids: BTreeSet<PolicyId>,
    by_label: SelectorIndex<PolicyId>,
}

impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        self.namespaces == other.namespaces
            && self.policies == other.policies
            && self.cluster_policies == other.cluster_policies
            && self.pod_traffic_policies == other.pod_traffic_policies
            && self.local_rules == other.local_rules
            && self.services == other.services
            && self.hosts.nodes() == other.hosts.nodes()
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

    /// What has changed since the last call, for the one engine that follows this index. Nothing at the first call: a new
    /// engine compiles the whole index.
    pub fn take_changes(&mut self) -> Changes {
        self.changes.replace(Changes::default()).unwrap_or_default()
    }

    /// Applies one event of a source. False if it changes nothing.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Set(object) => self.set(object),
            Event::Gone(id) => self.remove(&id),
        }
    }

    fn set(&mut self, object: Object) -> bool {
        if problems::has_any(&object) {
            self.with_problems.insert(object.id());
        } else if !self.with_problems.is_empty() {
            self.with_problems.remove(&object.id());
        }
        match object {
            Object::Pod(pod) => self.set_pod(pod),
            Object::Namespace(namespace) => self.set_namespace(namespace),
            Object::Policy(policy) => self.set_policy(policy),
            Object::Service(service) => self.services.set_service(service),
            Object::EndpointSlice(slice) => self.services.set_slice(slice),
            Object::Node(node) => self.set_node(node),
            Object::ClusterPolicy(policy) => self.set_cluster_policy(policy),
            Object::PodTrafficPolicy(policy) => self.set_pod_traffic_policy(policy),
        }
    }

    fn remove(&mut self, id: &ObjectId) -> bool {
        self.with_problems.remove(id);
        match id {
            ObjectId::Pod(key) => self.remove_pod(key),
            ObjectId::Namespace(name) => self.remove_namespace(name),
            ObjectId::Policy(id) => self.remove_policy(id),
            ObjectId::Service(key) => self.services.remove_service(key),
            ObjectId::EndpointSlice(key) => self.services.remove_slice(key),
            ObjectId::Node(name) => self.remove_node(name),
            ObjectId::ClusterPolicy(id) => self.remove_cluster_policy(id),
            ObjectId::PodTrafficPolicy(id) => self.remove_pod_traffic_policy(id),
        }
    }

    /// A copy of an object.
    pub fn object(&self, id: &ObjectId) -> Option<Object> {
        Some(match id {
            ObjectId::Pod(key) => Pod::clone(self.pod(key)?).into(),
            ObjectId::Namespace(name) => self.namespace(name)?.clone().into(),
            ObjectId::Policy(id) => {
                let PolicyEntry { policy, own } = self.policies.get(id)?;
                Policy { settings: own.clone(), ..Policy::clone(policy) }.into()
            }
            ObjectId::Service(key) => Service::clone(self.services.service(key)?).into(),
            ObjectId::EndpointSlice(key) => EndpointSlice::clone(self.services.slice(key)?).into(),
            ObjectId::Node(name) => self.hosts.node(name)?.clone().into(),
            ObjectId::ClusterPolicy(id) => ClusterPolicy::clone(self.cluster_policy(id)?).into(),
            ObjectId::PodTrafficPolicy(id) => {
                PodTrafficPolicy::clone(self.pod_traffic_policy(id)?).into()
            }
        })
    }

    fn note<T>(&mut self, note: impl FnOnce(&mut Changes) -> T) {
        self.changes.as_mut().map(note);
    }

    fn set_namespace(&mut self, namespace: Namespace) -> bool {
        if self.namespaces.get(&namespace.name) == Some(&namespace) {
            return false;
        }
        let name = self.interner.share(&namespace.name);
        self.note(|changes| changes.namespaces.insert(name.clone()));
        self.namespaces.insert(name.clone(), namespace);
        self.apply_namespace_settings(&name);
        true
    }

    fn remove_namespace(&mut self, name: &Arc<str>) -> bool {
        self.note(|changes| changes.namespaces.insert(name.clone()));
        let known = self.namespaces.remove(name).is_some();
        self.apply_namespace_settings(name);
        known
    }

    /// Gives the policies of a namespace the settings that they have in it now.
    fn apply_namespace_settings(&mut self, name: &Arc<str>) {
        let Some(here) = self.policies_of.get(name) else { return };
        let ids: Vec<PolicyId> = here.ids.iter().cloned().collect();
        let of_namespace =
            self.namespaces.get(name).map(|of| of.settings.clone()).unwrap_or_default();
        for id in ids {
            let Some(entry) = self.policies.get_mut(&id) else { continue };
            let settings = entry.own.within(&of_namespace);
            if entry.policy.settings != settings {
                entry.policy = Arc::new(Policy { settings, ..Policy::clone(&entry.policy) });
                self.note(|changes| changes.policies.insert(id));
            }
        }
    }

    fn set_pod(&mut self, mut pod: Pod) -> bool {
        if self.pods.get(&pod.key).is_some_and(|known| *known.pod == pod) {
            return false;
        }
        let before = self.pods.remove(&pod.key);
        pod.node = pod.node.map(|node| self.interner.share(&node));
        if !pod.may_own_addresses() {
            pod.key.namespace = self.interner.share(&pod.key.namespace);
            self.remove_entry(before);
            self.add_entry(PodEntry { pod: Arc::new(pod), identity: None });
            return true;
        }
        let key = IdentityKey {
            namespace: pod.key.namespace.clone(),
            labels: pod.labels.clone(),
            ports: pod.ports.clone(),
        };
        // joins before it leaves, so that an identity whose only pod this is keeps its number
        let (id, new) = self.identities.join(key, pod.key.name.clone(), &mut self.interner);
        if let Some(identity) = self.identities.get(id) {
            pod.key.namespace = identity.key.namespace.clone();
            pod.labels = identity.key.labels.clone();
            pod.ports = identity.key.ports.clone();
        }
        if new {
            self.note(|changes| changes.identities.insert(id));
        }
        let stays = before.as_ref().is_some_and(|before| before.identity == Some(id));
        self.remove_entry(before.map(|entry| match stays {
            true => PodEntry { identity: None, ..entry },
            false => entry,
        }));
        let pod = Arc::new(pod);
        for address in &pod.addresses {
            self.claims.add(*address, Claim { pod: pod.clone(), identity: id });
        }
        self.add_entry(PodEntry { pod, identity: Some(id) });
        true
    }

    fn add_entry(&mut self, entry: PodEntry) {
        let pod = entry.pod.clone();
        let is_local = self.node.is_some() && pod.node == self.node;
        if is_local && entry.identity.is_some() && !pod.addresses.is_empty() {
            self.local.insert(pod.key.clone());
        }
        self.hosts.add(&pod);
        self.pods.insert(pod.key.clone(), entry);
        self.note(|changes| {
            changes.addresses.extend(&pod.addresses);
            changes.pods.insert(pod.key.clone());
        });
    }

    fn remove_entry(&mut self, entry: Option<PodEntry>) {
        let Some(PodEntry { pod, identity }) = entry else { return };
        self.local.remove(&pod.key);
        self.hosts.remove(&pod);
        for address in &pod.addresses {
            self.claims.remove(*address, &pod);
        }
        if let Some(identity) = identity
            && self.identities.leave(identity, &pod.key.name)
        {
            self.note(|changes| changes.identities.insert(identity));
        }
        self.note(|changes| {
            changes.addresses.extend(&pod.addresses);
            changes.pods.insert(pod.key.clone());
        });
    }

    fn remove_pod(&mut self, key: &ObjectKey) -> bool {
        let entry = self.pods.remove(key);
        let known = entry.is_some();
        self.remove_entry(entry);
        known
    }

    fn set_policy(&mut self, policy: Policy) -> bool {
        let namespace = self.interner.share(&policy.id.key.namespace);
        let own = policy.settings.clone();
        let of_namespace =
            self.namespaces.get(&namespace).map(|of| of.settings.clone()).unwrap_or_default();
        let policy = Policy { settings: own.within(&of_namespace), ..policy };
        let known = self.policies.get(&policy.id);
        if known.is_some_and(|known| *known.policy == policy && known.own == own) {
            return false;
        }
        self.remove_policy(&policy.id);
        let here = self.policies_of.entry(namespace).or_default();
        here.ids.insert(policy.id.clone());
        here.by_label.insert(&policy.selector, policy.id.clone());
        self.note(|changes| changes.policies.insert(policy.id.clone()));
        let entry = PolicyEntry { policy: Arc::new(policy), own };
        self.policies.insert(entry.policy.id.clone(), entry);
        true
    }

    fn remove_policy(&mut self, id: &PolicyId) -> bool {
        let Some(PolicyEntry { policy, .. }) = self.policies.remove(id) else { return false };
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

    /// Sets a cluster policy. False if it was known so.
    pub fn set_cluster_policy(&mut self, policy: ClusterPolicy) -> bool {
        let id = policy.id.clone();
        let new = self.cluster_policies.set(policy);
        if new {
            self.note(|changes| changes.cluster_policies.insert(id));
        }
        new
    }

    /// Removes a cluster policy. False if it was not known.
    pub fn remove_cluster_policy(&mut self, id: &ClusterPolicyId) -> bool {
        let known = self.cluster_policies.remove(id);
        if known {
            self.note(|changes| changes.cluster_policies.insert(id.clone()));
        }
        known
    }

    /// All cluster policies, in the order of evaluation.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &Arc<ClusterPolicy>> {
        self.cluster_policies.all()
    }

    /// The cluster policy of this id.
    pub fn cluster_policy(&self, id: &ClusterPolicyId) -> Option<&Arc<ClusterPolicy>> {
        self.cluster_policies.get(id)
    }

    /// The cluster policies that govern a pod, in the order of evaluation. A hostNetwork pod is its node and never governed
    /// (docs/semantics.md 9.5).
    pub fn cluster_policies_selecting(&self, pod: &Pod) -> Vec<&Arc<ClusterPolicy>> {
        if pod.host_network || self.cluster_policies.is_empty() {
            return Vec::new();
        }
        let namespace = self.namespace_labels(&pod.key.namespace);
        self.cluster_policies.selecting(&namespace, &pod.labels)
    }

    fn set_pod_traffic_policy(&mut self, policy: PodTrafficPolicy) -> bool {
        let id = policy.id.clone();
        let new = self.pod_traffic_policies.set(policy);
        if new {
            self.note(|changes| changes.pod_traffic_policies.insert(id));
        }
        new
    }

    fn remove_pod_traffic_policy(&mut self, id: &PolicyId) -> bool {
        let known = self.pod_traffic_policies.remove(id);
        if known {
            self.note(|changes| changes.pod_traffic_policies.insert(id.clone()));
        }
        known
    }

    /// All PodTrafficPolicies, by id.
    pub fn pod_traffic_policies(&self) -> impl ExactSizeIterator<Item = &Arc<PodTrafficPolicy>> {
        self.pod_traffic_policies.all()
    }

    /// The PodTrafficPolicy of this id.
    pub fn pod_traffic_policy(&self, id: &PolicyId) -> Option<&Arc<PodTrafficPolicy>> {
        self.pod_traffic_policies.get(id)
    }

    /// The PodTrafficPolicies that select a pod, in the order of precedence. A hostNetwork pod is its node, and none selects it.
    pub fn pod_traffic_policies_selecting(&self, pod: &Pod) -> Vec<&Arc<PodTrafficPolicy>> {
        match pod.host_network {
            true => Vec::new(),
            false => self.pod_traffic_policies.selecting(pod),
        }
    }

    /// What a pod may use, by all that is said of it.
    pub fn effective_limits(&self, pod: &Pod) -> Effective {
        let policies = self.pod_traffic_policies_selecting(pod);
        let namespace = self.namespace(&pod.key.namespace);
        limits::effective(pod, namespace, policies.into_iter().map(|policy| &**policy))
    }

    /// Whether a cluster policy of this subject governs a pod.
    pub(crate) fn is_subject(&self, pod: &Pod, subject: &Subject) -> bool {
        !pod.host_network
            && subject.selects(&self.namespace_labels(&pod.key.namespace), &pod.labels)
    }

    /// Sets what the node's operator says of a pod, whether the pod is known or not. False if it was known so.
    pub fn set_local_rules(&mut self, rules: LocalRules) -> bool {
        let pod = rules.pod.clone();
        let new = self.local_rules.set(rules);
        if new {
            self.note(|changes| changes.local_rules.insert(pod));
        }
        new
    }

    /// Removes what the node's operator says of a pod. False if that was nothing.
    pub fn remove_local_rules(&mut self, pod: &ObjectKey) -> bool {
        let known = self.local_rules.remove(pod);
        if known {
            self.note(|changes| changes.local_rules.insert(pod.clone()));
        }
        known
    }

    /// Sets the node's defaults. False if they were so.
    pub fn set_local_defaults(&mut self, defaults: LocalDefaults) -> bool {
        let new = self.local_rules.set_defaults(defaults);
        self.note(|changes| changes.local_defaults |= new);
        new
    }

    /// What the node's operator says of a pod. A hostNetwork pod is its node and never governed (docs/semantics.md 9.5).
    pub fn local_rules(&self, pod: &Pod) -> Option<&Arc<LocalRules>> {
        self.local_rules.of(pod)
    }

    /// The pods of which the node's operator says something, known or not.
    pub fn pods_with_local_rules(&self) -> impl Iterator<Item = &ObjectKey> {
        self.local_rules.pods()
    }

    /// The node's defaults, if there are any and the pod is governed.
    pub fn local_defaults(&self, pod: &Pod) -> Option<&Arc<LocalDefaults>> {
        self.local_rules.defaults(pod)
    }

    fn set_node(&mut self, node: Node) -> bool {
        let name = node.name.clone();
        let new = self.hosts.set_node(node);
        if new {
            self.note(|changes| changes.nodes.insert(name));
        }
        new
    }

    fn remove_node(&mut self, name: &Arc<str>) -> bool {
        let known = self.hosts.remove_node(name);
        if known {
            self.note(|changes| changes.nodes.insert(name.clone()));
        }
        known
    }

    /// All Node objects, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.hosts.nodes().values()
    }

    /// The Node object of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.hosts.node(name)
    }

    /// The services.
    pub fn services(&self) -> &Catalog {
        &self.services
    }

    /// The services, for [`crate::services::ServiceTable::follow`].
    pub fn services_mut(&mut self) -> &mut Catalog {
        &mut self.services
    }

    /// The node that an address belongs to, as far as nodes and their pods say so.
    pub fn node_at(&self, address: IpAddr) -> Option<NodeRef> {
        self.hosts.node_at(address)
    }

    /// The known addresses of a node, the preferred one of each family first.
    pub fn addresses_of_node(&self, node: &str) -> Vec<IpAddr> {
        self.hosts.addresses_of(node)
    }

    /// All known addresses of nodes.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.hosts.addresses()
    }

    /// The addresses of nodes, as far as nodes and their pods report them. The same `Arc` until they change.
    pub fn host_addresses(&mut self) -> Arc<BTreeSet<IpAddr>> {
        self.hosts.all()
    }

    /// All pods, by key.
    pub fn pods(&self) -> impl ExactSizeIterator<Item = &Arc<Pod>> {
        self.pods.values().map(|entry| &entry.pod)
    }

    /// The pods of this index's own node that own addresses, by key: those that should have a gate.
    pub fn local_pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.local.iter().filter_map(|key| self.pod(key))
    }

    /// The pod of this name.
    pub fn pod(&self, key: &ObjectKey) -> Option<&Arc<Pod>> {
        self.pods.get(key).map(|entry| &entry.pod)
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
        self.policies.values().map(|entry| &entry.policy)
    }

    /// The policy of this id.
    pub fn policy(&self, id: &PolicyId) -> Option<&Arc<Policy>> {
        self.policies.get(id).map(|entry| &entry.policy)
    }

    /// The policies of a namespace, by id.
    pub fn policies_of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        let here = self.policies_of.get(namespace).into_iter();
        here.flat_map(|here| &here.ids).filter_map(|id| self.policy(id))
    }

    /// The policies that select a pod, by id. A hostNetwork pod is its node and never selected
    /// (docs/semantics.md 9.5). A finished pod is selected: while it has an interface, no other pod can have that one.
    pub fn policies_selecting(&self, pod: &Pod) -> Vec<&Arc<Policy>> {
        let here = self.policies_of.get(&pod.key.namespace).filter(|_| !pod.host_network);
        let candidates = here.into_iter().flat_map(|here| here.by_label.candidates(&pod.labels));
        let mut selecting: Vec<_> = candidates
            .filter_map(|id| self.policy(id))
            .filter(|policy| policy.selector.matches(&pod.labels))
            .collect();
        selecting.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        selecting
    }

    /// The pod that owns this address: of those that claim it a live one before a terminating one, then the newest, then
    /// the first by name.
    pub fn owner_of(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.claims.best(address).map(|claim| &claim.pod)
    }

    /// Every owned address and its owner, by address.
    pub fn owners(&self) -> impl Iterator<Item = (IpAddr, &Arc<Pod>)> {
        self.claims.range(..).map(|(address, claim)| (address, &claim.pod))
    }

    /// The owner of an address, with its identity.
    pub(crate) fn claim_on(&self, address: IpAddr) -> Option<&Claim> {
        self.claims.best(address)
    }

    /// The owned addresses inside a prefix.
    pub(crate) fn owned_inside(&self, prefix: &IpNet) -> impl Iterator<Item = IpAddr> {
        self.claims.range(prefix.network()..=prefix.broadcast()).map(|(address, _)| address)
    }

    /// The identity of a pod that may own addresses.
    pub(crate) fn identity_of(&self, pod: &ObjectKey) -> Option<IdentityId> {
        self.pods.get(pod)?.identity
    }

    /// The identities of all pods that may own addresses.
    pub(crate) fn identities(&self) -> &LabelIdentities {
        &self.identities
    }
}

impl Pod {
    /// Whether the pod can own addresses. Those of a finished pod may belong to another pod by now, those of a hostNetwork
    /// pod belong to its node.
    pub fn may_own_addresses(&self) -> bool {
        self.life != PodLife::Finished && !self.host_network
    }

    /// Of two pods that claim one address, the one with the lower rank owns it.
    pub fn claim_rank(&self) -> (PodLife, Reverse<i64>, &ObjectKey) {
        (self.life, Reverse(self.created), &self.key)
    }
}
