//! What can go wrong between user space and the kernel's BPF side.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use nix::libc;

/// This crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// "verb object: cause", naming the map, path or interface.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// bpffs is not there or not usable.
    #[error("use {path} for pins: {reason}")]
    Bpffs {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Nobody has loaded the programs yet.
    #[error(
        "open pin {path}: not there (no podgate plugin or policyd has loaded the programs yet)"
    )]
    NotLoaded {
        /// The first missing pin.
        path: PathBuf,
    },
    /// A pinned map is not what this build needs.
    #[error("use pinned map {path}: its {field} is {found}, this build needs {wanted}")]
    Mismatch {
        /// The pin.
        path: PathBuf,
        /// Which property.
        field: &'static str,
        /// As pinned.
        found: u32,
        /// As compiled or configured.
        wanted: u32,
    },
    /// Something else is pinned under one of podgate's names.
    #[error(
        "use pin {path}: it is {found}, where podgate has {wanted}. Remove it if it is not podgate's (rm {path}), or \
         give podgate a bpfRoot of its own"
    )]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// What another layout's maps hold cannot be read; its gates stay in force.
    #[error(
        "read layout {dir}: {reason}. Its gates and the policies that they had stay in force; to be rid of them \
         run `policyd uninstall`"
    )]
    Layout {
        /// The layout's directory.
        dir: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Loading or verifying the programs, or making their maps, failed.
    #[error("load programs: {reason}")]
    Load {
        /// The kernel's errno, if the kernel refused.
        errno: Option<i32>,
        /// Kernel, cause and next step.
        reason: String,
    },
    /// This kernel does not take the programs of pods with limits; it has taken the others.
    #[error("load the programs of pods with limits (pods without are gated as ever): {0}")]
    Metered(Box<Error>),
    /// A system call on a file or pin failed.
    #[error("{verb} {object}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        object: String,
        /// Why not.
        source: io::Error,
    },
    /// A map has no room: the entry is not there, what the map held still is.
    #[error("write map {map}: full ({max_entries} entries)")]
    Full {
        /// The map.
        map: &'static str,
        /// Its capacity.
        max_entries: u32,
    },
    /// A size under which a map does not do what it is for.
    #[error("make map {map}: {size} entries are too few, it needs {least} at least")]
    TooSmall {
        /// The map.
        map: &'static str,
        /// As configured.
        size: u32,
        /// The bound.
        least: u32,
    },
    /// Attaching, detaching or asking about the gate of an interface failed.
    #[error("{verb} gate of interface {ifindex}: {reason}")]
    Attach {
        /// What was tried.
        verb: &'static str,
        /// The host veth.
        ifindex: u32,
        /// Why not.
        reason: String,
    },
    /// Text that does not fit the registry's record.
    #[error("register endpoint: {field} is {length} bytes, at most {limit} fit")]
    TooLong {
        /// Which.
        field: &'static str,
        /// Its length.
        length: usize,
        /// The room.
        limit: usize,
    },
    /// More addresses than the registry's record holds.
    #[error("register endpoint: {count} {family} addresses on one interface, at most {limit} fit")]
    TooManyAddresses {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// How many there are.
        count: usize,
        /// The room.
        limit: usize,
    },
    /// A flow between two families is none.
    #[error("seed flow between {pod} and {peer}: they are of different families")]
    Seed {
        /// The pod's side.
        pod: IpAddr,
        /// The other.
        peer: IpAddr,
    },
}

/// What keeps the datapath from being used: few, so that it can be a label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The kernel's verifier, or its map code, refuses the programs.
    Kernel,
    /// The process lacks a capability, or a security module or kernel lockdown forbids BPF.
    Permission,
    /// There is no memory for programs or maps.
    Memory,
    /// No BPF file system at `bpfRoot`, or one that cannot be written.
    Bpffs,
    /// Something else, or something of another size, is pinned under podgate's names.
    Pins,
    /// Anything else.
    Other,
}

impl Obstacle {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Kernel, Self::Permission, Self::Memory, Self::Bpffs, Self::Pins, Self::Other];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Permission => "permission",
            Self::Memory => "memory",
            Self::Bpffs => "bpffs",
            Self::Pins => "pins",
            Self::Other => "other",
        }
    }

    fn of_errno(errno: Option<i32>, otherwise: Self) -> Self {
        match errno {
            Some(libc::EPERM) => Self::Permission,
            Some(libc::ENOMEM) => Self::Memory,
            _ => otherwise,
        }
    }
}

impl Error {
    /// What keeps the datapath from being used, of an error of opening or loading it.
    pub fn obstacle(&self) -> Obstacle {
        match self {
            Self::Bpffs { .. } => Obstacle::Bpffs,
            Self::Mismatch { .. } | Self::Foreign { .. } | Self::Layout { .. } => Obstacle::Pins,
            // EACCES is the verifier's own word too
            Self::Load { errno, .. } => Obstacle::of_errno(*errno, Obstacle::Kernel),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::ReadOnlyFilesystem => Obstacle::Bpffs,
                io::ErrorKind::PermissionDenied => Obstacle::Permission,
                _ => Obstacle::of_errno(source.raw_os_error(), Obstacle::Other),
            },
            _ => Obstacle::Other,
        }
    }

    /// Wraps the last step of an operation on `object`.
    pub(crate) fn io(verb: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self::Io { verb, object: object.into(), source }
    }
}

/// An error with its causes, each once, for people: podgate's texts carry their cause already, others' may not.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(at) = cause {
        let part = at.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = at.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("watch source")]
    struct Bare(#[source] Error);

    #[test]
    fn an_obstacle_is_told_by_the_kernels_answer() {
        let load = |errno| Error::Load { errno: Some(errno), reason: String::new() }.obstacle();
        assert_eq!(load(libc::EACCES), Obstacle::Kernel);
        assert_eq!(load(libc::EINVAL), Obstacle::Kernel);
        assert_eq!(load(libc::EPERM), Obstacle::Permission);
        assert_eq!(load(libc::ENOMEM), Obstacle::Memory);
        let io = |errno| Error::io("make", "x", io::Error::from_raw_os_error(errno)).obstacle();
        assert_eq!(io(libc::EROFS), Obstacle::Bpffs);
        assert_eq!(io(libc::EACCES), Obstacle::Permission);
        assert_eq!(io(libc::ENOMEM), Obstacle::Memory);
        assert_eq!(io(libc::EIO), Obstacle::Other);
        let path = PathBuf::from("/x");
        assert_eq!(Error::NotLoaded { path }.obstacle(), Obstacle::Other);
    }

    #[test]
    fn a_chain_has_each_cause_once() {
        let refused = io::Error::other("refused");
        let error = Bare(Error::io("attach", "to eth0", refused));
        assert_eq!(error.0.to_string(), "attach to eth0: refused");
        assert_eq!(chain(&error), "watch source: attach to eth0: refused");
    }
}
