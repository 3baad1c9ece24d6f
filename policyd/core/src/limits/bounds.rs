//! Which numbers are limits, what unit they are in, and how large a bucket is of which only the rate is given.

use std::ops::RangeInclusive;

use podgate_contract::bandwidth::{BURST_PART, Bucket};

use super::quantity;
use super::values::{Mark, Rate};

/// Bits a second: the kubelet's range of `kubernetes.io/ingress-bandwidth`.
pub const BANDWIDTH: RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Bits at once: Calico's range.
pub const BANDWIDTH_BURST: RangeInclusive<u64> = 1_000..=u32::MAX as u64 * 8;

/// Packets or connections, a second or at once.
pub const COUNT: RangeInclusive<u64> = 1..=1_000_000_000;

/// Open connections.
pub const OPEN_CONNECTIONS: RangeInclusive<u64> = 1..=u32::MAX as u64 - 1;

/// Priorities. The larger numbers name a class of a queueing discipline, which is the node's own affair.
pub const PRIORITY: RangeInclusive<u64> = 0..=15;

/// Code points.
pub const DSCP: RangeInclusive<u64> = 0..=63;

/// The bits of a packet's mark that a policy may write. The others belong to software of the node, whose meaning would change:
/// 0x4000 and 0x8000 to kube-proxy, 0x0f00 to Cilium, 0xffff0000 to Calico.
pub const MARK_BITS: u32 = !(0xc000 | 0x0f00 | 0xffff_0000);

/// A bucket of packets holds at least this many.
const LEAST_PACKETS: u64 = 64;

/// Reads bits: a quantity in a range.
pub(crate) fn bits(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let read = quantity::parse(text).filter(|bits| range.contains(bits));
    read.ok_or_else(|| {
        let of = |bits: u64| match bits {
            1_000 => "1k".to_owned(),
            1_000_000_000_000_000 => "1P".to_owned(),
            other => other.to_string(),
        };
        format!(
            "must be a quantity from {} to {}, is {text:?}",
            of(*range.start()),
            of(*range.end())
        )
    })
}

/// Reads a number of things: a quantity in a range.
pub(crate) fn count(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let read = quantity::parse(text).filter(|number| range.contains(number));
    read.ok_or_else(|| out_of(range, format_args!("{text:?}")))
}

/// What is wrong with something that is no number of a range.
pub(crate) fn out_of(range: &RangeInclusive<u64>, given: impl std::fmt::Display) -> String {
    format!("must be a number from {} to {}, is {given}", range.start(), range.end())
}

/// A bucket of bytes, from bits.
pub(crate) fn bandwidth(rate: u64, burst: Option<u64>) -> Rate {
    let Bucket { per_second, burst } = Bucket::of_bits(rate, burst);
    Rate { per_second, burst }
}

/// A bucket of packets.
pub(crate) fn packets(rate: u64, burst: Option<u64>) -> Rate {
    let burst = burst.unwrap_or((rate / BURST_PART).max(LEAST_PACKETS));
    Rate { per_second: rate, burst }
}

/// A bucket of new connections: those of a second may begin at once.
pub(crate) fn new_connections(rate: u64, burst: Option<u64>) -> Rate {
    Rate { per_second: rate, burst: burst.unwrap_or(rate) }
}

/// The code points that have names, with them (RFC 2474, 2597, 3246, 5865, 8622).
pub const DSCP_NAMES: [(&str, u8); 24] = [
    ("DF", 0),
    ("LE", 1),
    ("CS0", 0),
    ("CS1", 8),
    ("CS2", 16),
    ("CS3", 24),
    ("CS4", 32),
    ("CS5", 40),
    ("CS6", 48),
    ("CS7", 56),
    ("AF11", 10),
    ("AF12", 12),
    ("AF13", 14),
    ("AF21", 18),
    ("AF22", 20),
    ("AF23", 22),
    ("AF31", 26),
    ("AF32", 28),
    ("AF33", 30),
    ("AF41", 34),
    ("AF42", 36),
    ("AF43", 38),
    ("VA", 44),
    ("EF", 46),
];

/// Reads a code point: a number, or a name in any case.
pub(crate) fn dscp(text: &str) -> Result<u8, String> {
    let named = DSCP_NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    let numbered = || text.parse().ok().filter(|dscp: &u8| DSCP.contains(&u64::from(*dscp)));
    named.map(|(_, dscp)| *dscp).or_else(numbered).ok_or_else(|| {
        format!("must be a number from 0 to 63, or a name like EF, AF11 or CS1, is {text:?}")
    })
}

/// Reads `value/mask`, each in decimal or with 0x in hexadecimal.
pub(crate) fn mark(text: &str) -> Result<Mark, String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
        None if !text.starts_with('+') => text.parse().ok(),
        _ => None,
    };
    let parts =
        text.split_once('/').and_then(|(value, mask)| Some((number(value)?, number(mask)?)));
    let Some((value, mask)) = parts else {
        return Err(format!("must be a value and a mask like 0x10/0xf0, is {text:?}"));
    };
    let foreign = mask & !MARK_BITS;
    match () {
        () if mask == 0 || value & !mask != 0 => {
            Err(format!("must have its value within a mask that is not 0, is {text:?}"))
        }
        () if foreign != 0 => Err(format!(
            "must be within {MARK_BITS:#x}, is {text:?}: the bits {foreign:#x} belong to kube-proxy, Cilium or Calico"
        )),
        () => Ok(Mark { value, mask }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_in_bits_and_kept_in_bytes() {
        for (text, expected) in
            [("1k", Ok(1000)), ("1P", Ok(1_000_000_000_000_000)), ("10M", Ok(10_000_000))]
        {
            assert_eq!(bits(text, &BANDWIDTH), expected);
        }
        for text in ["999", "999.0", "0", "-1M", "1001T", "1.1P", "10Mbit", ""] {
            let cause = bits(text, &BANDWIDTH).unwrap_err();
            assert_eq!(cause, format!("must be a quantity from 1k to 1P, is {text:?}"));
        }
        assert_eq!(bits("999.1", &BANDWIDTH), Ok(1000), "rounded up, as by the kubelet");
        assert_eq!(bits("34359738360", &BANDWIDTH_BURST), Ok(34_359_738_360));
        assert!(bits("34359738361", &BANDWIDTH_BURST).is_err());
    }

    #[test]
    fn s18_6_a_burst_that_is_not_given_is_50_ms_and_two_gso_packets_at_least() {
        let least = 131_072;
        for (rate, burst) in [
            (1000, least),
            (10_000_000, least),
            (20_971_520, least),
            (20_971_680, 131_073),
            (10_000_000_000, 62_500_000),
        ] {
            assert_eq!(bandwidth(rate, None).burst, burst, "{rate}");
        }
        assert_eq!(packets(1, None).burst, 64);
        assert_eq!(packets(100_000, None).burst, 5000);
        assert_eq!(new_connections(10, None), Rate { per_second: 10, burst: 10 });
    }

    #[test]
    fn code_points_have_numbers_and_names() {
        for (text, expected) in [
            ("0", 0),
            ("63", 63),
            ("46", 46),
            ("EF", 46),
            ("ef", 46),
            ("AF11", 10),
            ("af43", 38),
            ("CS6", 48),
            ("CS7", 56),
            ("DF", 0),
            ("LE", 1),
            ("VA", 44),
        ] {
            assert_eq!(dscp(text), Ok(expected), "{text}");
        }
        for text in ["64", "-1", "AF14", "AF51", "CS8", "", " EF", "0x2e", "best"] {
            assert!(dscp(text).unwrap_err().contains("a number from 0 to 63"), "{text}");
        }
    }

    #[test]
    fn marks_stay_within_their_mask_and_away_from_others() {
        for (text, value, mask) in [
            ("0x10/0xf0", 0x10, 0xf0),
            ("16/240", 16, 240),
            ("0/1", 0, 1),
            ("0x3000/0x30ff", 0x3000, 0x30ff),
        ] {
            assert_eq!(mark(text), Ok(Mark { value, mask }), "{text}");
        }
        for (text, cause) in [
            ("", "must be a value and a mask like 0x10/0xf0, is \"\""),
            ("0x10", "must be a value and a mask"),
            ("0x10/", "must be a value and a mask"),
            ("0x/0x1", "must be a value and a mask"),
            ("1/0x+f", "must be a value and a mask"),
            ("+1/1", "must be a value and a mask"),
            ("0x100000000/0xff", "must be a value and a mask"),
            ("0x0/0x0", "must have its value within a mask"),
            ("0x11/0xf0", "must have its value within a mask"),
            (
                "0x4000/0x4000",
                "must be within 0x30ff, is \"0x4000/0x4000\": the bits 0x4000 belong to",
            ),
            ("0/0x8000", "must be within 0x30ff"),
            ("0x200/0xf00", "must be within 0x30ff"),
            ("0x10000/0x10000", "must be within 0x30ff"),
            ("0x1/0xffffffff", "must be within 0x30ff"),
        ] {
            assert!(mark(text).unwrap_err().starts_with(cause), "{text}: {:?}", mark(text));
        }
    }
}
