//! How the API server is found.

use std::path::{Path, PathBuf};

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// The API server cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// `kubernetes` alone, and nothing says which cluster.
    #[error(
        "find the API server: not in a pod ({in_cluster}), and no kubeconfig ({kubeconfig}); \
         run policyd as a pod or write kubernetes:PATH, a kubeconfig file"
    )]
    Nowhere {
        /// Why it is not that of the cluster this runs in.
        in_cluster: Box<InClusterError>,
        /// Why not the user's.
        kubeconfig: Box<KubeconfigError>,
    },
    /// The file that was named.
    #[error("read kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The path of the file.
        path: PathBuf,
        /// Why not.
        source: Box<KubeconfigError>,
    },
    /// What was read is no use.
    #[error("set up a client of the API server: {0}")]
    Client(Box<kube::Error>),
}

/// A client. Does not ask the server anything yet: that it is away is no error.
pub(super) async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path).await.map_err(|source| ConnectError::Kubeconfig {
            path: path.to_owned(),
            source: Box::new(source),
        })?,
        None => inferred().await?,
    };
    // the watches wait by themselves, and know when not to
    config.default_retry = false;
    Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
}

async fn from_file(path: &Path) -> Result<Config, KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

/// Of the cluster that this pod runs in; a kubeconfig that happens to lie around must not win over that.
async fn inferred() -> Result<Config, ConnectError> {
    let in_cluster = match Config::incluster() {
        Ok(config) => return Ok(config),
        Err(error) => Box::new(error),
    };
    let options = KubeConfigOptions::default();
    Config::from_kubeconfig(&options).await.map_err(|kubeconfig| ConnectError::Nowhere {
        in_cluster,
        kubeconfig: Box::new(kubeconfig),
    })
}
