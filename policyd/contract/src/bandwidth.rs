//! A rate of bandwidth as people write it, in bits, and as it is kept: the plugin and policyd mean the same by it.

/// A bucket holds at least this many bytes: two GSO packets.
const LEAST_BURST: u64 = 128 << 10;

/// What a bucket holds of its rate, as a part of a second: 50 ms.
pub const BURST_PART: u64 = 20;

/// Bytes on the wire: how many a second, and how many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// At least 1.
    pub per_second: u64,
    /// At least 1.
    pub burst: u64,
}

impl Bucket {
    /// Of bits a second, and bits at once; without these 50 ms of the rate, and two GSO packets at least. A rate is never
    /// more than what was said, a burst never less.
    pub fn of_bits(rate: u64, burst: Option<u64>) -> Self {
        let per_second = (rate / 8).max(1);
        let burst = match burst {
            Some(bits) => bits.div_ceil(8).max(1),
            None => (per_second / BURST_PART).max(LEAST_BURST),
        };
        Self { per_second, burst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_that_is_not_given_is_50_ms_and_two_gso_packets_at_least() {
        for (rate, burst) in [(1000, 131_072), (20_971_520, 131_072), (20_971_680, 131_073)] {
            assert_eq!(Bucket::of_bits(rate, None).burst, burst, "{rate}");
        }
        assert_eq!(Bucket::of_bits(1001, Some(1001)), Bucket { per_second: 125, burst: 126 });
    }
}
