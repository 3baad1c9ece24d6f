//! One copy of what many objects say.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use podgate_policy::model::{Labels, NamedPort};

use super::Object;

/// How many to know before beginning again.
const MAX_KNOWN: usize = 65_536;

/// Namespaces, nodes, sets of labels and of ports. A hundred thousand pods have a few hundred of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    ports: HashSet<Arc<[NamedPort]>>,
}

impl Names {
    /// Lets an object share what it has in common with others.
    pub(super) fn share(&mut self, object: &mut Object) {
        let Object::Pod(pod) = object else { return };
        // those that share keep what they share; what nobody has any more must go at some time
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
