//! `observe`: verdicts as they fall, one line each.

use std::net::SocketAddr;

use clap::Args;
use podgate_contract::api::{Direction, FlowEvent, FlowService, Verdict};
use podgate_policy::reach::Target;

use super::client::{Client, Server, decode};
use super::clock::clock;
use crate::target::target;
use crate::{Failure, Format, Outcome, Printer};

/// Arguments of `observe`.
#[derive(Debug, Args)]
pub(crate) struct Observe {
    /// Only verdicts at this pod's gate, about this peer, or through this service (svc:namespace/name)
    #[arg(long, value_name = "END", value_parser = target)]
    pub of: Option<Target>,
    /// Only denials
    #[arg(long)]
    pub denied: bool,
    /// Stop after so many lines
    #[arg(short = 'n', long, value_name = "LINES", value_parser = clap::value_parser!(u64).range(1..))]
    pub lines: Option<u64>,
}

pub(crate) fn observe(
    printer: &Printer,
    server: &Server,
    wanted: &Observe,
) -> Result<Outcome, Failure> {
    let Observe { of, denied, lines } = wanted;
    if let Some(node @ Target::Node(_)) = of {
        return Err(Failure(format!(
            "observe {node}: verdicts name pods, services and addresses; give the node's address"
        )));
    }
    let mut left = *lines;
    Client::new(server)?.lines("/v1/flows", |line| {
        if line.is_empty() {
            return Ok(true); // keep-alive
        }
        let event = decode::<FlowEvent>("/v1/flows", line.as_bytes())?;
        let skip = *denied && event.verdict != Verdict::Deny
            || of.as_ref().is_some_and(|of| !concerns(&event, of));
        if skip {
            return Ok(true);
        }
        match printer.format {
            Format::Json => printer.print(line)?,
            Format::Table => printer.print(&one_line(&event))?,
        }
        left = left.map(|left| left - 1);
        Ok(left != Some(0))
    })?;
    Ok(Outcome::Expected)
}

fn concerns(event: &FlowEvent, target: &Target) -> bool {
    match target {
        Target::Pod(key) => {
            let name = key.to_string();
            event.pod == name || event.peer.as_ref() == Some(&name)
        }
        Target::Address(address) => event.pod_address == *address || event.peer_address == *address,
        Target::Service(key) => {
            let service = event.service.as_ref().and_then(|service| service.name.as_deref());
            service == Some(key.to_string().as_str())
        }
        Target::Node(_) => false,
    }
}

fn one_line(event: &FlowEvent) -> String {
    let pod = side(
        &event.pod,
        event.pod_address.to_string(),
        SocketAddr::new(event.pod_address, event.pod_port),
    );
    let peer = SocketAddr::new(event.peer_address, event.peer_port);
    let peer = side(event.peer.as_deref().unwrap_or(""), event.peer_address.to_string(), peer);
    let (from, to) = if event.direction == Direction::Egress { (pod, peer) } else { (peer, pod) };
    let rule = event.rule.as_deref().map(|rule| format!(" ({rule})")).unwrap_or_default();
    let service = event.service.as_ref().map(through).unwrap_or_default();
    let log = event.log.as_deref().map(|label| format!(" [{label}]")).unwrap_or_default();
    let clock = clock(event.time);
    let (color, verdict) = match (event.verdict, event.audited) {
        (Verdict::Deny, _) => ("\x1b[31m", "deny"),
        (_, true) => ("\x1b[33m", "audit"),
        (verdict, false) => ("\x1b[32m", if verdict == Verdict::Mixed { "mixed" } else { "allow" }),
    };
    format!(
        "{clock} {color}{verdict:<5}\x1b[0m {} {from} -> {to} at {} {}: {}{rule}{service}{log}",
        event.protocol, event.direction, event.pod, event.reason
    )
}

/// ` through svc:shop/dns 10.96.0.10:53`.
fn through(service: &FlowService) -> String {
    let at = SocketAddr::new(service.address, service.port);
    match &service.name {
        Some(name) => format!(" through svc:{name} {at}"),
        None => format!(" through {at}"),
    }
}

/// A pod's name with its port, or the bare address with it.
fn side(name: &str, address: String, socket: SocketAddr) -> String {
    match (name.is_empty(), socket.port()) {
        (true, 0) => address,
        (true, _) => socket.to_string(),
        (false, 0) => name.to_owned(),
        (false, port) => format!("{name}:{port}"),
    }
}
