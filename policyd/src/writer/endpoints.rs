//! The endpoints of this node, as the map `endpoints` has them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use podgate_bpf::maps::{Maps, Registration};
use podgate_policy::model::ObjectKey;
use podgate_policy::tables::{Endpoint, EndpointId};

use crate::pod_key::registered_pod;

/// A copy of the registrations in the map, for comparison: the plugin writes the map.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    known: BTreeMap<EndpointId, Arc<Registration>>,
    /// Their pods, with the number of interfaces of each.
    pods: HashMap<ObjectKey, usize>,
    /// Whether anything changed since [`Endpoints::take_changed`].
    changed: bool,
}

/// What a comparison with the map found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RegistryDelta {
    /// Whether anything is different.
    pub(super) changed: bool,
    /// Endpoints that are gone, or whose ifindex now belongs to another registration.
    pub(super) gone: Vec<EndpointId>,
    /// Pods that lost an interface.
    pub(super) detached: Vec<ObjectKey>,
}

impl RegistryDelta {
    /// The sum of two comparisons.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.changed |= other.changed;
        self.gone.extend(other.gone);
        self.detached.extend(other.detached);
        self
    }
}

impl Endpoints {
    pub(super) fn iter(&self) -> impl Iterator<Item = (EndpointId, &Arc<Registration>)> {
        self.known.iter().map(|(id, registration)| (*id, registration))
    }

    pub(super) fn get(&self, id: EndpointId) -> Option<&Arc<Registration>> {
        self.known.get(&id)
    }

    /// Whether the pod has an interface here.
    pub(super) fn has(&self, pod: &ObjectKey) -> bool {
        self.pods.contains_key(pod)
    }

    /// Whether anything changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The endpoints for the engine, sorted by id.
    pub(super) fn compile_input(&self) -> Vec<Endpoint> {
        let endpoint = |(id, registration): (&EndpointId, &Arc<Registration>)| Endpoint {
            id: *id,
            pod: registered_pod(registration),
            uid: registration.pod.as_ref().map_or("", |pod| pod.uid.as_str()).into(),
            addresses: registration.addresses.clone(),
        };
        self.known.iter().map(endpoint).collect()
    }

    /// Reads one interface from the map.
    pub(super) fn refresh(
        &mut self,
        maps: &Maps,
        id: EndpointId,
    ) -> podgate_bpf::Result<RegistryDelta> {
        Ok(self.set(id, maps.registration(id.0)?))
    }

    /// Reads the whole map.
    pub(super) fn refresh_all(&mut self, maps: &Maps) -> podgate_bpf::Result<RegistryDelta> {
        let mut present: BTreeMap<EndpointId, Registration> = maps
            .registrations()?
            .into_iter()
            .map(|registration| (EndpointId(registration.ifindex), registration))
            .collect();
        let gone: Vec<_> =
            self.known.keys().copied().filter(|id| !present.contains_key(id)).collect();
        let mut delta = RegistryDelta::default();
        for id in gone {
            // iterating over the map may miss an entry while others come and go: look this one up
            delta = delta.and(self.refresh(maps, id)?);
        }
        while let Some((id, registration)) = present.pop_first() {
            delta = delta.and(self.set(id, Some(registration)));
        }
        Ok(delta)
    }

    fn set(&mut self, id: EndpointId, now: Option<Registration>) -> RegistryDelta {
        let before = self.known.get(&id);
        if before.map(|before| &**before) == now.as_ref() {
            return RegistryDelta::default();
        }
        let mut delta = RegistryDelta { changed: true, ..RegistryDelta::default() };
        if let Some(before) = before {
            if now.as_ref().is_none_or(|now| now.owner != before.owner) {
                delta.gone.push(id);
            }
            let pod = registered_pod(before);
            if let Some(count) = pod.as_ref().and_then(|pod| self.pods.get_mut(pod)) {
                *count -= 1;
            }
            delta.detached.extend(pod);
        }
        self.changed = true;
        if let Some(pod) = now.as_ref().and_then(registered_pod) {
            *self.pods.entry(pod).or_default() += 1;
        }
        for pod in &delta.detached {
            if self.pods.get(pod) == Some(&0) {
                self.pods.remove(pod);
            }
        }
        match now {
            Some(registration) => self.known.insert(id, Arc::new(registration)),
            None => self.known.remove(&id),
        };
        delta
    }
}
