//! A registration in its readable form: which pod is at a host veth.

use std::net::IpAddr;

use zerocopy::FromZeros;

use crate::abi::{Addr, ENDPOINT_ADDRS, EndpointRecord, Startup};
use crate::{Error, Result};

/// The pod of a registration, as the runtime named it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID; empty if the runtime gave none.
    pub uid: String,
}

/// Everything the plugin knows of an interface that it gated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The host veth.
    pub ifindex: u32,
    /// Random, not 0: differs from that of any other registration with the same ifindex.
    pub owner: u32,
    /// What the endpoint does until policyd has programmed it.
    pub startup: Startup,
    /// Whether new flows from the pod must carry one of `addresses`.
    pub anti_spoofing: bool,
    /// The interface's addresses, both families.
    pub addresses: Vec<IpAddr>,
    /// The hardware address of the pod's interface, where it is known.
    pub mac: Option<[u8; 6]>,
    /// The kernel's number of the sandbox's network namespace; 0 if it has none.
    pub netns_cookie: u64,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME inside the sandbox.
    pub interface: String,
    /// The host end's name.
    pub host_interface: String,
    /// The network configuration's name.
    pub network: String,
    /// `None` for a container that is no Kubernetes pod.
    pub pod: Option<PodRef>,
    /// CNI_NETNS at ADD.
    pub netns: String,
}

fn put<const N: usize>(field: &'static str, text: &str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    // One byte stays 0, so that text always ends.
    if text.len() >= N {
        return Err(Error::TooLong { field, length: text.len(), limit: N - 1 });
    }
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    Ok(bytes)
}

fn take(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

impl Registration {
    /// The record for the `endpoints` map; fails where something does not fit.
    pub(crate) fn to_record(&self) -> Result<EndpointRecord> {
        let mut record = EndpointRecord::new_zeroed();
        record.owner = self.owner;
        record.startup = self.startup as u8;
        record.anti_spoofing = u8::from(self.anti_spoofing);
        let (mut v4, mut v6) = (0, 0);
        for address in &self.addresses {
            match address.to_canonical() {
                IpAddr::V4(ip) => {
                    if let Some(slot) = record.addr4.get_mut(v4) {
                        *slot = ip.octets();
                    }
                    v4 += 1;
                }
                ip @ IpAddr::V6(_) => {
                    if let Some(slot) = record.addr6.get_mut(v6) {
                        *slot = Addr::from(ip);
                    }
                    v6 += 1;
                }
            }
        }
        for (family, count) in [("IPv4", v4), ("IPv6", v6)] {
            if count > ENDPOINT_ADDRS {
                return Err(Error::TooManyAddresses { family, count, limit: ENDPOINT_ADDRS });
            }
        }
        record.addr4_count = v4 as u8;
        record.addr6_count = v6 as u8;
        record.mac = self.mac.unwrap_or_default();
        record.netns_cookie = self.netns_cookie;
        record.container_id = put("container id", &self.container_id)?;
        record.interface = put("interface name", &self.interface)?;
        record.host_interface = put("host interface name", &self.host_interface)?;
        record.network = put("network name", &self.network)?;
        record.netns = put("netns path", &self.netns)?;
        if let Some(pod) = &self.pod {
            record.pod_namespace = put("pod namespace", &pod.namespace)?;
            record.pod_name = put("pod name", &pod.name)?;
            record.pod_uid = put("pod uid", &pod.uid)?;
        }
        Ok(record)
    }

    pub(crate) fn from_record(ifindex: u32, record: &EndpointRecord) -> Self {
        let v4 =
            record.addr4.iter().take(record.addr4_count.into()).map(|&octets| IpAddr::from(octets));
        let v6 =
            record.addr6.iter().take(record.addr6_count.into()).map(|&addr| IpAddr::from(addr));
        let namespace = take(&record.pod_namespace);
        let name = take(&record.pod_name);
        Self {
            ifindex,
            owner: record.owner,
            startup: Startup::from_number(record.startup).unwrap_or(Startup::Hold),
            anti_spoofing: record.anti_spoofing != 0,
            addresses: v4.chain(v6).collect(),
            mac: (record.mac != [0; 6]).then_some(record.mac),
            netns_cookie: record.netns_cookie,
            container_id: take(&record.container_id),
            interface: take(&record.interface),
            host_interface: take(&record.host_interface),
            network: take(&record.network),
            pod: (!namespace.is_empty()).then(|| PodRef {
                namespace,
                name,
                uid: take(&record.pod_uid),
            }),
            netns: take(&record.netns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Registration {
        Registration {
            ifindex: 7,
            owner: 0xdead_beef,
            startup: Startup::Open,
            anti_spoofing: true,
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            mac: Some([2, 0, 0, 0, 0, 7]),
            netns_cookie: 4242,
            container_id: "c".repeat(64),
            interface: "eth0".into(),
            host_interface: "veth12345678".into(),
            network: "pods".into(),
            pod: Some(PodRef { namespace: "shop".into(), name: "web-0".into(), uid: "u".into() }),
            netns: "/run/netns/x".into(),
        }
    }

    #[test]
    fn a_record_gives_back_what_was_registered() {
        let registration = sample();
        let record = registration.to_record().unwrap();
        assert_eq!(Registration::from_record(7, &record), registration);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let long = Registration { network: "n".repeat(128), ..sample() };
        let told = long.to_record().unwrap_err().to_string();
        assert_eq!(told, "register endpoint: network name is 128 bytes, at most 127 fit");
        let many = Registration {
            addresses: (1..=5).map(|n| IpAddr::from([10, 0, 0, n])).collect(),
            ..sample()
        };
        let told = many.to_record().unwrap_err().to_string();
        assert_eq!(told, "register endpoint: 5 IPv4 addresses on one interface, at most 4 fit");
    }
}
