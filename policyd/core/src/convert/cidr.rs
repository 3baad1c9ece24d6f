//! Addresses and CIDRs in every spelling that stored objects have (KEP-4858).
//!
//! Go's parsers used to read leading zeros as decimal, so `010.0.0.0/8` in an old policy means 10/8. Rust's
//! reject them for IPv4. Host bits are cleared, and an IPv4-mapped IPv6 spelling is the IPv4 range it maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Reads an address, canonical: `::ffff:10.0.0.1` and `010.0.0.1` are 10.0.0.1. `None` if it is none.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        parse_v6(text).map(|address| address.to_canonical())
    } else {
        parse_v4(text).map(IpAddr::V4)
    }
}

/// Reads a CIDR, canonical: host bits cleared, `::ffff:a.b.c.d/n` with n >= 96 as IPv4. `None` if it is none.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length: u8 = decimal(length)?.parse().ok()?;
    let net = if address.contains(':') {
        let address = parse_v6(address)?;
        match (address.to_ipv4_mapped(), length.checked_sub(96)) {
            (Some(mapped), Some(length)) => IpNet::V4(Ipv4Net::new(mapped, length).ok()?),
            _ => IpNet::V6(Ipv6Net::new(address, length).ok()?),
        }
    } else {
        IpNet::V4(Ipv4Net::new(parse_v4(address)?, length).ok()?)
    };
    Some(net.trunc())
}

/// `text` without leading zeros, if it is a decimal number.
fn decimal(text: &str) -> Option<&str> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(significant(text))
}

/// `text` without leading zeros, but for the last.
fn significant(text: &str) -> &str {
    let trimmed = text.trim_start_matches('0');
    if trimmed.is_empty() && !text.is_empty() { "0" } else { trimmed }
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn parse_v6(text: &str) -> Option<Ipv6Addr> {
    let mut groups = Vec::new();
    for group in text.split(':') {
        groups.push(if group.contains('.') {
            parse_v4(group)?.to_string()
        } else {
            significant(group).to_owned()
        });
    }
    groups.join(":").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_spellings_of_cidrs() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("010.0.0.0/8", Some("10.0.0.0/8")),
            ("010.001.000.000/016", Some("10.1.0.0/16")),
            ("10.0.0.0/08", Some("10.0.0.0/8")),
            ("0000010.0.0.0/8", Some("10.0.0.0/8")),
            ("008.009.0.0/16", Some("8.9.0.0/16")), // decimal, not octal
            ("10.1.2.3/16", Some("10.1.0.0/16")),
            ("10.1.2.3/32", Some("10.1.2.3/32")),
            ("10.1.2.3/0", Some("0.0.0.0/0")),
            ("2001:DB8:0:0::/32", Some("2001:db8::/32")),
            ("2001:0db8:0000::1/64", Some("2001:db8::/64")),
            ("00fd00::/8", Some("fd00::/8")),
            ("fd00::1/128", Some("fd00::1/128")),
            ("::/0", Some("::/0")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:010.1.2.3/112", Some("10.1.0.0/16")),
            ("::ffff:a00:0/104", Some("10.0.0.0/8")),
            ("::ffff:1.2.3.4/96", Some("0.0.0.0/0")),
            ("::ffff:1.2.3.4/128", Some("1.2.3.4/32")),
            ("::ffff:1.2.3.4/95", Some("::fffe:0:0/95")), // wider than the mapped range: IPv6
            ("::10.0.0.1/128", Some("::a00:1/128")),
            ("", None),
            ("10.0.0.0", None),
            ("10.0.0.0/", None),
            ("/8", None),
            ("10.0.0/8", None),
            ("10.0.0.0.0/8", None),
            ("10..0.0/8", None),
            ("256.0.0.0/8", None),
            ("0x0a.0.0.0/8", None),
            ("+10.0.0.0/8", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/-1", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/8/8", None),
            (" 10.0.0.0/8", None),
            ("10.0.0.0/8 ", None),
            ("fd00::/129", None),
            ("fd00::1::/64", None),
            ("fd00:::/64", None),
            ("12345::/64", None),
            ("fe80::1%eth0/64", None),
            ("::ffff:10.0.0.0/129", None),
        ] {
            let read = parse_cidr(text).map(|net| net.to_string());
            assert_eq!(read.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn addresses_are_canonical() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.1", Some("10.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("FD00:0::0001", Some("fd00::1")),
            ("::", Some("::")),
            ("10.0.0.1/32", None),
            ("fe80::1%eth0", None),
            ("", None),
        ] {
            let read = parse_address(text).map(|address| address.to_string());
            assert_eq!(read.as_deref(), expected, "{text:?}");
        }
    }
}
