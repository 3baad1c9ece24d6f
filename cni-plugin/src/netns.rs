//! Link and address data, from inside the pod's network namespace and from the node's.
//!
//! No code lives in the pod's namespace: the thread enters it, opens a netlink socket, which stays
//! there, and comes back; the socket is then used from here. It is the main thread of a process that
//! does this once, before anything is changed, and ends if it cannot come back. A thread of its own would
//! cost ADD a tenth of its CPU and half its wall time on a busy node (it has to be scheduled, twice).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use netns_rs::{NetNs, get_from_current_thread, get_from_path};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{Handle, new_connection};
use tokio::runtime::{Builder, Runtime};

use crate::hostlink::Link;

/// Reading the namespaces failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// CNI_NETNS is not what it should be.
    #[error("use network namespace {path}: {reason}")]
    Netns {
        /// CNI_NETNS.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Netlink does not answer as it should.
    #[error("{verb}: {cause}")]
    Netlink {
        /// What was asked.
        verb: String,
        /// The kernel's answer.
        cause: String,
    },
}

fn netlink_error(verb: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    |e| Error::Netlink {
        verb: verb.into(),
        cause: match e {
            rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
            other => other.to_string(),
        },
    }
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
        let netns = get_from_path(path).map_err(|e| fail(cause_of(&e)))?;
        let found = fstatfs(netns.file()).map_err(|e| fail(e.desc().into()))?;
        if found.filesystem_type() != NSFS_MAGIC {
            return Err(fail("the file is no namespace".into()));
        }
        let own = get_from_current_thread().map_err(|e| fail(cause_of(&e)))?;
        if netns == own {
            return Err(fail(
                "it is the plugin's own, so the pod shares the node's network".into(),
            ));
        }
        Ok(Self { netns, path: path.to_owned() })
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

/// The path is told once, by our own error.
fn cause_of(error: &netns_rs::Error) -> String {
    match error {
        netns_rs::Error::OpenNsError(_, cause) => cause.to_string(),
        netns_rs::Error::SetnsError(cause) => cause.desc().to_owned(),
        other => other.to_string(),
    }
}

/// A netlink socket in some network namespace.
#[derive(Clone, Debug)]
pub struct Netlink<'rt> {
    runtime: &'rt Runtime,
    handle: Handle,
}

/// A single-threaded runtime: `rtnetlink` needs one to talk to the kernel.
pub fn runtime() -> Result<Runtime, Error> {
    Builder::new_current_thread().enable_io().build().map_err(open_error)
}

fn open_error(cause: io::Error) -> Error {
    Error::Netlink { verb: "open netlink socket".into(), cause: cause.to_string() }
}

impl<'rt> Netlink<'rt> {
    /// In the plugin's own namespace.
    pub fn here(runtime: &'rt Runtime) -> Result<Self, Error> {
        let _entered = runtime.enter();
        // it keeps the namespace of the thread that makes it
        let (connection, handle, _) = new_connection().map_err(open_error)?;
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// In the pod's namespace, together with the namespace's cookie (0 if the kernel has none).
    pub fn inside(runtime: &'rt Runtime, sandbox: &Sandbox) -> Result<(Self, u64), Error> {
        let fail = |reason: String| Error::Netns { path: sandbox.path.clone(), reason };
        let entered =
            sandbox.netns.run(|_| (Self::here(runtime), podgate_bpf::current_netns_cookie()));
        // Err also means "not back again": nothing has been changed yet, and the call ends with it
        let (netlink, cookie) = entered.map_err(|e| fail(format!("enter it: {}", cause_of(&e))))?;
        Ok((netlink?, cookie))
    }

    /// A link by its name; `None` if there is none.
    pub fn link_named(&self, name: &str) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_name(name.to_owned());
        self.link(request.execute(), &format!("read interface {name}"))
    }

    /// A link by its index; `None` if there is none.
    pub fn link_numbered(&self, index: u32) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_index(index);
        self.link(request.execute(), &format!("read interface {index}"))
    }

    fn link(
        &self,
        answer: impl futures::Stream<Item = Result<LinkMessage, rtnetlink::Error>>,
        verb: &str,
    ) -> Result<Option<Link>, Error> {
        match self.runtime.block_on(answer.try_collect::<Vec<_>>()) {
            Ok(links) => Ok(links.into_iter().next().map(link_data)),
            Err(rtnetlink::Error::NetlinkError(e))
                if e.raw_code() == -(nix::errno::Errno::ENODEV as i32) =>
            {
                Ok(None)
            }
            Err(e) => Err(netlink_error(verb)(e)),
        }
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
        let dump = self.handle.address().get().execute().try_collect::<Vec<_>>();
        let messages = self.runtime.block_on(dump).map_err(netlink_error("read addresses"))?;
        Ok(messages.iter().filter(|m| wanted(m)).filter_map(address_data).collect())
    }

    /// The number of the pod's namespace in this one; `None` if it has none.
    pub fn number_of(&self, sandbox: &Sandbox) -> Result<Option<i32>, Error> {
        let mut message = NsidMessage::default();
        let fd = sandbox.netns.file().as_fd().as_raw_fd();
        message.attributes.push(NsidAttribute::Fd(fd.unsigned_abs()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
        request.header.flags = NLM_F_REQUEST;
        let verb = "read number of the pod's network namespace";
        let mut handle = self.handle.clone();
        let mut answer = handle.request(request).map_err(netlink_error(verb))?;
        match self.runtime.block_on(answer.next()).map(|message| message.payload) {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(found))) => {
                Ok(found.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                }))
            }
            Some(NetlinkPayload::Error(e)) => {
                Err(netlink_error(verb)(rtnetlink::Error::NetlinkError(e)))
            }
            other => Err(Error::Netlink {
                verb: verb.into(),
                cause: format!("unexpected answer {other:?}"),
            }),
        }
    }
}

fn link_data(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        peer: None,
        peer_netns: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(id),
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
            ("/proc/self/ns/net", "plugin's own"),
            ("/proc/self/status", "no namespace"),
            ("/nowhere/at/all", "No such file"),
        ] {
            let error = Sandbox::open(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(reason), "{error}");
        }
        // a namespace of another kind is found out on entering
        let sandbox = Sandbox::open(Path::new("/proc/self/ns/uts")).unwrap();
        let runtime = runtime().unwrap();
        let error = Netlink::inside(&runtime, &sandbox).unwrap_err().to_string();
        assert!(error.contains("enter it"), "{error}");
        assert!(sandbox.is_at("/proc/self/ns/uts") && !sandbox.is_at("/proc/self/ns/net"));
    }

    #[test]
    fn reads_the_loopback_of_this_namespace() {
        let runtime = runtime().unwrap();
        let netlink = Netlink::here(&runtime).unwrap();
        let lo = netlink.link_named("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.kind, lo.peer), (1, None, None));
        assert_eq!(netlink.link_numbered(1).unwrap().map(|l| l.name).as_deref(), Some("lo"));
        assert_eq!(netlink.link_named("no-such-link").unwrap(), None);
        assert_eq!(netlink.link_numbered(0x7fff_fff0).unwrap(), None);
        assert!(netlink.all_addresses().is_ok());
    }
}
