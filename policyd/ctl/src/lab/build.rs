//! Builds the cluster: the node, the daemon, then every pod through the chain.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value, json};

use super::chain::{Attachment, Chain};
use super::daemon::Daemon;
use super::error::{Error, Result};
use super::netlink::Netlink;
use super::node::{BRIDGE, Node};
use super::plan::Plan;
use super::sandbox::{Sandbox, host_bits};
use super::services;
use super::tries::Site;
use super::wire::Netns;
use crate::{Cluster, LocalPod};

/// Version of the specification that the chain speaks; the reference plugins of every distribution know it.
const VERSION: &str = "1.0.0";
/// Pods that are attached at the same time, as a busy kubelet does it.
const AT_ONCE: usize = 8;
/// How long an ADD waits for policyd; only a machine at a standstill needs it.
const TIMEOUT_MS: u32 = 20_000;

/// Paths as they are inside the lab's mount namespace.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// Where plugins are found, in order.
    pub plugins: Vec<PathBuf>,
    /// The daemon.
    pub policyd: PathBuf,
    /// The manifests.
    pub manifests: PathBuf,
}

/// A cluster that is up: its node, daemon and pods.
#[derive(Debug)]
pub(crate) struct Built {
    node: Node,
    daemon: Daemon,
    pods: Vec<Pod>,
    externals: BTreeSet<IpAddr>,
}

/// One pod, attached.
#[derive(Debug)]
struct Pod {
    sandbox: Arc<Sandbox>,
    chain: Chain,
    attachment: Attachment,
    result: Value,
}

impl Built {
    /// Builds it. `externals`: addresses that the namespace outside must have.
    pub(crate) async fn new(
        cluster: &Cluster,
        externals: BTreeSet<IpAddr>,
        paths: &Paths,
    ) -> Result<Self> {
        let services = services::manifest(cluster.index.services());
        let node = Node::build(&cluster.plan, &externals).await?;
        let mut daemon = Daemon::start(&paths.policyd, &paths.manifests, services).await?;
        let attach = |(number, pod)| attach(number, pod, &cluster.plan, &externals, paths);
        let pods = stream::iter(cluster.pods.iter().enumerate())
            .map(attach)
            .buffered(AT_ONCE)
            .try_collect::<Vec<_>>()
            .await
            .map_err(|error| match daemon.check() {
                Ok(()) => daemon.failed(error.to_string()),
                Err(dead) => dead,
            })?;
        Ok(Self { node, daemon, pods, externals })
    }

    /// The namespace of a site; `None`: the pod is none of this cluster.
    pub(super) fn netns(&self, cluster: &Cluster, site: &Site) -> Option<Netns> {
        Some(match site {
            Site::Pod(key) => {
                Netns::Sandbox(self.pods.get(cluster.position(key)?)?.sandbox.clone())
            }
            Site::Node => Netns::Node,
            Site::Outside => Netns::Sandbox(self.node.outside.clone()),
        })
    }

    /// That the daemon still runs.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.daemon.check()
    }

    /// An error with the end of the daemon's log.
    pub(crate) fn failed(&self, reason: String) -> Error {
        self.daemon.failed(reason)
    }

    /// How many external addresses there are.
    pub(crate) fn externals(&self) -> usize {
        self.externals.len()
    }

    /// Takes the pods off the network, as a runtime does when they end. The rest ends with the process.
    pub(crate) async fn detach(self) -> Result<()> {
        stream::iter(&self.pods)
            .map(|pod| pod.chain.del(&pod.attachment, Some(&pod.result)))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<_>>()
            .await
            .map(drop)
    }
}

async fn attach(
    number: usize,
    local: &LocalPod,
    plan: &Plan,
    externals: &BTreeSet<IpAddr>,
    paths: &Paths,
) -> Result<Pod> {
    let key = &local.pod.key;
    let sandbox = Sandbox::create(&format!("{}.{}", key.namespace, key.name))?;
    Netlink::of(&sandbox)?.up("lo").await?;
    let chain = Chain {
        version: VERSION.into(),
        network: "lab".into(),
        plugins: vec![bridge(&local.endpoint.addresses, plan, externals)?, podgate()],
        path: paths.plugins.clone(),
    };
    let attachment = Attachment {
        container_id: format!("lab-{}", number + 1),
        netns: sandbox.path().to_path_buf(),
        interface: "eth0".into(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        uid: local.pod.uid.to_string(),
    };
    let result = chain.add(&attachment).await?;
    Ok(Pod { sandbox: Arc::new(sandbox), chain, attachment, result })
}

/// The bridge plugin with static addresses. The bridge already is the pods' gateway (isGateway: false):
/// the plugin would accept only one IPv4 subnet on it.
fn bridge(
    addresses: &[IpAddr],
    plan: &Plan,
    externals: &BTreeSet<IpAddr>,
) -> Result<Map<String, Value>> {
    let (mut own, mut routes) = (Vec::new(), Vec::new());
    for address in addresses {
        let subnet = plan
            .subnet_of(*address)
            .ok_or_else(|| Error::Layout(format!("{address} is in no subnet of the bridge")))?;
        own.push(json!({
            "address": format!("{address}/{}", subnet.net.prefix_len()),
            "gateway": subnet.gateway,
        }));
        routes.push(json!({"dst": if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" }}));
        // an external address inside the subnet is still behind the gateway
        let alike = externals.iter().filter(|external| subnet.net.contains(*external));
        routes.extend(
            alike.map(|external| json!({"dst": format!("{external}/{}", host_bits(*external))})),
        );
    }
    let configuration = json!({
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": false,
        "ipam": {"type": "static", "addresses": own, "routes": routes},
    });
    Ok(object(configuration))
}

fn podgate() -> Map<String, Value> {
    object(json!({
        "type": "podgate",
        "startup": "hold",
        "policydTimeoutMs": TIMEOUT_MS,
        // a pod that is not enforced would be no test of anything
        "onTimeout": "fail",
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
