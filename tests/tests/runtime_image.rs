//! The container image: the same bytes again, and a containerd that imports and runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use podgate_tests::runtime::holder::HOME;
use podgate_tests::runtime::node::built;
use podgate_tests::runtime::program::said;
use podgate_tests::runtime::{Conflist, Node};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/image.sh");
const NAME: &str = "registry.example:5000/some/podgate:test";

/// Makes the archive of the static binaries that `make build` has left.
fn archive(at: &Path, umask: &str) -> Result<PathBuf> {
    let policyd = built("policyd")?;
    let binaries = policyd.parent().context("its directory")?;
    let archive = at.join("image.tar");
    let output = Command::new("bash")
        .args(["-c", "umask $0; exec \"$@\"", umask, SCRIPT])
        .arg(binaries)
        .arg(NAME)
        .arg(&archive)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .output()
        .context("run bash")?;
    ensure!(output.status.success(), "make the image: {}", said(&output));
    Ok(archive)
}

#[test]
fn the_same_binaries_make_the_same_bytes() -> Result<()> {
    let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let first = fs::read(archive(one.path(), "022")?)?;
    let second = fs::read(archive(two.path(), "077")?)?;
    ensure!(first == second, "they differ");
    Ok(())
}

#[test]
fn containerd_imports_and_runs_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = archive(dir.path(), "022")?;
    let node = Node::start(&Conflist::ungated())?;
    fs::copy(archive, node.home("podgate.tar"))?;
    let ctr = |more: &[&str]| {
        let socket = format!("{HOME}/c.sock");
        let mut arguments = vec!["-a", &socket, "-n", "k8s.io"];
        arguments.extend(more);
        node.run("ctr", &arguments)
    };
    ctr(&["images", "import", &format!("{HOME}/podgate.tar")])?;
    let images = ctr(&["images", "list", "-q"])?;
    ensure!(images.lines().any(|line| line == NAME), "{images}");
    for (name, arguments, told) in [
        ("entrypoint", &["/usr/bin/policyd", "--version"][..], env!("CARGO_PKG_VERSION")),
        ("ctl", &["/usr/bin/podgatectl", "--version"], env!("CARGO_PKG_VERSION")),
        ("kubectl", &["/usr/bin/kubectl-podgate", "--help"], "Usage"),
    ] {
        let cgroup = format!("/{}/{name}", node.mark());
        let mut run = vec!["run", "--rm", "--read-only", "--cgroup", &cgroup, NAME, name];
        run.extend(arguments);
        let said = ctr(&run)?;
        ensure!(said.contains(told), "{name} says {said}");
    }
    node.finish()
}
