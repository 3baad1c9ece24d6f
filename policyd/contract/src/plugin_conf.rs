//! The plugin's entry in a conflist: its keys and what their values may be. The plugin reads them, `policyd install` writes them.

use serde::{Deserialize, Serialize};

/// `type` of the entry, and the name of the plugin's binary.
pub const PLUGIN: &str = "podgate";

/// Every key of podgate's own, as in the entry.
pub mod key {
    /// [`Startup`](super::Startup).
    pub const STARTUP: &str = "startup";
    /// Milliseconds that ADD waits for policyd, at most [`MAX_TIMEOUT_MS`](super::MAX_TIMEOUT_MS).
    pub const POLICYD_TIMEOUT_MS: &str = "policydTimeoutMs";
    /// [`OnTimeout`](super::OnTimeout).
    pub const ON_TIMEOUT: &str = "onTimeout";
    /// policyd's socket, an absolute path.
    pub const SOCKET: &str = "socket";
    /// Directory of the BPF pins, an absolute path on a bpffs.
    pub const BPF_ROOT: &str = "bpfRoot";
    /// Whether a pod's new flows must carry one of its addresses: a boolean.
    pub const ANTI_SPOOFING: &str = "antiSpoofing";
    /// How programs are attached: "auto", "tcx" or "clsact".
    pub const ATTACH: &str = "attach";
    /// File of the plugin's log, an absolute path.
    pub const LOG_FILE: &str = "logFile";
    /// [`LogLevel`](super::LogLevel).
    pub const LOG_LEVEL: &str = "logLevel";
    /// Entries of the maps: an object of numbers.
    pub const MAPS: &str = "maps";

    /// The protocol's own key for what the plugin asks of the runtime; podgate asks for [`BANDWIDTH`](super::BANDWIDTH).
    pub const CAPABILITIES: &str = "capabilities";

    /// All of podgate's own.
    pub const ALL: [&str; 10] = [
        STARTUP,
        POLICYD_TIMEOUT_MS,
        ON_TIMEOUT,
        SOCKET,
        BPF_ROOT,
        ANTI_SPOOFING,
        ATTACH,
        LOG_FILE,
        LOG_LEVEL,
        MAPS,
    ];
}

/// The capability by which a runtime passes the bandwidth of a pod's annotations to the plugin, and its key in
/// `runtimeConfig`.
pub const BANDWIDTH: &str = "bandwidth";

/// `policydTimeoutMs` at most: longer than any runtime waits for a plugin.
pub const MAX_TIMEOUT_MS: u64 = 300_000;

/// `startup`: what a pod may do until policyd has written its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Startup {
    /// Only its own node reaches it.
    Hold,
    /// Everything.
    Open,
}

/// `onTimeout`: what ADD does when policyd has not answered "enforced" in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// Succeed, in the startup state.
    Hold,
    /// Fail and undo everything: the runtime tries again.
    Fail,
}

/// `logLevel`: the least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what is odd.
    Warn,
    /// And what was done.
    Info,
    /// And why.
    Debug,
    /// And every step.
    Trace,
}
