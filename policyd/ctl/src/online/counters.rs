//! `top`: packets by direction, verdict and reason, and which rules decided on how many new flows.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use podgate_contract::api::{Counters, Direction, EntryVerdict, PacketCount, RuleCount};
use serde::Serialize;

use super::ask::peers;
use super::client::{Client, Server};
use crate::output::json;
use crate::{Failure, Format, Outcome, Printer};

/// One look at the counters.
struct Sample {
    at: Instant,
    counters: Counters,
}

/// What is shown of a sample.
#[derive(Debug, Serialize)]
struct Top {
    /// Seconds that the rates are over; absent in the first sample, which has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    packets: Vec<Packets>,
    rules: Vec<Rule>,
}

#[derive(Debug, Serialize)]
struct Packets {
    #[serde(flatten)]
    total: PacketCount,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    rate: Option<Rate>,
}

#[derive(Debug, Serialize)]
struct Rate {
    packets_per_second: f64,
    bytes_per_second: f64,
}

#[derive(Debug, Serialize)]
struct Rule {
    hits: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hits_per_second: Option<f64>,
    pod: String,
    direction: Direction,
    peers: String,
    ports: String,
    verdict: EntryVerdict,
    rule: String,
}

pub(crate) fn top(
    printer: &Printer,
    server: &Server,
    every: Option<u64>,
) -> Result<Outcome, Failure> {
    let client = Client::new(server)?;
    let mut before: Option<Sample> = None;
    loop {
        let counters = client.get::<Counters>("/v1/counters")?;
        let now = Sample { at: Instant::now(), counters };
        let top = compare(before.as_ref(), &now);
        match printer.format {
            Format::Json => printer.print(&json(&top)?)?,
            Format::Table => {
                if before.is_some() {
                    printer.print("")?;
                }
                printer.print(&tables(printer, &top))?;
            }
        }
        let Some(seconds) = every else { return Ok(Outcome::Expected) };
        before = Some(now);
        thread::sleep(Duration::from_secs(seconds));
    }
}

/// How much grew in a time; what began again since has no rate.
fn rate(before: Option<u64>, now: u64, seconds: f64) -> f64 {
    now.saturating_sub(before.unwrap_or(0)) as f64 / seconds
}

/// The packets that there were, the most frequent first, and the rules by new flows.
fn compare(before: Option<&Sample>, now: &Sample) -> Top {
    let seconds = before.map(|before| now.at.duration_since(before.at).as_secs_f64().max(1e-3));
    let earlier: BTreeMap<_, _> = before
        .iter()
        .flat_map(|sample| &sample.counters.packets)
        .map(|each| ((&each.direction, &each.reason), each))
        .collect();
    let mut packets = Vec::new();
    for total in now.counters.packets.iter().filter(|each| each.packets > 0) {
        let was = earlier.get(&(&total.direction, &total.reason));
        let rate = seconds.map(|seconds| Rate {
            packets_per_second: rate(was.map(|was| was.packets), total.packets, seconds),
            bytes_per_second: rate(was.map(|was| was.bytes), total.bytes, seconds),
        });
        packets.push(Packets { total: total.clone(), rate });
    }
    // by what they do now, then by what they did; the API's order is that of the reasons
    let key = |each: &Packets| {
        (each.rate.as_ref().map_or(0.0, |r| r.packets_per_second), each.total.packets)
    };
    packets.sort_by(|a, b| key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal));
    let earlier: BTreeMap<_, _> = before
        .iter()
        .flat_map(|sample| &sample.counters.rules)
        .map(|each| (same(each), each.allowed.hits))
        .collect();
    let mut rules: Vec<Rule> = now
        .counters
        .rules
        .iter()
        .map(|each| Rule {
            hits: each.allowed.hits,
            // a pod that came meanwhile began at 0
            hits_per_second: seconds
                .map(|seconds| rate(earlier.get(&same(each)).copied(), each.allowed.hits, seconds)),
            pod: each.pod.clone(),
            direction: each.allowed.direction,
            peers: peers(&each.allowed.peers),
            ports: each.allowed.ports.clone(),
            verdict: each.allowed.verdict,
            rule: each.allowed.rule.clone(),
        })
        .collect();
    let key = |each: &Rule| (each.hits_per_second.unwrap_or(0.0), each.hits);
    rules.sort_by(|a, b| {
        let order = key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal);
        order.then_with(|| a.pod.cmp(&b.pod))
    });
    Top { seconds, packets, rules }
}

/// What tells one line of the rules from another. The members of a class may change; its number says which it is.
fn same(rule: &RuleCount) -> (String, String) {
    let allowed = &rule.allowed;
    let class = match &allowed.peers {
        podgate_contract::api::PeerSet::Any => 0,
        podgate_contract::api::PeerSet::Of { class, .. } => *class,
    };
    (rule.pod.clone(), format!("{} {} {class} {}", allowed.direction, allowed.ports, allowed.rule))
}

fn tables(printer: &Printer, top: &Top) -> String {
    let rated = top.seconds.is_some();
    let header = |first: &[&'static str], rates: &[&'static str], last: &[&'static str]| {
        let rates = rates.iter().filter(|_| rated);
        let columns = first.iter().chain(rates).chain(last);
        columns.copied().collect::<Vec<_>>()
    };
    let ends = ["DIRECTION", "VERDICT", "REASON"];
    let counts = header(&["PACKETS", "BYTES"], &["PACKETS/S", "BYTES/S"], &ends);
    let mut packets = printer.listing(&counts);
    for each in &top.packets {
        let mut row = vec![each.total.packets.to_string(), each.total.bytes.to_string()];
        if let Some(rate) = &each.rate {
            row.push(format!("{:.1}", rate.packets_per_second));
            row.push(format!("{:.1}", rate.bytes_per_second));
        }
        let total = &each.total;
        row.extend([total.direction.to_string(), total.verdict.to_string(), total.reason.clone()]);
        packets.add_row(row);
    }
    let ends = ["POD", "DIRECTION", "PEERS", "PORTS", "VERDICT", "BY"];
    let mut rules = printer.listing(&header(&["NEW FLOWS"], &["NEW FLOWS/S"], &ends));
    for each in &top.rules {
        let mut row = vec![each.hits.to_string()];
        row.extend(each.hits_per_second.map(|rate| format!("{rate:.1}")));
        row.extend([each.pod.clone(), each.direction.to_string(), each.peers.clone()]);
        row.extend([each.ports.clone(), each.verdict.to_string(), each.rule.clone()]);
        rules.add_row(row);
    }
    format!("{packets}\n\n{rules}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_contract::api::{Allowed, PeerSet, Verdict};

    use Direction::{Egress, Ingress};
    use Verdict::{Allow, Deny};

    fn packets(direction: Direction, verdict: Verdict, reason: &str, packets: u64) -> PacketCount {
        PacketCount { direction, verdict, reason: reason.into(), packets, bytes: packets * 100 }
    }

    fn rule(pod: &str, hits: u64) -> RuleCount {
        let allowed = Allowed {
            direction: Ingress,
            peers: PeerSet::Any,
            ports: "TCP 80".into(),
            verdict: EntryVerdict::Allow,
            rule: "shop/p ingress[0]".into(),
            policy: None,
            hits,
        };
        RuleCount { pod: pod.into(), allowed }
    }

    fn sample(at: Instant, counts: &[PacketCount], rules: &[RuleCount]) -> Sample {
        Sample { at, counters: Counters { packets: counts.to_vec(), rules: rules.to_vec() } }
    }

    #[test]
    fn totals_then_rates_between_two_samples() {
        let start = Instant::now();
        let first = sample(
            start,
            &[
                packets(Ingress, Allow, "flow", 1000),
                packets(Ingress, Deny, "policy", 2),
                packets(Egress, Deny, "policy", 0),
            ],
            &[rule("shop/a", 7), rule("shop/b", 9)],
        );
        let top = compare(None, &first);
        let seen: Vec<_> = top.packets.iter().map(|p| (p.total.verdict, p.total.packets)).collect();
        assert_eq!(seen, [(Allow, 1000), (Deny, 2)]);
        assert_eq!(top.rules.iter().map(|r| &*r.pod).collect::<Vec<_>>(), ["shop/b", "shop/a"]);
        assert!(top.seconds.is_none() && top.packets.iter().all(|p| p.rate.is_none()));

        let second = sample(
            start + Duration::from_secs(2),
            &[packets(Ingress, Allow, "flow", 1000), packets(Ingress, Deny, "policy", 12)],
            &[rule("shop/a", 17), rule("shop/b", 9), rule("shop/new", 1)],
        );
        let top = compare(Some(&first), &second);
        let rates: Vec<_> = top
            .packets
            .iter()
            .map(|p| (p.total.verdict, p.rate.as_ref().unwrap().packets_per_second))
            .collect();
        assert_eq!(rates, [(Deny, 5.0), (Allow, 0.0)]);
        assert_eq!(top.packets[0].rate.as_ref().unwrap().bytes_per_second, 500.0);
        let rules: Vec<_> =
            top.rules.iter().map(|r| (&*r.pod, r.hits_per_second.unwrap())).collect();
        assert_eq!(rules, [("shop/a", 5.0), ("shop/new", 0.5), ("shop/b", 0.0)]);
    }
}
