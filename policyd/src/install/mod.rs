//! `policyd install` and `policyd uninstall`: podgate's entry in the node's CNI configuration, and its binary.
//!
//! ```text
//!   directory    reads the runtime's directories
//!   libcni       what the runtimes' library makes of one file
//!   plugins      which versions of the protocol the plugins support
//!   active       which of the files new pods get, by each runtime's rule
//!   conflist     adds the entry to a conflist's text and removes it, keeping every other byte
//!   entry        the content of the entry
//!   readiness    policyd's state, and what to do with the entry in it
//!   bandwidth    conflict with the bandwidth plugin in the same list
//!   atomic_file  temporary file, fsync, rename, fsync
//!   reconcile    compares the directories with what they should hold, and edits them
//!   state        the outcome, in a file that `policyd run` reads
//!   watch        reconciles whenever something changes: the primary plugin's file comes later, or is written again
//!   uninstall    removes everything without losing a packet: restore (configuration), unload (gates and pins)
//!   bpffs        mount-bpffs, for nodes without a BPF file system
//! ```

mod active;
mod args;
mod atomic_file;
mod bandwidth;
mod bpffs;
mod conflist;
mod directory;
mod entry;
mod libcni;
mod plugins;
mod readiness;
mod reconcile;
mod restore;
mod state;
mod uninstall;
mod unload;
mod watch;

use std::io;

use crate::lock::LockError;

pub use active::{Active, Candidate, Choice, Rules, Runtime, Verdict};
pub use args::{Install, MountBpffs, Uninstall};
pub use bpffs::mount_bpffs;
pub use conflist::{Conflist, NotAConflist, VERSIONS, from_conf};
pub use directory::Directory;
pub use entry::Entry;
pub use libcni::Library;
pub use reconcile::{Edit, InstallState, Installer, Report};
pub use state::{STATE_FILE, new_pods};
pub use uninstall::uninstall;
pub use watch::install;

/// Installing or uninstalling has failed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// An operation on a file, directory or socket failed.
    #[error("{what}: {source}")]
    Io {
        /// "verb object".
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The plugin's binary does not run here.
    #[error("use plugin {path}: {reason}")]
    Plugin {
        /// The binary.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// Loading, attaching or removing gates failed.
    #[error(transparent)]
    Bpf(#[from] podgate_bpf::Error),
    /// Another process holds the lock, or keeps writing the files.
    #[error("{0}")]
    Busy(String),
    /// New pods get no gate, and this program cannot change that.
    #[error("install into {dir}: {reason}")]
    NotInForce {
        /// The configuration directory.
        dir: String,
        /// What is missing.
        reason: String,
    },
}

impl From<LockError> for InstallError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Held { .. } => Self::Busy(error.to_string()),
            LockError::Io { what, source } => Self::Io { what, source },
        }
    }
}

pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> InstallError {
    let what = what.into();
    move |source| InstallError::Io { what, source }
}
