//! The content of podgate's entry in the conflist.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use podgate_bpf::attach::AttachMode;
use podgate_contract::plugin_conf::{
    BANDWIDTH, LogLevel, MAX_TIMEOUT_MS, OnTimeout, PLUGIN, Startup, key,
};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Options that go into the entry. What is not given is not written: the plugin's default holds.
#[derive(Args, Clone, Debug, Default, PartialEq)]
#[command(
    next_help_heading = "Options of the plugin, written to its entry; without one its default holds"
)]
pub struct Entry {
    /// What a pod may do until policyd has programmed it
    #[arg(long, env = "PODGATE_STARTUP", value_enum, value_name = "STATE")]
    pub startup: Option<Startup>,
    /// How long ADD waits for policyd
    #[arg(long, env = "PODGATE_POLICYD_TIMEOUT_MS", value_name = "MS", value_parser = clap::value_parser!(u64).range(..=MAX_TIMEOUT_MS))]
    pub policyd_timeout_ms: Option<u64>,
    /// What ADD does then
    #[arg(long, env = "PODGATE_ON_TIMEOUT", value_enum, value_name = "WHAT")]
    pub on_timeout: Option<OnTimeout>,
    /// policyd's socket, as the node sees it
    #[arg(long, env = "PODGATE_PLUGIN_SOCKET", value_name = "PATH", value_parser = absolute)]
    pub socket: Option<PathBuf>,
    /// Directory of the BPF pins, as the node sees it
    #[arg(long, env = "PODGATE_PLUGIN_BPF_ROOT", value_name = "DIR", value_parser = absolute)]
    pub bpf_root: Option<PathBuf>,
    /// Whether a pod's new flows must carry one of its addresses
    #[arg(long, env = "PODGATE_ANTI_SPOOFING", value_name = "BOOL")]
    pub anti_spoofing: Option<bool>,
    /// How gates are attached: auto, tcx or clsact
    #[arg(long, env = "PODGATE_ATTACH", value_name = "KIND")]
    pub attach: Option<AttachMode>,
    /// Whether limits of bandwidth are taken from the runtime: pods' annotations kubernetes.io/ingress-bandwidth and
    /// egress-bandwidth. Not in a list with the bandwidth plugin, which does that itself
    #[arg(long, env = "PODGATE_BANDWIDTH", value_name = "BOOL", default_value = "true")]
    pub bandwidth: Option<bool>,
    /// The plugin's log, as the node sees it
    #[arg(long, env = "PODGATE_PLUGIN_LOG_FILE", value_name = "PATH", value_parser = absolute)]
    pub plugin_log_file: Option<PathBuf>,
    /// What goes to it
    #[arg(long, env = "PODGATE_PLUGIN_LOG_LEVEL", value_enum, value_name = "LEVEL")]
    pub plugin_log_level: Option<LogLevel>,
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("write an absolute path".to_owned()) }
}

/// The keys that the options above set; all other keys of an entry are the operator's and stay.
const OWN_KEYS: [&str; 11] = [
    "type",
    key::STARTUP,
    key::POLICYD_TIMEOUT_MS,
    key::ON_TIMEOUT,
    key::SOCKET,
    key::BPF_ROOT,
    key::ANTI_SPOOFING,
    key::ATTACH,
    key::CAPABILITIES,
    key::LOG_FILE,
    key::LOG_LEVEL,
];

impl Entry {
    fn pairs(&self) -> Vec<(String, Value)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| json!(path));
        let values = [
            Some(json!(PLUGIN)),
            self.startup.map(|v| json!(v)),
            self.policyd_timeout_ms.map(Value::from),
            self.on_timeout.map(|v| json!(v)),
            path(&self.socket),
            path(&self.bpf_root),
            self.anti_spoofing.map(Value::from),
            self.attach.map(|mode| json!(mode.to_string())),
            self.bandwidth.filter(|on| *on).map(|on| json!({ BANDWIDTH: on })),
            path(&self.plugin_log_file),
            self.plugin_log_level.map(|v| json!(v)),
        ];
        let given = OWN_KEYS.into_iter().zip(values);
        given.filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }

    /// The keys of the entry that replaces `old`, which keeps those keys that no option sets. `None` if `old` is right
    /// already.
    pub(super) fn in_place_of(&self, old: Option<&str>) -> Option<Vec<(String, String)>> {
        let mut new: Vec<_> =
            self.pairs().into_iter().map(|(key, value)| (key, value.to_string())).collect();
        // `old` has a type, so it is an object
        let before = old.and_then(|old| serde_json::from_str::<Pairs>(old).ok());
        let Some(Pairs(before)) = before else { return Some(new) };
        new.extend(before.iter().filter(|(key, _)| !OWN_KEYS.contains(&key.as_str())).cloned());
        let meaning = |pairs: &[(String, String)]| {
            let value = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
            let mut all: Vec<_> = pairs.iter().map(|(k, v)| (k.clone(), value(v))).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        (meaning(&new) != meaning(&before)).then_some(new)
    }
}

/// An object's keys and the text of their values, in order.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    pairs.push((key, value.get().to_owned()));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_written() {
        let written = |entry: Entry| entry.in_place_of(None).unwrap();
        assert_eq!(written(Entry::default()), [("type".into(), r#""podgate""#.into())]);
        let entry = Entry {
            startup: Some(Startup::Open),
            policyd_timeout_ms: Some(500),
            anti_spoofing: Some(false),
            attach: Some(AttachMode::Tcx),
            ..Entry::default()
        };
        let text: Vec<_> = written(entry).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            text.join(" "),
            r#"type="podgate" startup="open" policydTimeoutMs=500 antiSpoofing=false attach="tcx""#
        );
    }

    #[test]
    fn an_entry_that_says_the_same_stays() {
        let entry = Entry { startup: Some(Startup::Hold), ..Entry::default() };
        assert_eq!(entry.in_place_of(Some(r#"{"startup": "hold" ,"type":"podgate"}"#)), None);
        // an option that is no longer given goes, a key that no option decides stays with its text
        let new = entry
            .in_place_of(Some(r#"{"maps":{"peers": 1e3},"type":"podgate","logLevel":"debug"}"#));
        let text: Vec<_> = new.unwrap().into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(text, [r#"type="podgate""#, r#"startup="hold""#, r#"maps={"peers": 1e3}"#]);
    }
}
