//! Ethernet frames, byte by byte: what a host may send, and what it must not.
//!
//! A packet is written from the inside out: a transport header, then the IP header around it, then Ethernet.
//! Lengths and checksums are right unless a test says otherwise; nothing is random.
//!
//! ```
//! use podgate_testkit::packet::{tcp, udp};
//! let syn = tcp(40000, 80).syn().between("10.0.0.9", "10.0.0.5").frame();
//! let cut = udp(53, 53).payload(&[0; 64]).between("fd00::9", "fd00::5").claim_length(4).frame();
//! assert_eq!((syn.len(), cut.len()), (54, 126));
//! ```

use std::net::IpAddr;

pub mod wire;
pub use wire::{
    Ip, Transport, arp, arp_operation, arp_reply, ethernet, icmp, raw, sctp, tcp, udp, vlan,
};

/// IP protocol numbers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IP in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ESP.
    pub const ESP: u8 = 50;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// IPv6 mobility.
    pub const MOBILITY: u8 = 135;
}

/// An address from its text; panics on nonsense, which only a test's author can write.
pub fn addr(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|e| panic!("address {text:?}: {e}"))
}
