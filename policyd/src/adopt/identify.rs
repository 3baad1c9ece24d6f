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
        mac: inside.mac,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use podgate_bpf::hostlink::Link;
    use podgate_policy::index::Change;

    use super::*;
    use crate::adopt::cache::Attachment;
    use crate::adopt::find::Inside;

    fn pod(name: &str, addresses: &[&str]) -> Pod {
        Pod {
            key: ObjectKey::new("shop", name),
            uid: "u1".into(),
            created: 0,
            labels: Default::default(),
            addresses: addresses.iter().map(|each| each.parse().unwrap()).collect(),
            ports: Vec::new().into(),
            life: PodLife::Live,
            host_network: false,
            node: Some("n1".into()),
            host_addresses: Vec::new(),
        }
    }

    fn veth(addresses: &[&str], noted: Option<(&str, &str)>) -> Veth {
        let attachment = noted.map(|(name, uid)| Attachment {
            container_id: "c".into(),
            ifname: "eth0".into(),
            network: "pods".into(),
            pod: Some(PodRef { namespace: "shop".into(), name: name.into(), uid: uid.into() }),
            netns: BTreeSet::new(),
            interfaces: BTreeSet::from(["eth0".to_owned()]),
            addresses: vec!["10.0.0.8".parse().unwrap()],
        });
        Veth {
            host: Link {
                index: 7,
                name: "veth7".into(),
                kind: Some("veth".into()),
                peer: Some(2),
                peer_netns: Some(0),
                mac: None,
            },
            inside: Some(Inside {
                netns: "/run/netns/a".into(),
                cookie: 5,
                mac: Some([2, 0, 0, 0, 0, 7]),
                interface: "eth0".into(),
                addresses: addresses.iter().map(|each| each.parse().unwrap()).collect(),
                attachment,
            }),
        }
    }

    fn decide(pods: &[Pod], veth: &Veth) -> Finding {
        let mut index = Index::new();
        for pod in pods {
            index.apply(Change::PodSet(pod.clone()));
        }
        identify(veth, &index, "n1", true)
    }

    #[test]
    fn a_noted_pod_is_registered_as_its_plugin_would_have() {
        let veth = veth(&["10.0.0.7", "10.0.0.8", "192.168.0.1"], Some(("web", "u1")));
        let Finding::Pod { registration, settled } = decide(&[pod("web", &["10.0.0.7"])], &veth)
        else {
            panic!("it is a pod")
        };
        assert!(settled && registration.owner != 0 && registration.anti_spoofing);
        assert_eq!(registration.startup, Startup::Watch);
        assert_eq!((registration.ifindex, registration.netns_cookie), (7, 5));
        assert_eq!(registration.mac, Some([2, 0, 0, 0, 0, 7]));
        assert_eq!(registration.container_id, "c");
        assert_eq!(registration.interface, "eth0");
        assert_eq!(registration.network, "pods");
        // what somebody added inside is not the pod's to send from
        let addresses: Vec<String> =
            registration.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.7", "10.0.0.8"]);
    }

    #[test]
    fn without_a_note_the_address_tells() {
        let found = decide(&[pod("web", &["10.0.0.7"])], &veth(&["10.0.0.7"], None));
        let Finding::Pod { registration, settled } = found else { panic!("it is a pod") };
        assert!(!settled);
        assert_eq!(
            registration.pod.map(|pod| (pod.name, pod.uid)),
            Some(("web".into(), "u1".into()))
        );
        let far = Pod { node: Some("n2".into()), ..pod("web", &["10.0.0.7"]) };
        assert_eq!(decide(&[far], &veth(&["10.0.0.7"], None)), Finding::Stranger);
        assert_eq!(decide(&[], &veth(&["10.0.0.7"], None)), Finding::Stranger);
    }

    #[test]
    fn one_whose_policy_is_not_known_waits() {
        let waits = |pods: &[Pod], uid: &str| match decide(
            pods,
            &veth(&["10.0.0.7"], Some(("web", uid))),
        ) {
            Finding::Waits { pod, reason } => {
                assert_eq!(pod, ObjectKey::new("shop", "web"));
                reason
            }
            other => panic!("{other:?}"),
        };
        assert!(waits(&[], "u1").contains("not known to any source"));
        assert!(waits(&[pod("web", &["10.0.0.7"])], "u2").contains("has uid u1"));
        assert!(waits(&[pod("web", &[])], "u1").contains("names no address"));
    }

    #[test]
    fn whoever_has_no_gate_of_its_own_is_a_stranger() {
        let noted = veth(&["10.0.0.7"], Some(("web", "u1")));
        let host = Pod { host_network: true, ..pod("web", &["10.0.0.7"]) };
        assert_eq!(decide(&[host], &noted), Finding::Stranger);
        let over = Pod { life: PodLife::Finished, ..pod("web", &["10.0.0.7"]) };
        assert_eq!(decide(&[over], &noted), Finding::Stranger);
        // a further network's interface of the same pod
        assert_eq!(decide(&[pod("web", &["10.9.0.7"])], &noted), Finding::Stranger);
        let nowhere = Veth { inside: None, ..noted };
        assert_eq!(decide(&[pod("web", &["10.0.0.7"])], &nowhere), Finding::Stranger);
    }

    #[test]
    fn a_terminating_pod_is_not_settled() {
        let ends = Pod { life: PodLife::Terminating, ..pod("web", &["10.0.0.7"]) };
        let found = decide(&[ends], &veth(&["10.0.0.7"], Some(("web", "u1"))));
        assert!(matches!(found, Finding::Pod { settled: false, .. }), "{found:?}");
    }
}
