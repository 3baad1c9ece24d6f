//! Workloads: pods made by the kubelet, and what a test needs to know of them to probe from inside.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use podgate_testkit::wait::until;
use serde_json::{Value, json};

use super::podgate::is_ready;
use super::{CLUSTER_TIMEOUT, Cluster};
use crate::runtime::image;

/// Ports that every workload lists, and probes ask for.
pub const PORTS: [u16; 2] = [80, 81];

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which of the cluster's workers it runs on.
    pub worker: usize,
    /// Its addresses, IPv4 first.
    pub addresses: [IpAddr; 2],
    /// The path of its network namespace in its node.
    pub netns: String,
    /// The same from outside.
    pub netns_path: PathBuf,
}

impl Workload {
    /// `NAMESPACE/NAME`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A pod that sleeps, with the label `pod` and named ports, on worker number `node` (1, 2) or wherever it fits.
pub fn manifest(namespace: &str, name: &str, node: Option<usize>) -> Value {
    let ports: Vec<_> = PORTS
        .iter()
        .flat_map(|port| {
            ["TCP", "UDP"].map(|protocol| {
                let name = format!("serve-{port}-{}", protocol.to_lowercase());
                json!({ "name": name, "containerPort": port, "protocol": protocol })
            })
        })
        .collect();
    let mut pod = with_command(namespace, name, node, "exec sleep 1000000");
    pod["spec"]["containers"][0]["ports"] = ports.into();
    pod
}

/// A pod that runs these lines of shell.
pub fn with_command(namespace: &str, name: &str, node: Option<usize>, script: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": { "pod": name } },
        "spec": {
            "nodeSelector": node.map(|n| json!({ "kubernetes.io/hostname": format!("node{n}") })),
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{
                "name": "c",
                "image": image::NAME,
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", script],
            }],
        },
    })
}

/// A service of both families in front of the pods with a label `pod`.
pub fn service(namespace: &str, pod: &str) -> Value {
    let ports: Vec<_> = PORTS
        .iter()
        .flat_map(|port| {
            ["TCP", "UDP"].map(|protocol| {
                let name = format!("{}-{port}", protocol.to_lowercase());
                json!({ "name": name, "port": port, "protocol": protocol })
            })
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": pod },
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": { "pod": pod },
            "ports": ports,
        },
    })
}

/// A namespace with the label `ns`.
pub fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": name, "labels": { "ns": name } },
    })
}

impl Cluster {
    /// Makes namespaces that pods can be made in: the controllers have given them an account.
    pub fn make_namespaces(&self, names: &[&str]) -> Result<()> {
        self.apply(&names.iter().map(|name| namespace(name)).collect::<Vec<_>>())?;
        let admin = self.admin();
        let filled = until(CLUSTER_TIMEOUT, || {
            names.iter().all(|name| {
                let accounts = admin.list::<k8s_openapi::api::core::v1::ServiceAccount>(name);
                accounts.is_ok_and(|accounts| !accounts.is_empty())
            })
        });
        if filled { Ok(()) } else { bail!("wait for the service accounts of {names:?}") }
    }

    /// Waits until a pod is ready, and finds its network namespace.
    pub fn workload(&self, namespace: &str, name: &str) -> Result<Workload> {
        Ok(self.workloads(&[(namespace, name)])?.remove(0))
    }

    /// Waits until all of these pods are ready.
    pub fn workloads(&self, wanted: &[(&str, &str)]) -> Result<Vec<Workload>> {
        let mut pods = BTreeMap::new();
        let ready = until(CLUSTER_TIMEOUT, || {
            std::thread::sleep(Duration::from_millis(90));
            let namespaces: std::collections::BTreeSet<_> = wanted.iter().map(|w| w.0).collect();
            for namespace in namespaces {
                for pod in self.admin().list::<Pod>(namespace).unwrap_or_default() {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    pods.insert((namespace.to_owned(), name), pod);
                }
            }
            wanted.iter().all(|w| pods.get(&key(w)).is_some_and(is_ready))
        });
        if !ready {
            let waits: Vec<_> =
                wanted.iter().filter(|w| !pods.get(&key(w)).is_some_and(is_ready)).collect();
            let events = self.kubectl(&["get", "events", "-A"]).unwrap_or_default();
            bail!("wait for pods: these are not ready: {waits:?}\n{events}");
        }
        wanted.iter().map(|w| self.workload_of(&pods[&key(w)])).collect()
    }

    fn workload_of(&self, pod: &Pod) -> Result<Workload> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let found = || {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            let worker = self.workers.iter().position(|worker| Some(&worker.name) == node);
            let worker = worker.context("its node is none of ours")?;
            let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
            let ips = ips.into_iter().flatten().map(|ip| ip.ip.parse());
            let mut addresses: Vec<IpAddr> = ips.collect::<Result<_, _>>()?;
            addresses.sort();
            let addresses = addresses
                .try_into()
                .map_err(|got| anyhow::anyhow!("it has not one address of each family: {got:?}"))?;
            let node = &self.workers[worker].node;
            let mut cri = node.cri()?;
            let sandbox = cri.find(&namespace, &name)?.context("it has no sandbox")?;
            let (_, netns) = cri.pause(&sandbox)?;
            let netns_path = node.path(&netns);
            Ok::<_, anyhow::Error>((worker, addresses, netns, netns_path))
        };
        let (worker, addresses, netns, netns_path) =
            found().with_context(|| format!("look at pod {namespace}/{name}"))?;
        Ok(Workload { namespace, name, worker, addresses, netns, netns_path })
    }
}

fn key(wanted: &(&str, &str)) -> (String, String) {
    (wanted.0.to_owned(), wanted.1.to_owned())
}
