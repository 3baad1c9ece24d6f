//! The lab: real namespaces, the real plugin, daemon and datapath, real packets. Needs root.
//!
//! Each lab lives in namespaces of its own, so these tests run beside each other and beside anything else.

// helpers are tests too, which clippy cannot see
#![allow(clippy::unwrap_used)]

mod isolation;
mod online;
mod same_answers;
mod worlds;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// The example worlds.
fn world(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conf/worlds").join(name)
}

/// A program that another crate builds.
fn program(name: &str) -> PathBuf {
    let beside = || Path::new(env!("CARGO_BIN_EXE_podgatectl")).with_file_name(name);
    let path = env::var_os("PODGATE_BIN_DIR").map_or_else(beside, |dir| Path::new(&dir).join(name));
    assert!(
        path.is_file(),
        "no program {}: build it first (cargo build --workspace), or set PODGATE_BIN_DIR",
        path.display()
    );
    path
}

/// The chained plugin.
fn plugin() -> PathBuf {
    program("podgate")
}

/// `podgatectl lab` on a world, without its output yet.
fn lab(manifests: &Path, plugin: &Path) -> Command {
    assert!(geteuid().is_root(), "the lab needs root: run these tests with sudo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_podgatectl"));
    command
        .arg("lab")
        .arg("--manifests")
        .arg(manifests)
        .arg("--plugin")
        .arg(plugin)
        .arg("--policyd")
        .arg(program("policyd"))
        .env("LC_ALL", "C.UTF-8")
        .env_remove("CLICOLOR_FORCE")
        .stdin(Stdio::null());
    command
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A lab that stands until told to end, or until this is dropped.
struct Standing {
    outer: Child,
    // kept open: a lab that cannot write its errors would end
    _stderr: BufReader<ChildStderr>,
    /// The inner process, by its number on the machine.
    inner: Pid,
}

impl Standing {
    fn start(name: &str) -> Self {
        Self::of(&world(name).join("manifests"))
    }

    fn of(manifests: &Path) -> Self {
        let mut command = lab(manifests, &plugin());
        command.arg("--keep").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut outer = command.spawn().unwrap();
        let mut stderr = BufReader::new(outer.stderr.take().unwrap());
        let mut told = String::new();
        let inner = loop {
            let start = told.len();
            assert_ne!(stderr.read_line(&mut told).unwrap(), 0, "the lab ended: {told}");
            if let Some((_, rest)) = told[start..].split_once("nsenter -t ") {
                break rest.split(' ').next().unwrap().parse().unwrap();
            }
        };
        Self { outer, _stderr: stderr, inner: Pid::from_raw(inner) }
    }

    /// A command inside the lab's namespaces.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.inner.to_string(), "-m", "-n", "-p", program]);
        command.env("LC_ALL", "C.UTF-8").env_remove("CLICOLOR_FORCE").stdin(Stdio::null());
        command
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let outer = Pid::from_raw(self.outer.id().try_into().unwrap());
        // it may have ended, and been waited for, by a test's own doing
        if self.outer.try_wait().unwrap().is_none() {
            kill(outer, Signal::SIGTERM).unwrap();
            self.outer.wait().unwrap();
        }
    }
}
