//! Merges what the sources say into the one index.
//!
//! Of two sources that know the same object the one named first is believed; the other's version waits
//! here and takes its place when the first one drops it. Objects that only one source gives, nearly all,
//! are held by the index alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podgate_policy::index::{Change, Index};
use podgate_policy::model::{ObjectKey, Pod};

use super::manifest::DIR_SOURCE;
use super::unenforced::Unenforced;
use super::{Kind, Object, ObjectId, Rank, Update, closed};

/// The policy that stands in for those that could never be read, in each namespace; no object can have this name.
const UNREAD: &str = "(unreadable manifests)";

/// Owned by the writer, beside the index.
#[derive(Debug)]
pub struct Store {
    sources: Vec<Source>,
    /// Whose version the index holds.
    believed: BTreeMap<ObjectId, Rank>,
    /// Versions of sources that are not believed; no empty maps.
    waiting: BTreeMap<ObjectId, BTreeMap<Rank, Object>>,
    /// Pods that no source knows any more but that have an interface here: the index keeps them until
    /// [`Store::release`], for their containers may still run (semantics 11, force-deleted pods).
    lingering: BTreeSet<ObjectKey>,
    /// Pods that no source knows yet: the index holds a stand-in for each.
    assumed: BTreeSet<ObjectKey>,
    /// Namespaces whose pods are isolated because policies of any namespace may be missing.
    isolated: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
struct Source {
    name: String,
    /// Kinds of which it has not said everything yet.
    untold: BTreeSet<Kind>,
    given: BTreeSet<ObjectId>,
    problems: Vec<String>,
    skipped: Vec<String>,
    /// Policies of any namespace may be missing.
    incomplete: bool,
    unenforced: Unenforced,
}

/// What there is to say of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// As on the command line.
    pub name: String,
    /// Whether it has said everything it knows at least once.
    pub synced: bool,
    /// How many objects it gives.
    pub objects: usize,
    /// What it cannot read, and what is done about it.
    pub problems: Vec<String>,
    /// What it passed over because it is no object of Kubernetes.
    pub skipped: Vec<String>,
    /// How many objects it has of kinds that are not enforced.
    pub unenforced: Unenforced,
}

impl Source {
    /// Each kind is told once in the log, when its first object comes.
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
            untold: Kind::ALL.iter().copied().collect(),
            given: BTreeSet::new(),
            problems: Vec::new(),
            skipped: Vec::new(),
            incomplete: false,
            unenforced: Unenforced::new(),
        };
        Self {
            sources: names.into_iter().map(source).collect(),
            believed: BTreeMap::new(),
            waiting: BTreeMap::new(),
            lingering: BTreeSet::new(),
            assumed: BTreeSet::new(),
            isolated: BTreeSet::new(),
        }
    }

    /// Whether every source has said everything it knows. Until then nothing may be programmed: a policy
    /// not heard of yet would be a hole.
    pub fn synced(&self) -> bool {
        self.sources.iter().all(|source| source.untold.is_empty())
    }

    /// Every source, by rank.
    pub fn states(&self) -> Vec<SourceState> {
        let state = |source: &Source| SourceState {
            name: source.name.clone(),
            synced: source.untold.is_empty(),
            objects: source.given.len(),
            problems: source.problems.clone(),
            skipped: source.skipped.clone(),
            unenforced: source.unenforced.clone(),
        };
        self.sources.iter().map(state).collect()
    }

    /// Whether the index holds this pod although no source knows it any more.
    pub fn lingers(&self, pod: &ObjectKey) -> bool {
        self.lingering.contains(pod)
    }

    /// Takes an update in. `has_interface` says which pods have one on this node. True if the index changed.
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
                source.untold.remove(&kind);
                let given = source.given.iter().filter(|id| id.kind() == kind);
                (Vec::new(), given.filter(|id| !ids.contains(id)).cloned().collect())
            }
            Update::Replace(objects) => {
                source.untold.clear();
                let new: BTreeSet<_> = objects.iter().map(Object::id).collect();
                let gone = source.given.difference(&new).cloned().collect();
                (objects, gone)
            }
        };
        let mut changed = false;
        // new ones first: a pod that moved from one object to another is never unknown in between
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
        self.lingering.remove(pod) && index.apply(Change::PodGone(pod.clone()))
    }

    /// Whether there is any stand-in.
    pub fn assumes(&self) -> bool {
        !self.assumed.is_empty()
    }

    /// Whether the index holds a stand-in for this pod.
    pub fn assumed(&self, pod: &ObjectKey) -> bool {
        self.assumed.contains(pod)
    }

    /// Makes these the stand-ins for pods that no source knows; a source's own version always replaces
    /// them. True if the index changed.
    pub fn assume(&mut self, pods: Vec<Pod>, index: &mut Index) -> bool {
        let mut changed = false;
        let mut gone = std::mem::take(&mut self.assumed);
        for pod in pods {
            let key = pod.key.clone();
            // a lingering pod is better known than any stand-in
            if !gone.remove(&key) && index.pod(&key).is_some() {
                continue;
            }
            self.assumed.insert(key.clone());
            changed |= self.isolate_namespace(&key.namespace, index);
            if index.apply(Change::PodSet(pod)) {
                tracing::warn!(%key, "an unknown pod, and no API server to ask: policies that select all pods of its namespace hold for it");
                changed = true;
            }
        }
        for key in gone {
            changed |= index.apply(Change::PodGone(key));
        }
        changed
    }

    fn set(&mut self, rank: Rank, object: Object, index: &mut Index) -> bool {
        let id = object.id();
        self.sources[rank.0].given.insert(id.clone());
        match self.believed.get(&id).copied() {
            Some(other) if other < rank => {
                self.waiting.entry(id).or_default().insert(rank, object);
                return false;
            }
            Some(other) if other > rank => {
                if let Some(present) = present(index, &id) {
                    self.waiting.entry(id.clone()).or_default().insert(other, present);
                }
            }
            _ => {}
        }
        let mut changed = false;
        if let ObjectId::Pod(key) = &id {
            self.lingering.remove(key);
            self.assumed.remove(key);
            changed = self.isolate_namespace(&key.namespace, index);
        }
        self.believed.insert(id, rank);
        index.apply(object.into()) || changed
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
            changed |= index.apply(Change::PolicyGone(policy.id));
        }
        changed
    }

    /// The same for one namespace, before a pod of it is known.
    fn isolate_namespace(&mut self, namespace: &Arc<str>, index: &mut Index) -> bool {
        if !self.is_incomplete() || !self.isolated.insert(namespace.clone()) {
            return false;
        }
        let policy = closed::namespace(DIR_SOURCE, namespace.clone(), UNREAD);
        index.apply(Change::PolicySet(policy))
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
        self.sources[rank.0].given.remove(&id);
        if self.believed.get(&id) != Some(&rank) {
            self.take_waiting(&id, |waiting| waiting.remove(&rank));
            return false;
        }
        if let Some((next, object)) = self.take_waiting(&id, BTreeMap::pop_first) {
            self.believed.insert(id, next);
            return index.apply(object.into());
        }
        self.believed.remove(&id);
        match id {
            ObjectId::Pod(key) if has_interface(&key) => {
                self.lingering.insert(key);
                false
            }
            id => index.apply(id.into()),
        }
    }

    fn take_waiting<T>(
        &mut self,
        id: &ObjectId,
        take: impl FnOnce(&mut BTreeMap<Rank, Object>) -> Option<T>,
    ) -> Option<T> {
        let waiting = self.waiting.get_mut(id)?;
        let taken = take(waiting);
        if waiting.is_empty() {
            self.waiting.remove(id);
        }
        taken
    }
}

/// The version of an object that the index holds.
fn present(index: &Index, id: &ObjectId) -> Option<Object> {
    match id {
        ObjectId::Pod(key) => index.pod(key).map(|pod| Object::Pod((**pod).clone())),
        ObjectId::Namespace(name) => index.namespace(name).cloned().map(Object::Namespace),
        ObjectId::Policy(id) => index.policy(id).map(|policy| Object::Policy((**policy).clone())),
        ObjectId::Service(key) => {
            index.services().service(key).map(|service| Object::Service((**service).clone()))
        }
        ObjectId::EndpointSlice(key) => {
            index.services().slice(key).map(|slice| Object::EndpointSlice((**slice).clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::manifest;

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
    fn all_sources_must_have_spoken() {
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
    fn a_source_that_tells_kind_by_kind_is_synced_after_the_last() {
        let mut world = World::new();
        world.take(1, Update::Replace(Vec::new()));
        for kind in Kind::ALL {
            assert!(!world.store.synced());
            world.take(0, Update::Listed { kind: *kind, ids: BTreeSet::new() });
        }
        assert!(world.store.synced());
    }

    #[test]
    fn a_list_of_one_kind_tells_what_is_gone_of_that_kind() {
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
    fn the_first_source_is_believed_whoever_speaks_first() {
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
    fn a_stand_in_yields_to_the_pod_itself() {
        let mut world = World::new();
        let Object::Pod(stand_in) = pod("assumed") else { panic!() };
        let assume = |world: &mut World, pods: &[&Pod]| {
            let pods = pods.iter().map(|pod| (*pod).clone()).collect();
            world.store.assume(pods, &mut world.index)
        };
        assert!(assume(&mut world, &[&stand_in]));
        assert!(!assume(&mut world, &[&stand_in]), "nothing new");
        assert_eq!(label(&world.index).as_deref(), Some("assumed"));
        assert!(assume(&mut world, &[]));
        assert_eq!(label(&world.index), None);

        assume(&mut world, &[&stand_in]);
        let real = Update::Change { set: vec![pod("real")], gone: Vec::new() };
        assert!(world.take(0, real));
        assert!(!world.store.assumes());
        assert!(!assume(&mut world, &[&stand_in]), "what a source says is believed");
        assert!(!assume(&mut world, &[]));
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
    fn a_pod_with_an_interface_lingers_until_that_goes() {
        let mut world = World::new();
        world.take(0, Update::Replace(vec![pod("one")]));
        world.here = true;
        assert!(!world.take(0, gone()));
        let key = ObjectKey::new("s", "a");
        assert!(world.store.lingers(&key));
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
