//! The values of a PodTrafficPolicy.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::bounds::{self, BANDWIDTH, BANDWIDTH_BURST, COUNT, DSCP, OPEN_CONNECTIONS, PRIORITY};
use super::known;
use crate::convert::FieldError;
use crate::convert::value::{Fields, Unread, mistyped, text};
use crate::limits::{Mark, OnExceed, Rate};

/// What a policy says of connections of one direction.
pub(super) struct Connections {
    pub(super) max: Option<u32>,
    pub(super) new: Option<Rate>,
    pub(super) on_exceed: Option<OnExceed>,
}

pub(super) fn object<'a>(value: &'a Value, path: &'a str) -> Result<Fields<'a>, FieldError> {
    Fields::of(value, path).map_err(Unread::into_field)
}

fn required<'a>(fields: &Fields<'a>, path: &str, name: &str) -> Result<&'a Value, FieldError> {
    fields.get(name).ok_or_else(|| FieldError::new(format!("{path}.{name}"), "must be given"))
}

/// `{rate, burst}` in bits.
pub(super) fn bandwidth(value: &Value, path: &str) -> Result<Rate, FieldError> {
    let fields = object(value, path)?;
    known(&fields, &["rate", "burst"])?;
    let rate = bits(required(&fields, path, "rate")?, &format!("{path}.rate"), &BANDWIDTH)?;
    let burst = fields.get("burst");
    let burst = burst.map(|burst| bits(burst, &format!("{path}.burst"), &BANDWIDTH_BURST));
    Ok(bounds::bandwidth(rate, burst.transpose()?))
}

fn bits(value: &Value, path: &str, range: &RangeInclusive<u64>) -> Result<u64, FieldError> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => return Err(FieldError::new(path, mistyped(other, "a quantity"))),
    };
    bounds::bits(&text, range).map_err(|cause| FieldError::new(path, cause))
}

/// `{rate, burst}` in packets.
pub(super) fn packets(value: &Value, path: &str) -> Result<Rate, FieldError> {
    let fields = object(value, path)?;
    known(&fields, &["rate", "burst"])?;
    let rate = number(required(&fields, path, "rate")?, &format!("{path}.rate"), &COUNT)?;
    Ok(bounds::packets(rate, optional(&fields, path, "burst", &COUNT)?))
}

/// `{max, newPerSecond, burst, onExceed}`.
pub(super) fn connections(value: &Value, path: &str) -> Result<Connections, FieldError> {
    let fields = object(value, path)?;
    known(&fields, &["max", "newPerSecond", "burst", "onExceed"])?;
    let max = optional(&fields, path, "max", &OPEN_CONNECTIONS)?.map(|max| max as u32);
    let rate = optional(&fields, path, "newPerSecond", &COUNT)?;
    let burst = optional(&fields, path, "burst", &COUNT)?;
    let new = match (rate, burst) {
        (None, Some(_)) => {
            let cause = "must not be given without `newPerSecond`";
            return Err(FieldError::new(format!("{path}.burst"), cause));
        }
        (rate, burst) => rate.map(|rate| bounds::new_connections(rate, burst)),
    };
    let on_exceed = fields.get("onExceed");
    let on_exceed = on_exceed.map(|value| on_exceed_of(value, &format!("{path}.onExceed")));
    Ok(Connections { max, new, on_exceed: on_exceed.transpose()? })
}

fn on_exceed_of(value: &Value, path: &str) -> Result<OnExceed, FieldError> {
    match text(value, path)? {
        "Drop" => Ok(OnExceed::Drop),
        "Reject" => Ok(OnExceed::Reject),
        other => Err(FieldError::new(path, format!("must be Drop or Reject, is {other:?}"))),
    }
}

fn optional(
    fields: &Fields<'_>,
    path: &str,
    name: &str,
    range: &RangeInclusive<u64>,
) -> Result<Option<u64>, FieldError> {
    fields.get(name).map(|value| number(value, &format!("{path}.{name}"), range)).transpose()
}

/// A whole number of a range.
pub(super) fn number(
    value: &Value,
    path: &str,
    range: &RangeInclusive<u64>,
) -> Result<u64, FieldError> {
    let number = value.as_u64().filter(|number| range.contains(number));
    number.ok_or_else(|| FieldError::new(path, bounds::out_of(range, value)))
}

/// A number or a name.
pub(super) fn dscp(value: &Value, path: &str) -> Result<u8, FieldError> {
    match value {
        Value::String(text) => bounds::dscp(text).map_err(|cause| FieldError::new(path, cause)),
        other => number(other, path, &DSCP).map(|dscp| dscp as u8),
    }
}

pub(super) fn priority(value: &Value, path: &str) -> Result<u8, FieldError> {
    number(value, path, &PRIORITY).map(|priority| priority as u8)
}

/// `value/mask`.
pub(super) fn mark(value: &Value, path: &str) -> Result<Mark, FieldError> {
    bounds::mark(text(value, path)?).map_err(|cause| FieldError::new(path, cause))
}

pub(super) fn boolean(value: &Value, path: &str) -> Result<bool, FieldError> {
    value.as_bool().ok_or_else(|| FieldError::new(path, mistyped(value, "true or false")))
}
