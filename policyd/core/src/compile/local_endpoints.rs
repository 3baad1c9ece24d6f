//! The endpoints of this node, with their pods and the policies that select them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::governing::Governing;
use super::program::Program;
use crate::index::{Claim, Index};
use crate::model::{ClusterPolicyId, ObjectKey, Pod};
use crate::tables::{Endpoint, EndpointId};

/// An endpoint of this node, joined with its pod and its policies.
#[derive(Debug)]
pub(crate) struct LocalEndpoint {
    pub(crate) endpoint: Endpoint,
    /// Its pod, if the index has it with the same uid.
    pub(crate) pod: Option<Arc<Pod>>,
    /// The policies that govern the pod: NetworkPolicies by id, then ClusterNetworkPolicies in the order of evaluation, then
    /// its local rules and the node's defaults.
    pub(crate) policies: Vec<Governing>,
    /// `None`: it has no table, because its pod is not known.
    pub(crate) program: Option<Arc<Program>>,
}

impl LocalEndpoint {
    /// Whether ranked rules govern it.
    pub(crate) fn is_ranked(&self) -> bool {
        self.program.as_ref().is_some_and(|program| program.ranked().is_some())
    }
}

/// The endpoints of this node by id, pod, namespace and address.
#[derive(Debug, Default)]
pub(crate) struct LocalEndpoints {
    of: BTreeMap<EndpointId, LocalEndpoint>,
    by_pod: HashMap<ObjectKey, BTreeSet<EndpointId>>,
    by_namespace: HashMap<Arc<str>, BTreeSet<EndpointId>>,
    by_address: BTreeMap<IpAddr, BTreeSet<EndpointId>>,
    /// Endpoints whose pod or policies may have changed since [`LocalEndpoints::take_dirty`].
    dirty: BTreeSet<EndpointId>,
    /// Addresses that an endpoint gained or lost since [`LocalEndpoints::take_addresses`].
    addresses: BTreeSet<IpAddr>,
}

impl LocalEndpoints {
    /// Adds or replaces an endpoint. Returns what it replaced; nothing happens if it is unchanged.
    pub(crate) fn set(&mut self, endpoint: Endpoint) -> Option<LocalEndpoint> {
        let id = endpoint.id;
        if self.of.get(&id).is_some_and(|known| known.endpoint == endpoint) {
            return None;
        }
        let before = self.remove(id);
        if let Some(pod) = &endpoint.pod {
            self.by_pod.entry(pod.clone()).or_default().insert(id);
            self.by_namespace.entry(pod.namespace.clone()).or_default().insert(id);
        }
        for address in endpoint.addresses.iter().map(IpAddr::to_canonical) {
            self.by_address.entry(address).or_default().insert(id);
            self.addresses.insert(address);
        }
        self.dirty.insert(id);
        let local = LocalEndpoint { endpoint, pod: None, policies: Vec::new(), program: None };
        self.of.insert(id, local);
        before
    }

    /// Removes an endpoint and returns it.
    pub(crate) fn remove(&mut self, id: EndpointId) -> Option<LocalEndpoint> {
        let local = self.of.remove(&id)?;
        if let Some(pod) = &local.endpoint.pod {
            drop_from(&mut self.by_pod, pod, id);
            drop_from(&mut self.by_namespace, &pod.namespace, id);
        }
        for address in local.endpoint.addresses.iter().map(IpAddr::to_canonical) {
            if let Some(ids) = self.by_address.get_mut(&address) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_address.remove(&address);
                }
            }
            self.addresses.insert(address);
        }
        self.dirty.remove(&id);
        Some(local)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> {
        self.of.keys().copied()
    }

    pub(crate) fn get(&self, id: EndpointId) -> Option<&LocalEndpoint> {
        self.of.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: EndpointId) -> Option<&mut LocalEndpoint> {
        self.of.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &LocalEndpoint> {
        self.of.values()
    }

    /// A pod was added, changed or removed: marks its endpoints.
    pub(crate) fn touch_pod(&mut self, pod: &ObjectKey) {
        self.dirty.extend(self.by_pod.get(pod).into_iter().flatten());
    }

    /// A policy of this namespace was added, changed or removed: marks the endpoints in it.
    pub(crate) fn touch_namespace(&mut self, namespace: &str) {
        self.dirty.extend(self.by_namespace.get(namespace).into_iter().flatten());
    }

    /// A cluster policy was added, changed or removed: marks the endpoints that it governed or does now.
    pub(crate) fn touch_subjects(&mut self, id: &ClusterPolicyId, index: &Index) {
        let policy = index.cluster_policy(id);
        let governs = |local: &LocalEndpoint| {
            let now = known_pod(index, &local.endpoint).zip(policy);
            now.is_some_and(|(pod, policy)| index.is_subject(pod, &policy.subject))
        };
        let governed = |local: &LocalEndpoint| {
            let mut policies = local.policies.iter();
            policies.any(|of| matches!(of, Governing::Cluster(policy) if policy.id == *id))
        };
        for (endpoint, local) in &self.of {
            if !self.dirty.contains(endpoint) && (governed(local) || governs(local)) {
                self.dirty.insert(*endpoint);
            }
        }
    }

    /// The node's defaults changed: marks every endpoint.
    pub(crate) fn touch_all(&mut self) {
        self.dirty.extend(self.of.keys());
    }

    pub(crate) fn take_dirty(&mut self) -> BTreeSet<EndpointId> {
        std::mem::take(&mut self.dirty)
    }

    pub(crate) fn take_addresses(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.addresses)
    }

    /// The endpoints of a pod.
    pub(crate) fn of_pod(&self, pod: &ObjectKey) -> impl Iterator<Item = &LocalEndpoint> {
        let ids = self.by_pod.get(pod).into_iter().flatten();
        ids.filter_map(|id| self.of.get(id))
    }

    /// The endpoints that have an address, which is canonical.
    pub(crate) fn at(&self, address: IpAddr) -> impl Iterator<Item = &LocalEndpoint> {
        let ids = self.by_address.get(&address).into_iter().flatten();
        ids.filter_map(|id| self.of.get(id))
    }

    /// The addresses of a pod's interfaces on this node.
    pub(crate) fn addresses_of(&self, pod: &ObjectKey) -> impl Iterator<Item = IpAddr> {
        self.of_pod(pod).flat_map(|local| local.endpoint.addresses.iter().map(IpAddr::to_canonical))
    }

    /// The addresses of this node's interfaces inside a prefix.
    pub(crate) fn addresses_inside(&self, prefix: &IpNet) -> impl Iterator<Item = IpAddr> {
        self.by_address.range(prefix.network()..=prefix.broadcast()).map(|(address, _)| *address)
    }

    /// The pod that owns an address. `None` if no selector can match the address: no pod owns it, or its owner is not
    /// known yet.
    ///
    /// The interfaces of this node decide over what the API server says: an address of a local endpoint belongs to that
    /// endpoint's pod, and to no pod while that one is unknown. Otherwise a new pod could be taken for the previous owner
    /// of its address.
    pub(crate) fn owner(&self, address: IpAddr, index: &Index) -> Option<Claim> {
        let mut is_local = false;
        let mut best: Option<&Arc<Pod>> = None;
        for local in self.at(address) {
            match &local.pod {
                Some(pod) if !pod.may_own_addresses() => continue,
                Some(pod) => {
                    let better = best.is_none_or(|best| pod.claim_rank() < best.claim_rank());
                    best = if better { Some(pod) } else { best };
                }
                None => {}
            }
            is_local = true;
        }
        match (is_local, best) {
            (false, _) => index.claim_on(address).cloned(),
            (true, None) => None,
            (true, Some(pod)) => {
                let identity = index.identity_of(&pod.key);
                identity.map(|identity| Claim { pod: pod.clone(), identity })
            }
        }
    }
}

/// The pod of an endpoint, if the index has it. A pod of the same name with another uid is not it.
pub(crate) fn known_pod<'a>(index: &'a Index, endpoint: &Endpoint) -> Option<&'a Arc<Pod>> {
    let pod = index.pod(endpoint.pod.as_ref()?)?;
    let same = endpoint.uid.is_empty() || pod.uid.is_empty() || endpoint.uid == pod.uid;
    same.then_some(pod)
}

fn drop_from<K: std::hash::Hash + Eq>(
    map: &mut HashMap<K, BTreeSet<EndpointId>>,
    key: &K,
    id: EndpointId,
) {
    if let Some(ids) = map.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}
