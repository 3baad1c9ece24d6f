//! The probes file: a JSON list of questions, with or without the expected answers.

use std::fs;
use std::path::Path;

use podgate_contract::api::Verdict;
use podgate_policy::reach::{Family, Question, Target, transport};
use podgate_policy::tables::Transport;
use serde_json::{Map, Value};

use crate::target::{PortSpec, target};

/// One probe.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    /// The sender.
    pub src: Target,
    /// The receiver.
    pub dst: Target,
    /// The port and protocol.
    pub port: PortSpec,
    /// Only over this version of IP.
    pub family: Option<Family>,
    /// The answer that makes the run succeed; `None`: any. `deny` is also satisfied by `mixed`.
    pub expect: Option<Verdict>,
    /// Its fields as they were written, for the output.
    fields: Map<String, Value>,
}

/// A mistake in a probe: "probes[3].port: must be …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("probes[{index}]{}{field}: {cause}", if field.is_empty() { "" } else { "." })]
pub(crate) struct ProbeError {
    /// Which probe, from 0.
    pub index: usize,
    /// Which field; empty: the probe as a whole.
    pub field: String,
    /// What is wrong with it.
    pub cause: String,
}

/// The fields that a probe may have.
const FIELDS: [&str; 6] = ["src", "dst", "proto", "port", "family", "expect"];

impl Probe {
    /// A question without an expected answer.
    pub(crate) fn new(question: Question) -> Self {
        let Question { from, to, transport, family } = question;
        let mut fields = Map::new();
        fields.insert("src".into(), from.to_string().into());
        fields.insert("dst".into(), to.to_string().into());
        match transport {
            Transport::Port(protocol, port) => {
                fields.insert("proto".into(), protocol.to_string().into());
                fields.insert("port".into(), port.into());
            }
            Transport::Number(protocol) => {
                fields.insert("proto".into(), protocol.to_string().into());
            }
            Transport::Other => {
                fields.insert("proto".into(), "ICMP".into());
            }
        }
        if let Some(family) = family {
            fields.insert("family".into(), family.number().into());
        }
        Self { src: from, dst: to, port: PortSpec(transport), family, expect: None, fields }
    }

    /// What it asks.
    pub(crate) fn question(&self) -> Question {
        Question {
            from: self.src.clone(),
            to: self.dst.clone(),
            transport: self.port.0,
            family: self.family,
        }
    }

    /// Reads one probe; the error names the field.
    pub(crate) fn from_value(value: &Value) -> Result<Self, (String, String)> {
        let bad = |field: &str, cause: String| (field.to_owned(), cause);
        let Value::Object(fields) = value else {
            return Err(bad(
                "",
                format!("must be an object with src, dst, proto and port, is {value}"),
            ));
        };
        for field in fields.keys().filter(|field| !FIELDS.contains(&field.as_str())) {
            // a misspelt `expect` would silently expect nothing; anything else is the user's own note
            if let Some(meant) = FIELDS.iter().find(|known| alike(field, known)) {
                return Err(bad(field, format!("unknown field, is {meant} meant?")));
            }
        }
        let text = |field: &str| match fields.get(field) {
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(other) => Err(bad(field, format!("must be text, is {other}"))),
            None => Err(bad(field, "missing".into())),
        };
        let src = target(text("src")?).map_err(|cause| bad("src", cause))?;
        if let Target::Service(_) = src {
            return Err(bad("src", "a service sends nothing; name one of its pods".into()));
        }
        let dst = target(text("dst")?).map_err(|cause| bad("dst", cause))?;
        let proto = text("proto")?;
        let port = fields.get("port").filter(|port| !port.is_null());
        let port = port.map(number).transpose().map_err(|cause| bad("port", cause))?;
        let port = transport(proto, port).map(PortSpec).map_err(|error| match &*error.path {
            "protocol" => bad("proto", format!("{}, is {proto:?}", error.cause)),
            _ if port.is_none() => bad("port", "missing".into()),
            _ => bad("port", error.cause),
        })?;
        let family = match fields.get("family") {
            None | Some(Value::Null) => None,
            Some(family) => match family.as_u64().and_then(Family::from_number) {
                Some(family) => Some(family),
                None => return Err(bad("family", format!("must be 4 or 6, is {family}"))),
            },
        };
        let expect = match fields.get("expect") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text == "allow" => Some(Verdict::Allow),
            Some(Value::String(text)) if text == "deny" => Some(Verdict::Deny),
            Some(Value::String(text)) if text == "mixed" => Some(Verdict::Mixed),
            Some(other) => {
                let cause = format!("must be \"allow\", \"deny\" or \"mixed\", is {other}");
                return Err(bad("expect", cause));
            }
        };
        Ok(Self { src, dst, port, family, expect, fields: fields.clone() })
    }

    /// Whether a verdict is the expected one; any is, if none is expected. A service that is not allowed at every endpoint
    /// is denied for this purpose.
    pub(crate) fn is_satisfied_by(&self, verdict: Verdict) -> bool {
        match self.expect {
            None => true,
            Some(Verdict::Deny) => verdict != Verdict::Allow,
            Some(expected) => verdict == expected,
        }
    }

    /// The probe's own fields, then `verdict` and `why`, as one line of JSON.
    pub(crate) fn json_line(&self, verdict: Verdict, why: &str) -> String {
        let own = FIELDS.iter().filter_map(|name| self.fields.get_key_value(*name));
        let notes = self.fields.iter().filter(|(name, _)| !FIELDS.contains(&name.as_str()));
        let mut parts = own
            .chain(notes)
            .filter(|(name, _)| !matches!(name.as_str(), "verdict" | "why"))
            .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
            .collect::<Vec<_>>();
        parts.push(format!("\"verdict\":\"{verdict}\""));
        parts.push(format!("\"why\":{}", Value::from(why)));
        format!("{{{}}}", parts.join(","))
    }
}

fn number(port: &Value) -> Result<u16, String> {
    let number = match port {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| {
        format!(
            "must be a number from 1 to 65535 (a port's name means another number at each pod), is {port}"
        )
    })
}

/// Whether one word is the other with a slip: case, one letter more, less or other, two swapped.
fn alike(written: &str, known: &str) -> bool {
    let (a, b) = (written.to_lowercase().into_bytes(), known.as_bytes());
    if a == b {
        return true;
    }
    let same_start = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[same_start..], &b[same_start..]);
    let same_end = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[..a.len() - same_end], &b[..b.len() - same_end]);
    match (a, b) {
        ([_], []) | ([], [_]) | ([_], [_]) => true,
        ([p, q], [r, s]) => p == s && q == r,
        _ => false,
    }
}

/// Reads a probes file whole: every mistake is reported, and with any there are no probes.
pub(crate) fn read(path: &Path) -> Result<Vec<Probe>, String> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|e| format!("read probes {shown}: {e}"))?;
    let value = serde_json::from_str::<Value>(&text)
        .map_err(|e| format!("read probes {shown}: not JSON: {e}"))?;
    let Value::Array(list) = value else {
        return Err(format!("read probes {shown}: must be a list of probes, is {}", kind(&value)));
    };
    from_list(&list).map_err(|errors| {
        let lines = errors.iter().map(|error| format!("\n  {error}")).collect::<String>();
        format!("read probes {shown}: {} of {} are wrong{lines}", errors.len(), list.len())
    })
}

fn from_list(list: &[Value]) -> Result<Vec<Probe>, Vec<ProbeError>> {
    let (mut probes, mut errors) = (Vec::new(), Vec::new());
    for (index, value) in list.iter().enumerate() {
        match Probe::from_value(value) {
            Ok(probe) => probes.push(probe),
            Err((field, cause)) => errors.push(ProbeError { index, field, cause }),
        }
    }
    if errors.is_empty() { Ok(probes) } else { Err(errors) }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({"src": "a/x", "dst": "10.0.0.1", "proto": "TCP", "port": 80, "expect": "deny", "id": 7})
    }

    #[test]
    fn a_probe_comes_back_with_its_own_fields() {
        let probe = Probe::from_value(&good()).unwrap();
        assert_eq!(
            probe.json_line(Verdict::Allow, "a \"reason\""),
            r#"{"src":"a/x","dst":"10.0.0.1","proto":"TCP","port":80,"expect":"deny","id":7,"verdict":"allow","why":"a \"reason\""}"#
        );
        assert!(!probe.is_satisfied_by(Verdict::Allow));
        assert!(probe.is_satisfied_by(Verdict::Mixed));
        assert!(probe.is_satisfied_by(Verdict::Deny));
    }

    #[test]
    fn mistakes_name_the_field() {
        for (field, value, says) in [
            ("src", json!(null), "must be text"),
            ("src", json!("svc:a/b"), "a service sends nothing"),
            ("dst", json!("svc:a"), "must name a service as svc:namespace/name"),
            ("dst", json!("nowhere"), "must be namespace/pod"),
            ("proto", json!("IPX"), "must be a protocol's name"),
            ("port", json!("http"), "must be a number from 1 to 65535"),
            ("port", json!(0), "must be 1 to 65535 for TCP"),
            ("port", json!(65536), "must be a number"),
            ("port", json!(null), "missing"),
            ("expect", json!("yes"), "must be \"allow\", \"deny\" or \"mixed\""),
            ("family", json!(5), "must be 4 or 6"),
            ("family", json!("4"), "must be 4 or 6"),
        ] {
            let mut probe = good();
            probe[field] = value;
            let (at, cause) = Probe::from_value(&probe).unwrap_err();
            assert_eq!(at, field);
            assert!(cause.contains(says), "{field}: {cause}");
        }
        for slip in ["Expect", "exepct", "expct", "expects", "ports", "sr"] {
            let mut probe = good();
            probe[slip] = json!("allow");
            let (at, cause) = Probe::from_value(&probe).unwrap_err();
            assert_eq!(at, slip);
            assert!(cause.contains("is"), "{cause}");
        }
        let mut icmp = json!({"src": "a/x", "dst": "a/y", "proto": "ICMP", "port": 1});
        assert_eq!(Probe::from_value(&icmp).unwrap_err().0, "port");
        icmp["port"] = json!(0);
        icmp["family"] = json!(6);
        let icmp = Probe::from_value(&icmp).unwrap().question();
        assert_eq!((icmp.transport, icmp.family), (Transport::Other, Some(Family::V6)));
        assert_eq!(Probe::from_value(&json!(3)).unwrap_err().0, "");
    }
}
