//! kubectl, with the administrator's rights: what a user of the cluster does.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::programs;
use crate::runtime::holder::HOME;
use crate::runtime::{Node, program};

/// A command line of kubectl on the control plane's node.
fn command(node: &Node, arguments: &[&str]) -> Result<Command> {
    let mut command = programs::command(node, "kubectl", arguments)?;
    command.env("KUBECONFIG", format!("{HOME}/admin.kubeconfig"));
    // its caches of what the server knows
    command.env("HOME", HOME);
    Ok(command)
}

/// Runs it; returns what it prints.
pub fn run(node: &Node, arguments: &[&str]) -> Result<String> {
    program::run(command(node, arguments)?)
}

/// `kubectl apply -f -` with these objects.
pub fn apply(node: &Node, objects: &[Value]) -> Result<String> {
    with_objects(node, &["apply", "-f", "-"], objects)
}

/// `kubectl delete -f -` with these objects; what is not there is no error.
pub fn delete(node: &Node, objects: &[Value]) -> Result<String> {
    with_objects(
        node,
        &["delete", "--ignore-not-found", "--wait=false", "--grace-period=0", "--force", "-f", "-"],
        objects,
    )
}

fn with_objects(node: &Node, arguments: &[&str], objects: &[Value]) -> Result<String> {
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    stdin(node, arguments, &list.to_string())
}

/// Runs it with this as its standard input.
pub fn stdin(node: &Node, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = command(node, arguments)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
    let mut pipe = child.stdin.take().context("write to kubectl")?;
    // it may end before it has read everything: its output says more than the broken pipe
    let _ = pipe.write_all(input.as_bytes());
    drop(pipe);
    let output = child.wait_with_output().context("wait for kubectl")?;
    if !output.status.success() {
        bail!("kubectl {arguments:?} ended with {}: {}", output.status, program::said(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
