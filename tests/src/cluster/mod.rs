//! A real cluster on this machine: a control plane and workers, each behind walls of its own.
//!
//! Kubernetes' own programs come from the Go module in `tests/cluster` (`scripts/cluster-programs.sh` builds them). The
//! walls, containerd and the images are those of the [runtime tier](crate::runtime); what is here is added to them:
//! the wires between nodes ([`network`]), certificates ([`certs`]), the control plane ([`control`]) and the kubelets
//! ([`worker`]). All of it ends with the nodes' first processes, so a test that panics or is killed leaves nothing.

pub mod api;
pub mod certs;
pub mod conformance;
pub mod control;
pub mod crd;
pub mod dial;
pub mod kubectl;
pub mod matrix;
pub mod network;
pub mod podgate;
pub mod pods;
pub mod probe;
pub mod programs;
pub mod service_worlds;
pub mod shared;
pub mod worker;

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{Node as K8sNode, ServiceAccount};
use kube::api::{Api, ListParams};
use podgate_testkit::wait::until;
use serde_json::Value;

use api::Admin;
use control::{Control, Controllers};
use worker::Worker;

/// Who translates service addresses on the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proxy {
    /// kube-proxy, by iptables.
    #[default]
    Iptables,
    /// kube-proxy, by nftables.
    Nftables,
    /// Nobody but podgate.
    Absent,
}

/// Which plugin makes the pods' interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Primary {
    /// A bridge for all pods of a node.
    #[default]
    Bridge,
    /// A routed interface for each pod.
    Ptp,
}

/// What a cluster is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Who translates service addresses.
    pub proxy: Proxy,
    /// Who makes interfaces.
    pub primary: Primary,
}

/// Longest that anything in a cluster may take on a busy machine.
pub const CLUSTER_TIMEOUT: Duration = Duration::from_secs(120);

/// A running cluster of two workers. Dropped, it is gone.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes with pods. Dropped first, so that their kubelets end before the API server.
    pub workers: Vec<Worker>,
    /// The control plane.
    pub control: Control,
    options: Options,
}

impl Cluster {
    /// Starts one and waits until both nodes are ready for pods.
    pub fn start(options: Options) -> Result<Self> {
        let control = Control::start(Controllers::Run)?;
        let workers = start_workers(&control, [1, 2], options)?;
        let mut cluster = Self { workers, control, options };
        cluster.control.await_api()?;
        cluster.await_nodes()?;
        Ok(cluster)
    }

    /// The cluster's administrator.
    pub fn admin(&self) -> Admin {
        Admin::of(&self.control.node)
    }

    /// Runs kubectl; returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl::run(&self.control.node, arguments)
    }

    /// `kubectl apply` with these objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        kubectl::apply(&self.control.node, objects).map(|_| ())
    }

    /// `kubectl delete` with these objects.
    pub fn delete(&self, objects: &[Value]) -> Result<()> {
        kubectl::delete(&self.control.node, objects).map(|_| ())
    }

    /// Ends it and looks whether anything is left.
    pub fn finish(self) -> Result<()> {
        let Self { workers, control, options: _ } = self;
        for worker in workers {
            worker.finish()?;
        }
        control.node.finish()
    }

    fn await_nodes(&mut self) -> Result<()> {
        let admin = self.admin();
        let mut seen = String::new();
        let ready = until(CLUSTER_TIMEOUT, || {
            thread::sleep(Duration::from_millis(90));
            let nodes = admin.call(async |client| {
                let nodes: Api<K8sNode> = Api::all(client);
                Ok(nodes.list(&ListParams::default()).await?.items)
            });
            let ready = nodes.iter().flatten().filter(|node| is_ready(node)).count();
            seen = format!("{ready} are ready: {nodes:?}");
            // pods need this account to be admitted
            let account = || admin.list::<ServiceAccount>("default").is_ok_and(|a| !a.is_empty());
            (ready == self.workers.len() && account())
                || self.workers.iter_mut().any(|worker| worker.check().is_err())
        });
        for worker in &mut self.workers {
            worker.check()?;
        }
        if ready {
            return Ok(());
        }
        let logs: Vec<_> = self.workers.iter().map(|worker| worker.log("kubelet")).collect();
        bail!("wait for the nodes: {seen}\n{}", logs.join("\n"))
    }
}

fn start_workers<const N: usize>(
    control: &Control,
    numbers: [u8; N],
    options: Options,
) -> Result<Vec<Worker>> {
    thread::scope(|scope| {
        let started = numbers.map(|number| {
            let others: Vec<u8> = numbers.into_iter().filter(|n| *n != number).collect();
            scope.spawn(move || Worker::start(control, number, &others, options))
        });
        let joined = started
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect()
    })
}

fn is_ready(node: &K8sNode) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}
