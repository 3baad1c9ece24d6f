//! The value of a YAML scalar, by the rules of kubectl's reader (go-yaml v2, YAML 1.1 for the most part).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value};

/// The prefix of YAML's own tags; written `!!`.
const OWN: &str = "tag:yaml.org,2002:";

/// A scalar without a tag that is not quoted, or with one of YAML's own tags.
pub(super) fn resolve(tag: Option<&str>, text: String) -> Result<Value, String> {
    let Some(tag) = tag else { return plain(text) };
    match tag.strip_prefix(OWN) {
        Some("str") => Ok(Value::String(text)),
        Some("binary") => {
            let bytes = STANDARD.decode(text.split_whitespace().collect::<String>());
            let bytes = bytes.map_err(|_| "!!binary holds no base64".to_owned())?;
            let text = String::from_utf8(bytes);
            text.map(Value::String).map_err(|_| "!!binary holds no text".to_owned())
        }
        Some(wanted @ ("bool" | "int" | "float" | "null" | "timestamp")) => {
            let shown = text.clone();
            let value = match boolean(&text) {
                Some(value) => Value::Bool(value),
                None => plain(text)?,
            };
            let fits = match &value {
                Value::Null => wanted == "null",
                Value::Bool(_) => wanted == "bool",
                Value::Number(number) => wanted == "float" || wanted == "int" && !number.is_f64(),
                Value::String(text) => wanted == "timestamp" && is_date(text),
                Value::Array(_) | Value::Object(_) => false,
            };
            if fits { Ok(value) } else { Err(format!("{shown:?} is no !!{wanted}")) }
        }
        // another's tag says nothing here
        _ => Ok(Value::String(text)),
    }
}

/// The words that mean a boolean.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Some(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Some(false)
        }
        _ => None,
    }
}

/// What can be the key of a JSON object, as kubectl spells it.
pub(super) fn key(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null => Err("a key is missing before \":\"".to_owned()),
        Value::Array(_) | Value::Object(_) => Err("a key must be a scalar".to_owned()),
    }
}

fn plain(text: String) -> Result<Value, String> {
    let value = match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        // the other words, as `yes`, stay text until a boolean is wanted (`object`): people name a pod `y`
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF"
        | "-.inf" | "-.Inf" | "-.INF" => {
            return Err(format!("{text} is a number that JSON does not have"));
        }
        other => match other.as_bytes()[0] {
            b'.' => decimal(other).unwrap_or(Value::String(text)),
            b'+' | b'-' | b'0'..=b'9' if !is_date(other) => {
                number(other).unwrap_or(Value::String(text))
            }
            _ => Value::String(text),
        },
    };
    Ok(value)
}

/// Four digits, a dash and a date: a timestamp, which stays text.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() > 4 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-'
}

fn number(text: &str) -> Option<Value> {
    let digits: String = text.chars().filter(|c| *c != '_').collect();
    integer(&digits).or_else(|| decimal(&digits))
}

/// An integer in one of Go's spellings: 0x1f, 0b1, 0o17, 017.
fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let size = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        return Some(0i64.checked_sub_unsigned(size)?.into());
    }
    // Go reads an unsigned number only without a sign
    let signed = text.starts_with('+');
    (!signed || i64::try_from(size).is_ok()).then(|| size.into())
}

/// A decimal fraction; whole ones as JSON writes them, without a point.
fn decimal(text: &str) -> Option<Value> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let decimal = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|byte| byte.is_ascii_digit())
        && digits.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let value: f64 = if decimal { text.parse().ok()? } else { return None };
    #[allow(clippy::cast_possible_truncation)] // compared afterwards
    let whole = value as i64;
    #[allow(clippy::cast_precision_loss)]
    if whole as f64 == value && value.abs() < 1e15 {
        return Some(whole.into());
    }
    Number::from_f64(value).map(Value::Number)
}
