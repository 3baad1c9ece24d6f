//! What `--source` means.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::kubernetes::KUBERNETES_SOURCE;
use super::manifest::DIR_SOURCE;

/// One `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// `dir:PATH`: a directory of manifests.
    Dir(PathBuf),
    /// `kubernetes` or `kubernetes:PATH`: an API server, found by the cluster this pod runs in, by the
    /// user's kubeconfig, or by the one at this path.
    Kubernetes(Option<PathBuf>),
}

/// A `--source` that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No such kind.
    #[error(
        "unknown source {0:?}: write kubernetes, kubernetes:PATH (a kubeconfig) or dir:PATH (a directory of manifests)"
    )]
    Unknown(String),
    /// `dir:` alone.
    #[error("source dir: lacks its directory: write dir:PATH")]
    NoPath,
    /// `kubernetes:` with nothing behind it.
    #[error("source kubernetes: lacks its kubeconfig: write kubernetes:PATH, or kubernetes alone")]
    NoKubeconfig,
}

impl FromStr for SourceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text == KUBERNETES_SOURCE {
            return Ok(Self::Kubernetes(None));
        }
        match text.split_once(':') {
            Some((KUBERNETES_SOURCE, "")) => Err(SpecError::NoKubeconfig),
            Some((KUBERNETES_SOURCE, path)) => Ok(Self::Kubernetes(Some(path.into()))),
            Some((DIR_SOURCE, "")) => Err(SpecError::NoPath),
            Some((DIR_SOURCE, path)) => Ok(Self::Dir(path.into())),
            _ => Err(SpecError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes(None) => f.write_str(KUBERNETES_SOURCE),
            Self::Kubernetes(Some(path)) => write!(f, "{KUBERNETES_SOURCE}:{}", path.display()),
            Self::Dir(path) => write!(f, "{DIR_SOURCE}:{}", path.display()),
        }
    }
}
