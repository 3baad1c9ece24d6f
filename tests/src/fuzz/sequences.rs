//! Packets that follow each other, so that the programs get to have state: flows, fragments, questions.

use std::net::IpAddr;

use podgate_testkit::packet::{Ip, Transport, icmp, sctp, tcp, udp};

use super::dice::Dice;
use super::{Direction, Scene, Shot, Via, frames, mutate};

/// The next sequence of up to a dozen frames.
pub fn sequence(dice: &mut Dice, scene: &Scene) -> Vec<Shot> {
    let mut shots = match dice.below(10) {
        0..=3 => strangers(dice, scene),
        4..=6 => conversation(dice, scene),
        7 | 8 => fragments(dice, scene),
        _ => control(dice, scene),
    };
    let donor = frames::frame(dice, scene, Direction::Egress);
    let damaged = dice.pick(&[0, 10, 50]);
    for shot in &mut shots {
        if dice.chance(damaged) {
            mutate::mutate(dice, &mut shot.frame, &donor);
        }
    }
    if dice.chance(30) {
        let (one, other) = (dice.below(shots.len()), dice.below(shots.len()));
        shots.swap(one, other);
    }
    shots
}

fn either(dice: &mut Dice) -> Direction {
    dice.pick(&[Direction::Egress, Direction::Ingress])
}

fn back(direction: Direction) -> Direction {
    match direction {
        Direction::Egress => Direction::Ingress,
        Direction::Ingress => Direction::Egress,
    }
}

fn shot(dice: &mut Dice, direction: Direction, frame: Vec<u8>) -> Shot {
    let via = match (direction, dice.below(10)) {
        (Direction::Egress, _) | (Direction::Ingress, 0) => Via::Pod,
        (Direction::Ingress, 1..=4) => Via::Nothing,
        (Direction::Ingress, _) => Via::Uplink,
    };
    Shot { direction, via, frame }
}

/// Frames that have nothing to do with each other.
fn strangers(dice: &mut Dice, scene: &Scene) -> Vec<Shot> {
    (0..6)
        .map(|_| {
            let direction = either(dice);
            let frame = frames::frame(dice, scene, direction);
            shot(dice, direction, frame)
        })
        .collect()
}

/// One flow's kind, between two ports or under one identifier.
#[derive(Clone, Copy)]
struct Talk {
    kind: usize,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

impl Talk {
    fn new(dice: &mut Dice, scene: &Scene, direction: Direction) -> Self {
        let v6 = dice.chance(50);
        let (from, to) = frames::ends(dice, scene, v6, direction);
        let source = 1024 + dice.below(60_000) as u16;
        Self { kind: dice.below(4), from: (from, source), to: (to, frames::port(dice, scene)) }
    }

    fn turned(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }

    /// A packet of it; `flags` are for TCP, `asks` for an echo.
    fn packet(self, flags: u8, asks: bool, payload: &[u8]) -> Ip {
        let (source, destination) = (self.from.1, self.to.1);
        let transport: Transport = match self.kind {
            0 => tcp(source, destination).flags(flags),
            1 => udp(source, destination),
            2 => sctp(source, destination),
            _ => {
                let [high, low] = if asks { source } else { destination }.to_be_bytes();
                let kinds = if self.from.0.is_ipv6() { [128, 129] } else { [8, 0] };
                icmp(kinds[usize::from(!asks)], 0, [high, low, 0, 1])
            }
        };
        transport.payload(payload).between(&self.from.0.to_string(), &self.to.0.to_string())
    }
}

/// A first packet, its answer, later ones, errors that quote them, and somebody who wants to be taken for one of the
/// two.
fn conversation(dice: &mut Dice, scene: &Scene) -> Vec<Shot> {
    let direction = either(dice);
    let talk = Talk::new(dice, scene, direction);
    let opener = talk.packet(0x02, true, b"");
    let answer = talk.turned().packet(0x12, false, b"");
    let mut packets = vec![(direction, opener.clone()), (back(direction), answer.clone())];
    for _ in 0..dice.below(6) {
        let next = match dice.below(9) {
            0 => (direction, talk.packet(0x10, true, b"more")),
            1 => (back(direction), talk.turned().packet(0x10, false, b"more")),
            2 => (direction, talk.packet(dice.pick(&[0x11, 0x14, 0x04, 0x02]), true, b"")),
            3 => (back(direction), talk.turned().packet(0x02, true, b"")),
            4 => {
                let router = frames::ends(dice, scene, talk.from.0.is_ipv6(), back(direction)).0;
                let from = if dice.chance(50) { router } else { talk.to.0 };
                (back(direction), frames::error(dice, &opener, from, talk.from.0))
            }
            5 => (direction, frames::error(dice, &answer, talk.from.0, talk.to.0)),
            6 => {
                let mut other = talk;
                other.kind = dice.below(4);
                (direction, other.packet(0x10, false, b""))
            }
            7 => {
                let mut other = talk.turned();
                other.to.1 ^= 1 << dice.below(16);
                (back(direction), other.packet(0x10, false, b""))
            }
            _ => (either(dice), frames::packet(dice, scene, direction)),
        };
        packets.push(next);
    }
    packets
        .into_iter()
        .map(|(direction, packet)| {
            let frame = frames::dressed(dice, packet).frame();
            shot(dice, direction, frame)
        })
        .collect()
}

/// A datagram in pieces, in any order, perhaps after a whole one of its flow.
fn fragments(dice: &mut Dice, scene: &Scene) -> Vec<Shot> {
    let direction = either(dice);
    let talk = Talk::new(dice, scene, direction);
    let length = dice.pick(&[40, 100, 200]);
    let payload = dice.bytes(length);
    let mut frames = Vec::new();
    if dice.chance(40) {
        frames.push((direction, talk.packet(0x02, true, b"").frame()));
    }
    for turn in 0..=dice.below(2) {
        let (direction, talk) =
            if turn == 0 { (direction, talk) } else { (back(direction), talk.turned()) };
        let size = dice.pick(&[8, 24, 48, 64]);
        let whole = talk.packet(0x10, turn == 0, &payload);
        let id = dice.below(3) as u16;
        let mut pieces = whole.in_fragments(id, size);
        pieces.truncate(5);
        if dice.chance(30) {
            let (one, other) = (dice.below(pieces.len()), dice.below(pieces.len()));
            pieces.swap(one, other);
        }
        frames.extend(pieces.into_iter().map(|piece| (direction, piece)));
    }
    frames.into_iter().map(|(direction, frame)| shot(dice, direction, frame)).collect()
}

/// Questions and answers of the link's own protocols.
fn control(dice: &mut Dice, scene: &Scene) -> Vec<Shot> {
    let xid = dice.below(250) as u8;
    (0..5)
        .map(|_| {
            let direction = either(dice);
            let frame = match dice.below(3) {
                0 => frames::discovery(dice, scene, direction).frame(),
                1 => frames::dhcp(dice, scene, direction, xid),
                _ => frames::frame(dice, scene, direction),
            };
            shot(dice, direction, frame)
        })
        .collect()
}
