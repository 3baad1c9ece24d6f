//! `usage`: what accounted pods exchanged with whom.

use clap::Args;
use hyper::Method;
use podgate_contract::api::{Direction, ScopeTraffic, Usage};
use podgate_policy::reach::Target;

use super::client::{Client, Server, decode};
use crate::target::target;
use crate::{Failure, Format, Outcome, Printer};

/// Arguments of `usage`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this pod, as namespace/name
    #[arg(value_parser = target, conflicts_with = "top")]
    pub pod: Option<Target>,
    /// Only this many pods, those with the most bytes, and the sum of the others
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
}

pub(crate) fn usage(
    printer: &Printer,
    server: &Server,
    options: &Options,
) -> Result<Outcome, Failure> {
    // names of objects need no escapes
    let path = match options {
        Options { pod: Some(Target::Pod(key)), .. } => format!("/v1/usage?pod={key}"),
        Options { pod: Some(other), .. } => {
            return Err(Failure(format!(
                "show usage of {other}: must be a pod, as namespace/name"
            )));
        }
        Options { pod: None, top: Some(top) } => format!("/v1/usage?top={top}"),
        Options { pod: None, top: None } => "/v1/usage".to_owned(),
    };
    let answer = Client::new(server)?.ask(Method::GET, &path, None)?;
    match printer.format {
        Format::Json => printer.print(&String::from_utf8_lossy(&answer))?,
        Format::Table => {
            let usage = decode::<Usage>(&path, &answer)?;
            printer.print(&describe(printer, &usage, options.pod.as_ref()))?;
        }
    }
    Ok(Outcome::Expected)
}

fn describe(printer: &Printer, usage: &Usage, pod: Option<&Target>) -> String {
    let Usage { pods, other } = usage;
    if pods.is_empty() && other.is_none() {
        return match pod {
            Some(pod) => format!("{pod} is not accounted on this node (docs/limits.md)"),
            None => "no pod of this node is accounted (docs/limits.md)".to_owned(),
        };
    }
    let mut table =
        printer.listing(&["POD", "PEERS", "DIRECTION", "BYTES", "PACKETS", "NEW FLOWS"]);
    let mut add = |name: &str, traffic: &[ScopeTraffic]| {
        if traffic.is_empty() {
            table.add_row([name, "-", "-", "0 B", "0", "0"]);
        }
        for (row, of) in traffic.iter().enumerate() {
            table.add_row([
                if row == 0 { name.to_owned() } else { String::new() },
                of.scope.to_string(),
                direction(of.direction).to_owned(),
                bytes(of.bytes),
                of.packets.to_string(),
                of.flows.to_string(),
            ]);
        }
    };
    for each in pods {
        add(&each.pod, &each.traffic);
    }
    if let Some(other) = other {
        add(&format!("{} others", other.pods), &other.traffic);
    }
    table.to_string()
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "received",
        Direction::Egress => "sent",
    }
}

/// With three digits at least where there are as many, in units of 1024.
fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // what would be rounded to 1024.0 is 1.0 of the next unit
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use podgate_contract::api::{OtherUsage, PodUsage, Scope};
    use podgate_policy::model::ObjectKey;

    use super::*;
    use crate::output::Colors;

    #[test]
    fn bytes_have_the_unit_that_fits() {
        for (number, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (126_295_400, "120.4 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), shown);
        }
    }

    fn shown(usage: &Usage, pod: Option<&Target>) -> Vec<String> {
        let printer = Printer::new(Format::Table, Colors::Never, true);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        describe(&printer, usage, pod).lines().map(words).collect()
    }

    #[test]
    fn a_pod_has_a_line_for_each_scope_and_direction() {
        let row = |scope, direction, bytes| ScopeTraffic {
            scope,
            direction,
            packets: 3,
            bytes,
            flows: 1,
        };
        let web = vec![
            row(Scope::SameNode, Direction::Egress, 210),
            row(Scope::External, Direction::Ingress, 2048),
        ];
        let others = vec![row(Scope::OtherZone, Direction::Egress, 70)];
        let usage = Usage {
            pods: vec![
                PodUsage { pod: "shop/web".into(), traffic: web },
                PodUsage { pod: "shop/idle".into(), traffic: Vec::new() },
            ],
            other: Some(OtherUsage { pods: 2, traffic: others }),
        };
        assert_eq!(
            shown(&usage, None),
            [
                "POD PEERS DIRECTION BYTES PACKETS NEW FLOWS",
                "shop/web same-node sent 210 B 3 1",
                "external received 2.0 KiB 3 1",
                "shop/idle - - 0 B 0 0",
                "2 others other-zone sent 70 B 3 1",
            ]
        );
    }

    #[test]
    fn who_is_not_accounted_is_said_so() {
        let none = Usage::default();
        assert_eq!(shown(&none, None), ["no pod of this node is accounted (docs/limits.md)"]);
        let web = Target::Pod(ObjectKey::new("shop", "web"));
        assert_eq!(
            shown(&none, Some(&web)),
            ["shop/web is not accounted on this node (docs/limits.md)"]
        );
    }
}
