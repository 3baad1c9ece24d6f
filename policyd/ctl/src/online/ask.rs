//! `status`, `endpoints` and `rules`.

use std::collections::BTreeSet;
use std::fmt::Write;

use comfy_table::{Cell, Color};
use hyper::Method;
use podgate_contract::api::NewPods;
use podgate_contract::api::{
    Endpoint, EndpointDetail, EndpointShare, EndpointState, Enforcement, Isolation, KernelLack,
    PeerSet, SourceStatus, Status,
};
use podgate_manifests::unenforced;
use podgate_policy::reach::Target;

use super::client::{Client, Server, decode};
use crate::output::json;
use crate::{Failure, Format, Outcome, Printer};

/// Class members that one line of `rules` names.
const NAMED: usize = 4;

pub(crate) fn status(printer: &Printer, server: &Server) -> Result<Outcome, Failure> {
    let path = "/v1/status";
    let answer = Client::new(server)?.ask(Method::GET, path, None)?;
    if printer.format == Format::Json {
        printer.print(&String::from_utf8_lossy(&answer))?;
        return Ok(Outcome::Expected);
    }
    let status = decode::<Status>(path, &answer)?;
    printer.print(&describe(printer, &status))?;
    Ok(Outcome::Expected)
}

fn describe(printer: &Printer, status: &Status) -> String {
    if let Some(cause) = &status.cannot_enforce {
        let Status { version, node, uptime, kernel, .. } = status;
        let title = printer.title(&format!("policyd {version} on {node}: CANNOT ENFORCE"));
        let new_pods = new_pods(&status.new_pods);
        return format!(
            "{title}cause        {cause}\nnew pods     {new_pods}\nup           {uptime} s, on kernel {kernel}"
        );
    }
    let state = if status.ready { "ready" } else { "not ready" };
    let mut text =
        printer.title(&format!("policyd {} on {}: {state}", status.version, status.node));
    let mode = match status.enforcement {
        Enforcement::Enforce => "on",
        Enforcement::Audit => "audit: denied packets pass and are reported",
        Enforcement::Off => "off: denied packets pass",
    };
    let Status { endpoints, objects, services, maps, .. } = status;
    // writing to a String cannot fail
    let _ = write!(
        text,
        "enforcement  {mode}\n\
         endpoints    {} enforced, {} pending, {} degraded, {} ungated\n\
         new pods     {}\n\
         knows        {} pods, {} namespaces, {} policies, {} cluster policies, {} traffic policies\n\
         services     {} addresses and ports translated to {} endpoints, {} degraded\n\
         maps         {} addresses, {} prefixes, {} rules\n\
         flows        {} of {} places taken by IPv4 flows, {} of {} by IPv6\n\
         commits      {} (epoch {}), the last took {:.1} ms\n\
         up           {} s, on kernel {}\n\
         sources      ",
        endpoints.enforced,
        endpoints.pending,
        endpoints.degraded,
        endpoints.ungated,
        new_pods(&status.new_pods),
        objects.pods,
        objects.namespaces,
        objects.policies,
        objects.cluster_policies,
        objects.pod_traffic_policies,
        services.frontends,
        services.endpoints,
        services.degraded,
        maps.peers,
        maps.nets,
        maps.rules,
        status.flows.ipv4.flows,
        status.flows.ipv4.size,
        status.flows.ipv6.flows,
        status.flows.ipv6.size,
        status.commits,
        status.epoch,
        status.last_commit * 1e3,
        status.uptime,
        status.kernel,
    );
    let sources = status.sources.iter().map(|source| {
        let state = if source.synced { "synced" } else { "not read yet" };
        format!("{}: {state}, {} objects{}", source.name, source.objects, link(source))
    });
    text += &sources.collect::<Vec<_>>().join("\n             ");
    for problem in &status.problems {
        let _ = write!(text, "\nproblem: {problem}");
    }
    for file in status.sources.iter().flat_map(|source| &source.skipped) {
        let _ = write!(text, "\npassed over: {file}");
    }
    for lack in &status.kernel_lacks {
        let KernelLack { feature, since, consequence } = lack;
        let _ = write!(text, "\nthis kernel lacks {feature} (Linux {since}): {consequence}");
    }
    for each in &status.unenforced_kinds {
        let _ = write!(text, "\nnot enforced: {}", unenforced::describe(&each.kind, each.objects));
    }
    for each in &status.pending {
        let _ = write!(text, "\npending: {}: {}", each.pod, each.reason);
    }
    for line in without_gate(status) {
        let _ = write!(text, "\n{line}");
    }
    text
}

/// Whether the next pod gets a gate.
fn new_pods(new_pods: &NewPods) -> String {
    match new_pods {
        NewPods::Yes { files, warnings } => {
            let warnings = warnings.iter().map(|each| format!("\n             warning: {each}"));
            format!("get a gate ({}){}", files.join(", "), warnings.collect::<String>())
        }
        NewPods::Refused { .. } => "are refused, or held in their startup state".to_owned(),
        NewPods::No { reason } => format!("get NO gate: {reason}"),
        NewPods::Unknown { reason } => format!("not known: {reason}"),
    }
}

/// How an API server answers, of the watch that is worst off.
fn link(source: &SourceStatus) -> String {
    // a kind that the server does not have is asked for now and then
    let watches = || source.watches.iter().filter(|watch| !watch.absent);
    let lost: Vec<_> =
        watches().filter(|w| w.lost_for.is_some()).map(|w| w.kind.as_str()).collect();
    match (watches().filter_map(|w| w.lost_for).max(), watches().map(|w| w.heard).max()) {
        (Some(seconds), _) => format!(", not connected for {seconds} s ({})", lost.join(", ")),
        (None, Some(Some(seconds))) => format!(", connected, last heard {seconds} s ago"),
        (None, Some(None)) => ", not asked yet".to_owned(),
        (None, None) => String::new(),
    }
}

pub(crate) fn endpoints(
    printer: &Printer,
    server: &Server,
    namespace: Option<&str>,
) -> Result<Outcome, Failure> {
    let client = Client::new(server)?;
    let mut endpoints = client.get::<Vec<Endpoint>>("/v1/endpoints")?;
    endpoints.retain(|endpoint| namespace.is_none_or(|wanted| endpoint.namespace == wanted));
    if printer.format == Format::Json {
        printer.print(&json(&endpoints)?)?;
        return Ok(Outcome::Expected);
    }
    let mut table = printer.listing(&[
        "POD",
        "STATE",
        "INGRESS",
        "EGRESS",
        "RULES",
        "FLOWS",
        "ADDRESSES",
        "INTERFACE",
        "GATE",
    ]);
    for endpoint in &endpoints {
        let addresses = endpoint.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        table.add_row(vec![
            Cell::new(name(endpoint)),
            state(endpoint),
            Cell::new(isolation(&endpoint.ingress)),
            Cell::new(isolation(&endpoint.egress)),
            Cell::new(endpoint.rules),
            Cell::new(flows(&endpoint.share)),
            Cell::new(addresses.join(",")),
            Cell::new(&endpoint.host_interface),
            Cell::new(if endpoint.gate.is_empty() { "missing" } else { &endpoint.gate }),
        ]);
    }
    let mut text = table.to_string();
    let mut status = client.get::<Status>("/v1/status")?;
    let of_namespace = |pod: &str| match (namespace, pod.split_once('/')) {
        (Some(wanted), Some((its, _))) => its == wanted,
        _ => true,
    };
    status.unenforced.retain(|each| of_namespace(&each.pod));
    let listed: BTreeSet<String> = endpoints.iter().map(name).collect();
    // one that has a gate is in the table
    let unlisted = |pod: &str| pod.contains('/') && of_namespace(pod) && !listed.contains(pod);
    for each in status.pending.iter().filter(|each| unlisted(&each.pod)) {
        let _ = write!(text, "\npending: {}: {}", each.pod, each.reason);
    }
    for line in without_gate(&status) {
        let _ = write!(text, "\n{line}");
    }
    printer.print(&text)?;
    Ok(Outcome::Expected)
}

/// A line for each pod of the node for which no policy holds.
fn without_gate(status: &Status) -> impl Iterator<Item = String> {
    status.unenforced.iter().map(|each| format!("not enforced: {}: {}", each.pod, each.reason))
}

/// `namespace/name`, or the interface of a container that is no pod.
pub(super) fn name(endpoint: &Endpoint) -> String {
    match endpoint.name.is_empty() {
        true => format!("({})", endpoint.host_interface),
        false => format!("{}/{}", endpoint.namespace, endpoint.name),
    }
}

fn state(endpoint: &Endpoint) -> Cell {
    let (word, color) = match endpoint.state {
        EndpointState::Enforced => ("enforced", Color::Green),
        EndpointState::Pending => ("pending", Color::Yellow),
        EndpointState::Degraded => ("degraded", Color::Red),
    };
    let text = match endpoint.reason.is_empty() {
        true => word.to_owned(),
        false => format!("{word}: {}", endpoint.reason),
    };
    Cell::new(text).fg(color)
}

/// How many, and how many had to go.
fn flows(share: &EndpointShare) -> String {
    let flows = share.ipv4_flows + share.ipv6_flows;
    match share.flows_evicted {
        0 => flows.to_string(),
        evicted => format!("{flows} ({evicted} evicted)"),
    }
}

fn isolation(isolation: &Isolation) -> String {
    match (isolation.isolated, isolation.restricted) {
        (true, _) => format!("isolated by {}", isolation.policies.len()),
        (false, true) => "restricted".into(),
        (false, false) => "open".into(),
    }
}

pub(crate) fn rules(printer: &Printer, server: &Server, pod: &Target) -> Result<Outcome, Failure> {
    let Target::Pod(key) = pod else {
        return Err(Failure(format!("show rules of {pod}: must be a pod, as namespace/name")));
    };
    let path = format!("/v1/endpoints/{}/{}", key.namespace, key.name);
    let answer = Client::new(server)?.ask(Method::GET, &path, None)?;
    if printer.format == Format::Json {
        printer.print(&String::from_utf8_lossy(&answer))?;
        return Ok(Outcome::Expected);
    }
    for detail in decode::<Vec<EndpointDetail>>(&path, &answer)? {
        let endpoint = &detail.endpoint;
        let mut text = printer.title(&format!("{} ({})", name(endpoint), endpoint.interface));
        for (direction, isolation) in [("ingress", &endpoint.ingress), ("egress", &endpoint.egress)]
        {
            let _ = match (isolation.isolated, isolation.restricted) {
                (true, _) => {
                    writeln!(text, "{direction}: isolated by {}", isolation.policies.join(", "))
                }
                (false, true) => {
                    writeln!(text, "{direction}: not isolated, but restricted as shown here")
                }
                (false, false) => {
                    writeln!(text, "{direction}: not isolated, everything is allowed")
                }
            };
        }
        let held = endpoint.share.events_held;
        let _ = writeln!(text, "flows: {}; events held back: {held}", flows(&endpoint.share));
        let mut table =
            printer.listing(&["DIRECTION", "PEERS", "PORTS", "VERDICT", "BY", "NEW FLOWS"]);
        for allowed in &detail.allowed {
            table.add_row(vec![
                allowed.direction.to_string(),
                peers(&allowed.peers),
                allowed.ports.clone(),
                allowed.verdict.to_string(),
                allowed.rule.clone(),
                allowed.hits.to_string(),
            ]);
        }
        printer.print(&format!("{text}{table}"))?;
    }
    Ok(Outcome::Expected)
}

/// The members of a class, the first ones by name.
pub(super) fn peers(peers: &PeerSet) -> String {
    match peers {
        PeerSet::Any => "everybody".into(),
        PeerSet::Of { members, count, .. } => {
            let named = members.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            match count.saturating_sub(NAMED.min(members.len())) {
                0 => named,
                more => format!("{named} and {more} more"),
            }
        }
    }
}
