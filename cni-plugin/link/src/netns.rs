//! Link and address data, from inside a pod's network namespace and from the node's.
//!
//! The thread enters the pod's namespace only to open a netlink socket, which keeps belonging to it, and returns;
//! the socket is then used from the node's namespace. In the plugin it is the main thread of a process that
//! does this once, before anything is changed, and ends if it cannot come back. A thread of its own would
//! cost ADD a tenth of its CPU and half its wall time on a busy node (it has to be scheduled, twice).

use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netns_rs::{NetNs, get_from_current_thread, get_from_path};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::hostlink::Link;
use crate::netlink::Netlink;

/// Reading the namespaces failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is no network namespace, or it cannot be entered.
    #[error("use network namespace {path}: {reason}")]
    Netns {
        /// Its path, e.g. CNI_NETNS.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A netlink request failed.
    #[error("{verb}: {cause}")]
    Netlink {
        /// What was requested.
        verb: String,
        /// The kernel's error, or what is wrong with its response.
        cause: String,
    },
}

/// A pod's network namespace, checked: it exists, is one, and is not the plugin's own.
#[derive(Debug)]
pub struct Sandbox {
    netns: NetNs,
    path: PathBuf,
}

impl Sandbox {
    /// Opens CNI_NETNS. What is checked here is what later calls use: the open file, not the path.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |reason: String| Error::Netns { path: path.to_owned(), reason };
        // O_PATH only finds the file: to open a FIFO waits for its other end, to open a device may start something
        let found = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_PATH)
            .open(path)
            .map_err(|e| fail(e.to_string()))?;
        let kind = fstatfs(&found).map_err(|e| fail(e.desc().into()))?;
        if kind.filesystem_type() != NSFS_MAGIC {
            return Err(fail("the file is no namespace".into()));
        }
        // the file that was found, even if the path leads to another one by now
        let found = format!("/proc/self/fd/{}", found.as_raw_fd());
        let netns = get_from_path(found).map_err(|e| fail(cause_of(&e)))?;
        let own = get_from_current_thread().map_err(|e| fail(cause_of(&e)))?;
        if netns == own {
            return Err(fail(
                "it is the caller's own, so the pod shares the node's network".into(),
            ));
        }
        Ok(Self { netns, path: path.to_owned() })
    }

    /// Runs something on this thread, inside. An error may mean that the thread could not come back: then it has to
    /// end without touching anything more. A process of many threads uses one made for this.
    pub fn run<T>(&self, inside: impl FnOnce() -> T) -> Result<T, Error> {
        self.netns.run(|_| inside()).map_err(|e| Error::Netns {
            path: self.path.clone(),
            reason: format!("enter it: {}", cause_of(&e)),
        })
    }

    /// Device and inode: the same for every path that leads to this namespace.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        self.netns.file().metadata().map(|m| (m.dev(), m.ino()))
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a path, as a result spells it, leads to this namespace.
    pub fn is_at(&self, path: &str) -> bool {
        let identity = |m: &std::fs::Metadata| (m.dev(), m.ino());
        Path::new(path) == self.path
            || matches!(
                (std::fs::metadata(path), self.netns.file().metadata()),
                (Ok(found), Ok(own)) if identity(&found) == identity(&own)
            )
    }
}

/// Without the path, which [`Error::Netns`] names already.
fn cause_of(error: &netns_rs::Error) -> String {
    match error {
        netns_rs::Error::OpenNsError(_, cause) => cause.to_string(),
        netns_rs::Error::SetnsError(cause) => cause.desc().to_owned(),
        other => other.to_string(),
    }
}

/// A route socket in some network namespace.
#[derive(Debug)]
pub struct Route {
    netlink: Netlink,
}

fn netlink_error(verb: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    |cause| Error::Netlink { verb: verb.into(), cause: cause.to_string() }
}

impl Route {
    /// Opens one in the calling thread's own namespace.
    pub fn here() -> Result<Self, Error> {
        let netlink = Netlink::open(NETLINK_ROUTE).map_err(netlink_error("open netlink socket"))?;
        Ok(Self { netlink })
    }

    /// Opens one in the pod's namespace and runs `also` there, e.g. to read the namespace's cookie: one entry for both.
    pub fn inside<T>(sandbox: &Sandbox, also: impl FnOnce() -> T) -> Result<(Self, T), Error> {
        let (route, found) = sandbox.run(|| (Self::here(), also()))?;
        Ok((route?, found))
    }

    /// A link by its name; `None` if there is none.
    pub fn link_named(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = link_request();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.link(message, &format!("read interface {name}"))
    }

    /// A link by its index; `None` if there is none.
    pub fn link_numbered(&self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = link_request();
        message.header.index = index;
        self.link(message, &format!("read interface {index}"))
    }

    fn link(&self, message: LinkMessage, verb: &str) -> Result<Option<Link>, Error> {
        match self.netlink.get(RouteNetlinkMessage::GetLink(message)) {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link_data(link))),
            Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Ok(other) => Err(unexpected(verb, &other)),
            Err(e) => Err(netlink_error(verb)(e)),
        }
    }

    /// All links of the namespace.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        let found = self
            .netlink
            .list(RouteNetlinkMessage::GetLink(link_request()))
            .map_err(netlink_error("list interfaces"))?;
        Ok(found
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(link_data(link)),
                _ => None,
            })
            .collect())
    }

    /// The addresses of an interface.
    pub fn addresses_of(&self, index: u32) -> Result<Vec<IpAddr>, Error> {
        self.addresses(|message| message.header.index == index)
    }

    /// All addresses of the namespace.
    pub fn all_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        self.addresses(|_| true)
    }

    fn addresses(&self, wanted: impl Fn(&AddressMessage) -> bool) -> Result<Vec<IpAddr>, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let found = self.netlink.list(request).map_err(netlink_error("read addresses"))?;
        let address = |message| match message {
            RouteNetlinkMessage::NewAddress(message) if wanted(&message) => address_data(&message),
            _ => None,
        };
        Ok(found.into_iter().filter_map(address).collect())
    }

    /// The number of the pod's namespace in this one; `None` if it has none.
    pub fn number_of(&self, sandbox: &Sandbox) -> Result<Option<i32>, Error> {
        let mut message = NsidMessage::default();
        let fd = sandbox.netns.file().as_fd().as_raw_fd();
        message.attributes.push(NsidAttribute::Fd(fd.unsigned_abs()));
        let verb = "read number of the pod's network namespace";
        match self.netlink.get(RouteNetlinkMessage::GetNsId(message)) {
            Ok(RouteNetlinkMessage::NewNsId(found)) => {
                Ok(found.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                }))
            }
            Ok(other) => Err(unexpected(verb, &other)),
            Err(e) => Err(netlink_error(verb)(e)),
        }
    }
}

fn unexpected(verb: &str, answer: &RouteNetlinkMessage) -> Error {
    Error::Netlink { verb: verb.to_owned(), cause: format!("unexpected answer {answer:?}") }
}

/// Without the counters, which are half of a link's attributes and not needed here.
fn link_request() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn link_data(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        peer: None,
        peer_netns: None,
        mac: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(id),
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// IFA_LOCAL where there is one: on a point-to-point link IFA_ADDRESS is the other side's.
fn address_data(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => return Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_other_namespace_is_refused() {
        for (path, reason) in [
            ("/proc/self/ns/net", "shares the node's network"),
            ("/proc/self/status", "no namespace"),
            ("/nowhere/at/all", "No such file"),
        ] {
            let error = Sandbox::open(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(reason), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let (fifo, socket) = (dir.path().join("fifo"), dir.path().join("socket"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [fifo.as_path(), &socket, dir.path(), Path::new("/dev/zero")] {
            let error = Sandbox::open(path).unwrap_err().to_string();
            let named = path.display().to_string();
            assert!(error.contains(&named) && error.contains("no namespace"), "{error}");
        }
        // a namespace of another kind is found out on entering
        let sandbox = Sandbox::open(Path::new("/proc/self/ns/uts")).unwrap();
        let error = Route::inside(&sandbox, || ()).unwrap_err().to_string();
        assert!(error.contains("enter it"), "{error}");
        assert!(sandbox.is_at("/proc/self/ns/uts") && !sandbox.is_at("/proc/self/ns/net"));
    }

    #[test]
    fn reads_the_loopback_of_this_namespace() {
        let route = Route::here().unwrap();
        let lo = route.link_named("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.kind.clone(), lo.peer), (1, None, None));
        assert_eq!(route.link_numbered(1).unwrap().map(|l| l.name).as_deref(), Some("lo"));
        assert_eq!(route.link_named("no-such-link").unwrap(), None);
        assert_eq!(route.link_numbered(0x7fff_fff0).unwrap(), None);
        assert!(route.links().unwrap().contains(&lo));
        assert!(route.all_addresses().is_ok());
    }
}
