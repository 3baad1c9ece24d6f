//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::RangedI64ValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use podgate_bpf::attach::AttachMode;
use podgate_bpf::loader::{LEAST_FLOWS, Sizes};

use crate::check::Check;
use crate::install::{Install, MountBpffs, Uninstall};
use crate::node_addresses::NodeAddress;
use crate::sources::SourceSpec;
use crate::sync::services::ServiceMode;

/// The node's daemon of podgate: keeps the kernel's policy maps in step with NetworkPolicies.
#[derive(Debug, Parser)]
#[command(name = "policyd", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Every option of `run` can be given as an environment variable too, see `policyd run --help`.

Examples: policyd run --source kubernetes
          policyd run --source dir:/etc/podgate/manifests";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon, in the foreground, until SIGTERM or SIGINT
    ///
    /// Loads and pins the BPF programs if the plugin has not done so yet, takes over what an earlier policyd put in
    /// force, and changes nothing until every source has been read once. When it stops, forwarding and the
    /// policies in force go on.
    Run(Run),
    /// Say whether podgate works on this kernel, and what it lacks
    ///
    /// Loads and runs the programs, attaches them to a scratch interface in each way, and asks for every feature
    /// that has a fallback. Changes nothing: all of it happens in namespaces that end with the process. Exit status 1
    /// if podgate cannot run here.
    Check(Check),
    /// Put podgate into the node's CNI configuration: the plugin's binary, and its entry in the conflist
    ///
    /// The entry goes to the end of the list that new pods get, by the rule of the node's runtime; a single plugin's
    /// .conf becomes a .conflist. What is not podgate's keeps its bytes. What cannot take podgate is refused by name.
    Install(Install),
    /// Take podgate out of the node: its entry, its gates, its pins, its binary
    ///
    /// Open connections go on, and from then on everything is allowed. policyd must not run. May be run again at any
    /// time, also after having been killed half way.
    Uninstall(Uninstall),
    /// Mount a BPF file system, where the init system has mounted none
    MountBpffs(MountBpffs),
}

/// `policyd run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Where pods, namespaces and policies come from; may be given several times
    ///
    /// kubernetes is the cluster that this pod runs in, or outside of a pod the one of the user's kubeconfig;
    /// kubernetes:PATH the one of this kubeconfig. dir:PATH is a directory of manifests (*.yaml, *.yml,
    /// *.json), watched; there a service without EndpointSlices gets its endpoints from the pods of the same
    /// directory that it selects and whose status says their addresses, and one without a clusterIP an address of
    /// 10.96.0.0/16. Of two sources that give the same pod, namespace or service the first is believed; policies of
    /// all sources apply. Policies given to the API are one more source.
    #[arg(
        long = "source",
        required = true,
        env = "PODGATE_SOURCE",
        value_delimiter = ',',
        value_name = "KIND:WHAT"
    )]
    pub sources: Vec<SourceSpec>,

    /// Directory of the BPF pins, on a mounted bpffs; the same as `bpfRoot` of the plugin
    #[arg(long, env = "PODGATE_BPF_ROOT", default_value = podgate_bpf::pins::DEFAULT_BPF_ROOT, value_name = "DIR")]
    pub bpf_root: PathBuf,

    /// Socket for the plugin; the same as `socket` of the plugin
    #[arg(long, env = "PODGATE_CNI_SOCKET", default_value = podgate_bpf::handshake::DEFAULT_SOCKET, value_name = "PATH")]
    pub cni_socket: PathBuf,

    /// Socket of the API, for podgatectl
    #[arg(long, env = "PODGATE_API_SOCKET", default_value = crate::api::DEFAULT_SOCKET, value_name = "PATH")]
    pub api_socket: PathBuf,

    /// Where /metrics, /healthz and /readyz are served, or `off`
    #[arg(
        long,
        env = "PODGATE_METRICS_ADDR",
        default_value = "127.0.0.1:9898",
        value_name = "ADDR:PORT"
    )]
    pub metrics_addr: MetricsAddr,

    /// This node's name [default: the host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Where policies given to the API are kept
    #[arg(long, env = "PODGATE_STATE_DIR", default_value = "/run/podgate", value_name = "DIR")]
    pub state_dir: PathBuf,

    /// How programs that somebody removed or overtook are attached again: auto, tcx or clsact
    #[arg(long, env = "PODGATE_ATTACH", default_value = "auto", value_name = "KIND")]
    pub attach: AttachMode,

    /// What becomes of services
    ///
    /// translate: a pod's packet to a service goes to an endpoint that its gate picks, and policy judges that one.
    /// leave: kube-proxy picks, behind the gate. Then a service's address is allowed only if every ready endpoint
    /// behind it is, which is approximate: a service with mixed endpoints is denied whole.
    #[arg(long, env = "PODGATE_SERVICES", value_enum, default_value_t)]
    pub services: ServiceMode,

    /// How long an ADD waits for its policy before the plugin is told "pending"; keep it below the
    /// plugin's `policydTimeoutMs`
    #[arg(long, env = "PODGATE_CNI_WAIT_MS", default_value_t = 1500, value_name = "MS")]
    pub cni_wait_ms: u64,

    /// How often links, addresses and gates are compared with what they should be, without an event
    #[arg(long, env = "PODGATE_RECONCILE_SECONDS", default_value_t = 60, value_name = "S")]
    pub reconcile_seconds: u64,

    /// A further address, or CIDR, that something on this node sends to its pods from and that counts as the node's own;
    /// may be given several times
    ///
    /// Packets from it pass the gates of this node's pods as the node's own do, if the node itself sends them: what it
    /// forwards never does, whatever its source. istio-ambient stands for the addresses to which Istio's ambient mode
    /// rewrites the kubelet's probes: 169.254.7.127 and fd16:9254:7127:1337:ffff:ffff:ffff:ffff.
    #[arg(
        long = "node-address",
        env = "PODGATE_NODE_ADDRESSES",
        value_delimiter = ',',
        value_name = "ADDRESS"
    )]
    pub node_addresses: Vec<NodeAddress>,

    /// The API server.
    #[command(flatten)]
    pub server: Server,

    /// Pods that run without a gate.
    #[command(flatten)]
    pub adopt: Adopt,

    /// Sizes of the kernel's maps.
    #[command(flatten)]
    pub sizes: MapSizes,

    /// Logging.
    #[command(flatten)]
    pub log: Log,
}

/// How the API server is asked.
#[derive(Debug, Args)]
#[command(next_help_heading = "API server, for --source kubernetes")]
pub struct Server {
    /// Objects per page of a list
    #[arg(long, env = "PODGATE_LIST_PAGE_SIZE", default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub list_page_size: u32,
    /// A policyd that finds policies in force when it starts (a restart, an upgrade of all nodes) waits a
    /// random part of this before it lists, so that the nodes do not list all at once; on a node without, where new
    /// pods wait, it lists at once
    #[arg(long, env = "PODGATE_START_JITTER_SECONDS", default_value_t = 5, value_name = "S")]
    pub start_jitter_seconds: u64,
    /// Whether Kubernetes Events tell, on pods, policies and the node, whether policy is in force
    #[arg(long, env = "PODGATE_EVENTS", value_enum, default_value_t = Events::On, value_name = "on|off")]
    pub events: Events,
}

/// Whether Kubernetes Events are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Events {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// Pods that run without a gate: from before podgate came, or from a moment when it was not in the runtime's
/// configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pods that run without a gate")]
pub struct Adopt {
    /// Whether they are gated, without a restart and with their open connections known
    #[arg(long, env = "PODGATE_ADOPT", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub adopt: bool,
    /// Whether they may only send from their own addresses, as `antiSpoofing` of the plugin says for new ones
    #[arg(long, env = "PODGATE_ADOPT_ANTI_SPOOFING", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub adopt_anti_spoofing: bool,
    /// libcni's cache, which names them
    #[arg(long, env = "PODGATE_CNI_CACHE", default_value = "/var/lib/cni", value_name = "DIR")]
    pub cni_cache: PathBuf,
    /// Directories where the runtime keeps network namespaces; those of visible processes are looked at too
    #[arg(
        long,
        env = "PODGATE_NETNS_DIRS",
        value_delimiter = ',',
        default_value = "/run/netns,/run/docker/netns",
        value_name = "DIR"
    )]
    pub netns_dirs: Vec<PathBuf>,
}

/// Sizes of the kernel's maps, where policyd is the first to make them; maps that are there keep theirs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Map sizes, for maps that are not there yet")]
pub struct MapSizes {
    /// Gated interfaces of the node
    #[arg(long, env = "PODGATE_MAX_ENDPOINTS", default_value_t = Sizes::default().endpoints, value_parser = at_least_one(), value_name = "N")]
    pub max_endpoints: u32,
    /// IPv4 flows of the node (through a service: two), about 230 bytes each; 1024 at least
    #[arg(long, env = "PODGATE_MAX_FLOWS4", default_value_t = Sizes::default().flows4, value_parser = enough_flows(), value_name = "N")]
    pub max_flows4: u32,
    /// IPv6 flows of the node, about 290 bytes each; 1024 at least
    #[arg(long, env = "PODGATE_MAX_FLOWS6", default_value_t = Sizes::default().flows6, value_parser = enough_flows(), value_name = "N")]
    pub max_flows6: u32,
    /// Addresses that some policy's selector matches, per family
    #[arg(long, env = "PODGATE_MAX_PEERS", default_value_t = Sizes::default().peers, value_parser = at_least_one(), value_name = "N")]
    pub max_peers: u32,
    /// CIDRs and excepts of the policies, per family
    #[arg(long, env = "PODGATE_MAX_NETS", default_value_t = Sizes::default().nets, value_parser = at_least_one(), value_name = "N")]
    pub max_nets: u32,
    /// Fragmented datagrams under way
    #[arg(long, env = "PODGATE_MAX_FRAGS", default_value_t = Sizes::default().frags, value_parser = at_least_one(), value_name = "N")]
    pub max_frags: u32,
    /// Addresses of the node
    #[arg(long, env = "PODGATE_MAX_NODE_ADDRS", default_value_t = Sizes::default().node_addrs, value_parser = at_least_one(), value_name = "N")]
    pub max_node_addrs: u32,
    /// Addresses and ports at which services listen, per family
    #[arg(long, env = "PODGATE_MAX_SERVICES", default_value_t = Sizes::default().services, value_parser = at_least_one(), value_name = "N")]
    pub max_services: u32,
    /// Endpoints of services
    #[arg(long, env = "PODGATE_MAX_BACKENDS", default_value_t = Sizes::default().backends, value_parser = at_least_one(), value_name = "N")]
    pub max_backends: u32,
    /// Clients that keep their endpoint (session affinity)
    #[arg(long, env = "PODGATE_MAX_AFFINITY", default_value_t = Sizes::default().affinity, value_parser = at_least_one(), value_name = "N")]
    pub max_affinity: u32,
    /// Bytes of the ring of events; the kernel's are a power of two of pages, this is rounded up to one
    #[arg(long, env = "PODGATE_EVENT_BYTES", default_value_t = Sizes::default().events, value_parser = at_least_one(), value_name = "BYTES")]
    pub event_bytes: u32,
}

/// The kernel has no map without room.
fn at_least_one() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

/// A flow table that pods can share.
fn enough_flows() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(i64::from(LEAST_FLOWS)..)
}

impl From<&MapSizes> for Sizes {
    fn from(sizes: &MapSizes) -> Self {
        let MapSizes {
            max_endpoints,
            max_flows4,
            max_flows6,
            max_peers,
            max_nets,
            max_frags,
            max_node_addrs,
            max_services,
            max_backends,
            max_affinity,
            event_bytes,
        } = *sizes;
        Self {
            endpoints: max_endpoints,
            flows4: max_flows4,
            flows6: max_flows6,
            peers: max_peers,
            nets: max_nets,
            frags: max_frags,
            node_addrs: max_node_addrs,
            services: max_services,
            backends: max_backends,
            affinity: max_affinity,
            events: event_bytes,
        }
    }
}

/// Logging, to stderr.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging, to stderr")]
pub struct Log {
    /// How log lines look
    #[arg(long, env = "PODGATE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// error, warn, info, debug, trace, or directives like `info,policyd=debug`
    #[arg(long, env = "PODGATE_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddr {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

impl FromStr for MetricsAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            text => text
                .parse()
                .map(Self::At)
                .map_err(|_| "write ADDRESS:PORT, as in 127.0.0.1:9898, or off".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsStr;

    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_map_without_room_is_refused_by_its_option() {
        let line = ["policyd", "run", "--source", "dir:/m", "--max-services", "0"];
        let refused = Cli::try_parse_from(line).unwrap_err().to_string();
        assert!(refused.contains("'0' for '--max-services <N>'"), "{refused}");
    }

    #[test]
    fn an_api_server_is_named_or_found() {
        for (source, spec) in [
            ("kubernetes", SourceSpec::Kubernetes(None)),
            (
                "kubernetes:/etc/kube:config",
                SourceSpec::Kubernetes(Some("/etc/kube:config".into())),
            ),
        ] {
            let line = ["policyd", "run", "--source", source];
            let Command::Run(run) = Cli::try_parse_from(line).unwrap().command else { panic!() };
            assert_eq!(run.sources, [spec]);
            assert_eq!(run.sources[0].to_string(), source);
        }
    }

    #[test]
    fn further_addresses_of_the_node_are_named_one_by_one_or_with_commas() {
        let line = |values: &[&str]| {
            let options = values.iter().flat_map(|value| ["--node-address", value]);
            let words = ["policyd", "run", "--source", "dir:/m"].into_iter().chain(options);
            Cli::try_parse_from(words).map(|cli| match cli.command {
                Command::Run(run) => run.node_addresses,
                other => panic!("{other:?}"),
            })
        };
        let named = ["istio-ambient", "192.0.2.0/24"].map(|text| text.parse().unwrap());
        assert_eq!(line(&["istio-ambient", "192.0.2.0/24"]).unwrap(), named);
        assert_eq!(line(&["istio-ambient,192.0.2.0/24"]).unwrap(), named);
        assert_eq!(line(&[]).unwrap(), []);
        let refused = line(&["192.0.2.7/24"]).unwrap_err().to_string();
        assert!(refused.contains("write 192.0.2.0/24"), "{refused}");
    }

    /// `conf/policyd.env` names every setting of `run`, and says its default where it has one.
    #[test]
    fn the_example_settings_are_all_there_are() {
        let text = include_str!("../../conf/policyd.env");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let said: BTreeMap<_, _> = lines.filter_map(|line| line.split_once('=')).collect();
        let run = Cli::command().find_subcommand("run").cloned().unwrap();
        let mut settings = BTreeMap::new();
        for argument in run.get_arguments() {
            let name = argument.get_env().and_then(OsStr::to_str);
            let name = name.unwrap_or_else(|| panic!("{argument} has no variable"));
            let defaults = argument.get_default_values().iter().filter_map(|value| value.to_str());
            settings.insert(name.to_owned(), defaults.collect::<Vec<_>>().join(","));
        }
        assert!(settings.keys().eq(said.keys()), "{settings:#?}\n{said:#?}");
        for (name, default) in settings.into_iter().filter(|(_, default)| !default.is_empty()) {
            assert_eq!(said[&*name], default, "{name}");
        }
    }

    #[test]
    fn defaults_and_mistakes() {
        let line = ["policyd", "run", "--source", "dir:/m", "--metrics-addr", "off"];
        let Command::Run(run) = Cli::try_parse_from(line).unwrap().command else { panic!() };
        assert_eq!(run.sources, [SourceSpec::Dir("/m".into())]);
        assert_eq!(run.metrics_addr, MetricsAddr::Off);
        assert_eq!(Sizes::from(&run.sizes), Sizes::default());
        for (mistake, told) in [
            (["--source", "kube"], "unknown source \"kube\": write kubernetes, kubernetes:PATH"),
            (["--source", "kubernetes:"], "lacks its kubeconfig"),
            (["--list-page-size", "0"], "0 is not in 1.."),
            (["--source", "dir:"], "lacks its directory"),
            (["--metrics-addr", "9898"], "write ADDRESS:PORT"),
        ] {
            let line = ["policyd", "run", "--source", "dir:/m"].iter().chain(&mistake);
            let error = Cli::try_parse_from(line).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
