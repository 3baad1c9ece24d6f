//! A pod whose container runtime is the test: it calls each plugin of the chain in order, as libcni does.

use std::io::Write;
use std::net::IpAddr;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use podgate_tests::runtime::holder::HOME;
use podgate_tests::runtime::program::said;
use podgate_tests::runtime::world::World;
use podgate_tests::runtime::{Conflist, Node, Pod};
use serde_json::{Value, json};

/// A network namespace, and the chain that attaches it.
pub struct ChainedPod<'a> {
    node: &'a Node,
    chain: Value,
    /// As the cluster knows it.
    pub pod: Pod,
    /// Path of its network namespace, in the node.
    pub netns: String,
    /// What the last plugin of the chain printed at ADD.
    result: Option<Value>,
}

impl<'a> ChainedPod<'a> {
    /// A new namespace; nothing is attached yet.
    pub fn new(node: &'a Node, name: &str, conflist: &Conflist) -> Result<Self> {
        node.run("ip", &["netns", "add", name])?;
        node.run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        let netns = format!("/run/netns/{name}");
        Ok(Self { node, chain: conflist.json(), pod: Pod::new(name), netns, result: None })
    }

    /// A pod of `app` that is attached, and that the cluster knows with its address.
    pub fn run(
        node: &'a Node,
        world: &World,
        name: &str,
        app: &str,
        conflist: &Conflist,
    ) -> Result<Self> {
        let mut pod = Self::new(node, name, conflist)?;
        world.pod(&pod.pod, app, None)?;
        pod.add()?;
        world.pod(&pod.pod, app, Some(pod.address()?))?;
        Ok(pod)
    }

    /// Calls ADD of every plugin. As a runtime does, a failure is followed by DEL of the whole chain.
    pub fn add(&mut self) -> Result<()> {
        for plugin in self.plugins() {
            match self.call("ADD", &plugin, self.result.as_ref()) {
                Ok(printed) => {
                    let result = serde_json::from_str(&printed);
                    self.result = Some(result.with_context(|| format!("read {printed:?}"))?);
                }
                Err(error) => {
                    self.delete()?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Calls CHECK of every plugin.
    pub fn check(&self) -> Result<()> {
        for plugin in self.plugins() {
            self.call("CHECK", &plugin, self.result.as_ref())?;
        }
        Ok(())
    }

    /// Calls DEL of every plugin, the last one first.
    pub fn delete(&mut self) -> Result<()> {
        for plugin in self.plugins().iter().rev() {
            self.call("DEL", plugin, self.result.as_ref())?;
        }
        self.result = None;
        Ok(())
    }

    /// DEL, and the end of its namespace; the cluster forgets it.
    pub fn end(mut self, world: &World) -> Result<()> {
        self.delete()?;
        self.node.run("ip", &["netns", "del", &self.pod.name])?;
        world.remove_pod(&self.pod)
    }

    /// The address that the chain gave it.
    pub fn address(&self) -> Result<IpAddr> {
        let address = self.result.as_ref().and_then(|result| result["ips"][0]["address"].as_str());
        let address = address.context("the pod has no address")?;
        Ok(address.split('/').next().unwrap_or_default().parse()?)
    }

    fn plugins(&self) -> Vec<Value> {
        self.chain["plugins"].as_array().cloned().unwrap_or_default()
    }

    fn call(&self, verb: &str, plugin: &Value, previous: Option<&Value>) -> Result<String> {
        let kind = plugin["type"].as_str().context("the plugin has no type")?;
        let mut conf = plugin.clone();
        conf["cniVersion"] = self.chain["cniVersion"].clone();
        conf["name"] = self.chain["name"].clone();
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        let Pod { namespace, name, uid } = &self.pod;
        let mut child = self
            .node
            .command(format!("{HOME}/bin/{kind}"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("container-{name}"))
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", format!("{HOME}/bin"))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}"
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {kind}"))?;
        let mut stdin = child.stdin.take().context("write to the plugin")?;
        stdin.write_all(conf.to_string().as_bytes()).context("write to the plugin")?;
        drop(stdin);
        let output = child.wait_with_output().with_context(|| format!("wait for {kind}"))?;
        ensure!(output.status.success(), "{verb} of {kind} for {name}: {}", said(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A service of the pods of `app`: each of `ports` is its protocol, its port, and the pods' port.
pub fn service(node: &Node, app: &str, address: &str, ports: &[(&str, u16, u16)]) -> Result<()> {
    let ports: Vec<_> = ports
        .iter()
        .map(|(protocol, port, target)| {
            json!({
                "name": format!("{}-{port}", protocol.to_lowercase()),
                "protocol": protocol,
                "port": port,
                "targetPort": target,
            })
        })
        .collect();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": "default", "name": app },
        "spec": { "clusterIP": address, "selector": { "app": app }, "ports": ports },
    });
    node.write(&format!("manifests/service-{app}.json"), service.to_string().as_bytes())
}
