//! Tools in Go that tests use, built by the machine's Go from modules of ours that name their versions.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::runtime::program::said;

/// Builds packages of a module into the target directory, which is quick when that has been done; returns where
/// they are.
pub fn go_tools(module: &str, packages: &[&str]) -> Result<PathBuf> {
    go_tools_at(module, None, packages)
}

/// The same with the versions that another file beside `go.mod` names, into a directory of that name.
pub fn go_tools_at(module: &str, versions: Option<&str>, packages: &[&str]) -> Result<PathBuf> {
    let exe = env::current_exe().context("find this test's own file")?;
    // TARGET/debug/deps/test
    let mut tools = exe.ancestors().nth(3).context("find the target directory")?.join("tools");
    tools.extend(versions);
    fs::create_dir_all(&tools).with_context(|| format!("create {}", tools.display()))?;
    // where Go's own installation puts it, which is not in everybody's PATH
    let go = Path::new("/usr/local/go/bin/go");
    let go = if go.is_file() { go } else { Path::new("go") };
    // `-trimpath` as everywhere here: packages that two modules share are compiled once
    let output = Command::new(go)
        .args(["build", "-C", module, "-mod=readonly", "-trimpath"])
        .args(versions.map(|file| format!("-modfile={file}")))
        .arg("-o")
        .arg(&tools)
        .args(packages)
        .env("CGO_ENABLED", "0")
        .output()
        .context("run go (the tests' tools are built with it: make setup says which it must be)")?;
    if !output.status.success() {
        bail!("build {}: {}", packages.join(" and "), said(&output));
    }
    Ok(tools)
}
