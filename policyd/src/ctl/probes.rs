//! The probes file: a JSON list of questions, with or without the expected answers.

use std::fs;
use std::path::Path;

use podgate_policy::compile::Transport;
use podgate_policy::explain::Verdict;
use serde_json::{Map, Value};

use super::end::{End, Wire, protocol};

/// One probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Who sends.
    pub src: End,
    /// To whom.
    pub dst: End,
    /// What.
    pub wire: Wire,
    /// The answer that makes the run succeed; `None`: any.
    pub expect: Option<Verdict>,
    /// Its fields as they were written, for the output.
    fields: Map<String, Value>,
}

/// A mistake in a probe: "probes[3].port: must be …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("probes[{index}]{}{field}: {cause}", if field.is_empty() { "" } else { "." })]
pub struct ProbeError {
    /// Which probe, from 0.
    pub index: usize,
    /// Which field; empty: the probe as a whole.
    pub field: String,
    /// What is wrong with it.
    pub cause: String,
}

/// The fields that a probe may have.
const FIELDS: [&str; 5] = ["src", "dst", "proto", "port", "expect"];

impl Probe {
    /// A question without an expected answer.
    pub fn new(src: End, dst: End, wire: Wire) -> Self {
        let mut fields = Map::new();
        fields.insert("src".into(), src.to_string().into());
        fields.insert("dst".into(), dst.to_string().into());
        match wire.0 {
            Transport::Port(protocol, port) => {
                fields.insert("proto".into(), protocol.to_string().into());
                fields.insert("port".into(), port.into());
            }
            Transport::Other => {
                fields.insert("proto".into(), "ICMP".into());
            }
        }
        Self { src, dst, wire, expect: None, fields }
    }

    /// Reads one probe; the error names the field.
    pub fn from_value(value: &Value) -> Result<Self, (String, String)> {
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
        let src = text("src")?.parse().map_err(|cause| bad("src", cause))?;
        if let End::Service(_) = src {
            return Err(bad("src", "a service sends nothing; name one of its pods".into()));
        }
        let dst: End = text("dst")?.parse().map_err(|cause| bad("dst", cause))?;
        let proto = text("proto")?;
        let port = fields.get("port").filter(|port| !port.is_null());
        let wire = if proto.eq_ignore_ascii_case("icmp") {
            match port {
                None => Wire(Transport::Other),
                Some(port) => return Err(bad("port", format!("ICMP has no ports, is {port}"))),
            }
        } else {
            let protocol = protocol(proto).ok_or_else(|| {
                bad("proto", format!("must be TCP, UDP, SCTP or ICMP, is {proto:?}"))
            })?;
            Wire(Transport::Port(protocol, number(port).map_err(|cause| bad("port", cause))?))
        };
        let expect = match fields.get("expect") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text == "allow" => Some(Verdict::Allow),
            Some(Value::String(text)) if text == "deny" => Some(Verdict::Deny),
            Some(other) => {
                return Err(bad("expect", format!("must be \"allow\" or \"deny\", is {other}")));
            }
        };
        Ok(Self { src, dst, wire, expect, fields: fields.clone() })
    }

    /// Whether an answer is the expected one; any is, if none is expected.
    pub fn satisfied_by(&self, verdict: Verdict) -> bool {
        self.expect.is_none_or(|expected| expected == verdict)
    }

    /// The probe's own fields, then `verdict` and `why`, as one line of JSON.
    pub fn json_line(&self, verdict: Verdict, why: &str) -> String {
        let own = FIELDS.iter().filter_map(|name| self.fields.get_key_value(*name));
        let notes = self.fields.iter().filter(|(name, _)| !FIELDS.contains(&name.as_str()));
        let mut parts = own
            .chain(notes)
            .filter(|(name, _)| !matches!(name.as_str(), "verdict" | "why"))
            .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
            .collect::<Vec<_>>();
        parts.push(format!("\"verdict\":\"{}\"", name_of(verdict)));
        parts.push(format!("\"why\":{}", Value::from(why)));
        format!("{{{}}}", parts.join(","))
    }
}

/// `allow` or `deny`.
pub fn name_of(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

fn number(port: Option<&Value>) -> Result<u16, String> {
    let number = match port {
        None => return Err("missing".into()),
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) => text.parse().ok(),
        Some(_) => None,
    };
    match number.map(u16::try_from) {
        Some(Ok(port)) if port > 0 => Ok(port),
        _ => Err(format!(
            "must be a number from 1 to 65535 (a port's name means another number at each pod), is {}",
            port.unwrap_or(&Value::Null)
        )),
    }
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

/// Reads a probes file whole: every mistake is told, and with any there are no probes.
pub fn read(path: &Path) -> Result<Vec<Probe>, String> {
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
        assert!(!probe.satisfied_by(Verdict::Allow));
        assert!(probe.satisfied_by(Verdict::Deny));
    }

    #[test]
    fn mistakes_name_the_field() {
        for (field, value, says) in [
            ("src", json!(null), "must be text"),
            ("src", json!("svc:a/b"), "a service sends nothing"),
            ("dst", json!("svc:a"), "must name a service as svc:namespace/name"),
            ("dst", json!("nowhere"), "must be namespace/pod"),
            ("proto", json!("GRE"), "must be TCP, UDP, SCTP or ICMP"),
            ("port", json!("http"), "must be a number from 1 to 65535"),
            ("port", json!(0), "must be a number"),
            ("port", json!(65536), "must be a number"),
            ("port", json!(null), "missing"),
            ("expect", json!("yes"), "must be \"allow\" or \"deny\""),
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
        let icmp = json!({"src": "a/x", "dst": "a/y", "proto": "ICMP", "port": 1});
        assert_eq!(Probe::from_value(&icmp).unwrap_err().0, "port");
        assert_eq!(Probe::from_value(&json!(3)).unwrap_err().0, "");
    }
}
