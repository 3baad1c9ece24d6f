//! podgate's own configuration keys. An invalid value is an error that names the key, the value and what is allowed.
//! A verb reads only the keys that it uses; DEL and GC treat an invalid value like a missing one.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use podgate_bpf::abi;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::loader::{LEAST_FLOWS, Sizes};
use podgate_bpf::pins::DEFAULT_BPF_ROOT;
use podgate_contract::handshake::DEFAULT_SOCKET;
use podgate_contract::plugin_conf::{LogLevel, MAX_TIMEOUT_MS, OnTimeout, Startup, key};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::Level;

use super::{CniError, Code, NetConf};

/// `sun_path` of a unix socket address, without its final NUL.
const SOCKET_PATH_MAX: usize = 107;
/// The paths that every verb but VERSION needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginPaths {
    /// `bpfRoot`.
    pub bpf_root: PathBuf,
    /// `socket`.
    pub socket: PathBuf,
}

/// What ADD needs beside the paths.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `startup`.
    pub startup: abi::Startup,
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

impl PluginPaths {
    /// Reads both keys. The first error if one is invalid.
    pub fn read(conf: &NetConf) -> Result<Self, CniError> {
        let (paths, mut wrong) = Self::read_leniently(conf);
        if wrong.is_empty() { Ok(paths) } else { Err(wrong.remove(0)) }
    }

    /// Reads both keys, with the default for each that is invalid; also returns the errors.
    pub fn read_leniently(conf: &NetConf) -> (Self, Vec<CniError>) {
        let mut wrong = Vec::new();
        let bpf_root = read(conf, key::BPF_ROOT, "an absolute path on a BPF file system", absolute);
        let socket = read(conf, key::SOCKET, "an absolute path of at most 107 bytes", |value| {
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
    /// Reads all keys. The first error if one is invalid.
    pub fn read(conf: &NetConf) -> Result<Self, CniError> {
        let startup = read(conf, key::STARTUP, "\"hold\" or \"open\"", one_of)?;
        let milliseconds = format!("whole milliseconds, 0 to {MAX_TIMEOUT_MS}");
        let timeout = read(conf, key::POLICYD_TIMEOUT_MS, &milliseconds, |value| {
            value.as_u64().filter(|ms| *ms <= MAX_TIMEOUT_MS).map(Duration::from_millis)
        })?;
        let on_timeout = read(conf, key::ON_TIMEOUT, "\"hold\" or \"fail\"", one_of)?;
        let attach = read(conf, key::ATTACH, "\"auto\", \"tcx\" or \"clsact\"", |value| {
            AttachMode::from_str(value.as_str()?).ok()
        })?;
        Ok(Self {
            startup: match startup.unwrap_or(Startup::Hold) {
                Startup::Hold => abi::Startup::Hold,
                Startup::Open => abi::Startup::Open,
            },
            policyd_timeout: timeout.unwrap_or(Duration::from_millis(2000)),
            on_timeout: on_timeout.unwrap_or(OnTimeout::Hold),
            anti_spoofing: read(conf, key::ANTI_SPOOFING, "true or false", Value::as_bool)?
                .unwrap_or(true),
            attach: attach.unwrap_or(AttachMode::Auto),
            sizes: sizes(conf)?,
        })
    }
}

impl Log {
    /// Reads both keys. The first error if one is invalid.
    pub fn read(conf: &NetConf) -> Result<Self, CniError> {
        let file = read(conf, key::LOG_FILE, "an absolute path", absolute)?;
        let allowed = "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
        let level = read(conf, key::LOG_LEVEL, allowed, one_of)?.map(|level| match level {
            LogLevel::Error => Level::ERROR,
            LogLevel::Warn => Level::WARN,
            LogLevel::Info => Level::INFO,
            LogLevel::Debug => Level::DEBUG,
            LogLevel::Trace => Level::TRACE,
        });
        Ok(Self { file, level: level.unwrap_or(Level::INFO) })
    }
}

/// Keys that differ from one of podgate's in upper and lower case only, each with the one meant: plugins written in Go
/// accept such keys.
pub fn misspelt(conf: &NetConf) -> Vec<(String, &'static str)> {
    conf.keys()
        .filter_map(|found| {
            let ours = key::ALL.into_iter().find(|ours| ours.eq_ignore_ascii_case(found))?;
            (ours != found).then(|| (found.to_owned(), ours))
        })
        .collect()
}

/// The value of one key, `None` if missing or `null`.
fn read<T>(
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

/// A value of an enum, by its name.
fn one_of<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

fn absolute(value: &Value) -> Option<PathBuf> {
    value.as_str().map(PathBuf::from).filter(|path| path.is_absolute())
}

/// `maps`: an object of podgate's alone, so an unknown name in it is an error.
fn sizes(conf: &NetConf) -> Result<Sizes, CniError> {
    let mut sizes = Sizes::default();
    let given = read(conf, key::MAPS, "an object of numbers of entries", |value| {
        value.as_object().cloned()
    })?;
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
        assert_eq!(settings.startup, abi::Startup::Hold);
        assert_eq!(settings.policyd_timeout, Duration::from_secs(2));
        assert_eq!(settings.on_timeout, OnTimeout::Hold);
        assert!(settings.anti_spoofing);
        assert_eq!(settings.attach, AttachMode::Auto);
        let paths = PluginPaths::read(&conf).unwrap();
        assert_eq!(paths.bpf_root, PathBuf::from("/sys/fs/bpf/podgate"));
        assert_eq!(paths.socket, PathBuf::from("/run/podgate/cni.sock"));
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
        assert_eq!(settings.startup, abi::Startup::Open);
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
        let paths = PluginPaths::read(&conf).unwrap();
        assert_eq!((paths.bpf_root, paths.socket), ("/b".into(), "/s".into()));
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
                .and(PluginPaths::read(&conf).map(drop))
                .and(Log::read(&conf).map(drop))
                .unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig, "{name}");
            for part in [name, value, allowed] {
                assert!(error.to_string().contains(part), "{name}: {error} lacks {part}");
            }
        }
        let long = format!(r#","socket":"/{}""#, "x".repeat(SOCKET_PATH_MAX));
        assert!(PluginPaths::read(&conf(&long)).is_err());
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
    fn null_is_missing_and_wrong_case_is_reported() {
        let conf = conf(r#","startup":null,"antispoofing":false,"ontimeout":"fail""#);
        let settings = Settings::read(&conf).unwrap();
        assert_eq!((settings.startup, settings.anti_spoofing), (abi::Startup::Hold, true));
        let reported = misspelt(&conf);
        assert_eq!(
            reported,
            [("antispoofing".into(), "antiSpoofing"), ("ontimeout".into(), "onTimeout")]
        );
    }
}
