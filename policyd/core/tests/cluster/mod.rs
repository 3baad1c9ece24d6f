//! A cluster of hand-written objects, and questions about it.

#![allow(dead_code, reason = "every test file uses its own part")]

use podgate_contract::api::Verdict;
use podgate_policy::compile::Engine;
use podgate_policy::convert;
use podgate_policy::explain::{GateDecision, Peer};
use podgate_policy::index::Index;
use podgate_policy::model::{Direction, ObjectKey, Protocol};
use podgate_policy::object::Event;
use podgate_policy::tables::{Compiled, Endpoint, EndpointId, Transport};
use serde_json::{Value, json};

/// An address outside every cluster.
pub(crate) const STRANGER: &str = "8.8.8.8";

#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) index: Index,
    pub(crate) endpoints: Vec<Endpoint>,
}

pub(crate) fn key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectKey::new(namespace, name)
}

/// `80/TCP`, or `ICMP` for a protocol without ports.
pub(crate) fn transport(text: &str) -> Transport {
    let Some((port, protocol)) = text.split_once('/') else { return Transport::Other };
    Transport::Port(Protocol::from_name(protocol).unwrap(), port.parse().unwrap())
}

/// A pod object; `extra` holds `spec` and `status` fields and replaces what it names.
pub(crate) fn pod_object(name: &str, addresses: &[&str], labels: Value, extra: Value) -> Value {
    let key = key(name);
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let mut pod = json!({
        "metadata": {"namespace": &*key.namespace, "name": &*key.name, "labels": labels},
        "spec": {"containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIPs": ips},
    });
    for (part, fields) in extra.as_object().unwrap() {
        for (field, value) in fields.as_object().unwrap() {
            pod[part][field] = value.clone();
        }
    }
    pod
}

/// `spec` with one container that has these ports: (name, protocol or "", number).
pub(crate) fn with_ports(ports: &[(&str, &str, u16)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, protocol, number)| match *protocol {
            "" => json!({"name": name, "containerPort": number}),
            protocol => json!({"name": name, "protocol": protocol, "containerPort": number}),
        })
        .collect();
    json!({"spec": {"containers": [{"name": "main", "ports": ports}]}})
}

impl Cluster {
    /// The cluster of most tests: `shop/web` (10.0.0.1), `shop/api` (10.0.0.2), `shop/db` (10.0.0.3) and
    /// `ops/probe` (10.0.0.4), each with the label `app` of its name; `ops` has the label `team=ops`.
    pub(crate) fn shop() -> Self {
        let mut cluster = Self::default();
        cluster.namespace("shop", json!({"team": "shop"}));
        cluster.namespace("ops", json!({"team": "ops"}));
        cluster.pod("shop/web", &["10.0.0.1"], json!({"app": "web"}));
        cluster.pod("shop/api", &["10.0.0.2"], json!({"app": "api"}));
        cluster.pod("shop/db", &["10.0.0.3"], json!({"app": "db"}));
        cluster.pod("ops/probe", &["10.0.0.4"], json!({"app": "probe"}));
        cluster
    }

    pub(crate) fn namespace(&mut self, name: &str, labels: Value) {
        let object = json!({"metadata": {"name": name, "labels": labels}});
        let object = serde_json::from_value(object).unwrap();
        self.index.apply(Event::from(convert::namespace("kubernetes", &object).unwrap()));
    }

    /// A running pod with an interface on this node.
    pub(crate) fn pod(&mut self, name: &str, addresses: &[&str], labels: Value) {
        self.pod_with(name, addresses, labels, json!({}));
    }

    pub(crate) fn pod_with(&mut self, name: &str, addresses: &[&str], labels: Value, extra: Value) {
        self.object(&pod_object(name, addresses, labels, extra));
        self.interface(name, "", addresses);
    }

    /// A pod object alone: the pod of another node, or a change of one of this.
    pub(crate) fn object(&mut self, pod: &Value) {
        let object = serde_json::from_value(pod.clone()).unwrap();
        self.index.apply(Event::from(convert::pod(&object).unwrap()));
    }

    /// A pod's interface on this node. A pod has one: it replaces the last.
    pub(crate) fn interface(&mut self, pod: &str, uid: &str, addresses: &[&str]) {
        let pod = Some(key(pod));
        let free = self.endpoints.iter().map(|endpoint| endpoint.id.0).max().unwrap_or(0) + 1;
        let known = self.endpoints.iter().position(|endpoint| endpoint.pod == pod);
        let id = known.map_or(EndpointId(free), |known| self.endpoints.remove(known).id);
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.endpoints.push(Endpoint { id, pod, uid: uid.into(), addresses });
    }

    /// A policy of this spec, named `namespace/name`.
    pub(crate) fn policy(&mut self, name: &str, spec: Value) {
        let key = key(name);
        let object = json!({
            "metadata": {"namespace": &*key.namespace, "name": &*key.name},
            "spec": spec,
        });
        let object = serde_json::from_value(object).unwrap();
        let policy = convert::policy("kubernetes", &object).unwrap();
        self.index.apply(Event::from(policy));
    }

    /// A ClusterNetworkPolicy of this spec, of an API server.
    pub(crate) fn cluster_policy(&mut self, name: &str, spec: Value) {
        self.cluster_policy_of("kubernetes", name, spec);
    }

    /// A ClusterNetworkPolicy of this spec, of the source of this name.
    pub(crate) fn cluster_policy_of(&mut self, source: &str, name: &str, spec: Value) {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let object = serde_json::from_value(object).unwrap();
        let policy = convert::cluster_policy(source, &object).unwrap();
        self.index.apply(Event::from(policy));
    }

    /// A node with these labels and addresses.
    pub(crate) fn node(&mut self, name: &str, labels: Value, addresses: &[&str]) {
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        let object = json!({
            "metadata": {"name": name, "labels": labels},
            "status": {"addresses": addresses},
        });
        let object = serde_json::from_value(object).unwrap();
        self.index.apply(Event::from(convert::node(&object).unwrap()));
    }

    pub(crate) fn engine(&self) -> Engine {
        Engine::of(&self.index, self.endpoints.iter().cloned())
    }

    /// What an engine that follows this cluster makes of it now.
    pub(crate) fn update(&mut self, engine: &mut Engine) -> Compiled {
        let changes = self.index.take_changes();
        engine.set_endpoints(self.endpoints.iter().cloned());
        engine.update(&self.index, changes);
        engine.compiled().clone()
    }

    pub(crate) fn compile(&self) -> Compiled {
        self.engine().compiled().clone()
    }

    pub(crate) fn explain(
        &self,
        pod: &str,
        direction: Direction,
        peer: &str,
        l4: &str,
    ) -> Option<GateDecision> {
        let pod = Some(key(pod));
        let endpoint = self.endpoints.iter().find(|endpoint| endpoint.pod == pod).unwrap();
        let peer = Peer::At(peer.parse().unwrap());
        self.engine().explain(endpoint, direction, peer, transport(l4))
    }

    /// Whether `pod` may be reached from `peer`.
    pub(crate) fn ingress(&self, pod: &str, peer: &str, l4: &str) -> bool {
        let explanation = self.explain(pod, Direction::Ingress, peer, l4).unwrap();
        explanation.verdict == Verdict::Allow
    }

    /// Whether `pod` may reach `peer`.
    pub(crate) fn egress(&self, pod: &str, peer: &str, l4: &str) -> bool {
        let explanation = self.explain(pod, Direction::Egress, peer, l4).unwrap();
        explanation.verdict == Verdict::Allow
    }

    /// Whether one pod may reach another, by their first addresses.
    pub(crate) fn connects(&self, from: &str, to: &str, l4: &str) -> bool {
        let address = |pod: &str| {
            let pod = Some(key(pod));
            let endpoint = self.endpoints.iter().find(|endpoint| endpoint.pod == pod).unwrap();
            endpoint.addresses[0].to_string()
        };
        self.egress(from, &address(to), l4) && self.ingress(to, &address(from), l4)
    }
}
