//! One item of `protocols`.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::{FieldError, required};
use crate::convert::value::{Fields, Unread, text};
use crate::model::{Port, Protocol};

/// The ports of an item: several for a name, which is that of a port of any protocol.
pub(super) fn read(item: &Value, path: &str) -> Result<Vec<Port>, Unread> {
    let known = ["tcp", "udp", "sctp", "destinationNamedPort"];
    let (kind, value) = Fields::of(item, path)?.exactly_one(&known)?;
    let path = format!("{path}.{kind}");
    let protocol = match kind {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return named(text(value, &path)?, &path),
    };
    let fields = Fields::of(value, &path)?;
    fields.no_other_than(&["destinationPort"])?;
    Ok(vec![match fields.get("destinationPort") {
        Some(port) => Port::Numbers(protocol, numbers(port, &format!("{path}.destinationPort"))?),
        None => Port::All(protocol),
    }])
}

fn named(name: &str, path: &str) -> Result<Vec<Port>, Unread> {
    if name.is_empty() {
        return Err(Unread::unknown(path, "must not be empty"));
    }
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    Ok(protocols.map(|protocol| Port::Named(protocol, name.into())).into())
}

fn numbers(port: &Value, path: &str) -> Result<RangeInclusive<u16>, Unread> {
    match Fields::of(port, path)?.exactly_one(&["number", "range"])? {
        ("number", value) => {
            let number = number(value, &format!("{path}.number"))?;
            Ok(number..=number)
        }
        (_, range) => {
            let path = format!("{path}.range");
            let fields = Fields::of(range, &path)?;
            fields.no_other_than(&["start", "end"])?;
            let end_of = |name: &str| {
                let path = format!("{path}.{name}");
                number(required(fields.get(name), &path)?, &path)
            };
            let (start, end) = (end_of("start")?, end_of("end")?);
            if start >= end {
                let cause = format!("must be greater than `start` {start}, is {end}");
                return Err(FieldError::new(format!("{path}.end"), cause).into());
            }
            Ok(start..=end)
        }
    }
}

fn number(value: &Value, path: &str) -> Result<u16, FieldError> {
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    number.filter(|number| *number > 0).ok_or_else(|| {
        FieldError::new(path, format!("must be a number from 1 to 65535, is {value}"))
    })
}
