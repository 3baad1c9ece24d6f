//! The command line.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use podgate_policy::reach::Target;

use crate::explain::{self, Explain};
use crate::output::{Colors, Format, Printer};
use crate::target::{PortSpec, target};
use crate::{Failure, Outcome, lab, limits, offline, online};

const PROBES: &str = "\
A probes file is a JSON list:
  [{\"src\": \"shop/web\", \"dst\": \"shop/db\", \"proto\": \"TCP\", \"port\": 5432, \"expect\": \"allow\"},
   {\"src\": \"10.0.0.1\", \"dst\": \"shop/db\", \"proto\": \"ICMP\", \"family\": 4}]
src and dst are namespace/pod, an address or node:NAME, dst also svc:namespace/name (port is the service's);
proto is TCP, UDP, SCTP, ICMP or another by name or number; port is 0 or left out where there is none; family
(4 or 6) and expect (allow, deny, mixed) are optional; other fields are kept as they are.

From pod to pod takes both gates: egress at src and ingress at dst. A node always reaches its own pods.
Where both ends have IPv4 and IPv6 addresses, both families are asked, unless the probe names one: the
verdict is allow only if both allow, and `why` says it when they differ. Ends without a common family: deny.

A packet to a service goes to one of its ready endpoints, and that one is judged: allow if every endpoint is
allowed, deny if none is, mixed if it depends on the endpoint, and then `why` says which. A mixed answer
satisfies `expect` deny or mixed, not allow. An address and port of a service mean the service. src may be a
pod or a node: a service is translated at the pod's gate or on the node. A service without an EndpointSlice
gets its endpoints from the pods that its selector matches, one without a clusterIP an address from
10.96.0.0/16 (and fd00:10:96::/112 if its pods have IPv6), by its name. For internalTrafficPolicy: Local every pod
counts as on the sender's node.

A pod's own node is the one that its nodeName says; a pod that is not scheduled is at home on whichever
node is asked about. A node has the addresses of its Node object, of its hostNetwork pods and the hostIPs of
its pods; towards other pods it is an ordinary address.

All pods' gates are judged, whatever their node. Pods without an address get one from 10.88.0.0/16
(and fd00:10:88::/64 where the cluster has IPv6), nodes without a known one from 100.64.0.0/16, so an ipBlock
may match them.

With -o json: one line for each probe, in order: its own fields, verdict and why.
Exit status: 0 all as expected, 1 an expectation failed, 2 the run itself failed.";

/// Ask and steer podgate, the enforcer of Kubernetes NetworkPolicy.
#[derive(Debug, Parser)]
#[command(name = "podgatectl", version, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 done, 1 an expectation failed, 2 the command itself failed."
)]
pub(crate) struct Cli {
    /// Print a table for people or JSON for programs
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// When to use colours; auto heeds NO_COLOR and CLICOLOR_FORCE
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: Colors,
    /// Draw with ASCII only; also when the locale is not UTF-8
    #[arg(long, global = true)]
    ascii: bool,
    #[command(flatten)]
    server: online::Server,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how this node's policyd is doing
    Status,
    /// List this node's pods and how their gates stand
    #[command(visible_alias = "ep")]
    Endpoints {
        /// Only of this namespace
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// Show what one pod's gate allows, and by which policies
    #[command(after_help = "Example:\n  podgatectl rules shop/db")]
    Rules {
        /// The pod, as namespace/name
        #[arg(value_parser = target)]
        pod: Target,
    },
    /// Show what a pod may use, which object says so, and which others say something else
    #[command(after_help = "\
Examples:
  podgatectl limits shop/web
  podgatectl limits shop/web --manifests ./deploy -o json

With --manifests, from manifests; otherwise this node's policyd is asked. docs/limits.md has the order of precedence.")]
    Limits(limits::Limits),
    /// Show what accounted pods of this node exchanged, and with what kind of peers
    #[command(after_help = "\
Examples:
  podgatectl usage
  podgatectl usage shop/web
  podgatectl usage --top 5 -o json

A pod is accounted if its annotation podgate.io/accounting, that of its namespace, or a PodTrafficPolicy says so (docs/limits.md).")]
    Usage(online::UsageOptions),
    /// Add, remove and list rules of this node for single pods, and say what happens by default
    #[command(subcommand)]
    Rule(online::Rule),
    /// List services as pods of this node reach them: each address and port, and its endpoints
    #[command(visible_alias = "svc")]
    Services {
        /// Only of this namespace
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// Say whether a packet would pass, and which policy decides
    #[command(after_help = "\
Examples:
  podgatectl explain --from shop/web --to shop/db --port 5432/TCP
  podgatectl explain --from shop/web --to svc:infra/dns --port 53/UDP
  podgatectl explain --manifests ./deploy --from 203.0.113.7 --to shop/web --port 80/TCP

Ends of a packet are written as namespace/pod, an address, node:NAME, or svc:namespace/name (--to); a port as 80/TCP, 53/UDP,
9/SCTP, 8080 (TCP) or ICMP. With --manifests, from manifests; otherwise this node's policyd is asked.")]
    Explain(Explain),
    /// Show who reaches whom, from manifests
    #[command(after_help = "\
Example:
  podgatectl matrix --manifests ./deploy --port 80/TCP --port 53/UDP

Services have columns too: ~ where it depends on the endpoint.
Without --port each pod is asked about on the named ports of its containers and the port numbers that
policies which select it speak of, or on 80/TCP.")]
    Matrix {
        #[command(flatten)]
        world: offline::World,
        /// A port to ask about; may be given several times
        #[arg(long = "port", value_name = "PORT")]
        ports: Vec<PortSpec>,
    },
    /// Answer a file of probes from manifests; a test of policies that needs neither root nor cluster
    #[command(after_help = PROBES)]
    Check {
        #[command(flatten)]
        world: offline::World,
        /// JSON list of probes
        #[arg(long, value_name = "FILE")]
        probes: PathBuf,
    },
    /// Build the world of some manifests on this machine and send real packets (needs root, no cluster)
    #[command(after_help = LAB)]
    Lab(lab::Options),
    /// Watch verdicts as they fall
    Observe(online::Observe),
    /// Show counters: packets by direction, verdict and reason, and new flows by the rule that decided
    #[command(after_help = "\
Packets are counted since the kernel's maps were made, also while policyd does not run; those that a denial let pass
(enforcement audit or off) under deny. New flows are counted since the pod's table was written; packets of
a flow that is known count as reason \"flow\" only, and each packet that a rule denies as a new flow.

Examples:
  podgatectl top
  podgatectl top --every 5")]
    Top {
        /// Print again every so many seconds, with what was counted per second in between
        #[arg(long, visible_alias = "watch", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        every: Option<u64>,
    },
    /// Give this node local policies
    #[command(
        after_help = "Example:\n  podgatectl apply -f deny-all.yaml\n  kubectl get netpol -A -o yaml | podgatectl apply -f -"
    )]
    Apply {
        /// A manifest of NetworkPolicies, ClusterNetworkPolicies and PodTrafficPolicies; - is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Take local policies back
    #[command(
        after_help = "Examples:\n  podgatectl delete -f deny-all.yaml\n  podgatectl delete shop/deny-all"
    )]
    Delete(Delete),
    /// List the policies that policyd knows
    Policies,
    /// List the ClusterNetworkPolicies that policyd knows, in the order of evaluation
    ClusterPolicies,
    /// List the PodTrafficPolicies that policyd knows
    TrafficPolicies,
    /// Show or change what a denial does: `on` drops, `audit` passes and reports, `off` passes
    #[command(after_help = "\
A mode alone is that of this node, and holds from the next packet on. Of a policy or a namespace the annotation
podgate.io/mode says it, in the object itself. --policy changes that of a policy that was applied to this node (source
`local` of `podgatectl policies`). Namespaces, and policies of the API server, are its own: the kubectl command is
printed. So is what a manifest in a directory of policyd's must say.

Examples:
  podgatectl enforcement
  podgatectl enforcement audit
  podgatectl enforcement audit --policy shop/deny-all")]
    Enforcement(online::Change),
    /// Show what would have been denied, by audited policies and while this node's mode is `audit`
    #[command(after_help = "\
A policy with the annotation `podgate.io/mode: audit`, or in a namespace that has it, denies nothing: what it alone would
deny passes and is summed up here, since policyd's start or --reset. What other policies deny is denied. A connection
that was open before the policy came counts once it sends again. It is of this node's pods alone.

Examples:
  podgatectl audit
  podgatectl audit --policy shop/deny-all
  podgatectl audit -n shop -o json")]
    Audit(online::AuditOptions),
    /// Propose the smallest NetworkPolicies that allow what would have been denied
    #[command(after_help = "\
To find out what the pods of a namespace need: give it a policy that denies everything and is audited, let its pods
work, then ask. On every node: each has seen its own pods' flows only.

Examples:
  kubectl annotate networkpolicy -n shop deny-all podgate.io/mode=audit
  podgatectl advise -n shop
  podgatectl advise -n shop -o json | kubectl apply --dry-run=server -f -")]
    Advise(online::AdviseOptions),
    /// Print a completion script
    #[command(after_help = "Example:\n  source <(podgatectl completion bash)")]
    Completion {
        /// For which shell
        shell: Shell,
    },
}

const LAB: &str = "\
Every pod becomes a network namespace, attached by the real CNI chain (bridge, static addresses, podgate);
policyd reads the manifests; then packets go from every pod to every other one, or as the probes say.
A verdict is what really happened. If that differs from what the compiled tables say, the run fails:
\"datapath and compiler disagree\".

All pods live on one node, the lab's, whatever their nodeName; external addresses, other nodes and addresses of
hostNetwork pods live in one more namespace beyond it. A service is tried until every endpoint was seen. Everything is in namespaces of the lab's own and
ends with it, also by ^C or kill -9. Finished pods have no network.

Examples:
  sudo podgatectl lab --manifests conf/worlds/three-tier/manifests
  sudo podgatectl lab --manifests ./deploy --probes ./probes.json -o json

See `podgatectl check --help` for the probes file and the exit status.";

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Delete {
    /// The policies that a manifest holds; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// One policy, as namespace/name, or one cluster policy, by its name
    #[arg(value_name = "POLICY")]
    policy: Option<String>,
}

/// Runs the command and prints what went wrong, once.
pub fn main() -> ExitCode {
    let name = called_as(env::args_os().next());
    let command = Cli::command().name(name).bin_name(name).display_name(name);
    let cli = match Cli::from_arg_matches(&command.clone().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.format(&mut command.clone()).exit(),
    };
    match cli.run(name) {
        Ok(code) => code,
        Err(Failure(text)) => {
            anstream::eprintln!("{name}: {text}");
            ExitCode::from(2)
        }
    }
}

/// kubectl runs a plugin `kubectl-podgate` for `kubectl podgate`; help should show what the user typed.
fn called_as(program: Option<OsString>) -> &'static str {
    let stem = program.as_deref().map(Path::new).and_then(Path::file_name).map(OsStr::to_owned);
    if stem.is_some_and(|name| name.to_string_lossy().starts_with("kubectl-podgate")) {
        "kubectl podgate"
    } else {
        "podgatectl"
    }
}

impl Cli {
    fn run(self, name: &str) -> Result<ExitCode, Failure> {
        let Self { output, color, ascii, server, command } = self;
        let printer = Printer::new(output, color, ascii);
        let outcome = match command {
            Command::Explain(args) => explain::explain(&printer, &server, args)?,
            Command::Matrix { world, ports } => offline::matrix(&printer, &world, &ports)?,
            Command::Check { world, probes } => offline::check(&printer, &world, &probes)?,
            // its own exit status: two processes, and the inner one prints
            Command::Lab(options) => return Ok(ExitCode::from(lab::run(&printer, &options)?)),
            Command::Status => online::status(&printer, &server)?,
            Command::Endpoints { namespace } => {
                online::endpoints(&printer, &server, namespace.as_deref())?
            }
            Command::Services { namespace } => {
                online::services(&printer, &server, namespace.as_deref())?
            }
            Command::Limits(args) => limits::limits(&printer, &server, args)?,
            Command::Usage(options) => online::usage(&printer, &server, &options)?,
            Command::Rules { pod } => online::rules(&printer, &server, &pod)?,
            Command::Rule(rule) => online::rule(&printer, &server, rule)?,
            Command::Observe(observe) => online::observe(&printer, &server, &observe)?,
            Command::Top { every } => online::top(&printer, &server, every)?,
            Command::Apply { file } => online::apply(&printer, &server, &file)?,
            Command::Delete(Delete { file, policy }) => {
                online::delete(&printer, &server, file.as_deref(), policy.as_deref())?
            }
            Command::Policies => online::policies(&printer, &server)?,
            Command::ClusterPolicies => online::cluster_policies(&printer, &server)?,
            Command::TrafficPolicies => online::traffic_policies(&printer, &server)?,
            Command::Enforcement(change) => online::enforcement(&printer, &server, &change)?,
            Command::Audit(options) => online::audit(&printer, &server, &options)?,
            Command::Advise(options) => online::propose(&printer, &server, &options)?,
            Command::Completion { shell } => {
                let binary = if name == "podgatectl" { name } else { "kubectl-podgate" };
                clap_complete::generate(shell, &mut Self::command(), binary, &mut io::stdout());
                Outcome::Expected
            }
        };
        Ok(outcome.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_names_what_the_user_typed() {
        assert_eq!(called_as(Some("/usr/bin/kubectl-podgate".into())), "kubectl podgate");
        assert_eq!(called_as(Some("podgatectl".into())), "podgatectl");
        assert_eq!(called_as(None), "podgatectl");
    }
}
