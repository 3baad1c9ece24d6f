//! `limits`: what a pod may use, from manifests or by this node's policyd, which answer with the same type.

use std::path::{Path, PathBuf};

use clap::Args;
use podgate_contract::api::{Direction, LimitOrigin, LimitValue, PodLimits, RefusedPackets};
use podgate_policy::model::ObjectKey;
use podgate_policy::reach::Target;

use crate::cluster::Cluster;
use crate::online::{self, Server};
use crate::output::{Format, Printer, json};
use crate::target::target;
use crate::{Failure, Outcome};

/// Its arguments.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Answer from these manifests instead of asking policyd
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// The pod, as namespace/name
    #[arg(value_parser = target)]
    pod: Target,
}

pub(crate) fn limits(printer: &Printer, server: &Server, args: Limits) -> Result<Outcome, Failure> {
    let Limits { manifests, pod } = args;
    let Target::Pod(pod) = pod else {
        return Err(Failure(format!("show limits of {pod}: must be a pod, as namespace/name")));
    };
    let limits = match manifests {
        Some(dir) => offline(&dir, &pod)?,
        None => online::limits(server, &pod)?,
    };
    match printer.format {
        Format::Json => printer.print(&json(&limits)?)?,
        Format::Table => printer.print(&describe(printer, &limits))?,
    }
    Ok(Outcome::Expected)
}

fn offline(dir: &Path, key: &ObjectKey) -> Result<PodLimits, Failure> {
    let index = Cluster::load(dir, None, &[])?.index;
    match index.pod(key) {
        Some(pod) => Ok(index.pod_limits(pod)),
        None => Err(Failure(format!("show limits of {key}: {} has no such pod", dir.display()))),
    }
}

fn describe(printer: &Printer, limits: &PodLimits) -> String {
    let PodLimits { pod, limits, rules, problems, used } = limits;
    let mut text = String::new();
    if limits.is_empty() && rules.is_empty() {
        text += &format!("nothing is said of what {pod} may use\n");
    }
    if !limits.is_empty() {
        let mut table = printer.listing(&["LIMIT", "VALUE", "BY"]);
        for limit in limits {
            table.add_row(row(limit.direction, &limit.value, &limit.origin, ""));
            for overridden in &limit.overridden {
                let mut row = row(limit.direction, &overridden.value, &overridden.origin, "not ");
                row[0].clear();
                table.add_row(row);
            }
        }
        text += &format!("{table}\n");
    }
    if !rules.is_empty() {
        let mut table = printer.listing(&["RULE", "OF NEW CONNECTIONS", "LIMITS", "BY"]);
        for rule in rules {
            let of_rule = rule.limits.iter();
            let shown =
                of_rule.map(|of| format!("{}: {}", name(of.direction, &of.value), of.value));
            table.add_row([
                rule.name.clone(),
                rule.direction.to_string(),
                shown.collect::<Vec<_>>().join("\n"),
                by(&rule.origin),
            ]);
        }
        text += &format!("{table}\n");
    }
    if !used.is_empty() {
        let mut table =
            printer.listing(&["USED", "OPEN", "PACKETS", "BYTES", "DELAYED", "MARKED", "REFUSED"]);
        for of in used {
            table.add_row([
                of.direction.to_string(),
                of.open_connections.to_string(),
                of.packets.to_string(),
                of.bytes.to_string(),
                of.delayed.to_string(),
                of.marked.to_string(),
                refused(&of.refused),
            ]);
        }
        text += &format!("{table}\n");
        let held = used.iter().filter_map(|of| Some((&of.interface, of.bandwidth_held.as_ref()?)));
        for (interface, held) in held {
            text += &format!("bandwidth to the pod ({interface}) is {held}\n");
        }
    }
    for problem in problems {
        text += &format!("{problem}\n");
    }
    text
}

fn refused(of: &RefusedPackets) -> String {
    let RefusedPackets { bandwidth, packets, new_connections, open_connections } = *of;
    let by_limit = [
        ("bandwidth", bandwidth),
        ("packets", packets),
        ("new connections", new_connections),
        ("open connections", open_connections),
    ];
    let some = by_limit.iter().filter(|(_, count)| *count > 0);
    let some: Vec<_> = some.map(|(limit, count)| format!("{count} by {limit}")).collect();
    match some.is_empty() {
        true => "0".to_owned(),
        false => some.join(", "),
    }
}

fn row(
    direction: Option<Direction>,
    value: &LimitValue,
    origin: &LimitOrigin,
    holds: &str,
) -> [String; 3] {
    [name(direction, value), format!("{holds}{value}"), by(origin)]
}

fn name(direction: Option<Direction>, value: &LimitValue) -> String {
    match direction {
        Some(direction) => format!("{direction} {}", value.name()),
        None => value.name().to_owned(),
    }
}

fn by(origin: &LimitOrigin) -> String {
    format!("{}, {}", origin.object, origin.field)
}
