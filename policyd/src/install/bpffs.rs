//! `policyd mount-bpffs`: a BPF file system for nodes whose init system mounts none.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::args::MountBpffs;
use super::{InstallError, failed};

/// Mounts one, if there is none. In a container the mount must be propagated to the node (`mountPropagation:
/// Bidirectional`).
pub fn mount_bpffs(args: &MountBpffs) -> Result<(), InstallError> {
    let at = &args.at;
    let is_there = |at: &Path| {
        statfs(at)
            .map(|found| found.filesystem_type() == BPF_FS_MAGIC)
            .map_err(|e| failed(format!("examine {}", at.display()))(e.into()))
    };
    if is_there(at)? {
        tracing::info!(at = %at.display(), "a BPF file system is there");
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), at, Some("bpf"), flags, Some("mode=0700")).map_err(|e| {
        failed(format!("mount a BPF file system at {} (needs CAP_SYS_ADMIN)", at.display()))(
            io::Error::from(e),
        )
    })?;
    tracing::info!(at = %at.display(), "mounted a BPF file system");
    Ok(())
}
