//! The kubelet's side of CRI, as far as the tests need it: blocking, each call with a deadline.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatusRequest, CreateContainerRequest, ImageSpec,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListPodSandboxRequest, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StatusRequest, StopPodSandboxRequest,
    VersionRequest,
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::holder::HOME;
use super::image;

/// Enough for any call on a busy machine.
const RPC_TIMEOUT: Duration = Duration::from_secs(60);

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name, unique in the node.
    pub name: String,
    /// UID; differs between two pods of the same name.
    pub uid: String,
    /// What the kubelet passes on of the pod's annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Pod {
    /// A pod in the namespace `default`.
    pub fn new(name: &str) -> Self {
        Self {
            namespace: "default".into(),
            name: name.into(),
            uid: format!("uid-of-{name}"),
            annotations: BTreeMap::new(),
        }
    }

    /// With an annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Another pod with the same name.
    #[must_use]
    pub fn reborn(&self) -> Self {
        Self { uid: format!("{}-again", self.uid), ..self.clone() }
    }

    fn config(&self, cgroup: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: self.namespace.clone(),
                attempt: 0,
            }),
            hostname: self.name.clone(),
            annotations: self.annotations.clone().into_iter().collect(),
            log_directory: format!("{HOME}/logs/{}", self.uid),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{cgroup}"),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// A container's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Not yet.
    Running,
    /// With this exit code.
    Exited(i32),
}

/// One connection to a node's containerd. Each thread that calls makes its own.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
    cgroup: String,
}

impl Cri {
    /// Connects to the socket; pods made here have their cgroups below `cgroup`.
    pub(super) fn connect(socket: &Path, cgroup: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("make a runtime for CRI calls")?;
        let uri = format!("unix://{}", socket.display());
        let channel = runtime
            .block_on(async { Endpoint::from_shared(uri)?.connect().await })
            .with_context(|| format!("connect to {}", socket.display()))?;
        let client = RuntimeServiceClient::new(channel);
        Ok(Self { runtime, client, cgroup: cgroup.to_owned() })
    }

    /// Whether the runtime service answers.
    pub fn version(&mut self) -> Result<String, Status> {
        let request = within(VersionRequest::default(), RPC_TIMEOUT);
        let answer = self.runtime.block_on(self.client.version(request))?;
        Ok(answer.into_inner().runtime_version)
    }

    /// `None` if the network is ready, else why not.
    pub fn network_fault(&mut self) -> Result<Option<String>> {
        let request = within(StatusRequest::default(), RPC_TIMEOUT);
        let answer =
            self.runtime.block_on(self.client.status(request)).context("ask for status")?;
        let conditions = answer.into_inner().status.unwrap_or_default().conditions;
        let Some(network) = conditions.into_iter().find(|c| c.r#type == "NetworkReady") else {
            bail!("ask for status: no condition NetworkReady");
        };
        Ok((!network.status).then(|| format!("{}: {}", network.reason, network.message)))
    }

    /// RunPodSandbox: CNI ADD and the pause container. Returns the sandbox's id.
    pub fn run(&mut self, pod: &Pod) -> Result<String, Status> {
        self.run_within(pod, RPC_TIMEOUT)
    }

    /// [`Self::run`] by a caller that waits no longer than this.
    pub fn run_within(&mut self, pod: &Pod, limit: Duration) -> Result<String, Status> {
        let config = pod.config(&self.cgroup);
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let call = self.client.run_pod_sandbox(within(request, limit));
        Ok(self.runtime.block_on(call)?.into_inner().pod_sandbox_id)
    }

    /// StopPodSandbox: kills the containers, CNI DEL.
    pub fn stop(&mut self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let call = self.client.stop_pod_sandbox(within(request, RPC_TIMEOUT));
        self.runtime.block_on(call).map(done)
    }

    /// RemovePodSandbox: CNI DEL once more.
    pub fn remove(&mut self, id: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let call = self.client.remove_pod_sandbox(within(request, RPC_TIMEOUT));
        self.runtime.block_on(call).map(done)
    }

    /// Both, as the kubelet does when a pod is deleted.
    pub fn delete(&mut self, id: &str) -> Result<()> {
        self.stop(id).with_context(|| format!("stop pod {id}"))?;
        self.remove(id).with_context(|| format!("remove pod {id}"))
    }

    /// Every sandbox, also of pods that could not be run: what a kubelet cleans up by.
    pub fn sandboxes(&mut self) -> Result<Vec<String>> {
        let request = within(ListPodSandboxRequest::default(), RPC_TIMEOUT);
        let call = self.client.list_pod_sandbox(request);
        let answer = self.runtime.block_on(call).context("list pods")?;
        Ok(answer.into_inner().items.into_iter().map(|item| item.id).collect())
    }

    /// The live sandbox of a pod, if there is one.
    pub fn find(&mut self, namespace: &str, name: &str) -> Result<Option<String>> {
        let request = within(ListPodSandboxRequest::default(), RPC_TIMEOUT);
        let call = self.client.list_pod_sandbox(request);
        let answer = self.runtime.block_on(call).context("list pods")?;
        // SANDBOX_READY of the protocol
        let mut live = answer.into_inner().items.into_iter().filter(|item| item.state == 0);
        let found = live.find(|item| {
            let metadata = item.metadata.as_ref();
            metadata.is_some_and(|m| m.namespace == namespace && m.name == name)
        });
        Ok(found.map(|item| item.id))
    }

    /// The pod's first address.
    pub fn address(&mut self, id: &str) -> Result<IpAddr> {
        let status = self.sandbox(id, false)?.status.unwrap_or_default();
        let text = status.network.unwrap_or_default().ip;
        text.parse().with_context(|| format!("read address of pod {id}: {text:?}"))
    }

    /// The pause container's process id and the path of the network namespace, both as the node sees them.
    pub fn pause(&mut self, id: &str) -> Result<(i32, String)> {
        let answer = self.sandbox(id, true)?;
        let info = answer.info.get("info").map_or("", String::as_str);
        let info: serde_json::Value =
            serde_json::from_str(info).context("read the sandbox's verbose status")?;
        let pid = info["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let spaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let network = spaces.into_iter().flatten().find(|space| space["type"] == "network");
        match (pid, network.and_then(|space| space["path"].as_str())) {
            (Some(pid), Some(path)) => Ok((pid, path.to_owned())),
            _ => bail!("read the sandbox's verbose status: no pid or network namespace in {info}"),
        }
    }

    fn sandbox(
        &mut self,
        id: &str,
        verbose: bool,
    ) -> Result<k8s_cri::v1::PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose };
        let call = self.client.pod_sandbox_status(within(request, RPC_TIMEOUT));
        let answer = self.runtime.block_on(call).with_context(|| format!("ask about pod {id}"))?;
        Ok(answer.into_inner())
    }

    /// Creates and starts a container that runs `script` in busybox's shell; returns its id.
    pub fn start(&mut self, pod: &Pod, sandbox: &str, name: &str, script: &str) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image::NAME.to_owned(), ..Default::default() }),
            command: vec!["/bin/sh".into(), "-c".into(), script.to_owned()],
            log_path: format!("{name}.log"),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.config(&self.cgroup)),
        };
        let call = self.client.create_container(within(request, RPC_TIMEOUT));
        let container_id = self
            .runtime
            .block_on(call)
            .with_context(|| format!("create container {name}"))?
            .into_inner()
            .container_id;
        let request = StartContainerRequest { container_id: container_id.clone() };
        let call = self.client.start_container(within(request, RPC_TIMEOUT));
        self.runtime.block_on(call).with_context(|| format!("start container {name}"))?;
        Ok(container_id)
    }

    /// How a container does.
    pub fn container(&mut self, id: &str) -> Result<ContainerState> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let call = self.client.container_status(within(request, RPC_TIMEOUT));
        let answer = self.runtime.block_on(call).with_context(|| format!("ask about {id}"))?;
        let status = answer.into_inner().status.unwrap_or_default();
        // CONTAINER_EXITED of the protocol
        Ok(if status.state == 2 {
            ContainerState::Exited(status.exit_code)
        } else {
            ContainerState::Running
        })
    }
}

/// The deadline goes to the server, as the kubelet's does.
fn within<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn done<T>(_: Response<T>) {}
