//! `top`: which rules let how many new flows pass.

use std::thread;
use std::time::Duration;

use super::ask::{json, name, peers};
use super::client::{Client, Server};
use crate::api::types::{Endpoint, EndpointDetail};
use crate::ctl::{Ended, Failure, Format, Printer};

/// Lines of the table.
const LINES: usize = 30;

pub(in crate::ctl) fn top(
    printer: &Printer,
    server: &Server,
    every: Option<u64>,
) -> Result<Ended, Failure> {
    let client = Client::new(server)?;
    loop {
        let busiest = busiest(&client)?;
        match printer.format {
            Format::Json => printer.print(&json(&busiest)?)?,
            Format::Table => {
                let mut table = printer.listing(&[
                    "NEW FLOWS",
                    "POD",
                    "DIRECTION",
                    "PEERS",
                    "PORTS",
                    "ALLOWED BY",
                ]);
                for rule in busiest.iter().take(LINES) {
                    table.add_row([
                        &rule.hits.to_string(),
                        &rule.pod,
                        &rule.direction,
                        &rule.peers,
                        &rule.ports,
                        &rule.rule,
                    ]);
                }
                printer.print(&table.to_string())?;
            }
        }
        let Some(seconds) = every else { return Ok(Ended::Fine) };
        thread::sleep(Duration::from_secs(seconds));
        if printer.format == Format::Table {
            printer.print("")?;
        }
    }
}

/// One line of `top`.
#[derive(Debug, serde::Serialize)]
struct Busy {
    hits: u64,
    pod: String,
    direction: String,
    peers: String,
    ports: String,
    rule: String,
}

/// What every pod allows, the most used first.
fn busiest(client: &Client) -> Result<Vec<Busy>, Failure> {
    let endpoints = client.get::<Vec<Endpoint>>("/v1/endpoints")?;
    let mut pods = endpoints
        .iter()
        .filter(|endpoint| !endpoint.name.is_empty())
        .map(|endpoint| format!("/v1/endpoints/{}/{}", endpoint.namespace, endpoint.name))
        .collect::<Vec<_>>();
    pods.sort();
    pods.dedup();
    let mut rules = Vec::new();
    for path in pods {
        for detail in client.get::<Vec<EndpointDetail>>(&path)? {
            let pod = name(&detail.endpoint);
            rules.extend(detail.allowed.into_iter().map(|allowed| Busy {
                hits: allowed.hits,
                pod: pod.clone(),
                peers: peers(&allowed.peers),
                direction: allowed.direction,
                ports: allowed.ports,
                rule: allowed.rule,
            }));
        }
    }
    rules.sort_by(|a, b| b.hits.cmp(&a.hits).then_with(|| a.pod.cmp(&b.pod)));
    Ok(rules)
}
