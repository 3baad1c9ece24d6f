//! Frames that a gate judged wrongly once, and some whose right judgement is easily lost.

use podgate_bpf::abi::Direction;
use podgate_tests::fuzz::{Shot, Via};

use crate::deny_all::Case;
use crate::gate::Tally;

/// `== name`, then a line for each frame of the sequence: `direction; via; hex`, as failures are printed.
const CORPUS: &str = include_str!("corpus.txt");

pub(crate) fn run() {
    let case = Case::isolated();
    let mut tally = Tally::default();
    let mut wrong = Vec::new();
    let entries = entries();
    for (name, shots) in &entries {
        if let Err(failure) = case.play(shots, &mut tally) {
            wrong
                .push(format!("{name}: frame {}: {} {}", failure.at, failure.kind, failure.detail));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let demanded = tally.must_drop + tally.must_pass;
    assert!(demanded >= entries.len() as u64, "entries that demand nothing: {tally:?}");
    assert_eq!(tally.refused, 0, "the kernel makes no packet of some");
}

fn entries() -> Vec<(&'static str, Vec<Shot>)> {
    let mut entries: Vec<(&str, Vec<Shot>)> = Vec::new();
    for line in CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("== ") {
            entries.push((name, Vec::new()));
            continue;
        }
        let (_, shots) = entries.last_mut().expect("a name before the first frame");
        shots.push(shot(line));
    }
    entries
}

fn shot(line: &str) -> Shot {
    let fields: Vec<&str> = line.split(';').map(str::trim).collect();
    let [direction, via, hex] = fields[..] else { panic!("three fields in {line:?}") };
    let direction = Direction::ALL.iter().copied().find(|known| known.name() == direction);
    let via = [Via::Uplink, Via::Nothing, Via::Pod].into_iter().find(|known| known.name() == via);
    let (digits, rest) = hex.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty(), "an odd number of digits in {line:?}");
    let byte = |pair: &[u8; 2]| {
        let text = std::str::from_utf8(pair).expect("digits");
        u8::from_str_radix(text, 16).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    };
    Shot {
        direction: direction.unwrap_or_else(|| panic!("a direction in {line:?}")),
        via: via.unwrap_or_else(|| panic!("a way in {line:?}")),
        frame: digits.iter().map(byte).collect(),
    }
}
