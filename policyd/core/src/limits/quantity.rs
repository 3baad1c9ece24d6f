//! Quantities of the Kubernetes API (`resource.Quantity`): `10M`, `1.5Gi`, `250k`, `1e6`.

/// Reads a quantity and rounds it up to a whole number, as `Quantity.Value()` does. A negative one is 0, one that is too
/// large for the type its largest. `None` if it is no quantity.
pub(super) fn parse(text: &str) -> Option<u64> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let end = unsigned.find(|of: char| !of.is_ascii_digit() && of != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at_checked(end)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let (tens, twos) = scale(suffix)?;
    if negative {
        return Some(0);
    }
    let digits = format!("{whole}{fraction}");
    // where the decimal point is, counted from the first digit
    let point = i64::try_from(whole.len()).ok()?.saturating_add(tens);
    Some(rounded_up(&digits, point, twos))
}

/// The powers of ten and of two that a suffix stands for.
fn scale(suffix: &str) -> Option<(i64, u32)> {
    let exponent = suffix.strip_prefix(['e', 'E']).and_then(|exponent| exponent.parse().ok());
    Some(match (suffix, exponent) {
        ("", _) => (0, 0),
        ("n", _) => (-9, 0),
        ("u", _) => (-6, 0),
        ("m", _) => (-3, 0),
        ("k", _) => (3, 0),
        ("M", _) => (6, 0),
        ("G", _) => (9, 0),
        ("T", _) => (12, 0),
        ("P", _) => (15, 0),
        ("E", _) => (18, 0),
        ("Ki", _) => (0, 10),
        ("Mi", _) => (0, 20),
        ("Gi", _) => (0, 30),
        ("Ti", _) => (0, 40),
        ("Pi", _) => (0, 50),
        ("Ei", _) => (0, 60),
        (_, Some(exponent)) => (i64::from(i32::min(exponent, 1000)), 0),
        _ => return None,
    })
}

/// How many digits behind the point are multiplied; of those after them counts only whether there are any.
const FRACTION_DIGITS: i64 = 18;

fn rounded_up(digits: &str, point: i64, twos: u32) -> u64 {
    let place = |nth: i64| {
        let byte = usize::try_from(nth).ok().and_then(|nth| digits.as_bytes().get(nth));
        byte.map_or(0, |byte| u128::from(byte - b'0'))
    };
    let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
    let mut whole = 0_u128;
    for nth in 0..point {
        whole = whole * 10 + place(nth);
        if whole > u128::from(u64::MAX) {
            return u64::MAX;
        }
    }
    let fraction = (point..point + FRACTION_DIGITS).fold(0, |sum, nth| sum * 10 + place(nth));
    let rest = (point.saturating_add(FRACTION_DIGITS).max(0)..length).any(|nth| place(nth) > 0);
    let factor = 1_u128 << twos;
    let below_one = fraction * factor + u128::from(rest);
    let total = whole * factor + below_one.div_ceil(10_u128.pow(FRACTION_DIGITS as u32));
    u64::try_from(total).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `resource.ParseQuantity(text)` and `Value()` give.
    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", 0),
            ("1000", 1000),
            ("1k", 1000),
            ("10M", 10_000_000),
            ("1G", 1_000_000_000),
            ("1T", 1_000_000_000_000),
            ("1P", 1_000_000_000_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("1Ki", 1024),
            ("1.5Mi", 1_572_864),
            ("1Ei", 1 << 60),
            ("0.1Ki", 103),
            ("+10M", 10_000_000),
            ("007k", 7000),
            ("1.k", 1000),
            (".5k", 500),
            ("1e3", 1000),
            ("1E3", 1000),
            ("1e+3", 1000),
            ("1500e-3", 2),
            ("1500m", 2),
            ("1m", 1),
            ("1n", 1),
            ("1000000000n", 1),
            ("2.0000000000000000000000001", 3),
            ("0.0000000000000000000000001Ki", 1),
            ("1.000000000000000000000", 1),
            ("12345678.9u", 13),
            ("100E", u64::MAX),
            ("99999999999999999999999999", u64::MAX),
            ("1e999999", u64::MAX),
            ("0e999999", 0),
            ("1e-999999", 1),
            ("-1k", 0),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for text in [
            "", " ", "k", ".", "+", "-", "1 k", " 1k", "1k ", "1kk", "1K", "1ki", "1mi", "1.2.3",
            "1e", "1e1.5", "1ek", "0x10", "1,5", "ten", "1_000", "--1", "+-1", "1e3k", "NaN",
            "\u{661}",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
