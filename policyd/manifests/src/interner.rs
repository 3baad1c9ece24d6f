//! One shared copy of values that many objects contain.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use podgate_policy::model::{Labels, NamedPort};
use podgate_policy::object::Object;

/// How many values are kept before all are dropped and collected again.
const MAX_KNOWN: usize = 65_536;

/// Interns namespaces, nodes, sets of labels and of ports. A hundred thousand pods have a few hundred of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interner {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    ports: HashSet<Arc<[NamedPort]>>,
}

impl Interner {
    /// Replaces the values of an object by the shared copies.
    pub fn share(&mut self, object: &mut Object) {
        let Object::Pod(pod) = object else { return };
        // objects keep the copies that they share; dropping all of them is the way to drop unused ones
        if self.texts.len() + self.labels.len() + self.ports.len() > MAX_KNOWN {
            *self = Self::default();
        }
        shared(&mut self.texts, &mut pod.key.namespace);
        pod.node.iter_mut().for_each(|node| shared(&mut self.texts, node));
        if pod.uid.is_empty() {
            shared(&mut self.texts, &mut pod.uid);
        }
        shared(&mut self.labels, &mut pod.labels);
        shared(&mut self.ports, &mut pod.ports);
        pod.addresses.shrink_to_fit();
    }
}

fn shared<T: Clone + Eq + Hash>(known: &mut HashSet<T>, value: &mut T) {
    match known.get(value) {
        Some(known) => *value = known.clone(),
        None => drop(known.insert(value.clone())),
    }
}
