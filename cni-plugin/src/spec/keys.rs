//! podgate's own configuration keys. A key that is there with a value it cannot have is an error that
//! names the key, the value and what is allowed; what a verb does not use, it does not read, and
//! what DEL and GC cannot read they take for missing.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use podgate_bpf::abi::Startup;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::handshake::DEFAULT_SOCKET;
use podgate_bpf::loader::{LEAST_FLOWS, Sizes};
use podgate_bpf::pins::DEFAULT_BPF_ROOT;
use serde_json::Value;
use tracing::Level;

use super::{CniError, Code, NetConf};

/// Every key of ours, to tell a misspelt one.
const KEYS: [&str; 10] = [
    "startup",
    "policydTimeoutMs",
    "onTimeout",
    "socket",
    "bpfRoot",
    "antiSpoofing",
    "attach",
    "logFile",
    "logLevel",
    "maps",
];

/// `sun_path` of a unix socket address, without its final NUL.
const SOCKET_PATH_MAX: usize = 107;
/// `policydTimeoutMs` at most: longer than any runtime waits for a plugin.
const TIMEOUT_MAX: u64 = 300_000;

/// What ADD does when policyd has not said "enforced" in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// Succeed: the pod starts in its startup state.
    Hold,
    /// Undo everything and ask the runtime to try again.
    Fail,
}

/// Where everything is: what each verb needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// `bpfRoot`.
    pub bpf_root: PathBuf,
    /// `socket`.
    pub socket: PathBuf,
}

/// What ADD needs beside the places.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `startup`.
    pub startup: Startup,
    /// `policydTimeoutMs`.
    pub policyd_timeout: Duration,
    /// `onTimeout`.
    pub on_timeout: OnTimeout,
    /// `antiSpoofing`.
    pub anti_spoofing: bool,
    /// `attach`.
    pub attach: AttachMode,
    /// `maps`: entries of the maps, if this call is the one that creates them.
    pub sizes: Sizes,
}

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `logFile`; `None` is stderr.
    pub file: Option<PathBuf>,
    /// `logLevel`.
    pub level: Level,
}

impl Default for Log {
    fn default() -> Self {
        Self { file: None, level: Level::INFO }
    }
}

impl Places {
    /// Reads them.
    pub fn read(conf: &NetConf) -> Result<Self, CniError> {
        let (places, mut wrong) = Self::read_leniently(conf);
        if wrong.is_empty() { Ok(places) } else { Err(wrong.remove(0)) }
    }

    /// Reads them with the default in the place of each that cannot be; also what is wrong with those.
    pub fn read_leniently(conf: &NetConf) -> (Self, Vec<CniError>) {
        let mut wrong = Vec::new();
        let bpf_root = key(conf, "bpfRoot", "an absolute path on a BPF file system", absolute);
        let socket = key(conf, "socket", "an absolute path of at most 107 bytes", |value| {
            absolute(value).filter(|path| path.as_os_str().len() <= SOCKET_PATH_MAX)
        });
        let mut given = |read: Result<Option<PathBuf>, CniError>, default: &str| {
            read.map_err(|e| wrong.push(e)).ok().flatten().unwrap_or_else(|| default.into())
        };
        let bpf_root = given(bpf_root, DEFAULT_BPF_ROOT);
        let socket = given(socket, DEFAULT_SOCKET);
        (Self { bpf_root, socket }, wrong)
    }
}

impl Settings {
    /// Reads them.
    pub fn read(conf: &NetConf) -> Result<Self, CniError> {
        let startup = key(conf, "startup", "\"hold\" or \"open\"", |value| {
            [Startup::Hold, Startup::Open].into_iter().find(|s| Some(s.name()) == value.as_str())
        })?;
        let timeout = key(conf, "policydTimeoutMs", "whole milliseconds, 0 to 300000", |value| {
            value.as_u64().filter(|ms| *ms <= TIMEOUT_MAX).map(Duration::from_millis)
        })?;
        let on_timeout =
            key(conf, "onTimeout", "\"hold\" or \"fail\"", |value| match value.as_str() {
                Some("hold") => Some(OnTimeout::Hold),
                Some("fail") => Some(OnTimeout::Fail),
                _ => None,
            })?;
        let attach = key(conf, "attach", "\"auto\", \"tcx\" or \"clsact\"", |value| {
            AttachMode::from_str(value.as_str()?).ok()
        })?;
        Ok(Self {
            startup: startup.unwrap_or(Startup::Hold),
            policyd_timeout: timeout.unwrap_or(Duration::from_millis(2000)),
            on_timeout: on_timeout.unwrap_or(OnTimeout::Hold),
            anti_spoofing: key(conf, "antiSpoofing", "true or false", Value::as_bool)?
                .unwrap_or(true),
            attach: attach.unwrap_or(AttachMode::Auto),
            sizes: sizes(conf)?,
        })
    }
}

impl Log {
    /// Reads it.
    pub fn read(conf: &NetConf) -> Result<Self, CniError> {
        let file = key(conf, "logFile", "an absolute path", absolute)?;
        let level =
            key(conf, "logLevel", "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"", |v| {
                match v.as_str()? {
                    "error" => Some(Level::ERROR),
                    "warn" => Some(Level::WARN),
                    "info" => Some(Level::INFO),
                    "debug" => Some(Level::DEBUG),
                    "trace" => Some(Level::TRACE),
                    _ => None,
                }
            })?;
        Ok(Self { file, level: level.unwrap_or(Level::INFO) })
    }
}

/// Keys that differ from one of ours in case only: whoever wrote them meant ours, and Go's plugins
/// would have taken them.
pub fn misspelt(conf: &NetConf) -> Vec<(String, &'static str)> {
    conf.keys()
        .filter_map(|found| {
            let ours = KEYS.into_iter().find(|key| key.eq_ignore_ascii_case(found))?;
            (ours != found).then(|| (found.to_owned(), ours))
        })
        .collect()
}

/// The value of one key, `None` if missing or `null`.
fn key<T>(
    conf: &NetConf,
    name: &str,
    allowed: &str,
    decode: impl FnOnce(&Value) -> Option<T>,
) -> Result<Option<T>, CniError> {
    let Some(value) = conf.get::<Value>(name)? else { return Ok(None) };
    decode(&value).map(Some).ok_or_else(|| invalid(name, &value, allowed))
}

fn invalid(name: &str, value: impl Display, allowed: &str) -> CniError {
    CniError::new(Code::InvalidConfig, format!("use configuration key {name:?}"))
        .because(format!("it is {value}, allowed is {allowed}"))
}

fn absolute(value: &Value) -> Option<PathBuf> {
    value.as_str().map(PathBuf::from).filter(|path| path.is_absolute())
}

/// `maps`: nobody else's object, so an unknown name in it is a mistake.
fn sizes(conf: &NetConf) -> Result<Sizes, CniError> {
    let mut sizes = Sizes::default();
    let given =
        key(conf, "maps", "an object of numbers of entries", |value| value.as_object().cloned())?;
    for (name, value) in given.into_iter().flatten() {
        let path = format!("maps.{name}");
        let slot = match name.as_str() {
            "endpoints" => &mut sizes.endpoints,
            "flows4" => &mut sizes.flows4,
            "flows6" => &mut sizes.flows6,
            "peers" => &mut sizes.peers,
            "nets" => &mut sizes.nets,
            "frags" => &mut sizes.frags,
            "services" => &mut sizes.services,
            "backends" => &mut sizes.backends,
            "affinity" => &mut sizes.affinity,
            _ => {
                let known = "one of endpoints, flows4, flows6, peers, nets, frags, services, backends, affinity";
                return Err(invalid(&path, "no such map", known));
            }
        };
        let least = if name.starts_with("flows") { LEAST_FLOWS } else { 1 };
        *slot =
            value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n >= least).ok_or_else(
                || invalid(&path, &value, &format!("a number of entries from {least} up")),
            )?;
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(keys: &str) -> NetConf {
        NetConf::parse(format!(r#"{{"cniVersion":"1.0.0","name":"n"{keys}}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let conf = conf("");
        let settings = Settings::read(&conf).unwrap();
        assert_eq!(settings.startup, Startup::Hold);
        assert_eq!(settings.policyd_timeout, Duration::from_secs(2));
        assert_eq!(settings.on_timeout, OnTimeout::Hold);
        assert!(settings.anti_spoofing);
        assert_eq!(settings.attach, AttachMode::Auto);
        let places = Places::read(&conf).unwrap();
        assert_eq!(places.bpf_root, PathBuf::from("/sys/fs/bpf/podgate"));
        assert_eq!(places.socket, PathBuf::from("/run/podgate/cni.sock"));
        assert_eq!(Log::read(&conf), Ok(Log { file: None, level: Level::INFO }));
    }

    #[test]
    fn every_key_is_read() {
        let conf = conf(
            r#","type":"podgate","startup":"open","policydTimeoutMs":0,"onTimeout":"fail",
               "socket":"/s","bpfRoot":"/b","antiSpoofing":false,"attach":"clsact","logFile":"/l",
               "logLevel":"trace","maps":{"endpoints":1,"flows4":2048,"flows6":4096,"peers":4,"nets":5,"frags":6,
               "services":7,"backends":8,"affinity":9},
               "ipMasq":true,"capabilities":{"portMappings":true},"runtimeConfig":{}"#,
        );
        let settings = Settings::read(&conf).unwrap();
        assert_eq!(settings.startup, Startup::Open);
        assert_eq!(settings.policyd_timeout, Duration::ZERO);
        assert_eq!(settings.on_timeout, OnTimeout::Fail);
        assert!(!settings.anti_spoofing);
        assert_eq!(settings.attach, AttachMode::Clsact);
        let s = settings.sizes;
        assert_eq!(
            [s.endpoints, s.flows4, s.flows6, s.peers, s.nets, s.frags],
            [1, 2048, 4096, 4, 5, 6]
        );
        assert_eq!([s.services, s.backends, s.affinity], [7, 8, 9]);
        let places = Places::read(&conf).unwrap();
        assert_eq!((places.bpf_root, places.socket), ("/b".into(), "/s".into()));
        assert_eq!(Log::read(&conf), Ok(Log { file: Some("/l".into()), level: Level::TRACE }));
        assert!(misspelt(&conf).is_empty());
    }

    #[test]
    fn a_bad_value_names_key_value_and_what_is_allowed() {
        for (name, value, allowed) in [
            ("startup", r#""maybe""#, "\"hold\" or \"open\""),
            ("startup", "true", "\"hold\" or \"open\""),
            ("policydTimeoutMs", "-1", "0 to 300000"),
            ("policydTimeoutMs", "1.5", "0 to 300000"),
            ("policydTimeoutMs", "300001", "0 to 300000"),
            ("policydTimeoutMs", r#""2s""#, "0 to 300000"),
            ("onTimeout", r#""open""#, "\"hold\" or \"fail\""),
            ("antiSpoofing", r#""no""#, "true or false"),
            ("attach", r#""xdp""#, "\"auto\", \"tcx\" or \"clsact\""),
            ("socket", r#""run/x""#, "absolute path"),
            ("bpfRoot", r#""""#, "absolute path"),
            ("logFile", r#""log""#, "absolute path"),
            ("logLevel", r#""loud""#, "\"debug\""),
            ("maps", "[]", "an object"),
        ] {
            let conf = conf(&format!(r#","{name}":{value}"#));
            let error = Settings::read(&conf)
                .map(drop)
                .and(Places::read(&conf).map(drop))
                .and(Log::read(&conf).map(drop))
                .unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{name}");
            for part in [name, value, allowed] {
                assert!(error.to_string().contains(part), "{name}: {error} lacks {part}");
            }
        }
        let long = format!(r#","socket":"/{}""#, "x".repeat(SOCKET_PATH_MAX));
        assert!(Places::read(&conf(&long)).is_err());
    }

    #[test]
    fn map_sizes_are_strict() {
        for (maps, part) in [
            (r#"{"flow4":1}"#, "\"maps.flow4\""),
            (r#"{"peers":0}"#, "it is 0"),
            (r#"{"peers":"many"}"#, "it is \"many\""),
            (r#"{"peers":4294967296}"#, "it is 4294967296"),
        ] {
            let error = Settings::read(&conf(&format!(r#","maps":{maps}"#))).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn null_is_missing_and_wrong_case_is_told() {
        let conf = conf(r#","startup":null,"antispoofing":false,"ontimeout":"fail""#);
        let settings = Settings::read(&conf).unwrap();
        assert_eq!((settings.startup, settings.anti_spoofing), (Startup::Hold, true));
        let told = misspelt(&conf);
        assert_eq!(
            told,
            [("antispoofing".into(), "antiSpoofing"), ("ontimeout".into(), "onTimeout")]
        );
    }
}
