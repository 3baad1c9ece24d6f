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
use crate::logging::Log;
use crate::node_addresses::NodeAddress;
use crate::sources::SourceSpec;
use crate::sync::services::ServiceMode;

/// The node's daemon of podgate: keeps the kernel's policy maps in step with NetworkPolicies.
#[derive(Debug, Parser)]
#[command(name = "policyd", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Every option of `run` can be given as an environment variable too, see `policyd run --help`.

Examples: policyd run --source kubernetes
          policyd run --source dir:/etc/podgate/manifests
          policyd run --source local";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon, in the foreground, until SIGTERM or SIGINT
    ///
    /// Loads and pins the BPF programs if the plugin has not done so yet. The policies that an earlier policyd put in
    /// force stay unchanged until every source has been read once. When it stops, forwarding goes on and the policies
    /// stay in force.
    Run(Run),
    /// Test whether podgate works on this kernel, and which features it lacks
    ///
    /// Loads and runs the programs, attaches them to a scratch interface in each way, and probes every feature
    /// that has a fallback. Changes nothing: all of it happens in namespaces that end with the process. Exit status 1
    /// if podgate cannot run here.
    Check(Check),
    /// Add podgate to the node's CNI configuration: the plugin's binary, and its entry in the conflist
    ///
    /// The entry is appended to the list that new pods get, by the rule of the node's runtime; a single plugin's .conf
    /// is converted to a .conflist. All other bytes stay. A file to which podgate cannot be added is reported by name.
    Install(Install),
    /// Remove podgate from the node: its entry, its gates, its pins, its binary
    ///
    /// Open connections go on, and from then on everything is allowed. policyd must not run. It may be run again at any
    /// time, also after it was killed.
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
    /// 10.96.0.0/16. If several sources have the same pod, namespace or service, the first one's is used; policies of
    /// all sources apply. Policies given to the API are one more source. local is no source at all: a pod is what the
    /// plugin says of it, and policies and rules are those given to the API, on a host without Kubernetes.
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
    #[arg(long, env = "PODGATE_CNI_SOCKET", default_value = podgate_contract::handshake::DEFAULT_SOCKET, value_name = "PATH")]
    pub cni_socket: PathBuf,

    /// Socket of the API, for podgatectl
    #[arg(long, env = "PODGATE_API_SOCKET", default_value = podgate_contract::api::DEFAULT_SOCKET, value_name = "PATH")]
    pub api_socket: PathBuf,

    /// Where /metrics, /healthz and /readyz are served, or `off`
    #[arg(
        long,
        env = "PODGATE_METRICS_ADDR",
        default_value = "127.0.0.1:9898",
        value_name = "ADDR:PORT"
    )]
    pub metrics_addr: MetricsAddr,

    /// How many accounted pods have metrics of their own, those with the most bytes; the sum of all others is that of `other`
    #[arg(long, env = "PODGATE_ACCOUNTED_PODS", default_value_t = 50, value_name = "N")]
    pub accounted_pods: usize,

    /// This node's name [default: the host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Where policies given to the API are kept
    #[arg(long, env = "PODGATE_STATE_DIR", default_value = "/run/podgate", value_name = "DIR")]
    pub state_dir: PathBuf,

    /// How programs that were removed, or are no longer first, are attached again: auto, tcx or clsact
    #[arg(long, env = "PODGATE_ATTACH", default_value = "auto", value_name = "KIND")]
    pub attach: AttachMode,

    /// Whether services are translated by podgate
    ///
    /// translate: the gate selects the endpoint for a pod's packet to a service, and policy decides about that endpoint.
    /// leave: kube-proxy selects it after the gate. Then a service's address is allowed only if all its ready endpoints
    /// are, which is approximate: a service of which policy allows only some endpoints is denied.
    #[arg(long, env = "PODGATE_SERVICES", value_enum, default_value_t)]
    pub services: ServiceMode,

    /// How long an ADD waits for its policy before the plugin gets "pending" as the answer; keep it below the
    /// plugin's `policydTimeoutMs`
    #[arg(long, env = "PODGATE_CNI_WAIT_MS", default_value_t = 1500, value_name = "MS")]
    pub cni_wait_ms: u64,

    /// Interval at which links, addresses and gates are compared with the expected state without an event
    #[arg(long, env = "PODGATE_RECONCILE_SECONDS", default_value_t = 60, value_name = "S")]
    pub reconcile_seconds: u64,

    /// An additional address or CIDR that counts as the node's own, because something on this node sends from it to pods;
    /// may be given several times
    ///
    /// Packets from it pass the gates of this node's pods as those from the node's own addresses do, if the node itself sends
    /// them; forwarded packets never do. istio-ambient means the addresses to which Istio's ambient mode translates the
    /// kubelet's probes: 169.254.7.127 and fd16:9254:7127:1337:ffff:ffff:ffff:ffff.
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

/// Requests to the API server.
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
    /// Whether Kubernetes Events on pods, policies and the node report whether policy is in force
    #[arg(long, env = "PODGATE_EVENTS", value_enum, default_value_t = Events::On, value_name = "on|off")]
    pub events: Events,
}

/// Whether Kubernetes Events are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Events {
    /// Events are sent.
    On,
    /// No events are sent.
    Off,
}

/// Running pods without a gate: from before podgate was installed, or while it was not in the runtime's configuration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Pods that run without a gate")]
pub struct Adopt {
    /// Whether they get a gate, without a restart and without breaking open connections
    #[arg(long, env = "PODGATE_ADOPT", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub adopt: bool,
    /// Whether they may only send from their own addresses; `antiSpoofing` of the plugin decides this for new ones
    #[arg(long, env = "PODGATE_ADOPT_ANTI_SPOOFING", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pub adopt_anti_spoofing: bool,
    /// libcni's cache, which has their names
    #[arg(long, env = "PODGATE_CNI_CACHE", default_value = "/var/lib/cni", value_name = "DIR")]
    pub cni_cache: PathBuf,
    /// Directories where the runtime keeps network namespaces; those of visible processes are searched as well
    #[arg(
        long,
        env = "PODGATE_NETNS_DIRS",
        value_delimiter = ',',
        default_value = "/run/netns,/run/docker/netns",
        value_name = "DIR"
    )]
    pub netns_dirs: Vec<PathBuf>,
}

/// Sizes of the kernel's maps, if policyd creates them; existing maps keep their sizes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Map sizes, for maps that do not exist yet")]
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

/// Where metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddr {
    /// No metrics are served.
    Off,
    /// At this address.
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
    fn an_api_server_is_named_or_found_and_local_is_none() {
        for (source, spec) in [
            ("kubernetes", SourceSpec::Kubernetes(None)),
            ("local", SourceSpec::Local),
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
