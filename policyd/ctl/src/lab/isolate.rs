//! The lab's isolation: everything it makes lives in namespaces that end with it.
//!
//! Two processes. The outer one makes a PID namespace, starts this program again as its first process
//! and waits. The inner one takes a mount and a network namespace of its own, so pins, pod namespaces,
//! sockets and interfaces exist nowhere else, and the lab cleans nothing up: when the inner process
//! ends, however it ends, the kernel kills every other process of the PID namespace (policyd, plugins),
//! and with the last of them go the mounts, bpffs with its pins, and the network namespaces.
//! A PID namespace rather than a parent-death signal per child, because that signal is not inherited by
//! grandchildren (a plugin's IPAM plugin) and does not survive a child's exec of a setuid program.
//!
//! The inner process must also end when the outer one is killed. Its standard input is a pipe whose
//! other end only the outer process holds; end of file there means "the outer one is gone".

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;

use super::error::{Error, Result};

/// Says to the started copy that it is the inner process.
const INNER: &str = "PODGATE_LAB_INNER";

/// Exit status when the lab itself failed.
const BROKEN: u8 = 2;

/// Signals by which a user or a shell ends a program.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Where a lab keeps what it needs, inside its own /run.
pub(crate) const STATE: &str = "/run/podgate-lab";

/// Whether this process is the inner one.
pub(crate) fn is_inner() -> bool {
    process::id() == 1 && env::var_os(INNER).is_some()
}

/// The outer process: runs this program with the same arguments in the lab's namespaces, and returns its exit status.
///
/// Must be called before any thread exists: a thread cannot be started any more once the PID namespace
/// of the children differs from one's own.
pub(crate) fn run_inner() -> Result<u8> {
    if !geteuid().is_root() {
        return Err(Error::Missing {
            what: "build a lab: not root".into(),
            hint: "namespaces and BPF need it; run the same command with sudo".into(),
        });
    }
    unshare(CloneFlags::CLONE_NEWPID).map_err(|e| Error::Missing {
        what: format!("make a PID namespace: {e}"),
        hint: "the lab needs CAP_SYS_ADMIN; in a container, run it privileged".into(),
    })?;
    // the signals that would end this process are taken up one by one instead: it must outlive the lab,
    // so that who waits for it finds nothing of the lab left
    let mut signals = SigSet::empty();
    ENDING.into_iter().chain([Signal::SIGCHLD]).for_each(|signal| signals.add(signal));
    signals.thread_block().map_err(|e| Error::io("block", "signals", e))?;

    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("podgatectl"));
    let program = env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let mut inner = Command::new(program)
        .arg0(name)
        .args(arguments)
        .env(INNER, "1")
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|e| Error::io("start", "the lab's inner process", e))?;
    // `wait` closes our end of the pipe first, which is the sign that it is over
    let waited = |e| Error::io("wait for", "the lab's inner process", e);
    loop {
        let signal = signals.wait().map_err(|e| waited(e.into()))?;
        if signal != Signal::SIGCHLD {
            inner.wait().map_err(waited)?;
            return Ok(128 + u8::try_from(signal as i32).unwrap_or_default());
        }
        if let Some(status) = inner.try_wait().map_err(waited)? {
            return match (status.code(), status.signal()) {
                (Some(code), _) => Ok(u8::try_from(code).unwrap_or(BROKEN)),
                (None, signal) => {
                    let killed = io::Error::other(format!("killed by signal {signal:?}"));
                    Err(Error::io("run", "the lab", killed))
                }
            };
        }
    }
}

/// Files and directories of the machine that the lab needs in its mount namespace, by the path they get there.
#[derive(Debug, Default)]
pub(crate) struct BindMounts {
    items: Vec<(PathBuf, PathBuf)>,
}

impl BindMounts {
    /// Brings `outside` (which may well be under /run) in as `STATE/name`; returns that path.
    pub(crate) fn bring(&mut self, outside: &Path, name: &str) -> PathBuf {
        let inside = Path::new(STATE).join(name);
        self.items.push((outside.to_path_buf(), inside.clone()));
        inside
    }
}

/// What the inner process knows about the machine.
#[derive(Debug)]
pub(crate) struct Isolation {
    /// Its process id on the machine: `nsenter -t PID -m -n` gets in.
    pub host_pid: u32,
}

/// The inner process: makes its mount and network namespace. Call before any thread or runtime exists.
pub(crate) fn enter(mounts: &BindMounts) -> Result<Isolation> {
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|e| Error::io("ask for", "a signal when the outer process ends", e))?;
    let host_pid = fs::read_link("/proc/self")
        .ok()
        .and_then(|link| link.to_str().and_then(|text| text.parse().ok()))
        .unwrap_or_default();
    raise_open_files()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(|e| Error::io("make", "a mount and a network namespace", e))?;
    let none: Option<&Path> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(|e| Error::io("make private", "/", e))?;
    // after the namespace is made (one cannot bind from another one's mounts), before /run is covered
    let held = mounts
        .items
        .iter()
        .map(|(outside, inside)| {
            File::open(outside)
                .map(|file| (file, outside, inside))
                .map_err(|e| Error::io("open", outside.display().to_string(), e))
        })
        .collect::<Result<Vec<_>>>()?;
    mount_new("proc", Path::new("/proc"), None)?;
    mount_new("tmpfs", Path::new("/run"), Some("mode=0755"))?;
    mount_new("bpf", Path::new("/sys/fs/bpf"), Some("mode=0700"))?;
    // nothing of the lab may appear among the machine's own CNI results
    let cni = Path::new("/var/lib/cni");
    if cni.is_dir() {
        mount_new("tmpfs", cni, Some("mode=0755"))?;
    }
    for (file, outside, inside) in &held {
        bind(file, outside, inside)?;
    }
    thread::spawn(|| {
        // the read returns only when the other end is closed: nothing is ever written
        let _ = io::stdin().lock().read(&mut [0; 1]);
        process::exit(i32::from(BROKEN));
    });
    Ok(Isolation { host_pid })
}

/// Every listener and every probe in flight holds a file.
fn raise_open_files() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|e| Error::io("read", "the limit of open files", e))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|e| Error::io("raise", "the limit of open files", e))?;
    }
    Ok(())
}

fn mount_new(kind: &str, target: &Path, options: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), options)
        .map_err(|e| Error::io("mount", format!("{kind} on {}", target.display()), e))
}

fn bind(file: &File, outside: &Path, inside: &Path) -> Result<()> {
    let shown = || format!("{} as {}", outside.display(), inside.display());
    let is_dir = file.metadata().map_err(|e| Error::io("examine", shown(), e))?.is_dir();
    if let Some(parent) = inside.parent() {
        fs::create_dir_all(parent).map_err(|e| Error::io("create", shown(), e))?;
    }
    if is_dir {
        fs::create_dir_all(inside).map_err(|e| Error::io("create", shown(), e))?;
    } else {
        let made = OpenOptions::new().create(true).truncate(false).write(true).open(inside);
        made.map_err(|e| Error::io("create", shown(), e))?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let none: Option<&Path> = None;
    mount(Some(&source), inside, none, MsFlags::MS_BIND, none)
        .map_err(|e| Error::io("bring in", shown(), e))
}
