//! The endpoints of this node as the registry has them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use podgate_bpf::maps::{Maps, Registration};
use podgate_policy::compile::{Endpoint, EndpointId};
use podgate_policy::model::ObjectKey;

/// Known registrations. The registry is the truth; this follows it.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    known: BTreeMap<EndpointId, Arc<Registration>>,
    /// The pods of those, with how many interfaces each has.
    pods: HashMap<ObjectKey, usize>,
    /// Since [`Endpoints::take_changed`].
    changed: bool,
}

/// What a comparison with the registry found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    /// Whether anything is different.
    pub(super) changed: bool,
    /// Endpoints that are gone, or whose ifindex is somebody else's now.
    pub(super) gone: Vec<EndpointId>,
    /// Pods that lost an interface.
    pub(super) left: Vec<ObjectKey>,
}

impl Delta {
    /// Both.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.changed |= other.changed;
        self.gone.extend(other.gone);
        self.left.extend(other.left);
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

    /// Whether anything is different from the last time.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What the engine is told, by id.
    pub(super) fn compile_input(&self) -> Vec<Endpoint> {
        let endpoint = |(id, registration): (&EndpointId, &Arc<Registration>)| Endpoint {
            id: *id,
            pod: pod_of(registration),
            uid: registration.pod.as_ref().map_or("", |pod| pod.uid.as_str()).into(),
            addresses: registration.addresses.clone(),
        };
        self.known.iter().map(endpoint).collect()
    }

    /// Looks one interface up in the registry.
    pub(super) fn refresh(&mut self, maps: &Maps, id: EndpointId) -> podgate_bpf::Result<Delta> {
        Ok(self.set(id, maps.registration(id.0)?))
    }

    /// Looks everything up in the registry.
    pub(super) fn refresh_all(&mut self, maps: &Maps) -> podgate_bpf::Result<Delta> {
        let mut present: BTreeMap<EndpointId, Registration> = maps
            .registrations()?
            .into_iter()
            .map(|registration| (EndpointId(registration.ifindex), registration))
            .collect();
        let gone: Vec<_> =
            self.known.keys().copied().filter(|id| !present.contains_key(id)).collect();
        let mut delta = Delta::default();
        for id in gone {
            // a listing may miss an entry while others come and go: ask for this one
            delta = delta.and(self.refresh(maps, id)?);
        }
        while let Some((id, registration)) = present.pop_first() {
            delta = delta.and(self.set(id, Some(registration)));
        }
        Ok(delta)
    }

    fn set(&mut self, id: EndpointId, now: Option<Registration>) -> Delta {
        let before = self.known.get(&id);
        if before.map(|before| &**before) == now.as_ref() {
            return Delta::default();
        }
        let mut delta = Delta { changed: true, ..Delta::default() };
        if let Some(before) = before {
            if now.as_ref().is_none_or(|now| now.owner != before.owner) {
                delta.gone.push(id);
            }
            let pod = pod_of(before);
            if let Some(count) = pod.as_ref().and_then(|pod| self.pods.get_mut(pod)) {
                *count -= 1;
            }
            delta.left.extend(pod);
        }
        self.changed = true;
        if let Some(pod) = now.as_ref().and_then(pod_of) {
            *self.pods.entry(pod).or_default() += 1;
        }
        for pod in &delta.left {
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

fn pod_of(registration: &Registration) -> Option<ObjectKey> {
    let pod = registration.pod.as_ref()?;
    Some(ObjectKey::new(pod.namespace.as_str(), pod.name.as_str()))
}
