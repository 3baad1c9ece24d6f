//! The headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{addr, protocol};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// RFC 1071.
fn checksum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 2] {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// RFC 9260, appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    });
    !crc
}

/// A frame of any type.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Of IPv4, beside the offset of a fragment.
const DO_NOT_FRAGMENT: u16 = 0x4000;

/// The same frame with an 802.1Q tag.
pub fn vlan(id: u16, frame: &[u8]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend(ETHERTYPE_VLAN.to_be_bytes());
    tagged.extend(id.to_be_bytes());
    tagged.extend(&frame[12..]);
    tagged
}

/// Who has `target`? Tell `sender`.
pub fn arp(sender: &str, target: &str) -> Vec<u8> {
    arp_operation(1, sender, target)
}

/// To `target`: `sender` is here.
pub fn arp_reply(sender: &str, target: &str) -> Vec<u8> {
    arp_operation(2, sender, target)
}

/// ARP for IPv4 over Ethernet, from the hardware address that [`ethernet`] frames come from.
pub fn arp_operation(operation: u8, sender: &str, target: &str) -> Vec<u8> {
    let (IpAddr::V4(sender), IpAddr::V4(target)) = (addr(sender), addr(target)) else {
        panic!("ARP is for IPv4")
    };
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation, 2, 0, 0, 0, 0, 2];
    body.extend(sender.octets());
    body.extend([0; 6]);
    body.extend(target.octets());
    ethernet(ETHERTYPE_ARP, &body)
}

/// A transport header and what it carries.
#[derive(Clone, Debug)]
pub struct Transport {
    protocol: u8,
    bytes: Vec<u8>,
    without_checksum: bool,
}

impl Transport {
    fn new(protocol: u8, bytes: Vec<u8>) -> Self {
        Self { protocol, bytes, without_checksum: false }
    }
}

/// A TCP segment without flags; see [`Transport::syn`] and its like.
pub fn tcp(source: u16, destination: u16) -> Transport {
    let mut bytes = ports(source, destination);
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0, 0xff, 0xff, 0, 0, 0, 0]);
    Transport::new(protocol::TCP, bytes)
}

/// A UDP datagram.
pub fn udp(source: u16, destination: u16) -> Transport {
    let mut bytes = ports(source, destination);
    bytes.extend([0, 8, 0, 0]);
    Transport::new(protocol::UDP, bytes)
}

/// An SCTP packet: common header and an INIT chunk's first words.
pub fn sctp(source: u16, destination: u16) -> Transport {
    let mut bytes = ports(source, destination);
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4]);
    Transport::new(protocol::SCTP, bytes)
}

/// An ICMP message of either family, with the four bytes behind its checksum (identifier and sequence of an echo).
pub fn icmp(kind: u8, code: u8, rest: [u8; 4]) -> Transport {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    Transport::new(protocol::ICMP, bytes)
}

/// Any protocol with any bytes.
pub fn raw(protocol: u8, bytes: &[u8]) -> Transport {
    Transport::new(protocol, bytes.to_vec())
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

impl Transport {
    /// TCP: any flags.
    pub fn flags(mut self, flags: u8) -> Self {
        assert_eq!(self.protocol, protocol::TCP, "only TCP has flags");
        self.bytes[13] = flags;
        self
    }

    /// SYN.
    pub fn syn(self) -> Self {
        self.flags(0x02)
    }

    /// SYN and ACK.
    pub fn syn_ack(self) -> Self {
        self.flags(0x12)
    }

    /// ACK.
    pub fn ack(self) -> Self {
        self.flags(0x10)
    }

    /// FIN and ACK.
    pub fn fin(self) -> Self {
        self.flags(0x11)
    }

    /// RST.
    pub fn rst(self) -> Self {
        self.flags(0x04)
    }

    /// TCP: the numbers of its first byte and of the next one that its sender waits for; 1 and 0 unless set.
    pub fn sequence(mut self, first: u32, acknowledged: u32) -> Self {
        assert_eq!(self.protocol, protocol::TCP, "only TCP has a sequence");
        self.bytes[4..8].copy_from_slice(&first.to_be_bytes());
        self.bytes[8..12].copy_from_slice(&acknowledged.to_be_bytes());
        self
    }

    /// TCP: the window, 0xffff unless set.
    pub fn window(mut self, window: u16) -> Self {
        assert_eq!(self.protocol, protocol::TCP, "only TCP has a window");
        self.bytes[14..16].copy_from_slice(&window.to_be_bytes());
        self
    }

    /// Appends bytes.
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        if self.protocol == protocol::UDP {
            let length = (self.bytes.len() as u16).to_be_bytes();
            self.bytes[4..6].copy_from_slice(&length);
        }
        self
    }

    /// SCTP: with its real checksum. Without, it is left to a device.
    pub fn crc(mut self) -> Self {
        assert_eq!(self.protocol, protocol::SCTP, "only SCTP has a CRC");
        self.bytes[8..12].fill(0);
        let sum = crc32c(&self.bytes).to_le_bytes();
        self.bytes[8..12].copy_from_slice(&sum);
        self
    }

    /// UDP over IPv4: sent without a checksum.
    pub fn unchecked(mut self) -> Self {
        assert_eq!(self.protocol, protocol::UDP, "only UDP may go without a checksum");
        self.without_checksum = true;
        self
    }

    /// Cuts the header itself short.
    pub fn truncated(mut self, length: usize) -> Self {
        self.bytes.truncate(length);
        self
    }

    /// Appends the packet that an ICMP error is about: its IP header and `transport_bytes` of what follows.
    pub fn quoting(self, quoted: &Ip, transport_bytes: usize) -> Self {
        let packet = quoted.packet();
        let end = (quoted.header_length() + transport_bytes).min(packet.len());
        self.payload(&packet[..end])
    }

    /// Wraps it in an IP header of the addresses' family. ICMP becomes ICMPv6 between IPv6 addresses.
    pub fn between(mut self, source: &str, destination: &str) -> Ip {
        let (source, destination) = (addr(source), addr(destination));
        if self.protocol == protocol::ICMP && source.is_ipv6() {
            self.protocol = protocol::ICMPV6;
        }
        Ip::new(source, destination, self)
    }
}

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Ip {
    source: IpAddr,
    destination: IpAddr,
    transport: Transport,
    hop_limit: u8,
    traffic_class: u8,
    /// IPv4: option bytes, a multiple of 4.
    options: Vec<u8>,
    /// IPv6: extension headers, each its number and its bytes with the next header left 0.
    extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4: identification, flags and offset.
    fragment: (u16, u16),
    claimed_length: Option<u16>,
    claimed_header_words: Option<u8>,
}

impl Ip {
    fn new(source: IpAddr, destination: IpAddr, transport: Transport) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "one family per packet");
        Self {
            source,
            destination,
            transport,
            hop_limit: 64,
            traffic_class: 0,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: (0, 0),
            claimed_length: None,
            claimed_header_words: None,
        }
    }

    /// Its source address.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// TTL or hop limit; 64 unless set.
    pub fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// DSCP and, in its lower two bits, ECN.
    pub fn traffic_class(mut self, class: u8) -> Self {
        self.traffic_class = class;
        self
    }

    /// IPv4: sets "don't fragment". IPv6 needs no such flag.
    pub fn unfragmentable(mut self) -> Self {
        self.fragment.1 |= DO_NOT_FRAGMENT;
        self
    }

    /// IPv4: makes the header `words` words long (5 to 15), the rest filled with "no operation".
    pub fn header_words(mut self, words: u8) -> Self {
        self.options = vec![1; usize::from(words - 5) * 4];
        self
    }

    /// IPv4: option bytes, a multiple of 4.
    pub fn options(mut self, bytes: &[u8]) -> Self {
        self.options = bytes.to_vec();
        self
    }

    /// IPv4: writes a header length that is not the real one.
    pub fn claim_header_words(mut self, words: u8) -> Self {
        self.claimed_header_words = Some(words);
        self
    }

    /// Writes a total length (IPv4) or payload length (IPv6) that is not the real one.
    pub fn claim_length(mut self, length: u16) -> Self {
        self.claimed_length = Some(length);
        self
    }

    /// IPv6: appends an extension header of 8 bytes times `units`, zero but for its length.
    pub fn extension(mut self, number: u8, units: u8) -> Self {
        let mut header = vec![0; usize::from(units) * 8];
        header[1] = if number == protocol::AH { units * 2 - 2 } else { units - 1 };
        self.extensions.push((number, header));
        self
    }

    /// IPv6: appends an extension header of these bytes, the first of which is overwritten with the next header's number.
    pub fn extension_of(mut self, number: u8, bytes: &[u8]) -> Self {
        self.extensions.push((number, bytes.to_vec()));
        self
    }

    /// IPv6: appends a routing header (type 0) that names one more address and has `left` segments to go.
    pub fn routing(mut self, left: u8) -> Self {
        let mut header = vec![0; 24];
        header[1] = 2;
        header[3] = left;
        self.extensions.push((protocol::ROUTING, header));
        self
    }

    /// Makes it a fragment: `offset` in bytes, a multiple of 8. IPv6: appends a fragment header here, in front
    /// of extension headers added later.
    pub fn fragment(mut self, id: u16, offset: u16, more: bool) -> Self {
        match self.source {
            IpAddr::V4(_) => self.fragment = (id, (u16::from(more) << 13) | (offset / 8)),
            IpAddr::V6(_) => {
                let mut header = vec![0; 4];
                header[2..4].copy_from_slice(&(offset | u16::from(more)).to_be_bytes());
                header.extend(u32::from(id).to_be_bytes());
                self.extensions.push((protocol::FRAGMENT, header));
            }
        }
        self
    }

    fn header_length(&self) -> usize {
        match self.source {
            IpAddr::V4(_) => 20 + self.options.len(),
            IpAddr::V6(_) => {
                40 + self.extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
            }
        }
    }

    /// The frames of this packet cut in pieces of at most `size` bytes of payload, a multiple of 8; the first one
    /// has the transport header with the whole packet's checksum.
    pub fn in_fragments(&self, id: u16, size: usize) -> Vec<Vec<u8>> {
        let whole = self.packet();
        let payload = &whole[self.header_length()..];
        let piece = |(number, piece): (usize, &[u8])| {
            let more = number * size + piece.len() < payload.len();
            let mut ip = self.clone().fragment(id, (number * size) as u16, more);
            ip.transport = Transport::new(self.transport.protocol, piece.to_vec());
            ip.frame()
        };
        payload.chunks(size).enumerate().map(piece).collect()
    }

    /// The packet's bytes, without Ethernet.
    pub fn packet(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.packet4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.packet6(source, destination),
            _ => unreachable!("new() has compared the families"),
        }
    }

    /// The Ethernet frame.
    pub fn frame(&self) -> Vec<u8> {
        ethernet(
            if self.source.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 },
            &self.packet(),
        )
    }

    fn packet4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let transport = self.checked(&source.octets(), &destination.octets());
        let length = (self.header_length() + transport.len()) as u16;
        let words = self.claimed_header_words.unwrap_or((self.header_length() / 4) as u8);
        let mut packet = vec![0x40 | words, self.traffic_class];
        packet.extend(self.claimed_length.unwrap_or(length).to_be_bytes());
        packet.extend(self.fragment.0.to_be_bytes());
        packet.extend(self.fragment.1.to_be_bytes());
        packet.extend([self.hop_limit, self.transport.protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(&self.options);
        let sum = checksum([packet.as_slice()]);
        packet[10..12].copy_from_slice(&sum);
        packet.extend(transport);
        packet
    }

    fn packet6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let transport = self.checked(&source.octets(), &destination.octets());
        let numbers = self.extensions.iter().map(|(number, _)| *number);
        let mut next = numbers.chain([self.transport.protocol]);
        let length = (self.header_length() - 40 + transport.len()) as u16;
        let mut packet = vec![0x60 | (self.traffic_class >> 4), self.traffic_class << 4, 0, 0];
        packet.extend(self.claimed_length.unwrap_or(length).to_be_bytes());
        packet.extend([next.next().unwrap_or(59), self.hop_limit]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        for (_, header) in &self.extensions {
            let start = packet.len();
            packet.extend(header);
            packet[start] = next.next().unwrap_or(59);
        }
        packet.extend(transport);
        packet
    }

    /// The transport bytes with their checksum, where the whole header is there.
    fn checked(&self, source: &[u8], destination: &[u8]) -> Vec<u8> {
        let mut bytes = self.transport.bytes.clone();
        let number = self.transport.protocol;
        if self.transport.without_checksum {
            return bytes;
        }
        let at = match number {
            protocol::TCP => 16,
            protocol::UDP => 6,
            protocol::ICMP | protocol::ICMPV6 => 2,
            _ => return bytes, // SCTP's is a CRC that nobody on the way verifies
        };
        if bytes.len() < at + 2
            || self.fragment.1 & !DO_NOT_FRAGMENT != 0
            || self.has_fragment_header()
        {
            return bytes;
        }
        let mut pseudo = [source, destination].concat();
        pseudo.extend((bytes.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, number]);
        if number == protocol::ICMP {
            pseudo.clear();
        }
        bytes[at..at + 2].fill(0);
        let mut sum = checksum([pseudo.as_slice(), bytes.as_slice()]);
        if number == protocol::UDP && sum == [0, 0] {
            sum = [0xff, 0xff]; // 0 would mean that there is none
        }
        bytes[at..at + 2].copy_from_slice(&sum);
        bytes
    }

    fn has_fragment_header(&self) -> bool {
        self.extensions.iter().any(|(number, _)| *number == protocol::FRAGMENT)
    }
}
