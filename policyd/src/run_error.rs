//! Why policyd cannot start or go on.

use std::io;
use std::net::SocketAddr;

use crate::cannot_enforce::Failure;
use crate::local_rules::LocalRulesError;
use crate::lock::LockError;
use crate::socket;
use crate::sources::kubernetes::ConnectError;
use crate::sources::local::LocalError;
use crate::writer::StartError;

/// policyd cannot start, or cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Opening the programs and maps failed.
    #[error(transparent)]
    Bpf(#[from] podgate_bpf::Error),
    /// The writer did not start.
    #[error(transparent)]
    Writer(#[from] StartError),
    /// A socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] socket::ListenError),
    /// The policies given to the API cannot be read.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The rules given to the API cannot be read.
    #[error(transparent)]
    LocalRules(#[from] LocalRulesError),
    /// Another source beside `local`.
    #[error("read --source: local stands for no source, and none may stand beside it")]
    NotAlone,
    /// The metrics' port cannot be bound.
    #[error("serve metrics on {addr}: {source}")]
    Metrics {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// A source's directory cannot be watched.
    #[error("watch source {name}: {source}")]
    Source {
        /// The source.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// A source's API server cannot be connected to.
    #[error("watch source {name}: {source}")]
    Connect {
        /// The source.
        name: String,
        /// The cause.
        source: ConnectError,
    },
    /// Another system call failed.
    #[error("{what}: {source}")]
    Io {
        /// "verb object".
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The pins cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A part that runs as long as policyd does has ended.
    #[error("run policyd: {0}; the policies in force stay, start it again")]
    Ended(String),
}

impl RunError {
    /// What keeps policyd from enforcing anything, if this is of that kind: it may go away while policyd waits.
    pub(crate) fn cannot_enforce(&self) -> Option<Failure> {
        match self {
            Self::Bpf(error) | Self::Writer(StartError::Maps(error)) => {
                Some(Failure::new(error.obstacle(), self))
            }
            _ => None,
        }
    }
}

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    let what = what.into();
    move |source| RunError::Io { what, source }
}
