//! Lists the node's addresses, and which of them are kube-proxy's.

use std::net::IpAddr;

use futures::TryStreamExt;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::AddressAttribute;

use crate::writer::NodeAddresses;

/// The interface to which kube-proxy in IPVS mode assigns the addresses of all services. It translates them; nothing
/// listens there.
const IPVS_INTERFACE: &str = "kube-ipvs0";

/// Every address of the node, link-local ones too: the kubelet's probes may come from any.
pub(super) async fn list(handle: &Handle) -> Result<NodeAddresses, String> {
    let mut found = NodeAddresses::default();
    let proxy = if_nametoindex(IPVS_INTERFACE).ok();
    let mut dump = handle.address().get().execute();
    while let Some(message) = dump.try_next().await.map_err(|e| format!("list addresses: {e}"))? {
        // on a point-to-point link IFA_ADDRESS is the other end's, IFA_LOCAL the node's
        let own = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let any = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        found.add(own.or(any), proxy == Some(message.header.index));
    }
    Ok(found)
}

/// The same without waiting, for the start. Empty if the system call fails.
pub(crate) fn now() -> NodeAddresses {
    let mut found = NodeAddresses::default();
    match getifaddrs() {
        Ok(interfaces) => {
            for interface in interfaces {
                let address = interface.address.and_then(|address| {
                    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
                });
                found.add(address, interface.interface_name == IPVS_INTERFACE);
            }
        }
        Err(error) => {
            tracing::warn!(%error, "cannot list the node's addresses, waiting for the first event")
        }
    }
    found
}

impl NodeAddresses {
    fn add(&mut self, address: Option<IpAddr>, is_proxy: bool) {
        self.all.extend(address);
        self.of_proxy.extend(address.filter(|_| is_proxy));
    }
}
