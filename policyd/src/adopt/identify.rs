//! Decides which pod a veth belongs to. Pure.

use std::net::IpAddr;

use podgate_bpf::abi::Startup;
use podgate_bpf::endpoint::draw_owner;
use podgate_bpf::maps::{PodRef, Registration};
use podgate_policy::index::Index;
use podgate_policy::model::{ObjectKey, Pod, PodLife};

use super::discover::Veth;
use crate::pod_key::pod_key;

/// What to do with a veth that has no gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is the interface of a pod of this node whose policy is known.
    Adopt {
        /// What to register.
        registration: Registration,
        /// Whether libcni has recorded its ADD and the pod is not terminating: then no plugin is at work on it.
        settled: bool,
    },
    /// It is a pod's whose policy is not known yet. A gate without a policy would cut off a running pod.
    Wait {
        /// The pod.
        pod: ObjectKey,
        /// What is missing.
        reason: String,
    },
    /// It is no pod's, or not the interface that has the pod's addresses.
    NotOurs,
}

/// Decides. The pod is the one in libcni's cache entry; without an entry, the one that has the address in the sources.
pub(super) fn identify(veth: &Veth, index: &Index, node: &str, anti_spoofing: bool) -> Decision {
    let Some(pod_end) = &veth.pod_end else { return Decision::NotOurs };
    let recorded = pod_end.attachment.as_ref().and_then(|attachment| attachment.pod.as_ref());
    let pod = match recorded {
        Some(recorded) => match known(recorded, index) {
            Ok(pod) => pod,
            Err(reason) => return Decision::Wait { pod: pod_key(recorded), reason },
        },
        None => {
            let owner = pod_end.addresses.iter().find_map(|address| index.owner_of(*address));
            match owner {
                Some(pod) if pod.node.as_deref().is_none_or(|its| its == node) => pod,
                _ => return Decision::NotOurs,
            }
        }
    };
    if pod.host_network || pod.life == PodLife::Finished {
        return Decision::NotOurs;
    }
    if pod.addresses.is_empty() {
        let reason = "its status names no address yet".to_owned();
        return Decision::Wait { pod: pod.key.clone(), reason };
    }
    let is_own = |address: &&IpAddr| pod.addresses.contains(&address.to_canonical());
    if !pod_end.addresses.iter().any(|address| is_own(&address)) {
        // the interface of an additional network of the pod
        return Decision::NotOurs;
    }
    let recorded_addresses = pod_end.attachment.as_ref().map(|a| a.addresses.as_slice());
    let addresses = pod_end.addresses.iter().map(IpAddr::to_canonical);
    let addresses = addresses
        .filter(|address| {
            is_own(&address)
                || recorded_addresses.is_some_and(|recorded| recorded.contains(address))
        })
        .collect();
    let attachment = pod_end.attachment.as_ref();
    let registration = Registration {
        ifindex: veth.host.index,
        owner: draw_owner(),
        startup: Startup::Learn,
        anti_spoofing,
        addresses,
        mac: pod_end.mac,
        netns_cookie: pod_end.cookie,
        container_id: attachment.map(|a| a.container_id.clone()).unwrap_or_default(),
        interface: attachment.map_or_else(|| pod_end.interface.clone(), |a| a.ifname.clone()),
        host_interface: veth.host.name.clone(),
        network: attachment.map(|a| a.network.clone()).unwrap_or_default(),
        pod: Some(PodRef {
            namespace: pod.key.namespace.to_string(),
            name: pod.key.name.to_string(),
            uid: recorded.map_or_else(|| pod.uid.to_string(), |recorded| recorded.uid.clone()),
        }),
        netns: pod_end.netns.to_string_lossy().into_owned(),
    };
    Decision::Adopt { registration, settled: recorded.is_some() && pod.life == PodLife::Live }
}

fn known<'a>(recorded: &PodRef, index: &'a Index) -> Result<&'a Pod, String> {
    match index.pod(&pod_key(recorded)) {
        None => Err("it is not known to any source".to_owned()),
        Some(pod)
            if !recorded.uid.is_empty() && !pod.uid.is_empty() && *pod.uid != *recorded.uid =>
        {
            Err(format!(
                "the sources' pod of this name has uid {}, the one that runs has {}",
                pod.uid, recorded.uid
            ))
        }
        Some(pod) => Ok(pod),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use podgate_link::hostlink::Link;
    use podgate_policy::object::Event;

    use super::*;
    use crate::adopt::discover::PodEnd;
    use crate::cni_cache::Attachment;

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
            annotated_limits: None,
        }
    }

    fn veth(addresses: &[&str], recorded: Option<(&str, &str)>) -> Veth {
        let attachment = recorded.map(|(name, uid)| Attachment {
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
            pod_end: Some(PodEnd {
                netns: "/run/netns/a".into(),
                cookie: 5,
                mac: Some([2, 0, 0, 0, 0, 7]),
                interface: "eth0".into(),
                addresses: addresses.iter().map(|each| each.parse().unwrap()).collect(),
                attachment,
            }),
        }
    }

    fn decide(pods: &[Pod], veth: &Veth) -> Decision {
        let mut index = Index::new();
        for pod in pods {
            index.apply(Event::from(pod.clone()));
        }
        identify(veth, &index, "n1", true)
    }

    #[test]
    fn a_recorded_pod_is_registered_as_its_plugin_would_have() {
        let veth = veth(&["10.0.0.7", "10.0.0.8", "192.168.0.1"], Some(("web", "u1")));
        let Decision::Adopt { registration, settled } = decide(&[pod("web", &["10.0.0.7"])], &veth)
        else {
            panic!("it is to be adopted")
        };
        assert!(settled && registration.owner != 0 && registration.anti_spoofing);
        assert_eq!(registration.startup, Startup::Learn);
        assert_eq!((registration.ifindex, registration.netns_cookie), (7, 5));
        assert_eq!(registration.mac, Some([2, 0, 0, 0, 0, 7]));
        assert_eq!(registration.container_id, "c");
        assert_eq!(registration.interface, "eth0");
        assert_eq!(registration.network, "pods");
        // an address that was added inside the pod may not be used as a source
        let addresses: Vec<String> =
            registration.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.7", "10.0.0.8"]);
    }

    #[test]
    fn without_a_record_the_address_decides() {
        let found = decide(&[pod("web", &["10.0.0.7"])], &veth(&["10.0.0.7"], None));
        let Decision::Adopt { registration, settled } = found else {
            panic!("it is to be adopted")
        };
        assert!(!settled);
        assert_eq!(
            registration.pod.map(|pod| (pod.name, pod.uid)),
            Some(("web".into(), "u1".into()))
        );
        let far = Pod { node: Some("n2".into()), ..pod("web", &["10.0.0.7"]) };
        assert_eq!(decide(&[far], &veth(&["10.0.0.7"], None)), Decision::NotOurs);
        assert_eq!(decide(&[], &veth(&["10.0.0.7"], None)), Decision::NotOurs);
    }

    #[test]
    fn one_whose_policy_is_not_known_waits() {
        let waits = |pods: &[Pod], uid: &str| match decide(
            pods,
            &veth(&["10.0.0.7"], Some(("web", uid))),
        ) {
            Decision::Wait { pod, reason } => {
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
    fn interfaces_that_get_no_gate_are_not_ours() {
        let recorded = veth(&["10.0.0.7"], Some(("web", "u1")));
        let host = Pod { host_network: true, ..pod("web", &["10.0.0.7"]) };
        assert_eq!(decide(&[host], &recorded), Decision::NotOurs);
        let over = Pod { life: PodLife::Finished, ..pod("web", &["10.0.0.7"]) };
        assert_eq!(decide(&[over], &recorded), Decision::NotOurs);
        // the interface of an additional network of the same pod
        assert_eq!(decide(&[pod("web", &["10.9.0.7"])], &recorded), Decision::NotOurs);
        let nowhere = Veth { pod_end: None, ..recorded };
        assert_eq!(decide(&[pod("web", &["10.0.0.7"])], &nowhere), Decision::NotOurs);
    }

    #[test]
    fn a_terminating_pod_is_not_settled() {
        let ends = Pod { life: PodLife::Terminating, ..pod("web", &["10.0.0.7"]) };
        let found = decide(&[ends], &veth(&["10.0.0.7"], Some(("web", "u1"))));
        assert!(matches!(found, Decision::Adopt { settled: false, .. }), "{found:?}");
    }
}
