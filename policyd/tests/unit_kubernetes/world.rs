//! What the writer would hold.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podgate_policy::index::Index;
use podgate_policy::model::{
    ClusterPolicy, ClusterPolicyId, Node, ObjectKey, Pod, PodTrafficPolicy, Policy, PolicyId,
};
use podgate_policy::object::Kind;
use policyd::sources::kubernetes::{Health, KubernetesSource, Pacing, Watch};
use policyd::sources::{Rank, SourceState, Store, Update};
use serde_json::{Value, json};

use crate::server::{Of, Server};

/// A source at work, and the index it fills.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) health: Arc<Health>,
    held: Arc<Mutex<(Store, Index)>>,
    /// How many updates there were that name objects.
    updates: Arc<AtomicUsize>,
    _source: KubernetesSource,
}

impl World {
    /// Starts the source on a server with this script.
    pub(crate) fn start(script: impl FnOnce(&Server)) -> Self {
        Self::start_with(Pacing { page_size: 2, jitter: Duration::ZERO }, script)
    }

    pub(crate) fn start_with(pacing: Pacing, script: impl FnOnce(&Server)) -> Self {
        let (server, client) = Server::start();
        script(&server);
        let health = Arc::new(Health::new("kubernetes".into()));
        let held = Arc::new(Mutex::new((Store::new(["kubernetes".to_owned()]), Index::new())));
        let updates = Arc::new(AtomicUsize::new(0));
        let (holding, counting) = (held.clone(), updates.clone());
        let sink = Arc::new(move |update| {
            if matches!(update, Update::Change { .. } | Update::Listed { .. }) {
                counting.fetch_add(1, Ordering::Relaxed);
            }
            let (store, index) = &mut *holding.lock().unwrap();
            store.take(Rank(0), update, index, |_| false);
        });
        let source = KubernetesSource::start(client, pacing, health.clone(), sink);
        Self { server, health, held, updates, _source: source }
    }

    /// Waits until this is so; an hour of tokio's time.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..360_000 {
            if so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain until {what}; state {:?}", self.state());
    }

    pub(crate) async fn synced(&self) {
        self.until("everything is listed", |world| world.state().synced).await;
    }

    /// Until every watch is open.
    pub(crate) async fn watching(&self) {
        self.until("everything is watched", |world| {
            Of::ALL.iter().all(|of| !world.server.watches(*of).is_empty())
        })
        .await;
        // and its answer is there
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    pub(crate) fn state(&self) -> SourceState {
        self.held.lock().unwrap().0.states().remove(0)
    }

    pub(crate) fn problems(&self) -> String {
        self.state().problems.join("\n")
    }

    pub(crate) fn watch(&self, kind: Kind) -> Watch {
        self.health.watches()[&kind].clone()
    }

    pub(crate) fn pod(&self, name: &str) -> Option<Pod> {
        let held = self.held.lock().unwrap();
        held.1.pod(&ObjectKey::new("shop", name)).map(|pod| (**pod).clone())
    }

    /// The label `app` of a pod.
    pub(crate) fn app(&self, name: &str) -> String {
        self.pod(name).unwrap().labels.get("app").unwrap().to_string()
    }

    pub(crate) fn policy(&self, name: &str) -> Option<Policy> {
        let id = PolicyId { source: "kubernetes".into(), key: ObjectKey::new("shop", name) };
        self.held.lock().unwrap().1.policy(&id).map(|policy| (**policy).clone())
    }

    pub(crate) fn cluster_policy(&self, name: &str) -> Option<ClusterPolicy> {
        let id = ClusterPolicyId { name: name.into(), source: "kubernetes".into() };
        self.held.lock().unwrap().1.cluster_policy(&id).map(|policy| (**policy).clone())
    }

    pub(crate) fn traffic_policy(&self, name: &str) -> Option<PodTrafficPolicy> {
        let id = PolicyId { source: "kubernetes".into(), key: ObjectKey::new("shop", name) };
        self.held.lock().unwrap().1.pod_traffic_policy(&id).map(|policy| (**policy).clone())
    }

    pub(crate) fn node(&self, name: &str) -> Option<Node> {
        self.held.lock().unwrap().1.node(name).cloned()
    }

    pub(crate) fn updates(&self) -> usize {
        self.updates.load(Ordering::Relaxed)
    }

    pub(crate) fn namespace_labels(&self, name: &str) -> Option<Vec<String>> {
        let held = self.held.lock().unwrap();
        let labels = &held.1.namespace(name)?.labels;
        Some(labels.iter().map(|(key, value)| format!("{key}={value}")).collect())
    }

    /// The names of all pods.
    pub(crate) fn pods(&self) -> Vec<String> {
        let held = self.held.lock().unwrap();
        held.1.pods().map(|pod| pod.key.name.to_string()).collect()
    }
}

/// A pod of namespace `shop` with this label `app`.
pub(crate) fn pod(name: &str, app: &str, version: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": version,
            "labels": {"app": app}, "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}]},
    })
}

/// A policy of namespace `shop` that allows ingress from this range.
pub(crate) fn policy(name: &str, cidr: &str, version: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": version},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}],
        },
    })
}

/// A cluster policy of this priority that denies ingress from every pod.
pub(crate) fn cluster_policy(name: &str, priority: i32, version: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": version},
        "spec": {
            "tier": "Admin", "priority": priority, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
        },
        "status": {"conditions": []},
    })
}
