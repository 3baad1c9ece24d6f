//! Label identities: pods that no selector and no port name can tell apart, such as replicas, share one. A selector is
//! evaluated once per identity, not once per pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::interner::Interner;
use crate::model::{Labels, NamedPort};
use crate::selector::Selector;
use crate::selector_index::Anchor;

/// The number of an identity. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct IdentityId(u64);

/// What the pods of an identity have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IdentityKey {
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: Labels,
    pub(crate) ports: Arc<[NamedPort]>,
}

/// An identity and its pods.
#[derive(Clone, Debug)]
pub(crate) struct LabelIdentity {
    pub(crate) key: IdentityKey,
    /// Their names in the namespace; never empty.
    pub(crate) pods: BTreeSet<Arc<str>>,
}

/// All identities, by key and by the labels that selectors look for.
#[derive(Clone, Debug, Default)]
pub(crate) struct LabelIdentities {
    ids: HashMap<IdentityKey, IdentityId>,
    identities: HashMap<IdentityId, LabelIdentity>,
    spaces: BTreeMap<Arc<str>, Space>,
    next: u64,
}

/// The identities of a namespace, all and by label.
#[derive(Clone, Debug, Default)]
struct Space {
    identities: BTreeSet<IdentityId>,
    by_label: HashMap<Arc<str>, HashMap<Arc<str>, BTreeSet<IdentityId>>>,
}

impl LabelIdentities {
    /// Adds a pod. Returns its identity, and whether that is new.
    pub(super) fn join(
        &mut self,
        key: IdentityKey,
        pod: Arc<str>,
        interner: &mut Interner,
    ) -> (IdentityId, bool) {
        if let Some(id) = self.ids.get(&key).copied() {
            if let Some(identity) = self.identities.get_mut(&id) {
                identity.pods.insert(pod);
            }
            return (id, false);
        }
        let key = key.shared(interner);
        let id = IdentityId(self.next);
        self.next += 1;
        let space = self.spaces.entry(key.namespace.clone()).or_default();
        space.identities.insert(id);
        for (key, value) in key.labels.iter() {
            let of_key = space.by_label.entry(key.clone()).or_default();
            of_key.entry(value.clone()).or_default().insert(id);
        }
        self.ids.insert(key.clone(), id);
        self.identities.insert(id, LabelIdentity { key, pods: BTreeSet::from([pod]) });
        (id, true)
    }

    /// Removes a pod. True if it was the last of its identity, which is gone with it.
    pub(super) fn leave(&mut self, id: IdentityId, pod: &str) -> bool {
        let Some(identity) = self.identities.get_mut(&id) else { return false };
        identity.pods.remove(pod);
        if !identity.pods.is_empty() {
            return false;
        }
        let Some(LabelIdentity { key, .. }) = self.identities.remove(&id) else { return false };
        self.ids.remove(&key);
        let Some(space) = self.spaces.get_mut(&key.namespace) else { return true };
        space.identities.remove(&id);
        for (key, value) in key.labels.iter() {
            let Some(of_key) = space.by_label.get_mut(key) else { continue };
            if let Some(identities) = of_key.get_mut(value) {
                identities.remove(&id);
                if identities.is_empty() {
                    of_key.remove(value);
                }
            }
            if of_key.is_empty() {
                space.by_label.remove(key);
            }
        }
        if space.identities.is_empty() {
            self.spaces.remove(&key.namespace);
        }
        true
    }

    pub(crate) fn get(&self, id: IdentityId) -> Option<&LabelIdentity> {
        self.identities.get(&id)
    }

    /// The namespaces that have pods.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.spaces.keys()
    }

    /// All identities of a namespace.
    pub(crate) fn of(&self, namespace: &str) -> impl Iterator<Item = IdentityId> {
        self.spaces.get(namespace).into_iter().flat_map(|space| &space.identities).copied()
    }

    /// The identities of a namespace that a selector matches.
    pub(crate) fn matching(&self, namespace: &str, selector: &Selector) -> Vec<IdentityId> {
        let Some(space) = self.spaces.get(namespace) else { return Vec::new() };
        let candidates: Vec<IdentityId> = match selector.anchor() {
            Anchor::Values(key, values) => {
                let of_key = space.by_label.get(key);
                let found = values.iter().filter_map(|value| of_key?.get(value));
                found.flatten().copied().collect()
            }
            Anchor::Key(key) => space
                .by_label
                .get(key)
                .into_iter()
                .flat_map(HashMap::values)
                .flatten()
                .copied()
                .collect(),
            Anchor::Nothing => space.identities.iter().copied().collect(),
        };
        let matches = |id: &IdentityId| {
            self.identities.get(id).is_some_and(|identity| selector.matches(&identity.key.labels))
        };
        candidates.into_iter().filter(matches).collect()
    }
}

impl IdentityKey {
    /// The same with interned strings.
    fn shared(self, interner: &mut Interner) -> Self {
        let labels =
            self.labels.iter().map(|(key, value)| (interner.share(key), interner.share(value)));
        let labels = labels.collect();
        let ports = self.ports.iter();
        let ports =
            ports.map(|port| NamedPort { name: interner.share(&port.name), ..*port }).collect();
        Self { namespace: interner.share(&self.namespace), labels, ports }
    }
}
