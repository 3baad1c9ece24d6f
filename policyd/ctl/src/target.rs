//! How a user names the ends and the port of a packet.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use podgate_policy::model::IpProtocol;
use podgate_policy::reach::{Target, transport};
use podgate_policy::tables::Transport;

/// Reads one end of a packet that a pod's gate can meet.
pub(crate) fn target(text: &str) -> Result<Target, String> {
    let target = text.parse()?;
    if let Target::Address(address) = target
        && let Some(kind) = unusable(address)
    {
        return Err(format!("{address} is {kind}: no pod ever sees a packet of it"));
    }
    Ok(target)
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

/// A protocol and, if it has ports, a destination port: `80/TCP`, `53/udp`, `8080` (TCP), `ICMP`, `GRE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortSpec(pub Transport);

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(Self(Transport::Other));
        }
        // a number alone is a TCP port
        if text.parse::<u16>().is_err()
            && let Ok(protocol) = text.parse::<IpProtocol>()
            && protocol.with_ports().is_none()
        {
            return Ok(Self(Transport::Number(protocol)));
        }
        let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let port = port.parse().map_err(|_| {
            format!("must be a port from 1 to 65535 and a protocol (80/TCP), is {text:?}")
        })?;
        match transport(protocol, Some(port)) {
            Ok(transport) => Ok(Self(transport)),
            Err(error) => Err(format!("{}: {} ({text:?})", error.path, error.cause)),
        }
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Transport::Port(protocol, port) => write!(f, "{port}/{protocol}"),
            Transport::Number(protocol) => protocol.fmt(f),
            Transport::Other => f.write_str("ICMP"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_packet_of_a_pod_has_are_refused() {
        for (text, says) in [
            ("127.0.0.1", "loopback"),
            ("fe80::1", "link-local"),
            ("224.0.0.1", "multicast"),
            ("0.0.0.0", "unspecified"),
            ("255.255.255.255", "broadcast"),
            ("web", "must be namespace/pod"),
        ] {
            let error = target(text).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        assert_eq!(target("169.254.20.10").unwrap().to_string(), "169.254.20.10");
    }

    #[test]
    fn ports() {
        for (text, shown) in [
            ("80", "80/TCP"),
            ("53/udp", "53/UDP"),
            ("9/SCTP", "9/SCTP"),
            ("icmp", "ICMP"),
            ("0/ICMP", "ICMP"),
        ] {
            assert_eq!(text.parse::<PortSpec>().unwrap().to_string(), shown);
        }
        for text in ["", "0", "65536", "80/ICMP", "http", "80/", "/TCP"] {
            assert!(text.parse::<PortSpec>().is_err(), "{text:?}");
        }
    }
}
