//! Merges the objects of all sources into the one index.
//!
//! If two sources provide the same object, the index holds the version of the one named first on the command line. The
//! other version is kept here, shadowed, and replaces the first when that is removed. Objects that only one source
//! provides, nearly all, are held by the index alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podgate_manifests::closed;
use podgate_manifests::manifest::DIR_SOURCE;
use podgate_manifests::unenforced::Unenforced;
use podgate_policy::index::Index;
use podgate_policy::model::{ObjectKey, Pod};
use podgate_policy::object::{Event, Kind, Object, ObjectId};

use super::local::LOCAL_SOURCE;
use super::{Rank, Update};

/// The name of the policy that isolates a namespace while policies of it may be unreadable; no object can have it.
const UNREAD: &str = "(unreadable manifests)";

/// Owned by the writer, beside the index.
#[derive(Debug)]
pub struct Store {
    sources: Vec<Source>,
    /// The source whose version the index holds.
    owner: BTreeMap<ObjectId, Rank>,
    /// The versions of other sources than the owner; no empty maps.
    shadowed: BTreeMap<ObjectId, BTreeMap<Rank, Object>>,
    /// Pods that no source provides any more but that have an interface here: they stay in the index until
    /// [`Store::release`], because their containers may still run (docs/semantics.md 11.5, force-deleted pods).
    retained: BTreeSet<ObjectKey>,
    /// Pods that no source provides yet: the index holds a placeholder for each.
    placeholders: BTreeSet<ObjectKey>,
    /// Namespaces whose pods are isolated because policies of any namespace may be missing.
    isolated: BTreeSet<Arc<str>>,
}

/// What one source has reported.
#[derive(Debug)]
struct Source {
    name: String,
    /// Kinds that it has not listed completely yet.
    unlisted: BTreeSet<Kind>,
    /// The objects that it provides.
    provided: BTreeSet<ObjectId>,
    problems: Vec<String>,
    skipped: Vec<String>,
    /// Policies of any namespace may be missing.
    incomplete: bool,
    unenforced: Unenforced,
}

/// The state of one source, for readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// As on the command line.
    pub name: String,
    /// Whether it has listed every kind at least once.
    pub synced: bool,
    /// The number of objects that it provides.
    pub objects: usize,
    /// What it cannot read, and what is done about it.
    pub problems: Vec<String>,
    /// What it passed over because it is no object of Kubernetes.
    pub skipped: Vec<String>,
    /// How many objects it has of kinds that are not enforced.
    pub unenforced: Unenforced,
}

impl Source {
    /// Sets the counts. Each kind is logged once, when its first object appears.
    fn note_unenforced(&mut self, counts: Unenforced) {
        let new = counts.iter().filter(|(kind, _)| !self.unenforced.contains_key(kind));
        for (kind, objects) in new {
            tracing::warn!(
                source = self.name,
                kind = kind.name(),
                objects,
                "policies of a kind that podgate does not enforce: they have no effect here"
            );
        }
        self.unenforced = counts;
    }
}

impl Store {
    /// A store of these sources, by rank. Nothing is synced.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let source = |name| Source {
            name,
            unlisted: Kind::ALL.iter().copied().collect(),
            provided: BTreeSet::new(),
            problems: Vec::new(),
            skipped: Vec::new(),
            incomplete: false,
            unenforced: Unenforced::new(),
        };
        Self {
            sources: names.into_iter().map(source).collect(),
            owner: BTreeMap::new(),
            shadowed: BTreeMap::new(),
            retained: BTreeSet::new(),
            placeholders: BTreeSet::new(),
            isolated: BTreeSet::new(),
        }
    }

    /// Whether every source has listed every kind. Until then nothing may be programmed: a policy not known yet would be
    /// missing.
    pub fn synced(&self) -> bool {
        self.sources.iter().all(|source| source.unlisted.is_empty())
    }

    /// Every source, by rank.
    pub fn states(&self) -> Vec<SourceState> {
        let state = |source: &Source| SourceState {
            name: source.name.clone(),
            synced: source.unlisted.is_empty(),
            objects: source.provided.len(),
            problems: source.problems.clone(),
            skipped: source.skipped.clone(),
            unenforced: source.unenforced.clone(),
        };
        self.sources.iter().map(state).collect()
    }

    /// Applies an update of a source. `has_interface`: whether a pod has an interface on this node. True if the index
    /// changed.
    pub fn take(
        &mut self,
        rank: Rank,
        update: Update,
        index: &mut Index,
        has_interface: impl Fn(&ObjectKey) -> bool,
    ) -> bool {
        let Some(source) = self.sources.get_mut(rank.0) else { return false };
        let (set, gone) = match update {
            Update::Problems(problems) => {
                source.problems = problems;
                return false;
            }
            Update::Unenforced(counts) => {
                source.note_unenforced(counts);
                return false;
            }
            Update::Skipped(skipped) => {
                source.skipped = skipped;
                return false;
            }
            Update::Incomplete(incomplete) => {
                source.incomplete = incomplete;
                return self.isolate(index);
            }
            Update::Change { set, gone } => (set, gone),
            Update::Listed { kind, ids } => {
                source.unlisted.remove(&kind);
                let provided = source.provided.iter().filter(|id| id.kind() == kind);
                (Vec::new(), provided.filter(|id| !ids.contains(id)).cloned().collect())
            }
            Update::Unlistable(kind) => {
                source.unlisted.remove(&kind);
                return false;
            }
            Update::Replace(objects) => {
                source.unlisted.clear();
                let new: BTreeSet<_> = objects.iter().map(Object::id).collect();
                let gone = source.provided.difference(&new).cloned().collect();
                (objects, gone)
            }
        };
        let mut changed = false;
        // new objects first: a pod that moved from one object to another is never missing in between
        for object in set {
            changed |= self.set(rank, object, index);
        }
        for id in gone {
            changed |= self.drop(rank, id, index, &has_interface);
        }
        changed
    }

    /// The pod's last interface is gone, and with it the reason to keep it. True if the index changed.
    pub fn release(&mut self, pod: &ObjectKey, index: &mut Index) -> bool {
        self.retained.remove(pod) && index.apply(Event::Gone(ObjectId::Pod(pod.clone())))
    }

    /// Whether pods are what the plugin says of them: there is no source but the API.
    pub fn is_of_this_node_alone(&self) -> bool {
        self.sources.iter().all(|source| source.name == LOCAL_SOURCE)
    }

    /// Whether there are placeholders.
    pub fn has_placeholders(&self) -> bool {
        !self.placeholders.is_empty()
    }

    /// Whether the index holds a placeholder for this pod.
    pub fn is_placeholder(&self, pod: &ObjectKey) -> bool {
        self.placeholders.contains(pod)
    }

    /// Sets the placeholders for pods that no source provides. A source's version always replaces its placeholder. True if
    /// the index changed.
    pub fn set_placeholders(&mut self, pods: Vec<Pod>, index: &mut Index) -> bool {
        let mut changed = false;
        let mut gone = std::mem::take(&mut self.placeholders);
        for pod in pods {
            let key = pod.key.clone();
            // a pod that a source provided, even one that is only retained, is known better than a placeholder
            if !gone.remove(&key) && index.pod(&key).is_some() {
                continue;
            }
            self.placeholders.insert(key.clone());
            changed |= self.isolate_namespace(&key.namespace, index);
            let new = index.apply(Event::from(pod));
            changed |= new;
            if new && self.is_of_this_node_alone() {
                tracing::info!(%key, "a pod, by what the plugin says of it");
            } else if new {
                tracing::warn!(%key, "an unknown pod, and no API server to ask: policies that select all pods of its namespace hold for it");
            }
        }
        for key in gone {
            changed |= index.apply(Event::Gone(ObjectId::Pod(key)));
        }
        changed
    }

    fn set(&mut self, rank: Rank, object: Object, index: &mut Index) -> bool {
        let id = object.id();
        self.sources[rank.0].provided.insert(id.clone());
        match self.owner.get(&id).copied() {
            Some(other) if other < rank => {
                self.shadowed.entry(id).or_default().insert(rank, object);
                return false;
            }
            Some(other) if other > rank => {
                if let Some(present) = index.object(&id) {
                    self.shadowed.entry(id.clone()).or_default().insert(other, present);
                }
            }
            _ => {}
        }
        let mut changed = false;
        if let ObjectId::Pod(key) = &id {
            self.retained.remove(key);
            self.placeholders.remove(key);
            changed = self.isolate_namespace(&key.namespace, index);
        }
        self.owner.insert(id, rank);
        index.apply(Event::Set(object)) || changed
    }

    /// Isolates the pods of all namespaces if policies of any may be missing, else none. True if the index changed.
    fn isolate(&mut self, index: &mut Index) -> bool {
        let mut changed = false;
        if self.is_incomplete() {
            let namespaces: BTreeSet<_> =
                index.pods().map(|pod| pod.key.namespace.clone()).collect();
            for namespace in namespaces {
                changed |= self.isolate_namespace(&namespace, index);
            }
            return changed;
        }
        for namespace in std::mem::take(&mut self.isolated) {
            let policy = closed::namespace(DIR_SOURCE, namespace, UNREAD);
            changed |= index.apply(Event::Gone(ObjectId::Policy(policy.id)));
        }
        changed
    }

    /// The same for one namespace, before a pod of it is known.
    fn isolate_namespace(&mut self, namespace: &Arc<str>, index: &mut Index) -> bool {
        if !self.is_incomplete() || !self.isolated.insert(namespace.clone()) {
            return false;
        }
        let policy = closed::namespace(DIR_SOURCE, namespace.clone(), UNREAD);
        index.apply(Event::from(policy))
    }

    fn is_incomplete(&self) -> bool {
        self.sources.iter().any(|source| source.incomplete)
    }

    fn drop(
        &mut self,
        rank: Rank,
        id: ObjectId,
        index: &mut Index,
        has_interface: impl Fn(&ObjectKey) -> bool,
    ) -> bool {
        self.sources[rank.0].provided.remove(&id);
        if self.owner.get(&id) != Some(&rank) {
            self.take_shadowed(&id, |shadowed| shadowed.remove(&rank));
            return false;
        }
        if let Some((next, object)) = self.take_shadowed(&id, BTreeMap::pop_first) {
            self.owner.insert(id, next);
            return index.apply(Event::Set(object));
        }
        self.owner.remove(&id);
        match id {
            ObjectId::Pod(key) if has_interface(&key) => {
                self.retained.insert(key);
                false
            }
            id => index.apply(Event::Gone(id)),
        }
    }

    fn take_shadowed<T>(
        &mut self,
        id: &ObjectId,
        take: impl FnOnce(&mut BTreeMap<Rank, Object>) -> Option<T>,
    ) -> Option<T> {
        let shadowed = self.shadowed.get_mut(id)?;
        let taken = take(shadowed);
        if shadowed.is_empty() {
            self.shadowed.remove(id);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_manifests::manifest;

    fn pod(label: &str) -> Object {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: s, labels: {{app: {label}}}}}\n"
        );
        manifest::read_text("f.yaml".as_ref(), &text).objects.remove(0)
    }

    fn label(index: &Index) -> Option<String> {
        let pod = index.pod(&ObjectKey::new("s", "a"))?;
        pod.labels.get("app").map(ToString::to_string)
    }

    struct World {
        store: Store,
        index: Index,
        here: bool,
    }

    impl World {
        fn new() -> Self {
            let store = Store::new(["first".to_owned(), "second".to_owned()]);
            Self { store, index: Index::new(), here: false }
        }

        fn take(&mut self, rank: usize, update: Update) -> bool {
            self.store.take(Rank(rank), update, &mut self.index, |_| self.here)
        }
    }

    fn gone() -> Update {
        Update::Change { set: Vec::new(), gone: vec![pod("x").id()] }
    }

    #[test]
    fn all_sources_must_have_listed_everything() {
        let mut world = World::new();
        assert!(!world.store.synced());
        world.take(0, Update::Replace(Vec::new()));
        world.take(1, Update::Problems(vec!["oh".into()]));
        assert!(!world.store.synced());
        world.take(1, Update::Replace(Vec::new()));
        assert!(world.store.synced());
        assert_eq!(world.store.states()[1].problems, ["oh"]);
    }

    #[test]
    fn a_source_that_lists_kind_by_kind_is_synced_after_the_last() {
        let mut world = World::new();
        world.take(1, Update::Replace(Vec::new()));
        for kind in Kind::ALL.iter().copied() {
            assert!(!world.store.synced());
            world.take(0, Update::Listed { kind, ids: BTreeSet::new() });
        }
        assert!(world.store.synced());
    }

    #[test]
    fn a_kind_that_may_not_be_listed_keeps_no_source_from_being_synced_and_loses_nothing() {
        let mut world = World::new();
        world.take(1, Update::Replace(Vec::new()));
        world.take(0, Update::Change { set: vec![pod("one")], gone: Vec::new() });
        for kind in Kind::ALL.iter().copied() {
            assert!(!world.store.synced());
            assert!(!world.take(0, Update::Unlistable(kind)));
        }
        assert!(world.store.synced());
        assert_eq!(label(&world.index).as_deref(), Some("one"));
    }

    #[test]
    fn a_list_of_one_kind_removes_what_is_gone_of_that_kind() {
        let mut world = World::new();
        world.take(0, Update::Change { set: vec![pod("one")], gone: Vec::new() });
        assert!(!world.take(0, Update::Listed { kind: Kind::Namespace, ids: BTreeSet::new() }));
        let ids = BTreeSet::from([pod("one").id()]);
        assert!(!world.take(0, Update::Listed { kind: Kind::Pod, ids }));
        assert_eq!(label(&world.index).as_deref(), Some("one"));
        assert!(world.take(0, Update::Listed { kind: Kind::Pod, ids: BTreeSet::new() }));
        assert_eq!(label(&world.index), None);
    }

    #[test]
    fn the_first_source_owns_an_object_whatever_the_order() {
        for order in [[0, 1], [1, 0]] {
            let mut world = World::new();
            for rank in order {
                world.take(rank, Update::Replace(vec![pod(["one", "two"][rank])]));
            }
            assert_eq!(label(&world.index).as_deref(), Some("one"), "{order:?}");
            assert!(world.take(0, gone()));
            assert_eq!(label(&world.index).as_deref(), Some("two"), "{order:?}");
            assert!(world.take(1, gone()));
            assert_eq!(label(&world.index), None, "{order:?}");
        }
    }

    #[test]
    fn what_the_second_source_drops_unheard_changes_nothing() {
        let mut world = World::new();
        world.take(0, Update::Replace(vec![pod("one")]));
        assert!(!world.take(1, Update::Replace(vec![pod("two")])));
        assert!(!world.take(1, gone()));
        assert!(world.take(0, Update::Replace(Vec::new())));
        assert_eq!(label(&world.index), None);
    }

    #[test]
    fn a_placeholder_yields_to_the_pod() {
        let mut world = World::new();
        let Object::Pod(placeholder) = pod("placeholder") else { panic!() };
        let set = |world: &mut World, pods: &[&Pod]| {
            let pods = pods.iter().map(|pod| (*pod).clone()).collect();
            world.store.set_placeholders(pods, &mut world.index)
        };
        assert!(set(&mut world, &[&placeholder]));
        assert!(!set(&mut world, &[&placeholder]), "nothing new");
        assert_eq!(label(&world.index).as_deref(), Some("placeholder"));
        assert!(set(&mut world, &[]));
        assert_eq!(label(&world.index), None);

        set(&mut world, &[&placeholder]);
        let real = Update::Change { set: vec![pod("real")], gone: Vec::new() };
        assert!(world.take(0, real));
        assert!(!world.store.has_placeholders());
        assert!(!set(&mut world, &[&placeholder]), "a source's version replaces it");
        assert!(!set(&mut world, &[]));
        assert_eq!(label(&world.index).as_deref(), Some("real"));
        assert!(world.take(0, gone()));
        assert_eq!(label(&world.index), None);
    }

    #[test]
    fn while_policies_of_any_namespace_may_be_missing_all_pods_are_isolated() {
        let mut world = World::new();
        world.take(0, Update::Replace(vec![pod("one")]));
        world.take(1, Update::Replace(Vec::new()));
        let isolating = |world: &World| {
            let pod = world.index.pod(&ObjectKey::new("s", "a")).unwrap();
            let policies = world.index.policies_selecting(pod);
            policies
                .iter()
                .map(|policy| (policy.ingress.clone(), policy.egress.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(isolating(&world), []);
        assert!(world.take(1, Update::Incomplete(true)));
        let closed = [(Some(Vec::new()), Some(Vec::new()))];
        assert_eq!(isolating(&world), closed);
        // a pod that comes later, and of a source that has everything, is isolated before it is known
        world.take(0, gone());
        assert!(world.take(1, Update::Incomplete(false)));
        assert_eq!(world.index.policies().len(), 0);
        world.take(1, Update::Incomplete(true));
        world.take(0, Update::Change { set: vec![pod("one")], gone: Vec::new() });
        assert_eq!(isolating(&world), closed);
        assert!(world.take(1, Update::Incomplete(false)));
        assert_eq!(isolating(&world), []);
    }

    #[test]
    fn a_pod_with_an_interface_is_retained_until_that_goes() {
        let mut world = World::new();
        world.take(0, Update::Replace(vec![pod("one")]));
        world.here = true;
        assert!(!world.take(0, gone()));
        let key = ObjectKey::new("s", "a");
        assert_eq!(label(&world.index).as_deref(), Some("one"));
        assert!(world.store.release(&key, &mut world.index));
        assert_eq!(label(&world.index), None);
        // and one that comes back is an ordinary pod again
        world.take(0, Update::Replace(vec![pod("new")]));
        assert!(!world.take(0, gone()));
        world.take(0, Update::Change { set: vec![pod("newer")], gone: Vec::new() });
        assert!(!world.store.release(&key, &mut world.index));
        assert_eq!(label(&world.index).as_deref(), Some("newer"));
    }
}
