//! The endpoints of this node, their pods and the policies that select them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::program::Program;
use crate::compile::{Endpoint, EndpointId};
use crate::index::{Claim, Index};
use crate::model::{ObjectKey, Pod, Policy};

/// An endpoint and what is known of it.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) endpoint: Endpoint,
    /// Its pod, if the index has it and not a namesake.
    pub(crate) pod: Option<Arc<Pod>>,
    /// Those that select the pod, by id.
    pub(crate) policies: Vec<Arc<Policy>>,
    /// `None`: without a table.
    pub(crate) program: Option<Arc<Program>>,
}

/// All endpoints, by what one may know of them.
#[derive(Debug, Default)]
pub(crate) struct Subjects {
    of: BTreeMap<EndpointId, Subject>,
    by_pod: HashMap<ObjectKey, BTreeSet<EndpointId>>,
    by_namespace: HashMap<Arc<str>, BTreeSet<EndpointId>>,
    by_address: BTreeMap<IpAddr, BTreeSet<EndpointId>>,
    /// To be looked at again.
    dirty: BTreeSet<EndpointId>,
    /// Addresses that an endpoint has got or lost.
    addresses: BTreeSet<IpAddr>,
}

impl Subjects {
    /// Takes note of an endpoint. Nothing happens if it is known just so; else what was known of this number
    /// is returned.
    pub(crate) fn set(&mut self, endpoint: Endpoint) -> Option<Subject> {
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
        let subject = Subject { endpoint, pod: None, policies: Vec::new(), program: None };
        self.of.insert(id, subject);
        before
    }

    /// Forgets an endpoint.
    pub(crate) fn remove(&mut self, id: EndpointId) -> Option<Subject> {
        let subject = self.of.remove(&id)?;
        if let Some(pod) = &subject.endpoint.pod {
            drop_from(&mut self.by_pod, pod, id);
            drop_from(&mut self.by_namespace, &pod.namespace, id);
        }
        for address in subject.endpoint.addresses.iter().map(IpAddr::to_canonical) {
            if let Some(ids) = self.by_address.get_mut(&address) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_address.remove(&address);
                }
            }
            self.addresses.insert(address);
        }
        self.dirty.remove(&id);
        Some(subject)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = EndpointId> {
        self.of.keys().copied()
    }

    pub(crate) fn get(&self, id: EndpointId) -> Option<&Subject> {
        self.of.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: EndpointId) -> Option<&mut Subject> {
        self.of.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Subject> {
        self.of.values()
    }

    /// The pod is another one than before, or is gone.
    pub(crate) fn touch_pod(&mut self, pod: &ObjectKey) {
        self.dirty.extend(self.by_pod.get(pod).into_iter().flatten());
    }

    /// A policy of this namespace is another one than before, or is gone.
    pub(crate) fn touch_namespace(&mut self, namespace: &str) {
        self.dirty.extend(self.by_namespace.get(namespace).into_iter().flatten());
    }

    pub(crate) fn take_dirty(&mut self) -> BTreeSet<EndpointId> {
        std::mem::take(&mut self.dirty)
    }

    pub(crate) fn take_addresses(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.addresses)
    }

    /// The addresses that a pod has by its interfaces here.
    pub(crate) fn addresses_of(&self, pod: &ObjectKey) -> impl Iterator<Item = IpAddr> {
        let ids = self.by_pod.get(pod).into_iter().flatten();
        let subjects = ids.filter_map(|id| self.of.get(id));
        subjects.flat_map(|subject| subject.endpoint.addresses.iter().map(IpAddr::to_canonical))
    }

    /// The addresses of interfaces here that are inside a prefix.
    pub(crate) fn addresses_inside(&self, prefix: &IpNet) -> impl Iterator<Item = IpAddr> {
        self.by_address.range(prefix.network()..=prefix.broadcast()).map(|(address, _)| *address)
    }

    /// Who has an address; `None`: nobody whom a selector could match.
    ///
    /// What the node's own interfaces have is the kernel's truth: such an address is no other pod's, whatever
    /// the API server still says. It is nobody's while the API server does not know the pod, so that a new
    /// pod is never taken for the last one that had its address.
    pub(crate) fn owner(&self, address: IpAddr, index: &Index) -> Option<Claim> {
        let here = self.by_address.get(&address).into_iter().flatten();
        let mut local = false;
        let mut best: Option<&Arc<Pod>> = None;
        for subject in here.filter_map(|id| self.of.get(id)) {
            match &subject.pod {
                Some(pod) if !pod.may_own_addresses() => continue,
                Some(pod) => {
                    let better = best.is_none_or(|best| pod.claim_rank() < best.claim_rank());
                    best = if better { Some(pod) } else { best };
                }
                None => {}
            }
            local = true;
        }
        match (local, best) {
            (false, _) => index.claim_on(address).cloned(),
            (true, None) => None,
            (true, Some(pod)) => {
                let shape = index.shape_of(&pod.key);
                shape.map(|shape| Claim { pod: pod.clone(), shape })
            }
        }
    }
}

/// The pod of an endpoint, if the index has it and not a namesake.
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
