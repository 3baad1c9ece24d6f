//! The real libcni, for the verbs that no container runtime calls yet: its own cnitool, and for GC, to which
//! cnitool gives no list, a program of ours (`tests/libcni`).

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use super::cri::Pod;
use super::holder::HOME;
use super::node::Node;
use super::program::{run, said};
use crate::go::go_tools;

/// The Go module with our program, which also says which libcni and cnitool.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/libcni");

/// One attachment of one network, as cnitool knows it.
#[derive(Debug)]
pub struct Cnitool<'a> {
    node: &'a Node,
    tools: PathBuf,
    netns: String,
    network: String,
    arguments: String,
}

impl<'a> Cnitool<'a> {
    /// Makes the network namespace `name` in the node, for the network `network` of its configuration.
    pub fn new(node: &'a Node, name: &str, network: &str) -> Result<Self> {
        node.run("ip", &["netns", "add", name])?;
        node.run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        let netns = format!("/run/netns/{name}");
        let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=tool";
        let arguments = arguments.to_owned();
        Ok(Self { node, tools: built()?, netns, network: network.to_owned(), arguments })
    }

    /// As containerd calls for this pod.
    #[must_use]
    pub fn for_pod(self, pod: &Pod) -> Self {
        let Pod { namespace, name, uid, .. } = pod;
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}"
        );
        Self { arguments, ..self }
    }

    /// As podman calls: it knows no Kubernetes namespace and no UID.
    #[must_use]
    pub fn like_podman(self) -> Self {
        Self { arguments: "IgnoreUnknown=1;K8S_POD_NAME=tool".to_owned(), ..self }
    }

    /// Path of its network namespace, in the node.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Calls a verb; fails, with what cnitool said, unless it succeeds.
    pub fn call(&self, verb: &str) -> Result<String> {
        let output = self.output(verb)?;
        if !output.status.success() {
            bail!("cnitool {verb}: {}", said(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Calls a verb that must fail; returns what cnitool said.
    pub fn refused(&self, verb: &str) -> Result<String> {
        let output = self.output(verb)?;
        if output.status.success() {
            bail!("cnitool {verb} succeeds: {}", said(&output));
        }
        Ok(said(&output))
    }

    /// GC with the attachments that are still valid, each `container id/interface`.
    pub fn gc(&self, valid: &[String]) -> Result<()> {
        let mut command = self.command("libcni-gc");
        command.arg(format!("{HOME}/conf")).arg(&self.network).args(valid);
        run(command).map(drop)
    }

    fn output(&self, verb: &str) -> Result<Output> {
        self.command("cnitool")
            .args([verb, &self.network, &self.netns])
            .env("NETCONFPATH", format!("{HOME}/conf"))
            .env("CNI_ARGS", &self.arguments)
            .output()
            .with_context(|| format!("run cnitool {verb}"))
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = self.node.command(self.tools.join(tool));
        command.env("CNI_PATH", format!("{HOME}/bin"));
        command
    }
}

/// Builds both, which is quick when that has been done; returns where they are.
fn built() -> Result<PathBuf> {
    static TOOLS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || go_tools(MODULE, &[".", "github.com/containernetworking/cni/cnitool"]);
    let tools = TOOLS.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    tools.clone().map_err(|error| anyhow::anyhow!("{error}"))
}
