//! The command line of `policyd install` and `policyd uninstall`.

use std::path::PathBuf;

use clap::Args;

use super::readiness::OnCannotEnforce;
use super::{Entry, Rules};
use crate::logging::Log;

/// The runtime's directories.
#[derive(Args, Clone, Debug)]
pub struct Dirs {
    /// The runtime's configuration directory
    #[arg(
        long,
        env = "PODGATE_CNI_CONF_DIR",
        default_value = "/etc/cni/net.d",
        value_name = "DIR"
    )]
    pub cni_conf_dir: PathBuf,
    /// The runtime's plugin directory
    #[arg(long, env = "PODGATE_CNI_BIN_DIR", default_value = "/opt/cni/bin", value_name = "DIR")]
    pub cni_bin_dir: PathBuf,
    /// Where install writes whether new pods get a gate, for policyd's status; below policyd's --state-dir
    #[arg(
        long,
        env = "PODGATE_INSTALL_STATE",
        default_value = "/run/podgate/install.json",
        value_name = "PATH"
    )]
    pub install_state: PathBuf,
}

/// `policyd install`.
#[derive(Args, Debug)]
pub struct Install {
    /// Directories.
    #[command(flatten)]
    pub dirs: Dirs,

    /// The plugin's binary [default: podgate beside this one]
    #[arg(long, env = "PODGATE_PLUGIN", value_name = "PATH")]
    pub plugin: Option<PathBuf>,

    /// Keep running: add the entry once the primary plugin's configuration exists, and again when it is overwritten
    #[arg(long, conflicts_with = "once")]
    pub watch: bool,

    /// Install once, and fail if that is not possible [default]
    #[arg(long)]
    pub once: bool,

    /// Edit the configuration only once policyd answers on this socket that it is ready, so that no pod waits for it
    #[arg(long, env = "PODGATE_WAIT_FOR", value_name = "SOCKET")]
    pub wait_for: Option<PathBuf>,

    /// What happens to new pods while that policyd reports that it cannot enforce on this node
    #[arg(
        long,
        env = "PODGATE_ON_CANNOT_ENFORCE",
        value_enum,
        default_value_t,
        value_name = "WHAT"
    )]
    pub on_cannot_enforce: OnCannotEnforce,

    /// Which files new pods get.
    #[command(flatten)]
    pub rules: Rules,

    /// The entry.
    #[command(flatten)]
    pub entry: Entry,

    /// Logging.
    #[command(flatten)]
    pub log: Log,
}

/// `policyd uninstall`.
#[derive(Args, Debug)]
pub struct Uninstall {
    /// Directories.
    #[command(flatten)]
    pub dirs: Dirs,

    /// Directory of the BPF pins; the same as `bpfRoot` of the plugin
    #[arg(long, env = "PODGATE_BPF_ROOT", default_value = podgate_bpf::pins::DEFAULT_BPF_ROOT, value_name = "DIR")]
    pub bpf_root: PathBuf,

    /// libcni's cache of the pods' plugin lists: the binary stays as long as one of them has podgate
    #[arg(long, env = "PODGATE_CNI_CACHE_DIR", default_value = "/var/lib/cni", value_name = "DIR")]
    pub cni_cache_dir: PathBuf,

    /// How long to wait for a policyd or an `install --watch` that is still running
    #[arg(long, default_value_t = 30, value_name = "S")]
    pub wait_seconds: u64,

    /// How long to wait for pods that are being started, before gates are searched again
    #[arg(long, default_value_t = 3000, value_name = "MS")]
    pub settle_ms: u64,

    /// When done, do nothing until SIGTERM: for a DaemonSet, whose containers do not end
    #[arg(long)]
    pub stay: bool,

    /// Logging.
    #[command(flatten)]
    pub log: Log,
}

/// `policyd mount-bpffs`.
#[derive(Args, Debug)]
pub struct MountBpffs {
    /// Mount point
    #[arg(long, default_value = "/sys/fs/bpf", value_name = "DIR")]
    pub at: PathBuf,

    /// Logging.
    #[command(flatten)]
    pub log: Log,
}
