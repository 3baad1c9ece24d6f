//! podgate as its users run it: the rendered DaemonSet, with the rights that its own role gives, from the image.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use podgate_testkit::wait::until;
use serde_json::{Value, json};

use super::worker::Worker;
use super::{CLUSTER_TIMEOUT, Cluster, Proxy, kubectl};
use crate::runtime::policyd;

/// The namespace of the rendered objects.
pub const NAMESPACE: &str = "podgate-system";

/// Where our entry belongs.
const CONFLIST: &str = "conf/10-pods.conflist";

impl Cluster {
    /// Gives the nodes the image, applies the rendered objects and waits until podgate is ready everywhere.
    pub fn install_podgate(&self) -> Result<()> {
        self.load_podgate()?;
        self.apply(&self.podgate_objects()?)?;
        self.await_podgate()
    }

    /// Gives the nodes the image.
    pub fn load_podgate(&self) -> Result<()> {
        let image = fs::read(image()?).context("read podgate's image")?;
        for worker in &self.workers {
            worker.node.write("podgate.tar", &image)?;
            worker.node.import("podgate.tar").context("import podgate's image")?;
        }
        Ok(())
    }

    /// What `kubectl apply -k` of the base would apply, as a list of objects. Without kube-proxy the API server's
    /// service address leads nowhere on a node itself, so policyd gets the API server's real address, as `deploy/` advises.
    pub fn podgate_objects(&self) -> Result<Vec<Value>> {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize/base");
        let base = base.canonicalize().context("find the rendered objects")?;
        let base = base.display().to_string();
        let node = &self.control.node;
        let list = kubectl::run(node, &["apply", "--dry-run=client", "-o", "json", "-k", &base])?;
        let list: Value = serde_json::from_str(&list).context("read the rendered objects")?;
        let mut objects = list["items"].as_array().context("read the rendered objects")?.clone();
        for object in &mut objects {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                // the dry run's own notes
                metadata.remove("annotations");
            }
            if object["kind"] == "DaemonSet" && self.options.proxy == Proxy::Absent {
                let containers = &mut object["spec"]["template"]["spec"]["containers"];
                for container in containers.as_array_mut().into_iter().flatten() {
                    if container["name"] == "policyd"
                        && let Some(env) = container["env"].as_array_mut()
                    {
                        env.push(
                            json!({ "name": "KUBERNETES_SERVICE_HOST", "value": "172.30.0.1" }),
                        );
                        env.push(json!({ "name": "KUBERNETES_SERVICE_PORT", "value": "6443" }));
                    }
                }
            }
        }
        Ok(objects)
    }

    /// Waits until every node's policyd is ready and its conflist has our entry.
    pub fn await_podgate(&self) -> Result<()> {
        let mut missing = String::new();
        let ready = until(CLUSTER_TIMEOUT, || {
            std::thread::sleep(Duration::from_millis(90));
            missing = match self.podgate_missing() {
                Ok(missing) => missing,
                Err(error) => format!("{error:#}"),
            };
            missing.is_empty()
        });
        if ready {
            return Ok(());
        }
        let pods = self.kubectl(&["describe", "pods", "-n", NAMESPACE]).unwrap_or_default();
        let logs = self.podgate_logs();
        bail!("wait for podgate: {missing}\n{pods}\n{logs}")
    }

    fn podgate_missing(&self) -> Result<String> {
        let pods: Vec<Pod> = self.admin().list(NAMESPACE)?;
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        if ready < self.workers.len() {
            return Ok(format!("{ready} of its pods are ready"));
        }
        let without = self.workers.iter().find(|worker| !worker.has_entry());
        Ok(without.map(|w| format!("{}'s conflist has no entry of it", w.name)).unwrap_or_default())
    }

    /// What every policyd has said, for a message.
    pub fn podgate_logs(&self) -> String {
        let arguments = ["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node"];
        let more = ["--all-containers", "--prefix", "--tail=60"];
        self.kubectl(&[&arguments[..], &more[..]].concat()).unwrap_or_default()
    }
}

impl Worker {
    /// Whether the conflist has podgate's entry and the plugin is in place.
    pub fn has_entry(&self) -> bool {
        let text = fs::read_to_string(self.node.home(CONFLIST)).unwrap_or_default();
        text.contains("\"podgate\"") && self.node.home("bin/podgate").is_file()
    }

    /// An answer of this node's policyd.
    pub fn policyd(&self, path: &str) -> Result<Value> {
        policyd::get(&self.node.path(policyd::API), path)
    }
}

/// Whether the kubelet says that a pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The archive of podgate's image: PODGATE_IMAGE, or where `make image` puts it.
fn image() -> Result<PathBuf> {
    let exe = env::current_exe().context("find this test's own file")?;
    let given = env::var_os("PODGATE_IMAGE").map(PathBuf::from);
    let beside = exe.ancestors().map(|dir| dir.join("image/podgate.tar"));
    let mut places = given.into_iter().chain(beside);
    places.find(|path| path.is_file()).context(
        "find podgate's image: neither PODGATE_IMAGE nor image/podgate.tar in the target directory \
         (make image makes it)",
    )
}
