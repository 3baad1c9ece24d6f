//! Damage to a frame.

use super::dice::Dice;

/// Where a frame's most telling bytes are: versions, lengths, fragments, protocols, ports, flags.
const TELLING: [usize; 26] = [
    12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 26, 30, 34, 35, 36, 37, 38, 39, 46, 47, 54,
    55, 56,
];

/// Damages a frame in one to four ways; `other` is one to take pieces of. An Ethernet header stays.
pub fn mutate(dice: &mut Dice, frame: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=dice.below(4) {
        once(dice, frame, other);
        frame.resize(frame.len().clamp(14, 3000), 0);
    }
}

fn once(dice: &mut Dice, frame: &mut Vec<u8>, other: &[u8]) {
    let length = frame.len();
    let at = dice.below(length);
    let telling = dice.pick(&TELLING).min(length.saturating_sub(2));
    match dice.below(14) {
        0 | 1 => frame[at] ^= 1 << dice.below(8),
        2 => frame[at] = dice.byte(),
        3 | 4 => frame[telling] = dice.byte(),
        5 => frame[telling..telling + 2].copy_from_slice(&dice.word().to_be_bytes()),
        6 => frame.truncate(at.max(14)),
        7 => {
            let more = dice.below(64);
            frame.extend(dice.bytes(more));
        }
        8 => {
            // a little more, or a little less, than the length field says
            let field = if frame.get(14).is_some_and(|byte| byte >> 4 == 6) { 18 } else { 16 };
            if let Some(bytes) = frame.get_mut(field..field + 2) {
                let claimed = u16::from_be_bytes([bytes[0], bytes[1]]);
                let lie = claimed.wrapping_add(dice.below(17) as u16).wrapping_sub(8);
                bytes.copy_from_slice(&lie.to_be_bytes());
            }
        }
        9 => {
            // a header from elsewhere
            let (from, to) = (dice.below(other.len()), dice.below(length));
            let size = dice.below(40).min(other.len() - from).min(length - to);
            frame[to..to + size].copy_from_slice(&other[from..from + size]);
        }
        10 => {
            let from = dice.below(other.len());
            let size = dice.below(40).min(other.len() - from);
            let piece: Vec<u8> = other[from..from + size].to_vec();
            frame.splice(at..at, piece);
        }
        11 => {
            let end = (at + dice.below(40)).min(length);
            frame.drain(at..end);
        }
        12 if length >= 34 => {
            // the ends trade places
            let (size, from) = if frame[12] == 8 { (4, 26) } else { (16, 22) };
            if length >= from + 2 * size {
                let (source, destination) = frame[from..from + 2 * size].split_at_mut(size);
                source.swap_with_slice(destination);
            }
        }
        _ => {
            if length >= 34 {
                repair(frame);
            }
        }
    }
}

/// Makes an IPv4 header's checksum right again, so that what is wrong is elsewhere.
fn repair(frame: &mut [u8]) {
    let header = usize::from(frame[14] & 15) * 4;
    if frame[12..14] != [8, 0] || header < 20 || frame.len() < 14 + header {
        return;
    }
    frame[24..26].fill(0);
    let words = frame[14..14 + header].as_chunks::<2>().0.iter();
    let sum = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
