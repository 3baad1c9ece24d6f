//! What holds for each endpoint of this node, followed from what changes in the index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Limits;
use crate::compile::known_pod;
use crate::index::{Changes, Index};
use crate::model::ObjectKey;
use crate::tables::{Endpoint, EndpointId};

/// Follows an index and the node's endpoints.
#[derive(Debug, Default)]
pub struct EndpointLimits {
    of: BTreeMap<EndpointId, Entry>,
    by_pod: HashMap<ObjectKey, BTreeSet<EndpointId>>,
    by_namespace: HashMap<Arc<str>, BTreeSet<EndpointId>>,
    /// Those whose limits may be others than before the last update.
    dirty: BTreeSet<EndpointId>,
    /// Those that were removed since.
    gone: BTreeSet<EndpointId>,
}

#[derive(Debug)]
struct Entry {
    endpoint: Endpoint,
    limits: Option<Arc<Limits>>,
}

impl EndpointLimits {
    /// What holds for an endpoint after the last update; empty if nothing does. `None` if its pod is not known: no source has it,
    /// or only a namesake. For such a pod holds what its runtime passed.
    pub fn get(&self, id: EndpointId) -> Option<&Arc<Limits>> {
        self.of.get(&id)?.limits.as_ref()
    }

    /// The same of all endpoints, by number.
    pub fn all(&self) -> impl Iterator<Item = (EndpointId, Option<&Arc<Limits>>)> {
        self.of.iter().map(|(id, entry)| (*id, entry.limits.as_ref()))
    }

    /// Sets the node's endpoints; [`EndpointLimits::update`] takes them into account.
    pub fn set_endpoints(&mut self, endpoints: impl IntoIterator<Item = Endpoint>) {
        let mut gone: BTreeSet<EndpointId> = self.of.keys().copied().collect();
        for endpoint in endpoints {
            gone.remove(&endpoint.id);
            self.set(endpoint);
        }
        for id in gone {
            self.remove(id);
            self.gone.insert(id);
        }
    }

    fn set(&mut self, endpoint: Endpoint) {
        let id = endpoint.id;
        if self.of.get(&id).is_some_and(|known| known.endpoint == endpoint) {
            return;
        }
        let limits = self.remove(id).and_then(|entry| entry.limits);
        if let Some(pod) = &endpoint.pod {
            self.by_pod.entry(pod.clone()).or_default().insert(id);
            self.by_namespace.entry(pod.namespace.clone()).or_default().insert(id);
        }
        self.gone.remove(&id);
        self.dirty.insert(id);
        self.of.insert(id, Entry { endpoint, limits });
    }

    fn remove(&mut self, id: EndpointId) -> Option<Entry> {
        let entry = self.of.remove(&id)?;
        self.dirty.remove(&id);
        if let Some(pod) = &entry.endpoint.pod {
            remove_from(&mut self.by_pod, pod, id);
            remove_from(&mut self.by_namespace, &pod.namespace, id);
        }
        Some(entry)
    }

    /// Follows the index, which has changed in this way since the last update. Returns the endpoints whose limits are others than
    /// before, those that are gone included.
    pub fn update(&mut self, index: &Index, changes: &Changes) -> BTreeSet<EndpointId> {
        let pods = changes.pods.iter().filter_map(|pod| self.by_pod.get(pod));
        // what a namespace says of accounting may be new; its labels are none of a traffic policy's affair
        let namespaces = changes.pod_traffic_policies.iter().map(|id| &id.key.namespace);
        let namespaces = namespaces.chain(&changes.namespaces);
        let namespaces = namespaces.filter_map(|name| self.by_namespace.get(name));
        self.dirty.extend(pods.chain(namespaces).flatten());
        let mut changed = std::mem::take(&mut self.gone);
        for id in std::mem::take(&mut self.dirty) {
            let Some(entry) = self.of.get_mut(&id) else { continue };
            let pod = known_pod(index, &entry.endpoint);
            let limits = pod.map(|pod| index.effective_limits(pod).limits);
            if entry.limits.as_deref() != limits.as_ref() {
                entry.limits = limits.map(Arc::new);
                changed.insert(id);
            }
        }
        changed
    }
}

fn remove_from<K: std::hash::Hash + Eq>(
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
