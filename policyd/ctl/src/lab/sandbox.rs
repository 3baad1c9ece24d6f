//! A network namespace with a name in the lab's own /run/netns, and work done inside it.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::error::{Error, Result};

/// Where namespaces get their names; a tmpfs of the lab, not the machine's.
const NAMES: &str = "/run/netns";

/// A network namespace. It lives as long as its name is mounted, that is: as long as the lab.
#[derive(Debug)]
pub(crate) struct Sandbox {
    path: PathBuf,
    file: File,
}

impl Sandbox {
    /// A new namespace with `lo` still down.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let path = Path::new(NAMES).join(name);
        fs::create_dir_all(NAMES).map_err(|e| Error::io("create directory", NAMES, e))?;
        File::create_new(&path).map_err(|e| Error::io("create", path.display().to_string(), e))?;
        let none: Option<&Path> = None;
        let target = path.clone();
        // a thread of its own: it leaves the node's namespace for good and then ends
        on_a_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::io("make", "a network namespace", e))?;
            mount(Some("/proc/thread-self/ns/net"), &target, none, MsFlags::MS_BIND, none)
                .map_err(|e| Error::io("name namespace", target.display().to_string(), e))
        })?;
        let file =
            File::open(&path).map_err(|e| Error::io("open", path.display().to_string(), e))?;
        let made = Self { path, file };
        made.inside(prepare)??;
        Ok(made)
    }

    /// The path that CNI_NETNS names.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it makes stay in the namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::io("enter", self.path.display().to_string(), e))?;
            Ok(work())
        })
    }
}

impl AsFd for Sandbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A thread that ends before this returns: whatever namespace it went into, nobody else is left there,
/// not even after a panic.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| {
            Err(Error::Layout("a thread that was inside a namespace panicked".into()))
        })
    })
}

/// Settings of the namespace that the calling thread is in: made for probing, with nothing to wait for.
pub(super) fn prepare() -> Result<()> {
    for (name, value) in [
        // an address is usable at once, not after a second of duplicate address detection
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        // echo requests without a raw socket
        ("net/ipv4/ping_group_range", "0 2147483647"),
        // hundreds of probes in a second are no flood
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
    ] {
        set(name, value)?;
    }
    Ok(())
}

/// Lets the namespace that the calling thread is in forward packets.
pub(super) fn forward() -> Result<()> {
    for (name, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/default/forwarding", "1"),
        // two subnets on one bridge: a redirect would send pods past the node next time
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ] {
        set(name, value)?;
    }
    Ok(())
}

fn set(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    match fs::write(&path, value) {
        // a kernel without IPv6 has no such settings; worlds with IPv6 addresses fail later, by name
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && name.starts_with("net/ipv6") => {
            Ok(())
        }
        other => other.map_err(|e| Error::io("set", path.display().to_string(), e)),
    }
}

/// The prefix length of a single address.
pub(super) fn host_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
