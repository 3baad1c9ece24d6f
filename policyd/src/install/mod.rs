//! `policyd install` and `policyd uninstall`: podgate's entry in the node's CNI configuration, and its binary.
//!
//! ```text
//!   directory  what is in the runtime's directories
//!   libcni     what the runtimes' library makes of one file
//!   plugins    which versions of the protocol the plugins speak
//!   active     which of the files new pods get, by each runtime's rule
//!   conflist   text in, text out: the entry goes in and comes out, every other byte stays
//!   entry      what the entry says
//!   place      temp file, fsync, rename, fsync: nobody meets half a file
//!   pass       one look at the node, and what it takes to bring it where it should be
//!   state      the outcome, in a file that `policyd run` shows
//!   watch      looks again whenever something changes: the primary comes later, or writes its file anew
//!   uninstall  the way back, in an order that no packet notices: restore (configuration), unload (gates and pins),
//!              cached (does the runtime still need the binary?)
//!   bpffs      mount-bpffs, for nodes that have none
//! ```

mod active;
mod args;
mod bpffs;
mod cached;
mod conflist;
mod directory;
mod entry;
mod libcni;
mod lock;
mod pass;
mod place;
mod plugins;
mod restore;
mod state;
mod uninstall;
mod unload;
mod watch;

use std::io;

pub use active::{Active, Candidate, Choice, Rules, Runtime, Verdict};
pub use args::{Install, MountBpffs, Uninstall};
pub use bpffs::mount_bpffs;
pub use conflist::{Conflist, NotAConflist, VERSIONS, from_conf};
pub use directory::Directory;
pub use entry::{Entry, Level, OnTimeout, Startup};
pub use libcni::Library;
pub use pass::{Installer, Report, Standing};
pub use state::{NewPods, STATE_FILE, new_pods};
pub use uninstall::uninstall;
pub use watch::install;

/// The name of the plugin's binary, which is also its `type`.
pub const PLUGIN: &str = "podgate";

/// Installing or uninstalling has failed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file, directory or socket.
    #[error("{what}: {source}")]
    Io {
        /// "verb object".
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The plugin's binary does not run here.
    #[error("use plugin {path}: {reason}")]
    Plugin {
        /// The binary.
        path: String,
        /// What it did instead.
        reason: String,
    },
    /// The kernel's side.
    #[error(transparent)]
    Bpf(#[from] podgate_bpf::Error),
    /// Somebody else is at it.
    #[error("{0}")]
    Busy(String),
    /// The node is not as it should be, and nothing here can change that.
    #[error("install into {dir}: {reason}")]
    NotInForce {
        /// The configuration directory.
        dir: String,
        /// What is missing.
        reason: String,
    },
}

pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> InstallError {
    let what = what.into();
    move |source| InstallError::Io { what, source }
}
