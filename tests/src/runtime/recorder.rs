//! Plugins made of shell: they record what a runtime calls them with, fail, sleep, or stand before podgate.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Node;
use super::holder::HOME;

/// One call that a plugin got.
#[derive(Clone, Debug)]
pub struct Call {
    /// CNI_COMMAND.
    pub verb: String,
    /// Every CNI_ variable.
    pub env: BTreeMap<String, String>,
    /// What stood on its standard input.
    pub stdin: Value,
}

impl Call {
    /// A variable; empty if it is empty or missing.
    pub fn var(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    /// Whether the runtime gave the result of the ADD.
    pub fn has_prev_result(&self) -> bool {
        self.stdin.get("prevResult").is_some_and(|result| !result.is_null())
    }
}

/// Writes an executable script that is found as the plugin `name`. It is put in place in one step: a plugin
/// that runs meanwhile must not see half of it.
pub fn install_script(node: &Node, name: &str, body: &str) -> Result<()> {
    let path = node.home(&format!("bin/{name}"));
    let fresh = path.with_extension("new");
    fs::write(&fresh, format!("#!/bin/sh\n{body}\n"))
        .and_then(|()| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&fresh, &path))
        .with_context(|| format!("install plugin {name}"))
}

/// Puts a script in podgate's place that notes each call, runs `instead` (shell; `$command` is the verb, `$in`
/// what stood on standard input, `real` runs podgate with it) and shows the runtime its output and exit status.
pub fn wrap_podgate(node: &Node, instead: &str) -> Result<()> {
    let body = format!(
        r#"command=$CNI_COMMAND
in=$(cat)
call={HOME}/calls/$(date +%s%N).$$
env | grep '^CNI_' >"$call.env"
printf '%s' "$in" >"$call.json"
: >"$call.done"
real() {{ printf '%s' "$in" | {HOME}/real/podgate; }}
fail() {{ printf '{{"cniVersion":"1.0.0","code":999,"msg":"%s"}}' "$1"; exit 1; }}
{instead}"#
    );
    install_script(node, "podgate", &body)
}

/// Puts podgate itself back.
pub fn unwrap_podgate(node: &Node) -> Result<()> {
    install_script(node, "podgate", &format!("exec {HOME}/real/podgate"))
}

/// The calls so far, in order.
pub fn calls(node: &Node) -> Result<Vec<Call>> {
    let dir = node.home("calls");
    let mut names: Vec<_> = fs::read_dir(&dir)
        .with_context(|| format!("read {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "done"))
        .collect();
    names.sort();
    names.iter().map(|path| call(path)).collect()
}

fn call(done: &std::path::Path) -> Result<Call> {
    let read = |extension: &str| {
        let path = done.with_extension(extension);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let env: BTreeMap<_, _> = read("env")?
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let stdin = serde_json::from_str(&read("json")?).context("read a recorded stdin")?;
    let verb = env.get("CNI_COMMAND").cloned().unwrap_or_default();
    Ok(Call { verb, env, stdin })
}
