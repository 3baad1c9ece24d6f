//! Programs that run inside a node.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podgate_testkit::wait::{until, until_some};

/// `nsenter` into all of the node's namespaces, ready for the program's name and arguments. It stays outside
/// as the program's parent: what it starts is in the node's PID namespace.
pub(super) fn command(node: Pid, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &node.to_string(), "--mount", "--net", "--pid", "--"])
        .arg(program.as_ref())
        // what CNI plugins call (ip, iptables) is not in everybody's PATH
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    command
}

/// Runs to the end; fails unless it succeeds.
pub fn run(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, said(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How long a program may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Both of its streams, for a message.
pub fn said(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    text.join(" ").trim().to_owned()
}

/// A program that runs until it is ended. It is killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    nsenter: Child,
    pid: Pid,
    log: PathBuf,
}

impl Daemon {
    /// Starts it; `log` takes both of its streams, after what is there.
    pub(super) fn start(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let mut nsenter = command
            .stdout(file.try_clone().context("share a log")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let id = nsenter.id();
        let children = PathBuf::from(format!("/proc/{id}/task/{id}/children"));
        // nsenter forks once: that child becomes the program
        let pid = until_some(EXIT_TIMEOUT, || {
            fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()
        });
        let Some(pid) = pid else {
            let _ = nsenter.kill();
            let _ = nsenter.wait();
            let told = fs::read_to_string(&log).unwrap_or_default();
            bail!("start {name}: it has not come up: {told}");
        };
        Ok(Self { name: name.to_owned(), nsenter, pid: Pid::from_raw(pid), log })
    }

    /// Its process id as the test sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// All it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.nsenter.try_wait(), Ok(None))
    }

    /// Stops it where it is, without its knowing.
    pub fn freeze(&self) -> Result<()> {
        // nsenter notices, and stops too
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        let nsenter = Pid::from_raw(self.nsenter.id().cast_signed());
        kill(nsenter, Signal::SIGCONT).context("thaw nsenter")?;
        self.signal(Signal::SIGCONT)
    }

    /// SIGKILL, and waits until not one of its threads runs code of its own any more. On a busy machine the kernel
    /// may need long to let go of the rest, its inotify watches above all: that goes on by itself.
    pub fn kill(mut self) -> Result<()> {
        if self.is_running() {
            self.signal(Signal::SIGKILL)?;
        }
        if until(EXIT_TIMEOUT, || is_exiting(self.pid)) {
            return Ok(());
        }
        bail!("kill {}: it still runs:\n{}{}", self.name, where_it_is(self.pid), self.log())
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        if self.is_running() {
            self.signal(Signal::SIGTERM)?;
        }
        let status = until_some(EXIT_TIMEOUT, || self.nsenter.try_wait().ok().flatten());
        status.with_context(|| {
            format!("end {}: it still runs:\n{}{}", self.name, where_it_is(self.pid), self.log())
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid, signal).with_context(|| format!("send {signal} to {}", self.name))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.signal(Signal::SIGKILL);
            // it may be stopped along with a frozen program, or wait for one that the kernel has not let go of
            let _ = self.nsenter.kill();
        }
        let _ = self.nsenter.wait();
    }
}

/// Whether each thread has a fatal signal pending and will run no more code outside the kernel.
fn is_exiting(pid: Pid) -> bool {
    const PF_EXITING: u64 = 0x4;
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // after the name, which may hold anything: state ppid pgrp session tty tpgid flags
        let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6));
        flags.and_then(|flags| flags.parse::<u64>().ok()).is_none_or(|f| f & PF_EXITING != 0)
    })
}

/// What each thread of a process waits for.
fn where_it_is(pid: Pid) -> String {
    let mut told = String::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        told += &format!("thread {}{}", read("stat"), read("stack"));
    }
    told
}
