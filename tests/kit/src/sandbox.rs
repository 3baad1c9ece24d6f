//! Namespaces of its own for a whole test binary, so that no test touches the machine it runs on.
//!
//! A namespace belongs to a thread, and libtest starts its threads before any code of ours runs. So a binary
//! that needs the sandbox has `harness = false` and this `main`:
//!
//! ```ignore
//! fn main() -> std::process::ExitCode {
//!     sandbox::run(|| vec![Trial::test("name", || Ok(()))])
//! }
//! ```
//!
//! Everything in it (devices, qdiscs, pins) goes with the process.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};

use libtest_mimic::{Arguments, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where the sandbox has its BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Runs the trials on threads that are all in one new mount and one new network namespace. Where those cannot
/// be had nothing runs and the binary fails.
pub fn run(trials: impl FnOnce() -> Vec<Trial>) -> ExitCode {
    let arguments = Arguments::from_args();
    if !arguments.list
        && let Err(reason) = enter()
    {
        eprintln!("enter a sandbox: {reason}");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, trials()).exit_code()
}

/// A test that fails by panicking, as `#[test]` functions do.
pub fn trial(name: impl Into<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// Moves the calling thread, which must be the process's only one, into new namespaces.
fn enter() -> Result<(), String> {
    enter_namespaces()?;
    mount_bpffs(Path::new(BPFFS))?;
    // libtest-mimic's threads come later; this child inherits the namespaces like they do.
    ip("link set lo up")
}

/// Moves the calling thread into a new mount and a new network namespace; no mount made there is seen outside.
pub fn enter_namespaces() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(|e| format!("unshare mount and network namespaces: {e} (run as root)"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|e| format!("make mounts private: {e}"))
}

/// Mounts a BPF file system at a directory that is there.
pub fn mount_bpffs(at: &Path) -> Result<(), String> {
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|e| format!("mount a BPF file system at {}: {e}", at.display()))
}

/// A directory for pins that no other test of this binary uses; not made yet.
pub fn pin_dir() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    Path::new(BPFFS).join(format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Runs `ip`, its arguments separated by blanks.
pub fn ip(arguments: &str) -> Result<(), String> {
    command("ip", arguments)
}

/// Runs a command of iproute2, its arguments separated by blanks.
pub fn command(program: &str, arguments: &str) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|e| format!("run {program}: {e} (Debian: apt-get install iproute2)"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// A veth pair: `host` is the end for a gate, `pod` the other, in the same namespace.
#[derive(Debug)]
pub struct Veth {
    /// Name of the gated end.
    pub host: String,
    /// Number of the gated end.
    pub ifindex: u32,
    /// Name of the other end.
    pub pod: String,
}

impl Veth {
    /// Makes a pair with names of its own, up.
    pub fn new() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (host, pod) = (format!("host{number}"), format!("pod{number}"));
        ip(&format!("link add {host} type veth peer name {pod}"))?;
        ip(&format!("link set {host} up"))?;
        ip(&format!("link set {pod} up"))?;
        let ifindex = nix::net::if_::if_nametoindex(host.as_str())
            .map_err(|e| format!("number of interface {host}: {e}"))?;
        Ok(Self { host, ifindex, pod })
    }

    /// Deletes the pair.
    pub fn delete(&self) -> Result<(), String> {
        ip(&format!("link del {}", self.host))
    }
}
