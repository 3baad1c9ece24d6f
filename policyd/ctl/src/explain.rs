//! `explain`: one packet, from manifests or by this node's policyd, which answer with the same type.

use std::path::{Path, PathBuf};

use clap::Args;
use podgate_contract::api::{Explanation, PathAnswer, Verdict};
use podgate_policy::reach::{Family, Field, Question, Target};

use crate::cluster::Cluster;
use crate::online::{self, Server};
use crate::output::{Format, Printer, json};
use crate::probes::Probe;
use crate::target::{PortSpec, target};
use crate::{Failure, Outcome};

/// Its arguments.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Answer from these manifests instead of asking policyd
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Local rules of a node beside them, as `podgatectl rule list -o json` prints them
    #[arg(long, value_name = "FILE", requires = "manifests")]
    rules: Option<PathBuf>,
    /// Who sends
    #[arg(long, value_name = "END", value_parser = target)]
    from: Target,
    /// Who is to receive
    #[arg(long, value_name = "END", value_parser = target)]
    to: Target,
    /// Which port, with its protocol
    #[arg(long, value_name = "PORT")]
    port: PortSpec,
    /// Only over IPv4 (4) or IPv6 (6); by default over every family that both ends have
    #[arg(long, value_name = "4|6")]
    family: Option<Family>,
    /// Exit with status 1 unless the answer is "allow"
    #[arg(long)]
    exit_code: bool,
}

pub(crate) fn explain(
    printer: &Printer,
    server: &Server,
    args: Explain,
) -> Result<Outcome, Failure> {
    let Explain { manifests, rules, from, to, port, family, exit_code } = args;
    let question = Question { from, to, transport: port.0, family };
    let explanation = match manifests {
        Some(dir) => offline(&dir, rules.as_deref(), question)?,
        None => online::explanation(server, &question)?,
    };
    match printer.format {
        Format::Json => printer.print(&json(&explanation)?)?,
        Format::Table => printer.print(&describe(printer, &explanation))?,
    }
    Ok(match exit_code && explanation.verdict != Verdict::Allow {
        true => Outcome::Unexpected,
        false => Outcome::Expected,
    })
}

fn offline(dir: &Path, rules: Option<&Path>, question: Question) -> Result<Explanation, Failure> {
    let probe = Probe::new(question);
    let cluster = Cluster::load(dir, rules, std::slice::from_ref(&probe))?;
    let question = probe.question();
    let answer = cluster.answer(&question).map_err(|error| {
        let flag = match error.field {
            Field::From => "--from",
            Field::To => "--to",
            Field::Port | Field::Protocol => "--port",
        };
        format!("explain {flag}: {error}")
    })?;
    Ok(answer.explanation(&question))
}

fn describe(printer: &Printer, explanation: &Explanation) -> String {
    let Explanation { from, to, transport, verdict, why, paths, .. } = explanation;
    let mut text = printer.title(&format!("{from} -> {to} on {transport}: {verdict}"));
    for path in paths {
        text += &format!("  {}\n", one_line(path));
        for gate in &path.gates {
            if let Some(nearest) = &gate.nearest {
                text += &format!("    nearest at {}: {nearest}\n", gate.pod);
            }
        }
    }
    if paths.is_empty() {
        text += &format!("  {why}\n");
    }
    text
}

/// `10.0.0.1 -> 10.96.0.1:80/TCP -> 10.0.0.2:8080: egress at shop/web: ...`.
fn one_line(path: &PathAnswer) -> String {
    let PathAnswer { source, destination, port, service, why, .. } = path;
    match (service, port) {
        (Some(service), Some(port)) => {
            let endpoint = std::net::SocketAddr::new(*destination, *port);
            format!("{source} -> {service} -> {endpoint}: {why}")
        }
        _ => format!("{source} -> {destination}: {why}"),
    }
}
