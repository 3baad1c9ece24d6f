//! Host ends of veths without a registration, with the pod's end of each, as the kernel has them now.
//!
//! The node's own links are listed first, which is one cheap request. Only if one of them is not registered are network
//! namespaces entered: those in libcni's cache and in the runtime's directories first, those of processes last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use podgate_link::hostlink::{self, Link};
use podgate_link::netns::{self, Route, Sandbox};

use super::sockets::Sockets;
use crate::cni_cache::{self, Attachment};

/// Where network namespaces and libcni's cache are.
#[derive(Clone, Debug)]
pub struct SearchPaths {
    /// libcni's directory, e.g. `/var/lib/cni`.
    pub cni_cache: PathBuf,
    /// Directories whose files are network namespaces.
    pub netns: Vec<PathBuf>,
}

/// The host end of a veth whose other end is in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Veth {
    /// The end in the node's namespace.
    pub(super) host: Link,
    /// The pod's end; `None` if no path to its network namespace was found.
    pub(super) pod_end: Option<PodEnd>,
}

/// The end in a pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodEnd {
    /// A path to its network namespace.
    pub(super) netns: PathBuf,
    /// Cookie of its network namespace, 0 if the kernel has no such cookies.
    pub(super) cookie: u64,
    /// Its hardware address.
    pub(super) mac: Option<[u8; 6]>,
    /// Its name there.
    pub(super) interface: String,
    /// Its addresses, without link-local ones.
    pub(super) addresses: Vec<IpAddr>,
    /// Its entry in libcni's cache.
    pub(super) attachment: Option<Attachment>,
}

/// Finds all veths whose host end's index is not in `known`.
pub(super) fn unregistered_veths(
    paths: &SearchPaths,
    known: &BTreeSet<u32>,
) -> Result<Vec<Veth>, netns::Error> {
    let here = Route::here()?;
    let mut veths: Vec<Veth> = here
        .links()?
        .into_iter()
        .filter(|link| hostlink::peer_index(link).is_ok() && !known.contains(&link.index))
        .map(|host| Veth { host, pod_end: None })
        .collect();
    if veths.is_empty() {
        return Ok(veths);
    }
    let attachments = cni_cache::attachments(&paths.cni_cache);
    let mut seen = BTreeSet::new();
    let of_cache = attachments.iter().flat_map(|attachment| attachment.netns.iter().cloned());
    let of_dirs = paths.netns.iter().flat_map(|dir| files(dir));
    for path in of_cache.chain(of_dirs).chain(of_processes()) {
        if veths.iter().all(|veth| veth.pod_end.is_some()) {
            break;
        }
        // many paths lead to one namespace, and most processes share the node's
        let Ok(meta) = fs::metadata(&path) else { continue };
        if seen.insert((meta.dev(), meta.ino())) {
            find_pod_ends(&path, &here, &mut veths, &attachments);
        }
    }
    Ok(veths)
}

/// Sets the pod's end of the veths that lead to this namespace. One that cannot be read may be gone by now.
fn find_pod_ends(path: &Path, here: &Route, veths: &mut [Veth], attachments: &[Attachment]) {
    let Ok(sandbox) = Sandbox::open(path) else { return };
    let Ok(Some(number)) = here.number_of(&sandbox) else { return };
    if veths.iter().all(|veth| veth.host.peer_netns != Some(number)) {
        return;
    }
    match read(&sandbox) {
        Ok((links, addresses, cookie)) => {
            for veth in veths.iter_mut().filter(|veth| veth.host.peer_netns == Some(number)) {
                let Some(link) = links.iter().find(|link| Some(link.index) == veth.host.peer)
                else {
                    continue;
                };
                if hostlink::confirm(link, Some(&veth.host), Some(number)).is_err() {
                    continue;
                }
                let is_entry = |attachment: &&Attachment| {
                    attachment.interfaces.contains(&link.name)
                        && attachment.netns.iter().any(|at| sandbox.is_at(&at.to_string_lossy()))
                };
                veth.pod_end = Some(PodEnd {
                    netns: path.to_owned(),
                    cookie,
                    mac: link.mac,
                    interface: link.name.clone(),
                    addresses: addresses.get(&link.index).cloned().unwrap_or_default(),
                    attachment: attachments.iter().find(is_entry).cloned(),
                });
            }
        }
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "cannot read a network namespace")
        }
    }
}

type Contents = (Vec<Link>, BTreeMap<u32, Vec<IpAddr>>, u64);

fn read(sandbox: &Sandbox) -> Result<Contents, netns::Error> {
    let (route, cookie) =
        on_own_thread(|| Route::inside(sandbox, podgate_bpf::current_netns_cookie))?;
    let links = route.links()?;
    let mut addresses = BTreeMap::new();
    for link in links.iter().filter(|link| hostlink::peer_index(link).is_ok()) {
        let mut found = route.addresses_of(link.index)?;
        found.retain(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        addresses.insert(link.index, found);
    }
    Ok((links, addresses, cookie))
}

/// The open sockets of a pod.
pub(super) fn sockets(netns: &Path) -> Result<Sockets, String> {
    let sandbox = Sandbox::open(netns).map_err(|e| e.to_string())?;
    on_own_thread(|| sandbox.run(Sockets::read))
        .map_err(|e| e.to_string())?
        .map_err(|e| format!("list sockets in {}: {e}", netns.display()))
}

/// Runs `work` on a new thread. The thread ends with it, so one that could not leave a pod's namespace does nothing more.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn files(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path())
}

/// The network namespaces of the processes in /proc. In a container without `hostPID` these are only the container's own.
fn of_processes() -> impl Iterator<Item = PathBuf> {
    files(Path::new("/proc"))
        .filter(|path| {
            path.file_name().is_some_and(|name| {
                name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
            })
        })
        .map(|path| path.join("ns/net"))
}
