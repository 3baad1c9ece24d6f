//! Whose a veth is: pure.

use std::net::IpAddr;

use podgate_bpf::abi::Startup;
use podgate_bpf::gating::draw_owner;
use podgate_bpf::maps::{PodRef, Registration};
use podgate_policy::index::Index;
use podgate_policy::model::{ObjectKey, Pod, PodLife};

use super::find::Veth;

/// What to do with a veth that has no gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// A pod of this node whose policy is known.
    Pod {
        /// Ready to be registered.
        registration: Registration,
        /// Whether its runtime has finished its ADD and is not about to send DEL, for all that is known.
        settled: bool,
    },
    /// A pod that has to wait, and why: to hold one that runs would break it.
    Waits {
        /// Which.
        pod: ObjectKey,
        /// Why.
        reason: String,
    },
    /// No pod's, or not the one by which the cluster knows it.
    Stranger,
}

/// Decides. The name that the runtime noted counts; without one, the pod that the sources say has the address.
pub(super) fn identify(veth: &Veth, index: &Index, node: &str, anti_spoofing: bool) -> Finding {
    let Some(inside) = &veth.inside else { return Finding::Stranger };
    let noted = inside.attachment.as_ref().and_then(|attachment| attachment.pod.as_ref());
    let pod = match noted {
        Some(noted) => match known(noted, index) {
            Ok(pod) => pod,
            Err(reason) => return Finding::Waits { pod: key_of(noted), reason },
        },
        None => {
            let owner = inside.addresses.iter().find_map(|address| index.owner_of(*address));
            match owner {
                Some(pod) if pod.node.as_deref().is_none_or(|its| its == node) => pod,
                _ => return Finding::Stranger,
            }
        }
    };
    if pod.host_network || pod.life == PodLife::Finished {
        return Finding::Stranger;
    }
    if pod.addresses.is_empty() {
        let reason = "its status names no address yet".to_owned();
        return Finding::Waits { pod: pod.key.clone(), reason };
    }
    let is_own = |address: &&IpAddr| pod.addresses.contains(&address.to_canonical());
    if !inside.addresses.iter().any(|address| is_own(&address)) {
        // a further network's
        return Finding::Stranger;
    }
    let noted_addresses = inside.attachment.as_ref().map(|a| a.addresses.as_slice());
    let addresses = inside.addresses.iter().map(IpAddr::to_canonical);
    let addresses = addresses
        .filter(|address| {
            is_own(&address) || noted_addresses.is_some_and(|noted| noted.contains(address))
        })
        .collect();
    let attachment = inside.attachment.as_ref();
    let registration = Registration {
        ifindex: veth.host.index,
        owner: draw_owner(),
        startup: Startup::Watch,
        anti_spoofing,
        addresses,
        netns_cookie: inside.cookie,
        container_id: attachment.map(|a| a.container_id.clone()).unwrap_or_default(),
        interface: attachment.map_or_else(|| inside.interface.clone(), |a| a.ifname.clone()),
        host_interface: veth.host.name.clone(),
        network: attachment.map(|a| a.network.clone()).unwrap_or_default(),
        pod: Some(PodRef {
            namespace: pod.key.namespace.to_string(),
            name: pod.key.name.to_string(),
            uid: noted.map_or_else(|| pod.uid.to_string(), |noted| noted.uid.clone()),
        }),
        netns: inside.netns.to_string_lossy().into_owned(),
    };
    Finding::Pod { registration, settled: noted.is_some() && pod.life == PodLife::Live }
}

fn known<'a>(noted: &PodRef, index: &'a Index) -> Result<&'a Pod, String> {
    match index.pod(&key_of(noted)) {
        None => Err("it is not known to any source".to_owned()),
        Some(pod) if !noted.uid.is_empty() && !pod.uid.is_empty() && *pod.uid != *noted.uid => {
            Err(format!(
                "the sources' pod of this name has uid {}, the one that runs has {}",
                pod.uid, noted.uid
            ))
        }
        Some(pod) => Ok(pod),
    }
}

fn key_of(pod: &PodRef) -> ObjectKey {
    ObjectKey::new(pod.namespace.as_str(), pod.name.as_str())
}

/// The pods of this node that have addresses of their own: those that should have a gate.
pub(super) fn local_pods<'a>(index: &'a Index, node: &'a str) -> impl Iterator<Item = &'a Pod> {
    index.pods().map(|pod| &**pod).filter(move |pod| {
        pod.node.as_deref() == Some(node) && pod.may_own_addresses() && !pod.addresses.is_empty()
    })
}
