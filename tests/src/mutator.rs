//! Random variations of inputs, the same for the same seed, and what runs them.
//!
//! Variations keep most of what they vary, so that they get past the first check of what reads them: bytes and words
//! change, lines and blocks move, inputs cross. No coverage guides them; what finds more is more of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long one input may take. Nothing here takes a second on an idle machine; tests run on busy ones.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest input, bytes.
const MAX_INPUT: usize = 64 * 1024;

/// Makes variations.
pub struct Mutator {
    random: fastrand::Rng,
    words: &'static [&'static str],
}

impl Mutator {
    /// Of a seed; `words` are what matters in the language of the inputs.
    pub fn new(seed: u64, words: &'static [&'static str]) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), words }
    }

    /// A variation of one of the inputs, with one to eight changes.
    pub fn vary(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.one_of(inputs);
        for _ in 0..self.random.usize(1..=8) {
            self.change(&mut input, inputs);
        }
        input.truncate(MAX_INPUT);
        input
    }

    fn one_of(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        self.random.choice(inputs).cloned().unwrap_or_default()
    }

    fn change(&mut self, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        match self.random.u8(0..10) {
            0 => {
                let at = self.at(input);
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.random.u8(..);
                }
            }
            1 | 2 => {
                let (at, word) = (self.at(input), self.word());
                input.splice(at..at, word);
            }
            3 => {
                let (range, word) = (self.token(input), self.word());
                input.splice(range, word);
            }
            4 => drop(input.drain(self.range(input))),
            5 => {
                let (range, at) = (self.range(input), self.at(input));
                let copy = input[range].to_vec();
                input.splice(at..at, copy);
            }
            6 => {
                let other = self.one_of(inputs);
                let (range, at) = (self.range(&other), self.at(input));
                input.splice(at..at, other[range].iter().copied());
            }
            7 => input.truncate(self.at(input)),
            8 => {
                let mut lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
                if lines.len() > 1 {
                    let (a, b) =
                        (self.random.usize(..lines.len()), self.random.usize(..lines.len()));
                    lines.swap(a, b);
                    *input = lines.concat();
                }
            }
            _ => {
                // another depth
                let at = self.at(input);
                let start =
                    input[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                match self.random.bool() {
                    true => drop(input.splice(start..start, *b"  ")),
                    false if input[start..].starts_with(b"  ") => {
                        drop(input.drain(start..start + 2))
                    }
                    false => {}
                }
            }
        }
    }

    fn word(&mut self) -> Vec<u8> {
        self.random.choice(self.words).map_or_else(Vec::new, |word| word.as_bytes().to_vec())
    }

    fn at(&mut self, input: &[u8]) -> usize {
        self.random.usize(..=input.len())
    }

    fn range(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let at = self.at(input);
        let length = self.random.usize(..=(input.len() - at).min(256));
        at..at + length
    }

    /// Letters and digits around a place.
    fn token(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let at = self.at(input);
        let end = |byte: &u8| !byte.is_ascii_alphanumeric();
        let start = input[..at].iter().rposition(end).map_or(0, |at| at + 1);
        let length = input[at..].iter().position(end).unwrap_or(input.len() - at);
        start..at + length
    }
}

/// Gives `read` this many variations of `inputs`, and the inputs themselves first.
///
/// `PODGATE_FUZZ_RUNS` multiplies the number; `PODGATE_FUZZ_SEED` is where the variations begin, 1 unless it says.
///
/// # Panics
///
/// If `read` does, or takes longer than a minute: the message holds the seed and the input.
pub fn fuzz(number: u64, words: &'static [&'static str], inputs: &[Vec<u8>], read: impl Fn(&[u8])) {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let number = number * setting("PODGATE_FUZZ_RUNS").unwrap_or(1);
    let first = setting("PODGATE_FUZZ_SEED").unwrap_or(1);
    let varied = (first..first.saturating_add(number))
        .map(|seed| (Some(seed), Mutator::new(seed, words).vary(inputs)));
    for (seed, input) in inputs.iter().map(|input| (None, input.clone())).chain(varied) {
        let began = Instant::now();
        let read = catch_unwind(AssertUnwindSafe(|| read(&input)));
        let took = began.elapsed();
        assert!(
            read.is_ok() && took < READ_TIMEOUT,
            "seed {seed:?} failed after {took:?}; the input:\n{}",
            input.escape_ascii()
        );
    }
}
