//! What is in a frame, read without good will.
//!
//! [`Ip::exact`] is true only of packets that a correct host sends: every length agrees with every other and with the
//! frame, checksums are right. Of others the reading is what their headers say, and only a drop may be demanded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// ARP's ethertype, whatever is behind it.
    Arp(Option<Arp>),
    /// An IP packet with both addresses.
    Ip(Ip),
    /// Anything else, an IP ethertype without an IP header included.
    Foreign(u16),
}

/// ARP for IPv4 over Ethernet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Whether the sender's hardware address is the frame's source.
    pub honest: bool,
    /// Who speaks.
    pub sender: Ipv4Addr,
    /// About whom, or to whom.
    pub target: Ipv4Addr,
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hops: u8,
    /// The protocol behind all extension headers, as far as it can be known.
    pub protocol: u8,
    /// The fragment's identification, 0 of a whole packet.
    pub id: u32,
    /// Whether there are more fragments.
    pub is_first: bool,
    /// Numbers of the extension headers in their order.
    pub extensions: Vec<u8>,
    /// Their bytes.
    pub chain: Vec<u8>,
    /// What it carries.
    pub content: Content,
    /// From the transport header to the packet's end.
    pub payload: Vec<u8>,
    /// Whether a correct host sends this.
    pub exact: bool,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// TCP, UDP or SCTP; `flags` are TCP's.
    Ports {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// FIN 1, SYN 2, RST 4, ACK 16.
        flags: u8,
    },
    /// The ICMP of the family.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Bytes 4 and 5: an echo's identifier.
        id: u16,
    },
    /// Not the first fragment: there is no transport header in it.
    Later,
    /// Another protocol.
    Other,
    /// No transport header where one must be.
    Broken(&'static str),
}

/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// SCTP.
pub const SCTP: u8 = 132;

/// Reads a frame.
pub fn read(frame: &[u8]) -> Reading {
    let Some(ethertype) = word(frame, 12) else { return Reading::Foreign(0) };
    let packet = &frame[14..];
    let ip = match ethertype {
        0x0806 => return Reading::Arp(arp(frame)),
        0x0800 => v4(packet, false),
        0x86dd => v6(packet, false),
        _ => None,
    };
    ip.map_or(Reading::Foreign(ethertype), Reading::Ip)
}

/// Reads the packet that an ICMP error quotes, of which eight bytes behind the IP header are enough.
pub fn read_quote(packet: &[u8], v6: bool) -> Option<Ip> {
    if v6 { self::v6(packet, true) } else { v4(packet, true) }
}

fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn address6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

fn arp(frame: &[u8]) -> Option<Arp> {
    let body = &frame[14..];
    let fixed = [0, 1, 8, 0, 6, 4];
    if !body.starts_with(&fixed) || body.len() < 28 {
        return None;
    }
    Some(Arp {
        operation: word(body, 6)?,
        honest: body[8..14] == frame[6..12],
        sender: address4(body, 14)?,
        target: address4(body, 24)?,
    })
}

/// The ones' complement sum of everything, which is 0xffff where a checksum is right.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        let (pairs, rest) = part.as_chunks::<2>();
        sum += pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>();
        sum += rest.first().map_or(0, |last| u64::from(*last) << 8);
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn v4(packet: &[u8], quoted: bool) -> Option<Ip> {
    let (source, destination) = (address4(packet, 12)?, address4(packet, 16)?);
    let words = usize::from(packet[0] & 0x0f);
    let claimed = usize::from(word(packet, 2)?);
    let field = word(packet, 6)?;
    let offset = usize::from(field & 0x1fff) * 8;
    let more = field & 0x2000 != 0;
    let mut ip = Ip {
        source: source.into(),
        destination: destination.into(),
        hops: packet[8],
        protocol: packet[9],
        id: 0,
        is_first: false,
        extensions: Vec::new(),
        chain: Vec::new(),
        content: Content::Broken("no IPv4 header"),
        payload: Vec::new(),
        exact: false,
    };
    // a length of 0 is what a BIG TCP packet has, which only the frame can tell
    let length = if claimed == 0 { packet.len() } else { claimed };
    let header = words * 4;
    if packet[0] >> 4 != 4 || words < 5 || length < header || packet.len() < header {
        return Some(ip);
    }
    ip.payload = packet.get(header..length.min(packet.len())).unwrap_or_default().to_vec();
    let sound = length == packet.len()
        && claimed != 0
        && sum(&[&packet[..header]]) == 0xffff
        && field & 0x8000 == 0
        && ip.hops > 0
        && plain_options(&packet[20..header]);
    if more || offset > 0 {
        ip.id = u32::from(word(packet, 4)?);
    }
    if offset > 0 {
        ip.content = Content::Later;
        let whole = !more || ip.payload.len().is_multiple_of(8);
        ip.exact = sound && whole && !ip.payload.is_empty() && offset + length <= 0xffff;
        return Some(ip);
    }
    ip.is_first = more;
    let pseudo = [&packet[12..20], &[0, ip.protocol][..]].concat();
    let available = length - header;
    transport(&mut ip, &pseudo, available, sound, quoted);
    Some(ip)
}

/// Whether options are "no operation" and the end only: others may change where a packet goes.
fn plain_options(options: &[u8]) -> bool {
    options.iter().all(|option| *option <= 1)
}

fn v6(packet: &[u8], quoted: bool) -> Option<Ip> {
    let (source, destination) = (address6(packet, 8)?, address6(packet, 24)?);
    let claimed = usize::from(word(packet, 4)?);
    let mut ip = Ip {
        source: source.into(),
        destination: destination.into(),
        hops: packet[7],
        protocol: packet[6],
        id: 0,
        is_first: false,
        extensions: Vec::new(),
        chain: Vec::new(),
        content: Content::Broken("no IPv6 header"),
        payload: Vec::new(),
        exact: false,
    };
    if packet[0] >> 4 != 6 {
        return Some(ip);
    }
    // the form in which an IPv4 address is written, never one that is sent (RFC 4291)
    if source.to_ipv4_mapped().or(destination.to_ipv4_mapped()).is_some() {
        ip.content = Content::Broken("an address that is IPv4's");
        return Some(ip);
    }
    let length = if claimed == 0 { packet.len() - 40 } else { claimed };
    let mut sound = claimed == packet.len() - 40 && claimed != 0 && ip.hops > 0;
    let end = (40 + length).min(packet.len());
    let mut at = 40;
    while matches!(ip.protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
        let number = ip.protocol;
        let Some(header) = packet.get(at..at + 8).filter(|_| at + 8 <= end) else {
            ip.content = Content::Broken("an extension header cut short");
            return Some(ip);
        };
        let size = match number {
            44 => 8,
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        // what a host accepts: hop-by-hop first, one fragment header, few of them in all
        sound &= (number != 0 || ip.extensions.is_empty())
            && (number != 44 || !ip.extensions.contains(&44))
            && (number != 51 || (size >= 12 && size % 8 == 0))
            && ip.extensions.len() < 8;
        ip.extensions.push(number);
        if number == 43 && header[3] != 0 {
            ip.content = Content::Broken("a source route with a way to go");
            return Some(ip);
        }
        if number == 44 {
            let field = word(header, 2)?;
            ip.id = u32::from_be_bytes(header[4..8].try_into().ok()?);
            ip.is_first |= field & 1 != 0;
            if field & 0xfff8 != 0 {
                ip.protocol = header[0];
                ip.is_first = false;
                ip.content = Content::Later;
                ip.payload = packet[at + 8..end].to_vec();
                let whole = field & 1 == 0 || ip.payload.len().is_multiple_of(8);
                let fits = usize::from(field & 0xfff8) + ip.payload.len() <= 0xffff;
                ip.exact = sound && whole && fits && !ip.payload.is_empty();
                return Some(ip);
            }
        }
        ip.protocol = header[0];
        at += size;
        if at > 40 + length {
            ip.content = Content::Broken("an extension header longer than the packet");
            return Some(ip);
        }
    }
    ip.chain = packet.get(40..at.min(end)).unwrap_or_default().to_vec();
    ip.payload = packet.get(at..end).unwrap_or_default().to_vec();
    let pseudo = [&packet[8..40], &[0, ip.protocol][..]].concat();
    transport(&mut ip, &pseudo, 40 + length - at, sound, quoted);
    Some(ip)
}

/// Reads the transport header at the start of the payload. `available` is what the IP header says there is of it,
/// `pseudo` what a checksum covers beside it, but for the length.
fn transport(ip: &mut Ip, pseudo: &[u8], available: usize, sound: bool, quoted: bool) {
    let v6 = ip.source.is_ipv6();
    let icmp = if v6 { 58 } else { 1 };
    let protocol = ip.protocol;
    let least = match protocol {
        TCP => 20,
        SCTP => 12,
        UDP => 8,
        1 | 58 => 8,
        _ => 0,
    };
    // where the frame ends early, the ports may be there all the same, and what they say counts
    let read = least.min(8);
    let payload = ip.payload.as_slice();
    let length = (payload.len() as u32).to_be_bytes();
    let right = || ip.is_first || sum(&[pseudo, &length, payload]) == 0xffff;
    let (content, sound_inside) = if available < if quoted { read } else { least } {
        (Content::Broken("a transport header cut short"), false)
    } else if payload.len() < read {
        (Content::Broken("less than the header says there is"), false)
    } else {
        match protocol {
            TCP | UDP | SCTP => {
                let ports = (word(payload, 0), word(payload, 2));
                let (source, destination) = (ports.0.unwrap_or(0), ports.1.unwrap_or(0));
                let flags = byte(payload, 13).filter(|_| protocol == TCP).unwrap_or(0);
                let inside = match protocol {
                    TCP => {
                        let header = byte(payload, 12).map_or(0, |byte| usize::from(byte >> 4) * 4);
                        (20..=payload.len()).contains(&header) && is_usual(flags) && right()
                    }
                    UDP => {
                        let unchecked = word(payload, 6) == Some(0);
                        let claimed = word(payload, 4).map_or(0, usize::from);
                        let fits = ip.is_first || claimed == payload.len();
                        fits && if unchecked { !v6 } else { right() }
                    }
                    _ => true, // SCTP's is often left to the device
                };
                // port 0 is no host's
                let named = source != 0 && destination != 0;
                (Content::Ports { source, destination, flags }, inside && named)
            }
            _ if protocol == icmp => {
                let id = word(payload, 4).unwrap_or(0);
                let checked = if v6 { right() } else { ip.is_first || sum(&[payload]) == 0xffff };
                (Content::Icmp { kind: payload[0], code: payload[1], id }, checked)
            }
            _ => (Content::Other, byte(payload, 0).is_some() || protocol == 59),
        }
    };
    let whole = !ip.is_first || payload.len().is_multiple_of(8);
    ip.exact = sound && sound_inside && whole;
    ip.content = content;
}

/// Whether a host that speaks TCP sends this combination of flags.
fn is_usual(flags: u8) -> bool {
    matches!(flags & 0x17, 0x02 | 0x10 | 0x11 | 0x12 | 0x04 | 0x14)
}
