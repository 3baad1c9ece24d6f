//! How a user names the ends and the port of a packet.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use podgate_policy::compile::Transport;
use podgate_policy::convert::parse_address;
use podgate_policy::model::{ObjectKey, Protocol};

/// One end of a packet, as written: `ns/pod`, an address, `node:NAME` or `svc:ns/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A pod by namespace and name.
    Pod(ObjectKey),
    /// An address; it may be a pod's.
    Address(IpAddr),
    /// A node by name.
    Node(String),
    /// A service by namespace and name.
    Service(ObjectKey),
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(node) = text.strip_prefix("node:") {
            return match node {
                "" => Err("names no node after node:".into()),
                node => Ok(Self::Node(node.to_owned())),
            };
        }
        if let Some(service) = text.strip_prefix("svc:") {
            return key(service)
                .map(Self::Service)
                .ok_or_else(|| format!("must name a service as svc:namespace/name, is {text:?}"));
        }
        if let Some(pod) = key(text) {
            return Ok(Self::Pod(pod));
        }
        if let Some(address) = parse_address(text) {
            return match unusable(address) {
                Some(kind) => Err(format!("{address} is {kind}: no pod ever sees a packet of it")),
                None => Ok(Self::Address(address)),
            };
        }
        let hint = match text {
            "" => String::new(),
            _ if text.contains('/') => String::new(),
            name => format!(" (the pod default/{name}?)"),
        };
        Err(format!(
            "must be namespace/pod, an address, node:NAME or svc:namespace/name, is {text:?}{hint}"
        ))
    }
}

fn key(text: &str) -> Option<ObjectKey> {
    let (namespace, name) = text.split_once('/')?;
    let fine = |part: &str| !part.is_empty() && !part.contains(['/', ':', ' ']);
    // a namespace has no dots: this is a prefix like 10.0.0.0/8
    (fine(namespace) && !namespace.contains('.') && fine(name))
        .then(|| ObjectKey::new(namespace, name))
}

fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        _ => None,
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => key.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Service(key) => write!(f, "svc:{key}"),
        }
    }
}

/// A protocol and, but for ICMP, a destination port: `80/TCP`, `53/udp`, `8080` (TCP), `ICMP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire(pub Transport);

impl FromStr for Wire {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(Self(Transport::Other));
        }
        let (port, name) = text.split_once('/').unwrap_or((text, "TCP"));
        let protocol = protocol(name).ok_or_else(|| {
            format!("must have protocol TCP, UDP or SCTP (or be ICMP), is {text:?}")
        })?;
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self(Transport::Port(protocol, port))),
            _ => {
                Err(format!("must be a port from 1 to 65535 and a protocol (80/TCP), is {text:?}"))
            }
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Transport::Port(protocol, port) => write!(f, "{port}/{protocol}"),
            Transport::Other => f.write_str("ICMP"),
        }
    }
}

/// A protocol with ports by its name, in any case.
pub(super) fn protocol(name: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.to_string().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        for (text, shown) in [
            ("shop/web", "shop/web"),
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("fd00::1", "fd00::1"),
            ("node:worker-1", "node:worker-1"),
            ("svc:shop/web", "svc:shop/web"),
        ] {
            assert_eq!(text.parse::<End>().unwrap().to_string(), shown);
        }
        for (text, says) in [
            ("", "must be namespace/pod"),
            ("web", "the pod default/web?"),
            ("shop/", "must be namespace/pod"),
            ("a/b/c", "must be namespace/pod"),
            ("10.0.0.1/32", "must be namespace/pod"),
            ("node:", "names no node"),
            ("svc:web", "svc:namespace/name"),
            ("127.0.0.1", "loopback"),
            ("fe80::1", "link-local"),
            ("224.0.0.1", "multicast"),
            ("0.0.0.0", "unspecified"),
            ("255.255.255.255", "broadcast"),
        ] {
            let error = text.parse::<End>().unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn wires() {
        for (text, shown) in
            [("80", "80/TCP"), ("53/udp", "53/UDP"), ("9/SCTP", "9/SCTP"), ("icmp", "ICMP")]
        {
            assert_eq!(text.parse::<Wire>().unwrap().to_string(), shown);
        }
        for text in ["", "0", "65536", "80/ICMP", "http", "80/", "/TCP"] {
            assert!(text.parse::<Wire>().is_err(), "{text:?}");
        }
    }
}
