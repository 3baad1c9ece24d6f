//! Pods that start while the API server is away.
//!
//! Nobody can tell such a pod's labels. Where every policy of its namespace selects all pods they do not matter,
//! and it need not wait for the server: those policies are put in force. As a peer it stays unknown, so no other
//! pod's policy lets it through, and it has no named ports. A namespace without any policy is left
//! to wait, since one may have come with the pod that nobody here has heard of.

use podgate_bpf::maps::Registration;
use podgate_policy::index::Index;
use podgate_policy::model::{Labels, ObjectKey, Pod, PodLife};

use super::run::Run;
use crate::sources::Store;

impl Run {
    /// Brings the stand-ins up to date. The index is changed only if there is, or was, one.
    pub(super) fn assume(&mut self) {
        let away = self.shared.servers().iter().any(|server| server.is_away());
        if !away && !self.store.assumes() {
            return;
        }
        let stand_ins: Vec<Pod> = match away {
            true => {
                let index = self.shared.index();
                let endpoints = self.endpoints.iter();
                endpoints.filter_map(|(_, known)| stand_in(known, &index, &self.store)).collect()
            }
            false => Vec::new(),
        };
        self.dirty |= self.store.assume(stand_ins, &mut self.shared.index_mut());
    }
}

fn stand_in(registration: &Registration, index: &Index, store: &Store) -> Option<Pod> {
    let pod = registration.pod.as_ref()?;
    let key = ObjectKey::new(pod.namespace.as_str(), pod.name.as_str());
    let unknown = index.pod(&key).is_none() || store.assumed(&key);
    let mut policies = index.policies_of(&pod.namespace).peekable();
    let decided = policies.peek().is_some() && policies.all(|p| p.selector.is_everything());
    (unknown && decided).then(|| Pod {
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
    })
}
