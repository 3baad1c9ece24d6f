//! The protocols of IP by their numbers, and the names that people know some of them by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Protocol;

/// A protocol of IP by its IANA number. Parses from a name in any case, or the number; prints as the name, if it has one
/// here, else the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IpProtocol(pub u8);

/// The names that are understood; of several for one number the first is printed.
const NAMES: [(&str, u8); 20] = [
    ("ICMP", 1),
    ("IGMP", 2),
    ("IPIP", 4),
    ("TCP", 6),
    ("UDP", 17),
    ("DCCP", 33),
    ("IPV6", 41),
    ("6IN4", 41),
    ("GRE", 47),
    ("ESP", 50),
    ("AH", 51),
    ("ICMPV6", 58),
    ("IPV6-ICMP", 58),
    ("OSPF", 89),
    ("ETHERIP", 97),
    ("PIM", 103),
    ("VRRP", 112),
    ("L2TP", 115),
    ("SCTP", 132),
    ("UDPLITE", 136),
];

/// The first number that no packet's protocol can be told by: 255 is reserved, and in the datapath's keys it stands for
/// packets whose protocol cannot be read.
const RESERVED: u8 = 255;

impl IpProtocol {
    /// ICMP, of IPv4.
    pub const ICMP: Self = Self(1);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// Of a packet whose protocol cannot be read. No packet can be told by it.
    pub(crate) const UNREADABLE: Self = Self(RESERVED);

    /// The protocol with ports that it is, if it is one that policies name the ports of.
    pub fn with_ports(self) -> Option<Protocol> {
        Protocol::from_number(self.0)
    }
}

impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// What is no protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a protocol's name (TCP, UDP, SCTP, ICMP, ICMPv6, GRE, ESP, ...) or its number, 0 to 254"
)]
pub struct NoProtocol;

impl FromStr for IpProtocol {
    type Err = NoProtocol;

    fn from_str(text: &str) -> Result<Self, NoProtocol> {
        let upper = text.to_ascii_uppercase();
        if let Some((_, number)) = NAMES.iter().find(|(name, _)| *name == upper) {
            return Ok(Self(*number));
        }
        let number = text.parse().map_err(|_| NoProtocol)?;
        if number == RESERVED { Err(NoProtocol) } else { Ok(Self(number)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_names_and_numbers() {
        for (text, number, shown) in [
            ("icmp", 1, "ICMP"),
            ("Gre", 47, "GRE"),
            ("47", 47, "GRE"),
            ("254", 254, "254"),
            ("ipv6-icmp", 58, "ICMPV6"),
        ] {
            let protocol: IpProtocol = text.parse().unwrap();
            assert_eq!((protocol.0, protocol.to_string().as_str()), (number, shown));
        }
        for text in ["", "255", "256", "-1", "icmp6x", "tcp/80"] {
            assert!(text.parse::<IpProtocol>().is_err(), "{text}");
        }
        assert_eq!(IpProtocol(6).with_ports(), Some(Protocol::Tcp));
        assert_eq!(IpProtocol(47).with_ports(), None);
    }
}
