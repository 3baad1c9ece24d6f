//! The programs of Kubernetes that a cluster runs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::runtime::Node;

/// Where a program of the cluster is: in PODGATE_CLUSTER_BIN, or in `cluster` of the target directory.
pub fn path(name: &str) -> Result<PathBuf> {
    let exe = env::current_exe().context("find this test's own file")?;
    let given = env::var_os("PODGATE_CLUSTER_BIN").map(PathBuf::from);
    let beside = exe.ancestors().map(|dir| dir.join("cluster"));
    let mut places = given.into_iter().chain(beside).map(|dir| dir.join(name));
    places.find(|path| path.is_file()).with_context(|| {
        format!(
            "find the program {name}: neither in PODGATE_CLUSTER_BIN nor in the target directory \
             (scripts/cluster-programs.sh builds it; make test-cluster does that for you)"
        )
    })
}

/// A command in a node that will be this program with these arguments.
pub fn command<S: AsRef<str>>(node: &Node, name: &str, arguments: &[S]) -> Result<Command> {
    let mut command = node.command(path(name)?);
    command.args(arguments.iter().map(AsRef::as_ref)).env("HOME", Path::new("/root"));
    // two processors, seven programs: more collection at once than there are processors only costs
    command.env("GOGC", "200");
    Ok(command)
}
