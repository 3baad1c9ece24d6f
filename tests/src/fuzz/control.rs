//! Control traffic: what passes at every pod because no link works without it, and only as far as it can be what it
//! claims to be (type, direction, hop limit, length, link scope).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::judge::Pod;
use super::strict::{Arp, Content, Ip, UDP};
use crate::oracle::Gate;

/// What a packet that may be control traffic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing of the kind.
    Ordinary,
    /// What it claims to be: passes at every pod.
    Genuine,
    /// Not what it claims to be: judged like any other packet.
    Forged,
    /// Nothing that a pod may send, whatever its policies say.
    Never,
    /// The semantics leave it open.
    Unclear,
}

/// The transactions that a pod has opened by asking for an address.
#[derive(Debug, Default)]
pub struct Asked {
    v4: Vec<[u8; 4]>,
    v6: Vec<[u8; 3]>,
    /// In whichever form.
    at_all4: bool,
    at_all6: bool,
}

impl Asked {
    /// Remembers what the pod sent, if it was a question: a genuine one has to be answered.
    pub fn note(&mut self, ip: &Ip, is_genuine: bool) {
        let Content::Ports { source, destination, .. } = ip.content else { return };
        if ip.protocol != UDP {
            return;
        }
        match (source, destination) {
            (68, 67) if ip.source.is_ipv4() => {
                self.at_all4 = true;
                self.v4.extend(part::<4>(ip, 12).filter(|_| is_genuine));
            }
            (546, 547) if ip.source.is_ipv6() => {
                self.at_all6 = true;
                self.v6.extend(part::<3>(ip, 9).filter(|_| is_genuine));
            }
            _ => {}
        }
    }
}

/// Some bytes of the payload.
fn part<const N: usize>(ip: &Ip, at: usize) -> Option<[u8; N]> {
    ip.payload.get(at..at + N)?.try_into().ok()
}

/// ARP.
pub fn arp(arp: Option<&Arp>, length: usize, gate: Gate, pod: &Pod) -> Claim {
    let bound = gate == Gate::Egress && pod.anti_spoofing;
    let Some(arp) = arp.filter(|arp| matches!(arp.operation, 1 | 2)) else {
        return if bound { Claim::Never } else { Claim::Forged };
    };
    let own = |address: Ipv4Addr| pod.is_own(address.into());
    let nobody = Ipv4Addr::UNSPECIFIED;
    // a frame is padded to 60 bytes, and carries nothing behind that
    let plain = arp.honest && length <= 60;
    let probe = arp.sender == nobody && arp.operation == 1 && own(arp.target);
    let vouched = (own(arp.sender) && arp.honest || probe) && length <= 64;
    match gate {
        Gate::Egress if own(arp.sender) && plain => Claim::Genuine,
        Gate::Egress if probe && plain => Claim::Genuine, // whether the address is free
        Gate::Egress if bound && !vouched => Claim::Never,
        Gate::Ingress if own(arp.target) && !own(arp.sender) && plain => Claim::Genuine,
        _ => Claim::Unclear,
    }
}

/// Neighbour discovery, multicast listener and DHCP messages; anything else is ordinary.
pub fn claim(ip: &Ip, gate: Gate, pod: &Pod, asked: &Asked) -> Claim {
    let found = match (ip.source, ip.destination, &ip.content) {
        (IpAddr::V6(from), IpAddr::V6(to), Content::Icmp { kind: 133..=137, code, .. })
            if ip.protocol == 58 =>
        {
            discovery(ip, (from, to), *code, gate, pod)
        }
        (IpAddr::V6(from), IpAddr::V6(to), Content::Icmp { kind: 130..=132 | 143, .. })
            if ip.protocol == 58 =>
        {
            listener(ip, from, to, gate)
        }
        (_, _, Content::Ports { source, destination, .. }) if ip.protocol == UDP => {
            let ports = match gate {
                Gate::Egress => (*source, *destination),
                Gate::Ingress => (*destination, *source),
            };
            match (ip.source, ip.destination, ports) {
                (IpAddr::V4(from), IpAddr::V4(to), (68, 67)) => {
                    dhcp4(ip, from, to, gate, pod, asked)
                }
                (IpAddr::V6(from), IpAddr::V6(to), (546, 547)) => {
                    dhcp6(ip, from, to, gate, pod, asked)
                }
                _ => Claim::Ordinary,
            }
        }
        _ => Claim::Ordinary,
    };
    // a fragment, a wrong checksum, a header between: no more than open
    let plain = ip.exact && !is_in_pieces(ip);
    if found == Claim::Genuine && !plain { Claim::Unclear } else { found }
}

fn is_in_pieces(ip: &Ip) -> bool {
    ip.is_first || ip.extensions.contains(&44)
}

fn link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// The group that a host listens to for questions about one of its addresses.
pub fn solicited(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Options fill the message to its end, and none is empty.
fn has_sound_options(message: &[u8], at: usize) -> bool {
    let mut rest = &message[at..];
    while !rest.is_empty() {
        let length = rest.get(1).map_or(0, |units| usize::from(*units) * 8);
        if length == 0 || length > rest.len() {
            return false;
        }
        rest = &rest[length..];
    }
    true
}

fn discovery(ip: &Ip, (from, to): (Ipv6Addr, Ipv6Addr), code: u8, gate: Gate, pod: &Pod) -> Claim {
    let kind = ip.payload[0];
    let least = [8, 16, 24, 24, 40][usize::from(kind - 133)];
    let routers_only = matches!(kind, 134 | 137) && gate == Gate::Egress && pod.anti_spoofing;
    if ip.hops != 255 || code != 0 || ip.is_first || ip.payload.len() < least {
        return if routers_only { Claim::Unclear } else { Claim::Forged };
    }
    if ip.extensions.contains(&44) {
        return Claim::Forged; // RFC 6980 has hosts ignore it
    }
    if !has_sound_options(&ip.payload, least) || !ip.extensions.is_empty() {
        return Claim::Unclear;
    }
    let mut octets = [0; 16];
    octets.copy_from_slice(ip.payload.get(8..24).unwrap_or(&[0; 16]));
    let target = Ipv6Addr::from(octets);
    let own = |address: Ipv6Addr| pod.is_own(address.into());
    let mine = own(from) || link_local(from);
    let never = if pod.anti_spoofing { Claim::Never } else { Claim::Unclear };
    // more than a link-layer address and a nonce
    let long = ip.payload.len() > least + 40;
    let genuine = if long { Claim::Unclear } else { Claim::Genuine };
    match (kind, gate) {
        (133, Gate::Egress) if mine || from.is_unspecified() => match to {
            ALL_ROUTERS => genuine,
            _ if link_local(to) || link_scope(to) => Claim::Unclear,
            _ => Claim::Forged,
        },
        (134, Gate::Egress) | (137, Gate::Egress) => never,
        (134, Gate::Ingress) if !link_local(from) => Claim::Forged,
        (134, Gate::Ingress) if to == ALL_NODES => genuine,
        (137, Gate::Ingress) if !link_local(from) => Claim::Forged,
        (135 | 136, _) if target.is_multicast() => Claim::Forged,
        (135, Gate::Egress) if from.is_unspecified() => {
            // whether the address is free
            match to == solicited(target) {
                true if own(target) => genuine,
                false if to.is_multicast() && !link_scope(to) => Claim::Forged,
                _ => Claim::Unclear,
            }
        }
        (135, Gate::Egress) if mine => match to {
            _ if to == solicited(target) => genuine,
            // whether it stays on the link, the routes say
            _ if !to.is_multicast() || link_scope(to) => Claim::Unclear,
            _ => Claim::Forged,
        },
        (135, Gate::Ingress) if own(target) && !from.is_multicast() && !own(from) => match to {
            _ if to == solicited(target) => genuine,
            _ if to == target && !from.is_unspecified() => genuine,
            _ => Claim::Unclear,
        },
        (136, Gate::Egress) if mine && own(target) => match to {
            ALL_NODES => genuine,
            _ if link_local(to) => genuine,
            _ if to.is_multicast() && !link_scope(to) => Claim::Forged,
            _ => Claim::Unclear,
        },
        (136, Gate::Egress) if !own(target) && !link_local(target) => never,
        (136, Gate::Ingress) if own(to) && (from == target || link_local(from)) && !own(from) => {
            if from.is_multicast() || own(target) {
                Claim::Unclear
            } else {
                genuine
            }
        }
        _ => Claim::Unclear,
    }
}

fn link_scope(group: Ipv6Addr) -> bool {
    group.segments()[0] & 0xff0f == 0xff02
}

/// A hop-by-hop header with a router alert and padding, as RFC 2710 wants it.
const ROUTER_ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];

fn listener(ip: &Ip, from: Ipv6Addr, to: Ipv6Addr, gate: Gate) -> Claim {
    let kind = ip.payload[0];
    let least = if kind == 143 { 8 } else { 24 };
    let may_send = link_local(from) || from.is_unspecified();
    if ip.hops != 1 || is_in_pieces(ip) || ip.payload.len() < least {
        return Claim::Forged;
    }
    if !to.is_multicast() || !may_send {
        return Claim::Forged;
    }
    let plain = ip.chain == ROUTER_ALERT && ip.payload[1] == 0 && ip.payload.len() <= 128;
    match (kind, gate) {
        (143, Gate::Egress) if plain && to.segments() == [0xff02, 0, 0, 0, 0, 0, 0, 0x16] => {
            Claim::Genuine
        }
        (131, Gate::Egress) if plain && link_scope(to) && ip.payload[8..24] == to.octets() => {
            Claim::Genuine
        }
        (132, Gate::Egress) if plain && to == ALL_ROUTERS => Claim::Genuine,
        (130, Gate::Ingress) if plain && to == ALL_NODES && link_local(from) => Claim::Genuine,
        _ => Claim::Unclear,
    }
}

fn dhcp4(ip: &Ip, from: Ipv4Addr, to: Ipv4Addr, gate: Gate, pod: &Pod, asked: &Asked) -> Claim {
    let message = ip.payload.get(8..).unwrap_or_default();
    let is_whole = message.len() > 240 && message[236..240] == [99, 130, 83, 99];
    let of_ethernet = message.starts_with(&[1, 1, 6]) || message.starts_with(&[2, 1, 6]);
    let plain = is_whole && of_ethernet;
    match gate {
        // a renewal crosses the network: policy speaks
        Gate::Egress if to != Ipv4Addr::BROADCAST => Claim::Ordinary,
        Gate::Egress if !from.is_unspecified() && !pod.is_own(from.into()) => {
            if pod.anti_spoofing {
                Claim::Forged
            } else {
                Claim::Unclear
            }
        }
        Gate::Egress if plain && from.is_unspecified() => Claim::Genuine,
        Gate::Egress => Claim::Unclear,
        Gate::Ingress if !asked.at_all4 => Claim::Forged,
        Gate::Ingress => {
            let known = message.get(4..8).is_some_and(|xid| asked.v4.iter().any(|a| a == xid));
            let mine = to == Ipv4Addr::BROADCAST || pod.is_own(to.into());
            match plain && message[0] == 2 && known && mine {
                true => Claim::Genuine,
                false => Claim::Unclear,
            }
        }
    }
}

fn dhcp6(ip: &Ip, from: Ipv6Addr, to: Ipv6Addr, gate: Gate, pod: &Pod, asked: &Asked) -> Claim {
    let message = ip.payload.get(8..).unwrap_or_default();
    let servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    let plain = message.len() >= 4 && ip.extensions.is_empty();
    match gate {
        Gate::Egress if !link_local(from) => Claim::Ordinary,
        Gate::Egress
            if to == servers && plain && matches!(message[0], 1 | 3 | 4 | 5 | 6 | 8 | 11) =>
        {
            Claim::Genuine
        }
        Gate::Egress if link_scope(to) || link_local(to) => Claim::Unclear,
        Gate::Egress => Claim::Forged,
        Gate::Ingress if !link_local(from) => Claim::Ordinary,
        Gate::Ingress if !asked.at_all6 => Claim::Forged,
        Gate::Ingress => {
            let known = message.get(1..4).is_some_and(|xid| asked.v6.iter().any(|a| a == xid));
            let mine = link_local(to) || pod.is_own(to.into());
            match plain && matches!(message[0], 2 | 7 | 10) && known && mine {
                true => Claim::Genuine,
                false => Claim::Unclear,
            }
        }
    }
}
