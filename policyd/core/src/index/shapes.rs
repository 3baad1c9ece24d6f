//! Pods that no selector and no port name can tell apart: replicas. A selector is asked once for all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::names::Names;
use crate::model::{Labels, NamedPort};
use crate::selector::Selector;
use crate::selector_index::Anchor;

/// Names a shape. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ShapeId(u64);

/// What the pods of a shape have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Likeness {
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: Labels,
    pub(crate) ports: Arc<[NamedPort]>,
}

/// A likeness and who has it.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) likeness: Likeness,
    /// Names in the namespace; never empty.
    pub(crate) pods: BTreeSet<Arc<str>>,
}

/// All shapes, and which of them a selector matches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shapes {
    ids: HashMap<Likeness, ShapeId>,
    shapes: HashMap<ShapeId, Shape>,
    spaces: BTreeMap<Arc<str>, Space>,
    next: u64,
}

/// The shapes of a namespace.
#[derive(Clone, Debug, Default)]
struct Space {
    shapes: BTreeSet<ShapeId>,
    by_label: HashMap<Arc<str>, HashMap<Arc<str>, BTreeSet<ShapeId>>>,
}

impl Shapes {
    /// Adds a pod. Says its shape and whether that is new.
    pub(super) fn join(
        &mut self,
        likeness: Likeness,
        pod: Arc<str>,
        names: &mut Names,
    ) -> (ShapeId, bool) {
        if let Some(id) = self.ids.get(&likeness).copied() {
            if let Some(shape) = self.shapes.get_mut(&id) {
                shape.pods.insert(pod);
            }
            return (id, false);
        }
        let likeness = likeness.shared(names);
        let id = ShapeId(self.next);
        self.next += 1;
        let space = self.spaces.entry(likeness.namespace.clone()).or_default();
        space.shapes.insert(id);
        for (key, value) in likeness.labels.iter() {
            let of_key = space.by_label.entry(key.clone()).or_default();
            of_key.entry(value.clone()).or_default().insert(id);
        }
        self.ids.insert(likeness.clone(), id);
        self.shapes.insert(id, Shape { likeness, pods: BTreeSet::from([pod]) });
        (id, true)
    }

    /// Takes a pod out. True if its shape is gone with it.
    pub(super) fn leave(&mut self, id: ShapeId, pod: &str) -> bool {
        let Some(shape) = self.shapes.get_mut(&id) else { return false };
        shape.pods.remove(pod);
        if !shape.pods.is_empty() {
            return false;
        }
        let Some(Shape { likeness, .. }) = self.shapes.remove(&id) else { return false };
        self.ids.remove(&likeness);
        let Some(space) = self.spaces.get_mut(&likeness.namespace) else { return true };
        space.shapes.remove(&id);
        for (key, value) in likeness.labels.iter() {
            let Some(of_key) = space.by_label.get_mut(key) else { continue };
            if let Some(shapes) = of_key.get_mut(value) {
                shapes.remove(&id);
                if shapes.is_empty() {
                    of_key.remove(value);
                }
            }
            if of_key.is_empty() {
                space.by_label.remove(key);
            }
        }
        if space.shapes.is_empty() {
            self.spaces.remove(&likeness.namespace);
        }
        true
    }

    pub(crate) fn get(&self, id: ShapeId) -> Option<&Shape> {
        self.shapes.get(&id)
    }

    /// Namespaces that have pods.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.spaces.keys()
    }

    /// All shapes of a namespace.
    pub(crate) fn of(&self, namespace: &str) -> impl Iterator<Item = ShapeId> {
        self.spaces.get(namespace).into_iter().flat_map(|space| &space.shapes).copied()
    }

    /// The shapes of a namespace that a selector matches.
    pub(crate) fn matching(&self, namespace: &str, selector: &Selector) -> Vec<ShapeId> {
        let Some(space) = self.spaces.get(namespace) else { return Vec::new() };
        let candidates: Vec<ShapeId> = match selector.anchor() {
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
            Anchor::Nothing => space.shapes.iter().copied().collect(),
        };
        let matches = |id: &ShapeId| {
            self.shapes.get(id).is_some_and(|shape| selector.matches(&shape.likeness.labels))
        };
        candidates.into_iter().filter(matches).collect()
    }
}

impl Likeness {
    /// The same, of names that other objects share.
    fn shared(self, names: &mut Names) -> Self {
        let labels = self.labels.iter().map(|(key, value)| (names.share(key), names.share(value)));
        let labels = labels.collect();
        let ports = self.ports.iter();
        let ports =
            ports.map(|port| NamedPort { name: names.share(&port.name), ..*port }).collect();
        Self { namespace: names.share(&self.namespace), labels, ports }
    }
}
