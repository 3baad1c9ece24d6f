//! `policies`, `apply` and `delete`: local policies of this node.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use hyper::Method;
use serde_json::Value;

use super::client::{Client, Server, decode};
use crate::api::types::{ChangeKind, Policy, PolicyChange};
use crate::ctl::{Ended, Failure, Format, Printer};
use crate::sources::manifest::{self, Manifest};
use crate::sources::unenforced::describe;

pub(in crate::ctl) fn policies(printer: &Printer, server: &Server) -> Result<Ended, Failure> {
    let path = "/v1/policies";
    let answer = Client::new(server)?.ask(Method::GET, path, None)?;
    if printer.format == Format::Json {
        printer.print(&String::from_utf8_lossy(&answer))?;
        return Ok(Ended::Fine);
    }
    let mut table = printer.listing(&["POLICY", "SOURCE", "ISOLATES FOR", "PODS HERE"]);
    for Policy { name, isolates, pods } in decode::<Vec<Policy>>(path, &answer)? {
        table.add_row([
            format!("{}/{}", name.namespace, name.name),
            name.source,
            isolates.join(","),
            pods.len().to_string(),
        ]);
    }
    printer.print(&table.to_string())?;
    Ok(Ended::Fine)
}

pub(in crate::ctl) fn apply(
    printer: &Printer,
    server: &Server,
    file: &Path,
) -> Result<Ended, Failure> {
    let client = Client::new(server)?;
    for (key, body) in read(file)? {
        let path = format!("/v1/policies/{key}");
        let answer = client.ask(Method::PUT, &path, Some(body.to_string()))?;
        tell(printer, &path, &answer)?;
    }
    Ok(Ended::Fine)
}

pub(in crate::ctl) fn delete(
    printer: &Printer,
    server: &Server,
    file: Option<&Path>,
    policy: Option<&str>,
) -> Result<Ended, Failure> {
    let mut keys = match file {
        Some(file) => read(file)?.into_iter().map(|(key, _)| key).collect(),
        None => Vec::new(),
    };
    if let Some(policy) = policy {
        match policy.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                keys.push(policy.to_owned());
            }
            _ => return Err(Failure(format!("delete policy {policy}: must be namespace/name"))),
        }
    }
    let client = Client::new(server)?;
    for key in keys {
        let path = format!("/v1/policies/{key}");
        let answer = client.ask(Method::DELETE, &path, None)?;
        tell(printer, &path, &answer)?;
    }
    Ok(Ended::Fine)
}

fn tell(printer: &Printer, path: &str, answer: &[u8]) -> Result<(), Failure> {
    if printer.format == Format::Json {
        printer.print(&String::from_utf8_lossy(answer))?;
        return Ok(());
    }
    let PolicyChange { name, change, problems } = decode(path, answer)?;
    let what = match change {
        ChangeKind::Created => "created",
        ChangeKind::Replaced => "replaced",
        ChangeKind::Deleted => "deleted",
    };
    let in_force = match problems.is_empty() {
        true => "in force",
        false => "but not everything is in force here:",
    };
    printer.print(&format!("policy {}/{} {what}, {in_force}", name.namespace, name.name))?;
    for problem in problems {
        printer.print(&format!("  {problem}"))?;
    }
    Ok(())
}

/// The policies of a manifest, each with the key `namespace/name` and its own text. They are read here
/// already, all of them, so that a mistake in the last one is told before the first one is applied.
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
        return Err(Failure(format!("read {shown}: no NetworkPolicy in it")));
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
    } else if kind == "NetworkPolicy"
        && let Some(metadata) = document.get("metadata")
    {
        let namespace = text(metadata, "namespace").unwrap_or_else(|| "default".into());
        let name = text(metadata, "name").unwrap_or_default();
        policies.push((format!("{namespace}/{name}"), document));
    }
}
