//! The walls of a node: two processes.
//!
//! The outer one makes a PID namespace, starts itself again as that namespace's first process, waits, and when
//! that has ended removes the node's cgroups. The inner one takes mount and network namespaces, mounts what a node
//! needs, says "ready" and from then on only collects dead children. Its standard input is a pipe from the
//! test: when that closes, because the test is done, has panicked or was killed, the inner process exits and
//! the kernel kills everything in its PID namespace (containerd, shims, containers, policyd, plugins); with the
//! last of them go mounts, pins and network namespaces.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::wait;

use super::cgroup;

/// Says to the copy that it is the inner process.
const INNER: &str = "PODGATE_NODE_INNER";

/// In the environment of every process of a node, with the node's cgroup as its value: identifies them.
pub const MARK: &str = "PODGATE_NODE";

/// What the inner process prints, followed by its process id as the test sees it.
pub const READY: &str = "ready ";

/// The node's own directory, in its own /run.
pub const HOME: &str = "/run/node";

/// The whole program.
pub fn main() -> Result<()> {
    if env::var_os(INNER).is_some() { inner() } else { outer() }
}

fn outer() -> Result<()> {
    let parent = env::var(MARK).with_context(|| format!("read {MARK}: the name of the cgroup"))?;
    // before any thread exists: afterwards no thread could be started any more
    unshare(CloneFlags::CLONE_NEWPID).context("make a PID namespace (needs root)")?;
    let status = Command::new("/proc/self/exe")
        .env(INNER, "1")
        .stdin(Stdio::inherit())
        .spawn()
        .and_then(|mut inner| inner.wait())
        .context("run the node's first process")?;
    // the first process is reaped only after everything else in its namespace
    cgroup::remove(&parent)?;
    if status.signal() == Some(Signal::SIGKILL as i32) {
        // ended on request: the exit status says so, no message is needed
        process::exit(1);
    }
    if !status.success() {
        bail!("the node's first process ended with {status}");
    }
    Ok(())
}

fn inner() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("ask to end with the outer process")?;
    // read before the new /proc covers the machine's
    let seen_outside = fs::read_link("/proc/self").context("read own process id")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("make mount and network namespaces")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("make mounts private")?;
    for (kind, target, options) in [
        ("proc", "/proc", None),
        ("tmpfs", "/run", Some("mode=0755")),
        ("tmpfs", "/var/lib", Some("mode=0755")),
        ("bpf", "/sys/fs/bpf", Some("mode=0700")),
    ] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mount {kind} on {target}"))?;
    }
    for dir in ["bin", "conf", "real", "calls", "manifests", "logs"] {
        let path = Path::new(HOME).join(dir);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
    if !up.success() {
        bail!("set lo up: ip ended with {up}");
    }
    println!("{READY}{}", seen_outside.display());
    io::stdout().flush().context("say ready")?;
    thread::spawn(|| {
        // returns only when the other end is closed: nothing is ever written
        let _ = io::stdin().lock().read(&mut [0; 1]);
        process::exit(0);
    });
    loop {
        if wait() == Err(Errno::ECHILD) {
            thread::sleep(Duration::from_millis(20));
        }
    }
}
