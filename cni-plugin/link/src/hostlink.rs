//! Which host interface is the other end of a pod's interface: decided on link data alone.
//!
//! Inside the pod's namespace the interface names its peer's index. Indexes are per namespace and small
//! numbers repeat, so the host's link of that index must name the pod's interface *and its namespace* in
//! return; anything less could put the gate at another pod's interface.

/// A link's attributes, as netlink reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its own namespace.
    pub index: u32,
    /// Its name in its own namespace.
    pub name: String,
    /// Its driver's kind; `None` for a plain device.
    pub kind: Option<String>,
    /// IFLA_LINK: for a veth the index of its other end.
    pub peer: Option<u32>,
    /// IFLA_LINK_NETNSID: the other end's namespace, as numbered in this link's; `None` if it is the same.
    pub peer_netns: Option<i32>,
    /// IFLA_ADDRESS, of Ethernet devices.
    pub mac: Option<[u8; 6]>,
}

impl Link {
    fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }
}

/// Why an interface cannot have a gate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGateable {
    /// Not a veth: it has no host end where a gate could be attached.
    #[error(
        "it is {}, not a veth: podgate works behind plugins that make veth pairs (bridge, ptp and their like)",
        kind.as_deref().map_or("a plain device without kind".to_owned(), |kind| format!("of kind {kind}"))
    )]
    Kind {
        /// IFLA_INFO_KIND.
        kind: Option<String>,
    },
    /// Both ends are in the pod's namespace.
    #[error(
        "its other end (ifindex {peer}) is in the pod's own network namespace, out of the node's reach"
    )]
    PeerInPod {
        /// Index of the other end in the pod's namespace.
        peer: u32,
    },
    /// Netlink reports no IFLA_LINK for the pod's interface.
    #[error("the kernel names no other end of it")]
    NoPeer,
    /// The host has no link of this index, or one that is not the other end.
    #[error(
        "its other end should be interface {peer} of the plugin's network namespace, but {found}"
    )]
    PeerElsewhere {
        /// Index of the other end, from the pod's link.
        peer: u32,
        /// What the host side shows instead.
        found: String,
    },
}

/// The index of the host end, from the pod's link.
pub fn peer_index(pod: &Link) -> Result<u32, NotGateable> {
    if !pod.is_veth() {
        return Err(NotGateable::Kind { kind: pod.kind.clone() });
    }
    let peer = pod.peer.ok_or(NotGateable::NoPeer)?;
    if pod.peer_netns.is_none() {
        return Err(NotGateable::PeerInPod { peer });
    }
    Ok(peer)
}

/// Confirms from the host's side that `host` is the other end of `pod`. `sandbox` is the number of the
/// pod's namespace in the host's, `host` the link of the index that `peer_index` gave.
pub fn confirm(pod: &Link, host: Option<&Link>, sandbox: Option<i32>) -> Result<(), NotGateable> {
    let peer = peer_index(pod)?;
    let elsewhere = |found: String| Err(NotGateable::PeerElsewhere { peer, found });
    let Some(host) = host else { return elsewhere("there is none".into()) };
    if !host.is_veth() {
        let kind = host.kind.as_deref().unwrap_or("no");
        return elsewhere(format!("that is {} of {kind} kind", host.name));
    }
    if host.peer != Some(pod.index) {
        let other = host.peer.map_or("nothing".into(), |index| format!("interface {index}"));
        return elsewhere(format!("{} is the other end of {other}, not {}", host.name, pod.index));
    }
    if host.peer_netns.is_none() || host.peer_netns != sandbox {
        return elsewhere(format!("{} leads to another network namespace", host.name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Link {
        Link {
            index: 2,
            name: "eth0".into(),
            kind: Some("veth".into()),
            peer: Some(7),
            peer_netns: Some(0),
            mac: None,
        }
    }

    fn host() -> Link {
        Link {
            index: 7,
            name: "veth1".into(),
            kind: Some("veth".into()),
            peer: Some(2),
            peer_netns: Some(5),
            mac: None,
        }
    }

    #[test]
    fn a_pair_that_names_each_other_is_confirmed() {
        assert_eq!(peer_index(&pod()), Ok(7));
        assert_eq!(confirm(&pod(), Some(&host()), Some(5)), Ok(()));
    }

    #[test]
    fn other_kinds_are_refused_by_name() {
        for kind in ["macvlan", "ipvlan", "dummy", "vlan", "netkit", "tun"] {
            let link = Link { kind: Some(kind.into()), ..pod() };
            let error = peer_index(&link).unwrap_err();
            assert!(error.to_string().starts_with(&format!("it is of kind {kind}, not a veth")));
        }
        let plain = Link { kind: None, ..pod() };
        assert!(peer_index(&plain).unwrap_err().to_string().contains("plain device"));
    }

    #[test]
    fn a_pair_within_the_pod_is_refused() {
        let link = Link { peer_netns: None, ..pod() };
        assert_eq!(peer_index(&link), Err(NotGateable::PeerInPod { peer: 7 }));
        assert_eq!(peer_index(&Link { peer: None, ..pod() }), Err(NotGateable::NoPeer));
    }

    #[test]
    fn a_host_link_that_does_not_point_back_is_refused() {
        let wrong = [
            None,
            Some(Link { kind: Some("bridge".into()), ..host() }),
            Some(Link { peer: Some(3), ..host() }),
            Some(Link { peer: None, ..host() }),
            // same index by chance, but the pair of another pod
            Some(Link { peer_netns: Some(6), ..host() }),
            Some(Link { peer_netns: None, ..host() }),
        ];
        for link in wrong {
            let result = confirm(&pod(), link.as_ref(), Some(5));
            assert!(matches!(result, Err(NotGateable::PeerElsewhere { peer: 7, .. })), "{link:?}");
        }
        assert!(confirm(&pod(), Some(&host()), None).is_err());
        let unnumbered = Link { peer_netns: None, ..host() };
        assert!(confirm(&pod(), Some(&unnumbered), None).is_err());
    }
}
