//! Network namespaces, held by descriptor: no names, so that tests cannot meet.

use std::fs::{self, File};
use std::io::Write;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use podgate_link::netns;

/// A network namespace. It ends with its last process, socket and handle.
#[derive(Debug)]
pub struct Net {
    handle: File,
}

impl Net {
    /// A new one, with loopback up and nothing else.
    pub fn new() -> Self {
        let handle = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|e| panic!("make a network namespace: {e} (run as root)"));
            File::open("/proc/thread-self/ns/net")
                .unwrap_or_else(|e| panic!("open the new network namespace: {e}"))
        });
        let net = Self { handle: handle.join().unwrap_or_else(|panic| resume_unwind(panic)) };
        net.ip("link set lo up");
        net
    }

    /// The descriptor, for moving links here.
    pub fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }

    /// Runs `work` inside, on a thread of its own. What it opens there stays there: sockets can be used from
    /// anywhere afterwards.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET)
                    .unwrap_or_else(|e| panic!("enter a network namespace: {e}"));
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs commands of `ip` inside, one per line, all or up to the first that fails.
    #[track_caller]
    pub fn ip(&self, commands: &str) {
        self.iproute2("ip", commands);
    }

    /// Runs commands of `tc` inside.
    #[track_caller]
    pub fn tc(&self, commands: &str) {
        self.iproute2("tc", commands);
    }

    #[track_caller]
    fn iproute2(&self, program: &str, commands: &str) {
        let output = self.run(|| {
            let mut child = Command::new(program)
                .args(["-batch", "-"])
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|e| {
                    panic!("run {program}: {e} (Debian: apt-get install iproute2)")
                });
            if let Some(mut stdin) = child.stdin.take() {
                stdin
                    .write_all(commands.as_bytes())
                    .unwrap_or_else(|e| panic!("tell {program}: {e}"));
            }
            child.wait_with_output().unwrap_or_else(|e| panic!("wait for {program}: {e}"))
        });
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}:\n{commands}\n{}", complaint.trim());
    }

    /// What one command of `ip` prints inside; nothing if it fails.
    pub fn ask_ip(&self, arguments: &str) -> String {
        let output = self.run(|| {
            Command::new("ip")
                .args(arguments.split_whitespace())
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .output()
                .unwrap_or_else(|e| panic!("run ip: {e} (Debian: apt-get install iproute2)"))
        });
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sets a sysctl of the namespace, by its path under `/proc/sys/net`.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        let written = self.run(|| fs::write(&path, value));
        written.unwrap_or_else(|e| panic!("write {value} to {path}: {e}"));
    }

    /// Moves one end of a new veth pair to `other`: `here` and `there` are the names of the two ends.
    #[track_caller]
    pub fn veth(&self, here: &str, other: &Self, there: &str) {
        self.ip(&format!(
            "link add {here} type veth peer name {there} netns {}\nlink set {here} up",
            other.path()
        ));
        other.ip(&format!("link set {there} up"));
    }

    /// The hardware address of an interface, if it has one.
    pub fn mac(&self, interface: &str) -> Option<[u8; 6]> {
        let link = self.run(|| netns::Route::here().and_then(|route| route.link_named(interface)));
        link.unwrap_or_else(|e| panic!("read {interface}: {e}")).and_then(|link| link.mac)
    }

    /// The number of an interface.
    #[track_caller]
    pub fn ifindex(&self, interface: &str) -> u32 {
        let found = self.run(|| nix::net::if_::if_nametoindex(interface));
        found.unwrap_or_else(|e| panic!("number of interface {interface}: {e}"))
    }
}

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}
