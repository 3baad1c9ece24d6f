//! Frames that a host, or an attacker, could send: whole, and right but for what the dice say.

use std::net::{IpAddr, Ipv6Addr};

use podgate_testkit::packet::{Ip, Transport, ethernet, icmp, protocol, raw, sctp, tcp, udp, vlan};

use super::control::solicited;
use super::dice::Dice;
use super::{Direction, Scene};

/// Addresses that mean something else than one host.
const ODD4: [&str; 7] = [
    "0.0.0.0",
    "255.255.255.255",
    "10.0.0.255",
    "224.0.0.1",
    "239.1.2.3",
    "127.0.0.1",
    "169.254.1.1",
];
const ODD6: [&str; 10] = [
    "::",
    "::1",
    "ff02::1",
    "ff02::2",
    "ff02::16",
    "ff02::1:2",
    "ff0e::1",
    "fe80::5",
    "fe80::9",
    "::ffff:10.0.0.5",
];

/// One of the scene's addresses of a family.
fn one(dice: &mut Dice, of: &[IpAddr], v6: bool) -> IpAddr {
    let family: Vec<IpAddr> =
        of.iter().copied().filter(|address| address.is_ipv6() == v6).collect();
    if family.is_empty() { odd(dice, v6) } else { dice.pick(&family) }
}

fn odd(dice: &mut Dice, v6: bool) -> IpAddr {
    let text = if v6 { dice.pick(&ODD6) } else { dice.pick(&ODD4) };
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Source and destination of a packet in this direction; now and then not those of an honest one.
pub fn ends(dice: &mut Dice, scene: &Scene, v6: bool, direction: Direction) -> (IpAddr, IpAddr) {
    let others = [scene.peers.as_slice(), scene.nodes.as_slice()].concat();
    let (mut own, mut peer) = (one(dice, &scene.own, v6), one(dice, &others, v6));
    let everyone = [others.as_slice(), scene.own.as_slice()].concat();
    match dice.below(20) {
        0 => own = one(dice, &everyone, v6),
        1 => peer = one(dice, &everyone, v6),
        2 => own = odd(dice, v6),
        3 => peer = odd(dice, v6),
        _ => {}
    }
    match direction {
        Direction::Egress => (own, peer),
        Direction::Ingress => (peer, own),
    }
}

/// A port that policies may speak of, or another.
pub fn port(dice: &mut Dice, scene: &Scene) -> u16 {
    let boundary = [0, 1, 67, 68, 546, 547, 1023, 1024, 32767, 65535];
    match dice.below(10) {
        0 => dice.pick(&boundary),
        1 => dice.any() as u16,
        _ => dice.pick(&scene.ports),
    }
}

/// A transport header with ports, or an ICMP message, and something behind it.
pub fn transport(dice: &mut Dice, scene: &Scene, v6: bool) -> Transport {
    let length = dice.pick(&[0, 0, 1, 8, 24, 64, 300]);
    let payload = dice.bytes(length);
    let (from, to) = (1024 + dice.below(200) as u16, port(dice, scene));
    let (from, to) = if dice.chance(25) { (to, from) } else { (from, to) };
    let usual = [0x02, 0x02, 0x10, 0x10, 0x11, 0x12, 0x18, 0x04, 0x14];
    match dice.below(12) {
        0..=4 => {
            let flags = if dice.chance(90) { dice.pick(&usual) } else { dice.any() as u8 };
            tcp(from, to).flags(flags).payload(&payload)
        }
        5..=7 => udp(from, to).payload(&payload),
        8 => sctp(from, to).payload(&payload),
        9 | 10 => {
            let kinds: &[u8] = if v6 { &[128, 129] } else { &[8, 0, 13, 14] };
            let kind = dice.pick(kinds);
            icmp(kind, 0, [0, dice.below(4) as u8, 0, 1]).payload(&payload)
        }
        _ => {
            let rest = dice.any().to_be_bytes();
            icmp(dice.byte(), dice.byte() % 8, [rest[0], rest[1], rest[2], rest[3]])
                .payload(&payload)
        }
    }
}

/// Options or extension headers, sometimes.
pub fn dressed(dice: &mut Dice, mut ip: Ip) -> Ip {
    if dice.chance(70) {
        return ip;
    }
    if ip.source().is_ipv4() {
        let words = dice.below(10) + 1;
        let mut options = vec![1; words * 4];
        if dice.chance(30) {
            options = dice.bytes(words * 4);
        }
        return ip.options(&options);
    }
    for _ in 0..dice.pick(&[1, 1, 2, 3, 8, 9]) {
        ip = match dice.below(12) {
            0 => ip.routing(0),
            1 => ip.routing(dice.byte()),
            2 => ip.extension(protocol::AH, 2),
            3 => ip.extension(protocol::MOBILITY, 1),
            4 => ip.fragment(dice.any() as u16, 0, false),
            5 => ip.extension(protocol::HOP_BY_HOP, 1),
            _ => ip.extension(protocol::DESTINATION, 1 + dice.below(4) as u8),
        };
    }
    ip
}

fn between(transport: Transport, (from, to): (IpAddr, IpAddr)) -> Ip {
    transport.between(&from.to_string(), &to.to_string())
}

/// An IP packet of some flow.
pub fn packet(dice: &mut Dice, scene: &Scene, direction: Direction) -> Ip {
    let v6 = dice.chance(50);
    let transport = transport(dice, scene, v6);
    let hops = if dice.chance(90) { 64 } else { dice.pick(&[0, 1, 2, 254, 255]) };
    let packet = between(transport, ends(dice, scene, v6, direction)).hop_limit(hops);
    dressed(dice, packet)
}

/// Another protocol, a tunnel with a packet inside among them.
fn tunnel(dice: &mut Dice, scene: &Scene, direction: Direction) -> Vec<u8> {
    let v6 = dice.chance(50);
    let inner = packet(dice, scene, direction).packet();
    let number = dice.pick(&[
        protocol::IPIP,
        41,
        protocol::GRE,
        protocol::ESP,
        protocol::AH,
        2,
        59,
        89,
        112,
        protocol::ICMP,
        protocol::ICMPV6,
        255,
    ]);
    let bytes = match number {
        protocol::GRE => [&[0, 0, 8, 0][..], &inner].concat(),
        protocol::ESP => [&dice.bytes(8)[..], &inner].concat(),
        _ => inner,
    };
    let ends = ends(dice, scene, v6, direction);
    dressed(dice, between(raw(number, &bytes), ends)).frame()
}

/// An ICMP error about `quoted`.
pub fn error(dice: &mut Dice, quoted: &Ip, from: IpAddr, to: IpAddr) -> Ip {
    let v6 = from.is_ipv6();
    let kinds: &[u8] = if v6 { &[1, 2, 3, 4] } else { &[3, 4, 11, 12] };
    let (kind, code) = (dice.pick(kinds), dice.below(5) as u8);
    let enough = if dice.chance(90) { dice.pick(&[8, 8, 20, 64]) } else { dice.below(8) };
    between(icmp(kind, code, [0, 0, 5, 0]).quoting(quoted, enough), (from, to))
}

fn arp(dice: &mut Dice, scene: &Scene, direction: Direction) -> Vec<u8> {
    let (own, peer) = (one(dice, &scene.own, false), one(dice, &scene.peers, false));
    let (mut sender, mut target) = match direction {
        Direction::Egress => (own, peer),
        Direction::Ingress => (peer, own),
    };
    match dice.below(8) {
        0 => sender = odd(dice, false),
        1 => target = odd(dice, false),
        2 => (sender, target) = (target, sender),
        3 => (sender, target) = (one(dice, &scene.peers, false), one(dice, &scene.peers, false)),
        4 => (sender, target) = (own, own),
        _ => {}
    }
    let operation = if dice.chance(90) { dice.pick(&[1, 2]) } else { dice.byte() };
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation, 2, 0, 0, 0, 0, 2];
    for (address, hardware) in [(sender, false), (target, true)] {
        if hardware {
            body.extend([0; 6]);
        }
        if let IpAddr::V4(v4) = address {
            body.extend(v4.octets());
        }
    }
    let padding = dice.pick(&[0, 0, 18, 18, 400]);
    body.extend(vec![0; padding]);
    ethernet(0x0806, &body)
}

fn v6_of(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
    }
}

/// A neighbour discovery message, right in most cases.
pub fn discovery(dice: &mut Dice, scene: &Scene, direction: Direction) -> Ip {
    let kind = dice.pick(&[133, 134, 135, 135, 135, 136, 136, 136, 137]);
    let (own, peer) = (v6_of(one(dice, &scene.own, true)), v6_of(one(dice, &scene.peers, true)));
    let (me, other): (Ipv6Addr, Ipv6Addr) = match direction {
        Direction::Egress => (own, peer),
        Direction::Ingress => (peer, own),
    };
    let local: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5 + dice.below(4) as u16);
    let mut from = dice.pick(&[me, me, local]);
    let mut target = if kind == 136 { me } else { other };
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let mut to = match kind {
        133 => routers,
        134 => dice.pick(&[all, other]),
        135 => dice.pick(&[solicited(target), target]),
        136 => dice.pick(&[all, other, local]),
        _ => other,
    };
    if matches!(kind, 134 | 137) && dice.chance(80) {
        from = local;
    }
    if kind == 135 && dice.chance(20) {
        (from, target) = (Ipv6Addr::UNSPECIFIED, me);
        to = solicited(target);
    }
    match dice.below(12) {
        0 => target = v6_of(odd(dice, true)),
        1 => to = v6_of(odd(dice, true)),
        2 => from = v6_of(odd(dice, true)),
        3 => target = v6_of(one(dice, &scene.peers, true)),
        4 => to = v6_of(one(dice, &scene.peers, true)),
        _ => {}
    }
    let fixed = match kind {
        133 => vec![],
        134 => vec![0; 8],
        137 => [target.octets(), other.octets()].concat(),
        _ => target.octets().to_vec(),
    };
    let options = match dice.below(6) {
        0 => vec![],
        1 => vec![1, 0, 0, 0, 0, 0, 0, 0],
        2 => [&[14, 112][..], &dice.bytes(894)].concat(),
        _ => vec![if kind == 136 { 2 } else { 1 }, 1, 2, 0, 0, 0, 0, 2],
    };
    let hops = if dice.chance(85) { 255 } else { dice.pick(&[0, 1, 64, 254]) };
    let code = if dice.chance(95) { 0 } else { dice.byte() };
    let message = icmp(kind, code, [0x60, 0, 0, 0]).payload(&fixed).payload(&options);
    let message = between(message, (from.into(), to.into())).hop_limit(hops);
    if dice.chance(90) { message } else { dressed(dice, message) }
}

/// A multicast listener message, right in most cases.
fn listener(dice: &mut Dice, scene: &Scene, direction: Direction) -> Vec<u8> {
    let kind = match direction {
        Direction::Egress => dice.pick(&[131, 132, 143, 143, 130]),
        Direction::Ingress => dice.pick(&[130, 130, 131, 143]),
    };
    let group = dice.pick(&["ff02::fb", "ff02::1:ff00:5", "ff05::1:3", "ff02::1"]);
    let mut to = match kind {
        130 => "ff02::1",
        131 => group,
        132 => "ff02::2",
        _ => "ff02::16",
    }
    .parse()
    .unwrap_or_else(|e| panic!("{e}"));
    let mut from: IpAddr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5).into();
    match dice.below(8) {
        0 => from = one(dice, &scene.own, true),
        1 => to = one(dice, &scene.peers, true),
        2 => (from, to) = (odd(dice, true), odd(dice, true)),
        _ => {}
    }
    let group: Ipv6Addr = group.parse().unwrap_or_else(|e| panic!("{e}"));
    let body = match kind {
        143 => [&[4, 0, 0, 0][..], &group.octets()].concat(),
        130 => vec![0; 16],
        _ => group.octets().to_vec(),
    };
    let more = dice.pick(&[0, 0, 0, 900]);
    let hops = if dice.chance(85) { 1 } else { dice.pick(&[0, 2, 64, 255]) };
    let rest = if kind == 143 { [0, 0, 0, 1] } else { [0; 4] };
    let message = icmp(kind, 0, rest).payload(&body).payload(&vec![0; more]);
    let mut message = between(message, (from, to)).hop_limit(hops);
    if dice.chance(85) {
        message = message.extension_of(protocol::HOP_BY_HOP, &[0, 0, 5, 2, 0, 0, 1, 0]);
    }
    message.frame()
}

/// A DHCP message of either family; `xid` names the transaction.
pub fn dhcp(dice: &mut Dice, scene: &Scene, direction: Direction, xid: u8) -> Vec<u8> {
    let v6 = dice.chance(50);
    let asks = direction == Direction::Egress;
    let (client, server) = if v6 { (546, 547) } else { (68, 67) };
    let (from_port, to_port) = if asks { (client, server) } else { (server, client) };
    let text = |text: &str| -> IpAddr { text.parse().unwrap_or_else(|e| panic!("{e}")) };
    let (mut from, mut to) = match (v6, asks) {
        (false, true) => (text("0.0.0.0"), text("255.255.255.255")),
        (false, false) => (one(dice, &scene.nodes, false), one(dice, &scene.own, false)),
        (true, true) => (text("fe80::5"), text("ff02::1:2")),
        (true, false) => (text("fe80::1"), text("fe80::5")),
    };
    match dice.below(8) {
        0 => (from, to) = ends(dice, scene, v6, direction),
        1 => from = one(dice, &scene.peers, v6),
        2 => to = odd(dice, v6),
        _ => {}
    }
    let mut message = if v6 {
        vec![if asks { 1 } else { 2 }, 0, 0, xid, 0, 1, 0, 2, 9, 9]
    } else {
        let mut message = vec![0; 236];
        message[..8].copy_from_slice(&[if asks { 1 } else { 2 }, 1, 6, 0, 0, 0, 0, xid]);
        message.extend([99, 130, 83, 99, 53, 1, if asks { 1 } else { 2 }, 255]);
        message
    };
    if dice.chance(15) {
        let length = dice.pick(&[0, 1, 16, 240, 600]);
        message = dice.bytes(length);
    }
    let packet = between(udp(from_port, to_port).payload(&message), (from, to));
    if dice.chance(90) { packet.frame() } else { dressed(dice, packet).frame() }
}

/// Any one frame.
pub fn frame(dice: &mut Dice, scene: &Scene, direction: Direction) -> Vec<u8> {
    let frame = match dice.below(40) {
        0..=3 => arp(dice, scene, direction),
        4..=9 => discovery(dice, scene, direction).frame(),
        10..=12 => listener(dice, scene, direction),
        13..=15 => {
            let xid = dice.below(3) as u8;
            dhcp(dice, scene, direction, xid)
        }
        16..=19 => tunnel(dice, scene, direction),
        20..=23 => {
            let back = match direction {
                Direction::Egress => Direction::Ingress,
                Direction::Ingress => Direction::Egress,
            };
            let quoted = packet(dice, scene, back);
            let v6 = quoted.source().is_ipv6();
            let (from, to) = ends(dice, scene, v6, direction);
            let to = if dice.chance(80) { quoted.source() } else { to };
            error(dice, &quoted, from, to).frame()
        }
        24 => {
            let length = dice.below(120);
            let ethertype =
                dice.pick(&[0x0800, 0x86dd, 0x0806, 0x8035, 0x8847, 0x88cc, 0x0600, 40]);
            ethernet(ethertype, &dice.bytes(length))
        }
        25..=28 => {
            let packet = packet(dice, scene, direction);
            let offset = if dice.chance(50) { 0 } else { dice.below(4) as u16 * 8 };
            packet.fragment(dice.below(4) as u16, offset, dice.chance(50)).frame()
        }
        _ => packet(dice, scene, direction).frame(),
    };
    if dice.chance(2) { vlan(dice.below(3) as u16, &frame) } else { frame }
}
