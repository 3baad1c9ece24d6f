//! The values of `--source`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use podgate_manifests::manifest::DIR_SOURCE;

use super::kubernetes::KUBERNETES_SOURCE;
use super::local::LOCAL_SOURCE;

/// One `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// `dir:PATH`: a directory of manifests.
    Dir(PathBuf),
    /// `kubernetes` or `kubernetes:PATH`: an API server, found by the cluster this pod runs in, by the
    /// user's kubeconfig, or by the one at this path.
    Kubernetes(Option<PathBuf>),
    /// `local`: none. Policies and rules are those that the API is given, and a pod is what the plugin says of it: its name and
    /// its addresses. No other source may stand beside it.
    Local,
}

/// A `--source` that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// An unknown kind of source.
    #[error(
        "unknown source {0:?}: write kubernetes, kubernetes:PATH (a kubeconfig), dir:PATH (a directory of manifests) or local (none)"
    )]
    Unknown(String),
    /// `dir:` without a path.
    #[error("source dir: lacks its directory: write dir:PATH")]
    NoPath,
    /// `kubernetes:` without a path.
    #[error("source kubernetes: lacks its kubeconfig: write kubernetes:PATH, or kubernetes alone")]
    NoKubeconfig,
}

impl FromStr for SourceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text == KUBERNETES_SOURCE {
            return Ok(Self::Kubernetes(None));
        }
        if text == LOCAL_SOURCE {
            return Ok(Self::Local);
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
            Self::Local => f.write_str(LOCAL_SOURCE),
            Self::Dir(path) => write!(f, "{DIR_SOURCE}:{}", path.display()),
        }
    }
}
