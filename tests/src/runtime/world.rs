//! The cluster that policyd believes in: manifests in the node's directory.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Node, Pod};

/// The manifests, one file for each object. Changing one is one rename.
#[derive(Clone, Debug)]
pub struct World {
    dir: PathBuf,
}

impl World {
    /// The node's, with the namespace `default`.
    pub fn of(node: &Node) -> Result<Self> {
        let world = Self { dir: node.home("manifests") };
        world.write(
            "namespace-default",
            &json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": "default",
                    "labels": { "kubernetes.io/metadata.name": "default" },
                },
            }),
        )?;
        Ok(world)
    }

    /// A pod as the API server shows it: without an address until the runtime has given it one.
    pub fn pod(&self, pod: &Pod, app: &str, address: Option<IpAddr>) -> Result<()> {
        let ips: Vec<_> = address.iter().map(|ip| json!({ "ip": ip })).collect();
        self.write(
            &format!("pod-{}-{}", pod.namespace, pod.name),
            &json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "namespace": pod.namespace,
                    "name": pod.name,
                    "uid": pod.uid,
                    "labels": { "app": app },
                },
                "spec": { "nodeName": "node", "containers": [{ "name": "c", "image": "i" }] },
                "status": {
                    "phase": if address.is_some() { "Running" } else { "Pending" },
                    "podIP": address,
                    "podIPs": ips,
                },
            }),
        )
    }

    /// Forgets a pod.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.remove(&format!("pod-{}-{}", pod.namespace, pod.name))
    }

    /// A policy of the namespace `default`; puts it in an earlier one's place.
    pub fn policy(&self, name: &str, spec: Value) -> Result<()> {
        self.write(
            &format!("policy-{name}"),
            &json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": { "namespace": "default", "name": name },
                "spec": spec,
            }),
        )
    }

    /// Takes a policy away.
    pub fn remove_policy(&self, name: &str) -> Result<()> {
        self.remove(&format!("policy-{name}"))
    }

    fn write(&self, name: &str, object: &Value) -> Result<()> {
        let path = self.dir.join(format!("{name}.json"));
        let fresh = self.dir.join(format!(".{name}.fresh"));
        fs::write(&fresh, object.to_string())
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(format!("{name}.json"));
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

/// A policy for pods of `app` that lets them talk only to pods of these apps.
pub fn egress_only_to(app: &str, to: &[&str]) -> Value {
    json!({ "podSelector": labels(app), "policyTypes": ["Egress"], "egress": [{ "to": peers(to) }] })
}

/// A policy for pods of `app` that lets only pods of these apps talk to them.
pub fn ingress_only_from(app: &str, from: &[&str]) -> Value {
    json!({
        "podSelector": labels(app),
        "policyTypes": ["Ingress"],
        "ingress": [{ "from": peers(from) }],
    })
}

fn peers(apps: &[&str]) -> Vec<Value> {
    // no peers would mean all peers: a label that no pod has
    let apps = if apps.is_empty() { &["nobody"] } else { apps };
    apps.iter().map(|app| json!({ "podSelector": labels(app) })).collect()
}

fn labels(app: &str) -> Value {
    json!({ "matchLabels": { "app": app } })
}
