//! Random choices that a seed repeats.

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// A generator of choices.
#[derive(Debug)]
pub struct Dice {
    rng: TestRng,
}

impl Dice {
    /// The choices of sequence `number` of a run: any sequence can be made again without those before it.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        Self { rng: TestRng::from_seed(RngAlgorithm::ChaCha, &bytes) }
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// 0 to `limit` - 1; 0 if `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.any() % limit.max(1) as u64) as usize
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// A byte, the edges more often than the rest.
    pub fn byte(&mut self) -> u8 {
        let edges = [0, 1, 4, 5, 6, 0x0f, 0x7f, 0x80, 0xfe, 0xff];
        if self.chance(50) { self.pick(&edges) } else { self.any() as u8 }
    }

    /// A word, the edges more often than the rest.
    pub fn word(&mut self) -> u16 {
        let edges = [0, 1, 7, 8, 19, 20, 21, 28, 39, 40, 67, 68, 0x1fff, 0x2000, 0x7fff, 0xffff];
        if self.chance(50) { self.pick(&edges) } else { self.any() as u16 }
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }
}
