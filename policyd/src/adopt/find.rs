//! Host ends of veths that nobody has gated, and what is behind them: what the kernel has now.
//!
//! First the node's own links, which is one cheap question; only if one of them is not registered are network
//! namespaces looked into, those that the runtime's directories name first, those of processes last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use podgate_bpf::hostlink::{self, Link};
use podgate_bpf::netns::{self, Route, Sandbox};

use super::cache::{self, Attachment};
use super::sockets::Sockets;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// libcni's cache.
    pub cni_cache: PathBuf,
    /// Directories whose files are network namespaces.
    pub netns: Vec<PathBuf>,
}

/// The host end of a veth whose other end is in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Veth {
    /// Here.
    pub(super) host: Link,
    /// There; `None` if no path leads there.
    pub(super) inside: Option<Inside>,
}

/// The other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    /// A path of its network namespace.
    pub(super) netns: PathBuf,
    /// The namespace's, 0 if the kernel has none.
    pub(super) cookie: u64,
    /// Its hardware address.
    pub(super) mac: Option<[u8; 6]>,
    /// Its name.
    pub(super) interface: String,
    /// Its addresses, but for link-local ones.
    pub(super) addresses: Vec<IpAddr>,
    /// libcni's note of it.
    pub(super) attachment: Option<Attachment>,
}

/// Finds all but those whose index is `known`.
pub(super) fn ungated(places: &Places, known: &BTreeSet<u32>) -> Result<Vec<Veth>, netns::Error> {
    let here = Route::here()?;
    let mut veths: Vec<Veth> = here
        .links()?
        .into_iter()
        .filter(|link| hostlink::peer_index(link).is_ok() && !known.contains(&link.index))
        .map(|host| Veth { host, inside: None })
        .collect();
    if veths.is_empty() {
        return Ok(veths);
    }
    let attachments = cache::read(&places.cni_cache);
    let mut seen = BTreeSet::new();
    let of_cache = attachments.iter().flat_map(|attachment| attachment.netns.iter().cloned());
    let of_dirs = places.netns.iter().flat_map(|dir| files(dir));
    for path in of_cache.chain(of_dirs).chain(of_processes()) {
        if veths.iter().all(|veth| veth.inside.is_some()) {
            break;
        }
        // many paths lead to one namespace, and most processes share the node's
        let Ok(meta) = fs::metadata(&path) else { continue };
        if seen.insert((meta.dev(), meta.ino())) {
            look_inside(&path, &here, &mut veths, &attachments);
        }
    }
    Ok(veths)
}

/// Finds the inner ends of those that lead there. A namespace that cannot be read may have gone meanwhile.
fn look_inside(path: &Path, here: &Route, veths: &mut [Veth], attachments: &[Attachment]) {
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
                let is_its = |attachment: &&Attachment| {
                    attachment.interfaces.contains(&link.name)
                        && attachment.netns.iter().any(|at| sandbox.is_at(&at.to_string_lossy()))
                };
                veth.inside = Some(Inside {
                    netns: path.to_owned(),
                    cookie,
                    mac: link.mac,
                    interface: link.name.clone(),
                    addresses: addresses.get(&link.index).cloned().unwrap_or_default(),
                    attachment: attachments.iter().find(is_its).cloned(),
                });
            }
        }
        Err(error) => tracing::debug!(path = %path.display(), %error, "cannot look inside"),
    }
}

type Contents = (Vec<Link>, BTreeMap<u32, Vec<IpAddr>>, u64);

fn read(sandbox: &Sandbox) -> Result<Contents, netns::Error> {
    let (route, cookie) = apart(|| Route::inside(sandbox))?;
    let links = route.links()?;
    let mut addresses = BTreeMap::new();
    for link in links.iter().filter(|link| hostlink::peer_index(link).is_ok()) {
        let mut found = route.addresses_of(link.index)?;
        found.retain(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        addresses.insert(link.index, found);
    }
    Ok((links, addresses, cookie))
}

/// The sockets of a pod.
pub(super) fn sockets(netns: &Path) -> Result<Sockets, String> {
    let sandbox = Sandbox::open(netns).map_err(|e| e.to_string())?;
    apart(|| sandbox.run(Sockets::read))
        .map_err(|e| e.to_string())?
        .map_err(|e| format!("list sockets in {}: {e}", netns.display()))
}

/// On a thread of its own, which ends with it: one that could not leave a pod's namespace must do nothing more.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn files(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path())
}

/// Those of the processes that can be seen from here, which in a container without `hostPID` are its own.
fn of_processes() -> impl Iterator<Item = PathBuf> {
    files(Path::new("/proc"))
        .filter(|path| {
            path.file_name().is_some_and(|name| {
                name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
            })
        })
        .map(|path| path.join("ns/net"))
}
