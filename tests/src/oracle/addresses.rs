//! Addresses and blocks (5): numbers of 32 or 128 bits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::networking::v1::IPBlock;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    bits: u128,
    width: u32,
}

impl Address {
    /// An IPv4-mapped IPv6 address is the IPv4 address.
    fn new(bits: u128, width: u32) -> Self {
        if width == 128 && bits >> 32 == 0xffff {
            return Self { bits: bits & 0xffff_ffff, width: 32 };
        }
        Self { bits, width }
    }

    pub(super) fn to_ip(self) -> IpAddr {
        match self.width {
            32 => IpAddr::V4(Ipv4Addr::from_bits(self.bits as u32)),
            _ => IpAddr::V6(Ipv6Addr::from_bits(self.bits)),
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::new(u128::from(address.to_bits()), 32),
            IpAddr::V6(address) => Self::new(address.to_bits(), 128),
        }
    }
}

pub(super) fn block_holds(block: &IPBlock, peer: IpAddr) -> bool {
    let excepts = block.except.iter().flatten();
    cidr_holds(&block.cidr, peer) && !excepts.into_iter().any(|except| cidr_holds(except, peer))
}

pub(super) fn cidr_holds(cidr: &str, peer: IpAddr) -> bool {
    let (address, length) = cidr.split_once('/').unwrap_or_else(|| panic!("cidr {cidr:?}"));
    let mut length: u32 = length.parse().unwrap_or_else(|_| panic!("cidr {cidr:?}"));
    let (base, peer) = (read_address(address), Address::from(peer));
    if base.width == 32 && address.contains(':') {
        length -= 96;
    }
    let differing_bits = base.bits ^ peer.bits;
    let host_bits = base.width - length;
    base.width == peer.width && differing_bits.checked_shr(host_bits).unwrap_or(0) == 0
}

/// Reads an address digit by digit; leading zeros are decimal.
pub(super) fn read_address(text: &str) -> Address {
    if !text.contains(':') {
        return Address::new(read_v4(text), 32);
    }
    // "a:b::c" is the groups before "::", zeros, and the groups after it
    let mut halves = text.splitn(2, "::").map(|half| {
        let mut groups: Vec<u128> = Vec::new();
        for group in half.split(':').filter(|group| !group.is_empty()) {
            if group.contains('.') {
                let dotted = read_v4(group);
                groups.extend([dotted >> 16, dotted & 0xffff]);
            } else {
                let group = u128::from_str_radix(group, 16);
                groups.push(group.unwrap_or_else(|_| panic!("address {text:?}")));
            }
        }
        groups
    });
    let before = halves.next().unwrap_or_default();
    let after = halves.next().unwrap_or_default();
    let mut groups = before.clone();
    groups.resize(8 - after.len(), 0);
    groups.extend(after);
    Address::new(groups.into_iter().fold(0, |bits, group| bits << 16 | group), 128)
}

fn read_v4(text: &str) -> u128 {
    text.split('.').fold(0, |bits, octet| {
        let octet: u128 = octet.parse().unwrap_or_else(|_| panic!("address {text:?}"));
        bits << 8 | octet
    })
}
