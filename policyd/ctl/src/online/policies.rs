//! `policies`, `cluster-policies`, `traffic-policies`, `apply` and `delete`: the policies of this node, and its local ones.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use hyper::Method;
use podgate_contract::api::{ChangeKind, ClusterPolicy, PodTrafficPolicy, Policy, PolicyMode};
use podgate_manifests::manifest::{self, Manifest};
use podgate_manifests::unenforced::describe;
use podgate_policy::object::Kind;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, Server, decode};
use crate::{Failure, Format, Outcome, Printer};

pub(crate) fn policies(printer: &Printer, server: &Server) -> Result<Outcome, Failure> {
    let path = "/v1/policies";
    let answer = Client::new(server)?.ask(Method::GET, path, None)?;
    if printer.format == Format::Json {
        printer.print(&String::from_utf8_lossy(&answer))?;
        return Ok(Outcome::Expected);
    }
    let mut table =
        printer.listing(&["POLICY", "SOURCE", "ISOLATES FOR", "PODS HERE", "MODE", "LOG"]);
    for Policy { name, isolates, pods, mode, log } in decode::<Vec<Policy>>(path, &answer)? {
        table.add_row([
            format!("{}/{}", name.namespace, name.name),
            name.source,
            isolates.join(","),
            pods.len().to_string(),
            mode_of(mode).to_owned(),
            log.unwrap_or_default(),
        ]);
    }
    printer.print(&table.to_string())?;
    Ok(Outcome::Expected)
}

/// `on`, as `podgatectl enforcement` spells it, or `audit`.
fn mode_of(mode: PolicyMode) -> &'static str {
    match mode {
        PolicyMode::Enforce => "on",
        PolicyMode::Audit => "audit",
    }
}

pub(crate) fn cluster_policies(printer: &Printer, server: &Server) -> Result<Outcome, Failure> {
    let path = "/v1/cluster-policies";
    let answer = Client::new(server)?.ask(Method::GET, path, None)?;
    if printer.format == Format::Json {
        printer.print(&String::from_utf8_lossy(&answer))?;
        return Ok(Outcome::Expected);
    }
    let first = ["CLUSTER POLICY", "SOURCE", "TIER", "PRIORITY"];
    let header = [&first[..], &["HAS RULES FOR", "PODS HERE", "MODE", "LOG"]].concat();
    let mut table = printer.listing(&header);
    let policies = decode::<Vec<ClusterPolicy>>(path, &answer)?;
    for ClusterPolicy { name, tier, priority, directions, pods, mode, log, .. } in &policies {
        table.add_row([
            name.name.clone(),
            name.source.clone(),
            tier.clone(),
            priority.to_string(),
            directions.join(","),
            pods.len().to_string(),
            mode_of(*mode).to_owned(),
            log.clone().unwrap_or_default(),
        ]);
    }
    printer.print(&table.to_string())?;
    for ClusterPolicy { name, problems, .. } in policies {
        for problem in problems {
            printer.print(&format!("{}: {problem}", name.name))?;
        }
    }
    Ok(Outcome::Expected)
}

pub(crate) fn traffic_policies(printer: &Printer, server: &Server) -> Result<Outcome, Failure> {
    let answer = Client::new(server)?.ask(Method::GET, TRAFFIC_POLICIES, None)?;
    if printer.format == Format::Json {
        printer.print(&String::from_utf8_lossy(&answer))?;
        return Ok(Outcome::Expected);
    }
    let mut table = printer.listing(&["TRAFFIC POLICY", "SOURCE", "ORDER", "PODS HERE"]);
    let mut told = String::new();
    for policy in decode::<Vec<PodTrafficPolicy>>(TRAFFIC_POLICIES, &answer)? {
        let PodTrafficPolicy { name, order, pods, problems } = policy;
        let shown = format!("{}/{}", name.namespace, name.name);
        for problem in problems {
            told += &format!("{shown}: {problem}\n");
        }
        table.add_row([shown, name.source, order.to_string(), pods.len().to_string()]);
    }
    printer.print(&format!("{table}\n{told}"))?;
    Ok(Outcome::Expected)
}

pub(crate) fn apply(printer: &Printer, server: &Server, file: &Path) -> Result<Outcome, Failure> {
    let client = Client::new(server)?;
    for (path, body) in read(file)? {
        let answer = client.ask(Method::PUT, &path, Some(body.to_string()))?;
        tell(printer, &path, &answer)?;
    }
    Ok(Outcome::Expected)
}

pub(crate) fn delete(
    printer: &Printer,
    server: &Server,
    file: Option<&Path>,
    policy: Option<&str>,
) -> Result<Outcome, Failure> {
    let mut paths = match file {
        Some(file) => read(file)?.into_iter().map(|(path, _)| path).collect(),
        None => Vec::new(),
    };
    if let Some(policy) = policy {
        match policy.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                paths.push(policy_path(namespace, name));
            }
            None if !policy.is_empty() => paths.push(cluster_policy_path(policy)),
            _ => {
                let cause = "must be namespace/name, or the name of a cluster policy";
                return Err(Failure(format!("delete policy {policy}: {cause}")));
            }
        }
    }
    let client = Client::new(server)?;
    for path in paths {
        let answer = client.ask(Method::DELETE, &path, None)?;
        tell(printer, &path, &answer)?;
    }
    Ok(Outcome::Expected)
}

pub(super) fn policy_path(namespace: &str, name: &str) -> String {
    format!("/v1/policies/{namespace}/{name}")
}

/// Where the PodTrafficPolicies are at the API.
const TRAFFIC_POLICIES: &str = "/v1/pod-traffic-policies";

fn traffic_policy_path(namespace: &str, name: &str) -> String {
    format!("{TRAFFIC_POLICIES}/{namespace}/{name}")
}

pub(super) fn cluster_policy_path(name: &str) -> String {
    format!("/v1/cluster-policies/{name}")
}

/// What every answer to a change of a policy has.
#[derive(Deserialize)]
struct Change {
    /// None of a cluster policy.
    namespace: Option<String>,
    name: String,
    change: ChangeKind,
    problems: Vec<String>,
}

/// Prints the answer to a change of a policy.
pub(super) fn tell(printer: &Printer, path: &str, answer: &[u8]) -> Result<(), Failure> {
    if printer.format == Format::Json {
        printer.print(&String::from_utf8_lossy(answer))?;
        return Ok(());
    }
    let Change { namespace, name, change, problems } = decode(path, answer)?;
    let what = match change {
        ChangeKind::Created => "created",
        ChangeKind::Replaced => "replaced",
        ChangeKind::Deleted => "deleted",
    };
    let in_force = match problems.is_empty() {
        true => "in force",
        false => "but not everything is in force here:",
    };
    let policy = match namespace {
        Some(namespace) if path.starts_with(TRAFFIC_POLICIES) => {
            format!("traffic policy {namespace}/{name}")
        }
        Some(namespace) => format!("policy {namespace}/{name}"),
        None => format!("cluster policy {name}"),
    };
    printer.print(&format!("{policy} {what}, {in_force}"))?;
    for problem in problems {
        printer.print(&format!("  {problem}"))?;
    }
    Ok(())
}

/// The policies of a manifest, each with its path at the API and its own text. They are read here
/// already, all of them, so that a mistake in the last one is reported before the first one is applied.
fn read(file: &Path) -> Result<Vec<(String, Value)>, Failure> {
    let shown = file.display();
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => io::stdin().read_to_string(&mut text).map(drop),
        false => fs::read_to_string(file).map(|content| text = content),
    };
    read.map_err(|e| Failure(format!("read {shown}: {e}")))?;
    let Manifest { errors: mistakes, unenforced, .. } = manifest::read_text(file, &text);
    for (kind, count) in unenforced {
        let objects = describe(kind.name(), count);
        anstream::eprintln!("read {shown}: left out {objects}: podgate does not enforce that kind");
    }
    if !mistakes.is_empty() {
        let lines = mistakes.iter().map(|error| format!("\n  {error}")).collect::<String>();
        return Err(Failure(format!("read {shown}: {} mistakes{lines}", mistakes.len())));
    }
    let documents = manifest::values(&text).map_err(|e| Failure(format!("read {shown}, {e}")))?;
    let mut policies = Vec::new();
    for document in documents {
        collect(document, &mut policies);
    }
    if policies.is_empty() {
        return Err(Failure(format!(
            "read {shown}: no NetworkPolicy, ClusterNetworkPolicy or PodTrafficPolicy in it"
        )));
    }
    Ok(policies)
}

/// The policies of a document, those of its lists too. `items` of a typed list need not say their kind.
fn collect(document: Value, policies: &mut Vec<(String, Value)>) {
    let text = |value: &Value, field: &str| value.get(field)?.as_str().map(str::to_owned);
    let kind = text(&document, "kind").unwrap_or_default();
    if let (Some(of), Some(items)) = (kind.strip_suffix("List"), document.get("items")) {
        for item in items.as_array().into_iter().flatten() {
            let mut item = item.clone();
            if let Value::Object(fields) = &mut item
                && !of.is_empty()
            {
                fields.entry("kind").or_insert_with(|| of.into());
                let version = document.get("apiVersion").cloned().unwrap_or_default();
                fields.entry("apiVersion").or_insert(version);
            }
            collect(item, policies);
        }
        return;
    }
    let Some(metadata) = document.get("metadata") else { return };
    let name = text(metadata, "name").unwrap_or_default();
    let namespace = || text(metadata, "namespace").unwrap_or_else(|| "default".into());
    let version = text(&document, "apiVersion").unwrap_or_default();
    match Kind::of_type(&version, &kind) {
        Some(Kind::Policy) => policies.push((policy_path(&namespace(), &name), document)),
        Some(Kind::PodTrafficPolicy) => {
            policies.push((traffic_policy_path(&namespace(), &name), document));
        }
        Some(Kind::ClusterPolicy) => policies.push((cluster_policy_path(&name), document)),
        _ => {}
    }
}
