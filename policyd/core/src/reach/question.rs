//! What may be asked, and how it is written.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::convert::{FieldError, parse_address};
use crate::model::{IpProtocol, NoProtocol, ObjectKey};
use crate::tables::Transport;

/// Would a packet pass?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The sender.
    pub from: Target,
    /// The receiver.
    pub to: Target,
    /// What is sent; to a service, its port.
    pub transport: Transport,
    /// Only over this version of IP.
    pub family: Option<Family>,
}

/// One end of a packet, as people write it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// `namespace/name`: a pod.
    Pod(ObjectKey),
    /// An address; it may be a pod's, a node's or a service's.
    Address(IpAddr),
    /// `node:NAME`.
    Node(Arc<str>),
    /// `svc:namespace/name`.
    Service(ObjectKey),
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A question that cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Unanswerable {
    /// What is wrong in it.
    pub field: Field,
    /// Why.
    pub cause: String,
}

/// A part of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The sender.
    From,
    /// The receiver.
    To,
    /// The port.
    Port,
    /// The protocol.
    Protocol,
}

impl Unanswerable {
    pub(super) fn new(field: Field, cause: impl Into<String>) -> Self {
        Self { field, cause: cause.into() }
    }
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of this version number.
    pub fn from_number(number: u64) -> Option<Self> {
        match number {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }

    /// 4 or 6.
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPv{}", self.number())
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.parse().ok().and_then(Self::from_number);
        number.ok_or_else(|| format!("must be 4 or 6, is {text:?}"))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(node) = text.strip_prefix("node:") {
            return match node {
                "" => Err("names no node after node:".into()),
                node => Ok(Self::Node(node.into())),
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
            return Ok(Self::Address(address));
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
    let is_name = |part: &str| !part.is_empty() && !part.contains(['/', ':', ' ']);
    // a namespace has no dots: this is a prefix like 10.0.0.0/8
    (is_name(namespace) && !namespace.contains('.') && is_name(name))
        .then(|| ObjectKey::new(namespace, name))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => key.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Service(key) => write!(f, "svc:{key}"),
        }
    }
}

/// What a protocol's name (in any case) or number and a port mean. TCP, UDP and SCTP need a port, others have none or port 0.
/// ICMP is ICMPv6 where the addresses are IPv6. Errors name the field `protocol` or `port`.
pub fn transport(protocol: &str, port: Option<u16>) -> Result<Transport, FieldError> {
    let port = port.filter(|port| *port != 0);
    let (transport, name) = match protocol.to_uppercase().as_str() {
        "ICMP" | "OTHER" => (Transport::Other, "ICMP".to_owned()),
        name => {
            let known: IpProtocol = name
                .parse()
                .map_err(|error: NoProtocol| FieldError::new("protocol", error.to_string()))?;
            match (known.with_ports(), port) {
                (Some(protocol), Some(port)) => return Ok(Transport::Port(protocol, port)),
                (Some(protocol), None) => {
                    let cause = format!("must be 1 to 65535 for {protocol}");
                    return Err(FieldError::new("port", cause));
                }
                (None, _) => (Transport::Number(known), known.to_string()),
            }
        }
    };
    match port {
        None => Ok(transport),
        Some(port) => Err(FieldError::new("port", format!("{name} has no ports, is {port}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn targets() {
        for (text, shown) in [
            ("shop/web", "shop/web"),
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("fd00::1", "fd00::1"),
            ("node:worker-1", "node:worker-1"),
            ("svc:shop/web", "svc:shop/web"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), shown);
        }
        for (text, says) in [
            ("", "must be namespace/pod"),
            ("web", "the pod default/web?"),
            ("shop/", "must be namespace/pod"),
            ("a/b/c", "must be namespace/pod"),
            ("10.0.0.1/32", "must be namespace/pod"),
            ("node:", "names no node"),
            ("svc:web", "svc:namespace/name"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn icmp_has_no_port_and_the_others_have_one() {
        let port = |text, port| transport(text, port).map_err(|error| error.path);
        assert_eq!(port("icmp", None), Ok(Transport::Other));
        assert_eq!(port("ICMP", Some(0)), Ok(Transport::Other));
        assert_eq!(port("ICMP", Some(8)), Err("port".into()));
        assert_eq!(port("udp", Some(53)), Ok(Transport::Port(Protocol::Udp, 53)));
        assert_eq!(port("TCP", Some(0)), Err("port".into()));
        assert_eq!(port("TCP", None), Err("port".into()));
        assert_eq!(port("gre", None), Ok(Transport::Number(IpProtocol(47))));
        assert_eq!(port("47", Some(0)), Ok(Transport::Number(IpProtocol(47))));
        assert_eq!(port("GRE", Some(1)), Err("port".into()));
        assert_eq!(port("6", Some(80)), Ok(Transport::Port(Protocol::Tcp, 80)));
        assert_eq!(port("IPX", None), Err("protocol".into()));
    }

    #[test]
    fn families() {
        assert_eq!("4".parse(), Ok(Family::V4));
        assert_eq!(Family::of("fd00::1".parse().unwrap()), Family::V6);
        assert!("5".parse::<Family>().unwrap_err().contains("must be 4 or 6"));
    }
}
