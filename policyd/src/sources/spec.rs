//! What `--source` means.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::manifest::DIR_SOURCE;

/// One `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// `dir:PATH`: a directory of manifests.
    Dir(PathBuf),
}

/// A `--source` that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No such kind.
    #[error("unknown source {0:?}: write dir:PATH, a directory of manifests")]
    Unknown(String),
    /// `dir:` alone.
    #[error("source dir: lacks its directory: write dir:PATH")]
    NoPath,
}

impl FromStr for SourceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text.split_once(':') {
            Some((DIR_SOURCE, "")) => Err(SpecError::NoPath),
            Some((DIR_SOURCE, path)) => Ok(Self::Dir(path.into())),
            _ => Err(SpecError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "{DIR_SOURCE}:{}", path.display()),
        }
    }
}
