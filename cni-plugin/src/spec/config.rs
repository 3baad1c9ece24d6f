//! The network configuration on stdin, as far as the protocol defines it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::env::is_identifier;
use super::{CniError, Code, PrevResult, SpecVersion};

/// A plugin's configuration as libcni assembles it: the conflist's entry + `name`, `cniVersion`,
/// `prevResult`, `runtimeConfig`. Other keys are accepted.
#[derive(Debug)]
pub struct NetConf {
    /// The conflist's `cniVersion`.
    pub version: SpecVersion,
    /// The network's name.
    pub name: String,
    /// Every key with its literal text.
    fields: BTreeMap<String, Box<RawValue>>,
    /// What [`NetConf::parse_leniently`] could not read.
    pub ignored: Vec<CniError>,
}

/// One entry of `cni.dev/valid-attachments`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct ValidAttachment {
    /// CNI_CONTAINERID of its ADD.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// CNI_IFNAME of its ADD.
    pub ifname: String,
}

impl NetConf {
    /// Parses the whole of stdin.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let mut conf = Self::of(Self::fields(input)?);
        // a configuration that names no version means 0.1.0, which is too old for chaining
        let version: Option<String> = conf.get("cniVersion")?;
        conf.version = SpecVersion::parse(version.as_deref().unwrap_or("0.1.0"))?;
        conf.name = conf.get("name")?.unwrap_or_default();
        Ok(conf)
    }

    /// Parses stdin for a verb that only removes: what cannot be read counts as missing, and an unknown version
    /// (libcni 1.3 sends an empty one where it knows none of a list's `cniVersions`) as the latest.
    pub fn parse_leniently(input: &[u8]) -> Self {
        let mut ignored = Vec::new();
        let fields = Self::fields(input).map_err(|e| ignored.push(e)).unwrap_or_default();
        let mut conf = Self::of(fields);
        let version = conf.get::<String>("cniVersion");
        match version.and_then(|v| SpecVersion::parse(v.as_deref().unwrap_or("0.1.0"))) {
            Ok(version) => conf.version = version,
            Err(e) => ignored.push(e),
        }
        match conf.get("name") {
            Ok(name) => conf.name = name.unwrap_or_default(),
            Err(e) => ignored.push(e),
        }
        conf.ignored = ignored;
        conf
    }

    fn of(fields: BTreeMap<String, Box<RawValue>>) -> Self {
        Self { version: SpecVersion::LATEST, name: String::new(), fields, ignored: Vec::new() }
    }

    /// `cniVersion` alone, for VERSION: `None` if it is missing or not supported.
    pub fn version_of(input: &[u8]) -> Option<SpecVersion> {
        let fields = Self::fields(input).ok()?;
        let text: String = serde_json::from_str(fields.get("cniVersion")?.get()).ok()?;
        SpecVersion::parse(&text).ok()
    }

    fn fields(input: &[u8]) -> Result<BTreeMap<String, Box<RawValue>>, CniError> {
        serde_json::from_slice(input).map_err(|e| {
            CniError::new(Code::Decode, "read network configuration from stdin").because(e)
        })
    }

    /// A key of the protocol's own; `null` is the same as missing.
    pub(super) fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, CniError> {
        let Some(raw) = self.fields.get(key) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|e| {
            CniError::new(Code::Decode, format!("read configuration key {key:?}")).because(e)
        })
    }

    /// All keys that are there.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// The network's name, which ADD, CHECK, DEL and GC cannot do without.
    pub fn require_name(&self) -> Result<(), CniError> {
        if is_identifier(&self.name) {
            return Ok(());
        }
        Err(CniError::new(Code::InvalidConfig, "use network configuration")
            .because(format!("its name is {:?}, which names no network", self.name)))
    }

    /// What the plugins before this one made; `None` if this one is not chained.
    pub fn prev_result(&self) -> Result<Option<PrevResult>, CniError> {
        match self.fields.get("prevResult") {
            Some(raw) if raw.get() != "null" => PrevResult::parse(raw).map(Some),
            _ => Ok(None),
        }
    }

    /// GC's list. `null` is how libcni spells the empty list; a missing key is an error,
    /// because an empty list would remove every pod's gate.
    pub fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, CniError> {
        const KEY: &str = "cni.dev/valid-attachments";
        if !self.fields.contains_key(KEY) {
            return Err(CniError::new(Code::InvalidConfig, "collect garbage")
                .because(format!("configuration key {KEY:?} is missing")));
        }
        Ok(self.get(KEY)?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetConf, CniError> {
        NetConf::parse(text.as_bytes())
    }

    #[test]
    fn malformed_configurations_say_what_is_wrong() {
        for (text, code, part) in [
            ("", Code::Decode, "EOF"),
            ("[]", Code::Decode, "expected a map"),
            ("{\"cniVersion\": 1}", Code::Decode, "invalid type"),
            ("{\"name\": \"x\"}", Code::IncompatibleVersion, "\"0.1.0\""),
            ("{\"cniVersion\": \"9.0.0\"}", Code::IncompatibleVersion, "\"9.0.0\""),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code, code, "{text}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_only_removes_reads_whatever_there_is() {
        for (text, name, ignored) in [
            ("", "", 2),
            ("[1]", "", 2),
            ("{\"cniVersion\":\"\",\"name\":\"pods\"}", "pods", 1),
            ("{\"cniVersion\":\"9.0.0\",\"name\":\"pods\"}", "pods", 1),
            ("{\"cniVersion\":1,\"name\":2}", "", 2),
            ("{\"name\":\"pods\",\"prevResult\":7}", "pods", 1),
        ] {
            let conf = NetConf::parse_leniently(text.as_bytes());
            assert_eq!((conf.version, &*conf.name), (SpecVersion::LATEST, name), "{text}");
            assert_eq!(conf.ignored.len(), ignored, "{text}: {:?}", conf.ignored);
        }
        let conf = NetConf::parse_leniently(br#"{"cniVersion":"0.4.0","name":"n"}"#);
        assert_eq!((conf.version, conf.ignored), (SpecVersion::V0_4_0, vec![]));
    }

    #[test]
    fn the_name_is_checked_where_it_is_needed() {
        for (name, fine) in [("pods", true), ("a.b-c_d", true), ("", false), ("../x", false)] {
            let conf = parse(&format!(r#"{{"cniVersion":"1.0.0","name":"{name}"}}"#)).unwrap();
            assert_eq!(conf.require_name().is_ok(), fine, "{name}");
        }
    }

    #[test]
    fn null_attachments_are_none_and_missing_ones_an_error() {
        let list = |json: &str| {
            parse(&format!(r#"{{"cniVersion":"1.1.0","name":"n"{json}}}"#))
                .unwrap()
                .valid_attachments()
        };
        assert_eq!(list(r#","cni.dev/valid-attachments":null"#), Ok(vec![]));
        assert_eq!(list(r#","cni.dev/valid-attachments":[]"#), Ok(vec![]));
        let one =
            list(r#","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0","x":1}]"#);
        let wanted = ValidAttachment { container_id: "c".into(), ifname: "eth0".into() };
        assert_eq!(one, Ok(vec![wanted]));
        assert_eq!(list("").unwrap_err().code, Code::InvalidConfig);
        assert_eq!(list(r#","cni.dev/valid-attachments":{}"#).unwrap_err().code, Code::Decode);
    }

    #[test]
    fn a_null_previous_result_is_none() {
        let conf = parse(r#"{"cniVersion":"1.0.0","name":"n","prevResult":null}"#).unwrap();
        assert!(conf.prev_result().unwrap().is_none());
    }
}
