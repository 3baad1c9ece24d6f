//! A node: the walls, containerd, and what a test may look at from outside.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use podgate_bpf::maps::Registration;
use podgate_bpf::pins::DEFAULT_BPF_ROOT;
use podgate_bpf::{Datapath, PinRoot};
use podgate_testkit::wait::until;

use super::cgroup;
use super::conflist::Conflist;
use super::cri::Cri;
use super::holder::{HOME, MARK, READY};
use super::image::{self, Image};
use super::program::{self, Daemon};

/// Where Debian has the plugins of containernetworking-plugins.
const CNI_BIN: &str = "/usr/lib/cni";

/// Longest that a busy machine needs to bring containerd up.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest that a busy machine needs to let go of everything in a node, inotify watches above all.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A running node. Dropped, it is gone with everything in it.
#[derive(Debug)]
pub struct Node {
    holder: Child,
    pid: Pid,
    cgroup: String,
    containerd: Option<Daemon>,
}

impl Node {
    /// A node whose containerd has the image and this configuration.
    pub fn start(conflist: &Conflist) -> Result<Self> {
        let mut node = Self::bare()?;
        node.set_conflist(Some(conflist))?;
        node.start_with_image()?;
        Ok(node)
    }

    /// Starts containerd and gives it the image.
    pub fn start_with_image(&mut self) -> Result<()> {
        self.write("image.tar", &image::archive(&Image::BUSYBOX)?)?;
        self.start_containerd()?;
        self.import("image.tar").context("import the image")
    }

    /// Gives containerd the images of an archive in the node's own directory.
    pub fn import(&self, archive: &str) -> Result<()> {
        let socket = format!("{HOME}/c.sock");
        let archive = format!("{HOME}/{archive}");
        self.run("ctr", &["-a", &socket, "-n", "k8s.io", "images", "import", &archive]).map(|_| ())
    }

    /// The walls and the plugins, without a containerd.
    pub fn bare() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // scripts/leftovers.sh knows cgroups of this name
        let cgroup = format!("pgnode-{}-{number}", process::id());
        let mut holder = Command::new(built("podgate-test-node")?)
            .env(MARK, &cgroup)
            // ^C is for the test: the holder notices its end, and then still has the cgroups to remove
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the node's holder")?;
        let mut line = String::new();
        let stdout = holder.stdout.take().context("read from the node's holder")?;
        BufReader::new(stdout).read_line(&mut line).context("read from the node's holder")?;
        let Some(pid) = line.trim().strip_prefix(READY).and_then(|pid| pid.parse().ok()) else {
            drop(holder.stdin.take());
            let _ = holder.wait();
            bail!("start the node's holder: it has not come up (is this root?)");
        };
        let node = Self { holder, pid: Pid::from_raw(pid), cgroup, containerd: None };
        let plugins = fs::read_dir(CNI_BIN).with_context(|| {
            format!("read {CNI_BIN} (Debian: apt-get install containernetworking-plugins)")
        })?;
        for plugin in plugins.flatten() {
            symlink(plugin.path(), node.home("bin").join(plugin.file_name()))?;
        }
        symlink(built("podgate")?, node.home("real/podgate"))?;
        symlink(format!("{HOME}/real/podgate"), node.home("bin/podgate"))?;
        Ok(node)
    }

    /// The node's root directory, from outside.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// A path of the node, from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        // an absolute symlink, which would lead to the machine's own /run
        let inside =
            inside.strip_prefix("/var").filter(|i| i.starts_with("/run")).unwrap_or(inside);
        self.root().join(inside.trim_start_matches('/'))
    }

    /// A path below the node's own directory, from outside.
    pub fn home(&self, name: &str) -> PathBuf {
        self.path(HOME).join(name)
    }

    /// Writes a file in the node's own directory, atomically.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.home(name);
        let fresh = path.with_extension("fresh");
        fs::write(&fresh, content)
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Puts the configuration in place, or takes it away.
    pub fn set_conflist(&self, conflist: Option<&Conflist>) -> Result<()> {
        const FILE: &str = "conf/10-pods.conflist";
        match conflist {
            Some(conflist) => self.write(FILE, conflist.json().to_string().as_bytes()),
            None => fs::remove_file(self.home(FILE)).context("remove the conflist"),
        }
    }

    /// A command that will run in the node.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        program::command(self.pid, program)
    }

    /// Runs a program in the node to its end and returns what it prints; fails unless it succeeds.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, program: &str, arguments: &[S]) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments);
        program::run(command)
    }

    /// Starts a program that goes on; its log is `NAME.log` in the node's own directory.
    pub fn start_daemon(&self, name: &str, command: Command) -> Result<Daemon> {
        Daemon::start(name, command, self.home(&format!("{name}.log")))
    }

    /// Starts containerd, for the first time or again, and waits until CRI answers.
    pub fn start_containerd(&mut self) -> Result<()> {
        self.write("containerd.toml", CONTAINERD.replace("HOME", HOME).as_bytes())?;
        let mut command = self.command("containerd");
        command.args(["-c", &format!("{HOME}/containerd.toml")]);
        let daemon = self.start_daemon("containerd", command)?;
        let ready = until(START_TIMEOUT, || self.cri().is_ok_and(|mut cri| cri.version().is_ok()));
        if !ready {
            bail!("start containerd: it does not answer: {}", daemon.log());
        }
        self.containerd = Some(daemon);
        Ok(())
    }

    /// SIGKILL: its shims and the pods go on.
    pub fn kill_containerd(&mut self) -> Result<()> {
        self.containerd.take().context("kill containerd: it does not run")?.kill()
    }

    /// A new connection to containerd.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.home("c.sock"), &self.cgroup)
    }

    /// The pins.
    pub fn pins(&self) -> PinRoot {
        PinRoot::new(self.path(DEFAULT_BPF_ROOT))
    }

    /// The maps; fails if the programs are not loaded.
    pub fn datapath(&self) -> Result<Datapath> {
        Datapath::open(&self.pins()).context("open the node's gates")
    }

    /// What the plugin has registered; nothing if the programs have never been loaded.
    pub fn registrations(&self) -> Result<Vec<Registration>> {
        match Datapath::open(&self.pins()) {
            Err(podgate_bpf::Error::NotLoaded { .. }) => Ok(Vec::new()),
            datapath => datapath
                .and_then(|datapath| datapath.maps.registrations())
                .context("read registrations"),
        }
    }

    /// The registration of a pod; fails unless there is exactly one.
    pub fn registration(&self, pod: &super::Pod) -> Result<Registration> {
        let all = self.registrations()?;
        let mut of_pod = all.iter().filter(|registration| {
            registration.pod.as_ref().is_some_and(|p| {
                (&p.namespace, &p.name, &p.uid) == (&pod.namespace, &pod.name, &pod.uid)
            })
        });
        match (of_pod.next(), of_pod.next()) {
            (Some(one), None) => Ok(one.clone()),
            _ => bail!("find the one registration of {}/{} in {all:#?}", pod.namespace, pod.name),
        }
    }

    /// The process in one of this node's pods whose command line contains this, its id as the test sees it.
    pub fn pod_process(&self, command: &str) -> Result<i32> {
        let read = |pid: &str, file: &str| {
            fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
        };
        let processes = fs::read_dir("/proc").context("read /proc")?.flatten();
        let mut pids = processes.filter_map(|process| process.file_name().into_string().ok());
        let found = pids.find(|pid| {
            read(pid, "cmdline").replace('\0', " ").contains(command)
                && read(pid, "cgroup").contains(&format!("/{}/", self.cgroup))
        });
        let pid = found.and_then(|pid| pid.parse().ok());
        pid.with_context(|| format!("find the process {command:?}: it does not run"))
    }

    /// Runs `work` on a thread in the node's network namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        in_namespace(Path::new(&format!("/proc/{}/ns/net", self.pid)), work)
    }

    /// Runs `work` on a thread in a network namespace that has a name in the node.
    pub fn inside_pod<T: Send>(&self, netns: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        in_namespace(&self.path(netns), work)
    }

    /// Ends the node and looks whether anything of it is left.
    pub fn finish(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        drop(self.holder.stdin.take());
        let mut status = None;
        until(EXIT_TIMEOUT, || {
            status = self.holder.try_wait().ok().flatten();
            status.is_some()
        });
        if status.is_none() {
            // its first process ends with it, and everything else with that one
            let _ = self.holder.kill();
            let _ = self.holder.wait();
        }
        drop(self.containerd.take());
        let removed = cgroup::remove(&self.cgroup);
        let left = processes_of(&self.cgroup);
        removed?;
        if !left.is_empty() {
            bail!("end node {}: these processes are left: {left:?}", self.cgroup);
        }
        match status {
            Some(status) if status.success() => Ok(()),
            other => bail!("end node {}: its holder ended with {other:?}", self.cgroup),
        }
    }

    /// The name of the node's cgroup and the mark of its processes.
    pub fn mark(&self) -> &str {
        &self.cgroup
    }

    /// The process id of the node's first process.
    pub fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            for name in ["containerd.log", "policyd.log"] {
                let log = fs::read_to_string(self.home(name)).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(60)..].join("\n");
                eprintln!("---- the end of {name} of {}\n{tail}", self.cgroup);
            }
        }
        if self.holder.stdin.is_some()
            && let Err(error) = self.end()
        {
            eprintln!("{error:#}");
        }
    }
}

/// Processes, command line by command line, that carry a node's mark.
pub fn processes_of(mark: &str) -> Vec<String> {
    let wanted = format!("{MARK}={mark}");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|process| {
            let environment = fs::read(process.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
        })
        .map(|process| {
            let command = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            format!("{} {}", process.file_name().display(), command.replace('\0', " "))
        })
        .collect()
}

/// A program of the workspace: in PODGATE_BIN_DIR, or built beside this test.
pub fn built(name: &str) -> Result<PathBuf> {
    let exe = env::current_exe().context("find this test's own file")?;
    let beside = exe.ancestors().skip(1).take(2).map(Path::to_path_buf);
    let given = env::var_os("PODGATE_BIN_DIR").map(PathBuf::from);
    let mut places = given.into_iter().chain(beside).map(|dir| dir.join(name));
    places.find(|path| path.is_file()).with_context(|| {
        format!(
            "find the program {name}: neither in PODGATE_BIN_DIR nor beside {} (make test-runtime builds it; \
             or: cargo build -p podgate-cni -p policyd)",
            exe.display()
        )
    })
}

/// A thread that goes into the namespace for good and then ends.
pub fn in_namespace<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let entered = thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter {}", path.display()))?;
                Ok(work())
            })
            .join()
    });
    entered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Everything on the node's own /run. The namespaces of pods and the shims' sockets are where they always are.
const CONTAINERD: &str = r#"
version = 2
root = "HOME/root"
state = "HOME/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "HOME/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "podgate.local/busybox:1"
  # a root without CAP_SYS_RESOURCE may not lower the score: runc would fail to start any container
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "HOME/bin"
    conf_dir = "HOME/conf"
"#;
