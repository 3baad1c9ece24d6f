//! Placeholders for pods that start while the API server is away.
//!
//! The labels of such a pod are not known. If every policy of its namespace selects all pods, they do not matter: a
//! placeholder puts those policies in force, and the pod need not wait for the server. As a peer the pod stays unknown, so
//! no other pod's policy allows it, and it has no named ports. In a namespace without policies the pod waits: a policy
//! may have been created together with it.
//!
//! Without any source but the API (`--source local`) nobody else knows of pods: each that the plugin names is one, without
//! labels.

use podgate_bpf::maps::Registration;
use podgate_policy::index::Index;
use podgate_policy::model::{Labels, Pod, PodLife};

use super::writer_loop::WriterLoop;
use crate::pod_key::pod_key;
use crate::sources::Store;

impl WriterLoop {
    /// Updates the placeholders. Does nothing to the index if there are none and were none.
    pub(super) fn set_placeholder_pods(&mut self) {
        let away = self.shared.servers().iter().any(|server| server.is_away());
        let alone = self.store.is_of_this_node_alone();
        if !away && !alone && !self.store.has_placeholders() {
            return;
        }
        let placeholders: Vec<Pod> = match away || alone {
            true => {
                let index = self.shared.index();
                let endpoints = self.endpoints.iter();
                endpoints.filter_map(|(_, known)| placeholder(known, &index, &self.store)).collect()
            }
            false => Vec::new(),
        };
        self.dirty |= self.store.set_placeholders(placeholders, &mut self.shared.index_mut());
    }
}

/// The placeholder of a registered pod; `None` if the pod is known or its policies may depend on labels that it may have.
fn placeholder(registration: &Registration, index: &Index, store: &Store) -> Option<Pod> {
    let pod = registration.pod.as_ref()?;
    let key = pod_key(pod);
    let unknown = index.pod(&key).is_none() || store.is_placeholder(&key);
    let mut policies = index.policies_of(&pod.namespace).peekable();
    let decided = policies.peek().is_some() && policies.all(|p| p.selector.is_everything());
    (unknown && (decided || store.is_of_this_node_alone())).then(|| Pod {
        key,
        uid: pod.uid.as_str().into(),
        created: 0,
        labels: Labels::new(),
        addresses: Vec::new(),
        ports: Default::default(),
        life: PodLife::Live,
        host_network: false,
        node: None,
        host_addresses: Vec::new(),
        annotated_limits: None,
    })
}
