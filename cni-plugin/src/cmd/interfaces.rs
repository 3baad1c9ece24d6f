//! The pod's interfaces with their host ends: those that ADD gates and CHECK verifies.

use std::net::IpAddr;
use std::path::Path;

use podgate_link::hostlink::{self, Link};
use podgate_link::netns::{self, Route, Sandbox};

use crate::spec::env::Attachment;
use crate::spec::result::SandboxInterface;
use crate::spec::{CniError, Code, NetConf, PrevResult};

/// An interface of the pod and its other end.
#[derive(Debug)]
pub(super) struct PodInterface {
    /// Its name in the pod's namespace.
    pub(super) name: String,
    /// The host veth.
    pub(super) host: Link,
    /// Hardware address of the pod's end.
    pub(super) mac: Option<[u8; 6]>,
    /// Addresses of the pod's end.
    pub(super) addresses: Vec<IpAddr>,
    /// Whether `addresses` are from `prevResult`; otherwise they were read from the interface.
    pub(super) addresses_from_result: bool,
}

/// What is read of the pod before anything is changed.
#[derive(Debug)]
pub(super) struct Discovery {
    /// In the order of `prevResult`.
    pub(super) interfaces: Vec<PodInterface>,
    /// Cookie of the pod's network namespace, 0 if the kernel has no such cookies.
    pub(super) netns_cookie: u64,
    /// All addresses of the plugin's own network namespace, which is the node's.
    pub(super) node_addresses: Vec<IpAddr>,
}

/// The result of the plugins before this one. An error if there is none.
pub(super) fn prev_result(conf: &NetConf) -> Result<PrevResult, CniError> {
    conf.prev_result()?.ok_or_else(|| {
        CniError::new(Code::InvalidConfig, "use network configuration").because(
            "prevResult is missing: podgate makes no interface itself, list it in the conflist after the \
             plugin that does",
        )
    })
}

/// Finds the host end of each of the pod's interfaces.
pub(super) fn discover(
    prev: &PrevResult,
    attachment: &Attachment,
    netns: &Path,
) -> Result<Discovery, CniError> {
    let sandbox = Sandbox::open(netns).map_err(failed("use CNI_NETNS"))?;
    let wanted = prev.sandbox_interfaces(&attachment.ifname, |path| sandbox.is_at(path));
    let here = Route::here().map_err(failed("read network"))?;
    let (inside, netns_cookie) = Route::inside(&sandbox, podgate_bpf::current_netns_cookie)
        .map_err(failed("use CNI_NETNS"))?;
    let mut interfaces = Vec::with_capacity(wanted.len());
    for interface in wanted {
        interfaces.push(host_end_of(interface, &inside, &here, &sandbox)?);
    }
    let node_addresses = here.all_addresses().map_err(failed("read node's addresses"))?;
    Ok(Discovery { interfaces, netns_cookie, node_addresses })
}

fn host_end_of(
    interface: SandboxInterface,
    inside: &Route,
    here: &Route,
    sandbox: &Sandbox,
) -> Result<PodInterface, CniError> {
    let name = interface.name;
    let what = format!("find host end of interface {name}");
    let refuse = |cause: String| CniError::new(Code::NotGateable, what.clone()).because(cause);
    let pod = inside
        .link_named(&name)
        .map_err(failed(&what))?
        .ok_or_else(|| refuse("there is no such interface in CNI_NETNS".into()))?;
    let index = hostlink::peer_index(&pod).map_err(|e| refuse(e.to_string()))?;
    let host = here.link_numbered(index).map_err(failed(&what))?;
    let number = here.number_of(sandbox).map_err(failed(&what))?;
    hostlink::confirm(&pod, host.as_ref(), number).map_err(|e| refuse(e.to_string()))?;
    let host = host.ok_or_else(|| refuse("its other end is gone".into()))?;
    let addresses_from_result = interface.addresses.is_some();
    let addresses = match interface.addresses {
        Some(addresses) => addresses,
        None => {
            let mut found = inside.addresses_of(pod.index).map_err(failed(&what))?;
            found.retain(|ip| !is_link_local(ip));
            found
        }
    };
    Ok(PodInterface { name, host, mac: pod.mac, addresses, addresses_from_result })
}

/// Every interface has such an address, and the traffic it is used for passes without it being registered.
fn is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn failed(what: &str) -> impl FnOnce(netns::Error) -> CniError {
    move |error| {
        let code = match error {
            netns::Error::Netns { .. } => Code::InvalidNetns,
            netns::Error::Netlink { .. } => Code::Io,
        };
        CniError::new(code, what).because(error)
    }
}
