//! Requests of tests to the API server: present objects, and waiting for them. What a user would do (apply,
//! label, delete) goes through kubectl instead.

use std::fmt::Debug;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;

use crate::runtime::Node;
use crate::runtime::node::in_namespace;

/// The cluster's administrator, without kubectl.
#[derive(Clone, Debug)]
pub struct Admin {
    kubeconfig: PathBuf,
    netns: PathBuf,
}

impl Admin {
    /// With the kubeconfig and the network of the control plane's node.
    pub fn of(node: &Node) -> Self {
        Self {
            kubeconfig: node.home("admin.kubeconfig"),
            netns: PathBuf::from(format!("/proc/{}/ns/net", node.pid())),
        }
    }

    /// Runs some calls with a client of their own, in the network where the API server is.
    pub fn call<T: Send>(&self, work: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        in_namespace(&self.netns, || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("make a runtime for API calls")?;
            runtime.block_on(async { work(self.client().await?).await })
        })?
    }

    async fn client(&self) -> Result<Client> {
        let file = Kubeconfig::read_from(&self.kubeconfig).context("read the kubeconfig")?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        Client::try_from(config.context("understand the kubeconfig")?).context("make a client")
    }

    /// What a path answers, as text.
    pub fn raw(&self, path: &str) -> Result<String> {
        self.call(async |client| {
            let request = http::Request::get(path).body(Vec::new())?;
            Ok(client.request_text(request).await?)
        })
        .with_context(|| format!("ask the API server for {path}"))
    }

    /// All objects of a kind in a namespace.
    pub fn list<K>(&self, namespace: &str) -> Result<Vec<K>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send,
        K::DynamicType: Default,
    {
        self.call(async |client| {
            let api: Api<K> = Api::namespaced(client, namespace);
            Ok(api.list(&ListParams::default()).await?.items)
        })
        .with_context(|| format!("list objects of namespace {namespace}"))
    }
}
