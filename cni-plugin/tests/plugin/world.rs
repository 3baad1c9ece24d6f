//! A world per test: nothing of it is visible outside, nothing of it is left.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use podgate_bpf::maps::Registration;
use podgate_bpf::{Datapath, PinRoot};
use podgate_testkit::sandbox::{enter_namespaces, mount_bpffs};
use serde_json::{Value, json};

const PLUGINS: &str = "/usr/lib/cni";
const PODGATE: &str = env!("CARGO_BIN_EXE_podgate");

/// A node: its network namespace, bpffs and directories.
pub(crate) struct World {
    dir: tempfile::TempDir,
}

/// Runs a test in a world of its own. On a thread of its own too: namespaces belong to threads.
pub(crate) fn in_world(test: impl FnOnce(&World) + Send) {
    let result = std::thread::scope(|scope| scope.spawn(|| test(&World::new())).join());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

impl World {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "needs root: namespaces and BPF");
        for plugin in ["bridge", "host-local"] {
            let path = Path::new(PLUGINS).join(plugin);
            assert!(
                path.exists(),
                "needs {} (Debian: containernetworking-plugins)",
                path.display()
            );
        }
        enter_namespaces().expect("enter namespaces of its own");
        let world = Self { dir: tempfile::tempdir().expect("make directory") };
        for name in ["bpf", "ns", "ipam"] {
            fs::create_dir(world.path(name)).expect("make directory");
        }
        mount_bpffs(&world.path("bpf")).expect("mount bpffs");
        run("ip", &["link", "set", "lo", "up"]);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("cni.sock")
    }

    pub(crate) fn pins(&self) -> PinRoot {
        PinRoot::new(self.path("bpf/podgate"))
    }

    /// Makes the world's bpffs the one of `/sys/fs/bpf`, in this mount namespace.
    pub(crate) fn pins_at_the_default_place(&self) {
        let none: Option<&str> = None;
        mount(Some(&self.path("bpf")), "/sys/fs/bpf", none, MsFlags::MS_BIND, none)
            .expect("bind the world's bpffs");
    }

    /// What is pinned; fails the test if nothing is.
    pub(crate) fn datapath(&self) -> Datapath {
        Datapath::open(&self.pins()).expect("open gate")
    }

    pub(crate) fn registrations(&self) -> Vec<Registration> {
        self.datapath().maps.registrations().expect("read registrations")
    }

    /// No registration, no program at any interface, no link pin.
    pub(crate) fn assert_nothing_stands(&self) {
        assert_eq!(self.registrations(), [], "registrations are left");
        let datapath = self.datapath();
        for ifindex in 1..64 {
            assert!(datapath.verify(ifindex).is_err(), "interface {ifindex} still has its gate");
        }
        let links = fs::read_dir(self.pins().dir().join("links")).expect("read links").count();
        assert_eq!(links, 0, "link pins are left");
        for name in links_here() {
            for hook in ["ingress", "egress"] {
                let shown = run("tc", &["filter", "show", "dev", &name, hook]);
                assert_eq!(shown.trim(), "", "filters are left at {name} {hook}");
            }
        }
    }

    /// An empty pod: a network namespace.
    pub(crate) fn pod(&self, name: &str) -> Pod<'_> {
        let netns = self.path("ns").join(name);
        fs::File::create(&netns).expect("create file");
        let at = netns.clone();
        // on a thread, which ends: this one stays in the world's namespace
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            let none: Option<&str> = None;
            mount(Some("/proc/thread-self/ns/net"), &at, none, MsFlags::MS_BIND, none)
                .expect("bind namespace");
        });
        made.join().expect("make namespace");
        Pod { world: self, name: name.into(), ifname: "eth0".into(), netns, prev: json!({}) }
    }

    /// A pod with an interface by the bridge plugin.
    pub(crate) fn bridged(&self, name: &str) -> Pod<'_> {
        let mut pod = self.pod(name);
        pod.prev = pod.bridge("eth0", "1.0.0");
        pod
    }

    /// podgate's configuration; `keys` are merged in, `null` takes one out.
    pub(crate) fn conf(&self, version: &str, keys: Value) -> Value {
        let mut conf = json!({
            "cniVersion": version, "name": "pods", "type": "podgate",
            "bpfRoot": self.path("bpf/podgate"), "socket": self.socket(),
        });
        for (key, value) in keys.as_object().expect("object") {
            conf[key] = value.clone();
        }
        conf
    }

    /// Runs a verb that is about no pod.
    pub(crate) fn call(&self, verb: &str, conf: &Value) -> Done {
        finish(start(PODGATE, &[("CNI_COMMAND", verb), ("CNI_PATH", PLUGINS)], &conf.to_string()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // the directory can only go once nothing is mounted in it
        for netns in fs::read_dir(self.path("ns")).into_iter().flatten().flatten() {
            let _ = umount2(&netns.path(), MntFlags::MNT_DETACH);
        }
        let _ = umount2(&self.path("bpf"), MntFlags::MNT_DETACH);
    }
}

/// A pod, also a container of it, and what the plugins before podgate made.
pub(crate) struct Pod<'w> {
    pub(crate) world: &'w World,
    pub(crate) name: String,
    pub(crate) ifname: String,
    pub(crate) netns: PathBuf,
    pub(crate) prev: Value,
}

impl Pod<'_> {
    fn env(&self, verb: &str) -> Vec<(&'static str, String)> {
        vec![
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", format!("container-{}", self.name)),
            ("CNI_NETNS", self.netns.display().to_string()),
            ("CNI_IFNAME", self.ifname.clone()),
            ("CNI_PATH", PLUGINS.into()),
            (
                "CNI_ARGS",
                format!(
                    "K8S_POD_UID=uid-{0};IgnoreUnknown=1;K8S_POD_NAME={0};K8S_POD_NAMESPACE=default",
                    self.name
                ),
            ),
        ]
    }

    /// The real bridge plugin's ADD for an interface of this pod.
    pub(crate) fn bridge(&self, ifname: &str, version: &str) -> Value {
        let conf = json!({
            "cniVersion": version, "name": "pods", "type": "bridge",
            "bridge": "br0", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": self.world.path("ipam"),
                      "ranges": [[{ "subnet": "10.77.0.0/24" }]] },
        });
        let mut env = self.env("ADD");
        env[3].1 = ifname.into();
        let done = finish(start(&format!("{PLUGINS}/bridge"), &env, &conf.to_string()));
        done.succeeded();
        done.json()
    }

    /// Starts podgate on this pod, chained behind `prev`.
    pub(crate) fn start(&self, verb: &str, keys: Value) -> Child {
        let version = self.prev["cniVersion"].as_str().unwrap_or("1.0.0").to_owned();
        let mut conf = self.world.conf(&version, keys);
        if conf.get("prevResult").is_none() {
            conf["prevResult"] = self.prev.clone();
        }
        start(PODGATE, &self.env(verb), &conf.to_string())
    }

    pub(crate) fn call(&self, verb: &str, keys: Value) -> Done {
        finish(self.start(verb, keys))
    }

    /// DEL as runtimes repeat it: no namespace, no result.
    pub(crate) fn bare_del(&self) -> Done {
        self.del_with(&self.world.conf("1.0.0", json!({})).to_string())
    }

    /// The same with any text for a configuration.
    pub(crate) fn del_with(&self, stdin: &str) -> Done {
        let mut env = self.env("DEL");
        env[2].1.clear();
        finish(start(PODGATE, &env, stdin))
    }

    /// Starts podgate with a configuration whose end never comes, as long as the second is kept.
    pub(crate) fn start_open_ended(&self, verb: &str, stdin: &str) -> (Child, ChildStdin) {
        start_open(PODGATE, &self.env(verb), stdin)
    }

    /// Runs a program in the pod.
    pub(crate) fn run(&self, command: &[&str]) -> Output {
        Command::new("nsenter")
            .arg(format!("--net={}", self.netns.display()))
            .args(command)
            .output()
            .expect("run nsenter (Debian: util-linux)")
    }

    /// Runs something while a process lives in the pod: `ip link set NAME netns` wants its number.
    pub(crate) fn with_pid<T>(&self, body: impl FnOnce(&str) -> T) -> T {
        struct Holder(Child);
        impl Drop for Holder {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
        let holder = Command::new("nsenter")
            .arg(format!("--net={}", self.netns.display()))
            .args(["sleep", "60"])
            .spawn();
        let holder = Holder(holder.expect("run nsenter (Debian: util-linux)"));
        let namespace =
            |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).expect("namespace");
        let pid = holder.0.id().to_string();
        while namespace(&pid) == namespace("thread-self") {
            std::thread::sleep(Duration::from_millis(1));
        }
        body(&pid)
    }

    /// Whether an answer comes, however slow the machine.
    pub(crate) fn reaches(&self, address: IpAddr) -> bool {
        ping(self.run(&["ping", "-c1", "-W10", &address.to_string()]))
    }

    /// Whether no answer comes in a second.
    pub(crate) fn misses(&self, address: IpAddr) -> bool {
        !ping(self.run(&["ping", "-c1", "-W1", &address.to_string()]))
    }

    /// The address of its only interface.
    pub(crate) fn address(&self) -> IpAddr {
        let text = self.prev["ips"][0]["address"].as_str().expect("address");
        text.split('/').next().expect("address").parse().expect("address")
    }

    /// Its registrations, by interface index.
    pub(crate) fn registrations(&self) -> Vec<Registration> {
        let container = format!("container-{}", self.name);
        let mut found = self.world.registrations();
        found.retain(|r| r.container_id == container);
        found.sort_by_key(|r| r.ifindex);
        found
    }
}

/// Whether the node reaches an address.
pub(crate) fn node_reaches(address: IpAddr) -> bool {
    ping(
        Command::new("ping")
            .args(["-c1", "-W10", &address.to_string()])
            .output()
            .expect("run ping"),
    )
}

fn ping(output: Output) -> bool {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 packets transmitted"), "ping did not run: {output:?}");
    output.status.success()
}

/// Names of the interfaces of this thread's namespace.
pub(crate) fn links_here() -> Vec<String> {
    let shown: Value = serde_json::from_str(&run("ip", &["-j", "link"])).expect("ip -j");
    let name = |link: &Value| link["ifname"].as_str().expect("name").to_owned();
    shown.as_array().expect("list").iter().map(name).collect()
}

/// Runs a tool that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|e| panic!("run {program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Starts a plugin and hands it its configuration.
pub(crate) fn start<K: AsRef<str>, V: AsRef<str>>(
    program: &str,
    env: &[(K, V)],
    stdin: &str,
) -> Child {
    start_open(program, env, stdin).0
}

/// The same, with stdin still open.
fn start_open<K: AsRef<str>, V: AsRef<str>>(
    program: &str,
    env: &[(K, V)],
    stdin: &str,
) -> (Child, ChildStdin) {
    let mut child = Command::new(program)
        .env_clear()
        .envs(env.iter().map(|(k, v)| (k.as_ref(), v.as_ref())))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("start {program}: {e}"));
    let mut pipe = child.stdin.take().expect("stdin");
    // a plugin that refuses its environment may end without reading
    let _ = pipe.write_all(stdin.as_bytes());
    (child, pipe)
}

/// A plugin that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

pub(crate) fn finish(child: Child) -> Done {
    let started = Instant::now();
    let output = child.wait_with_output().expect("wait");
    Done {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
        took: started.elapsed(),
    }
}

impl Done {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn succeeded(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Failed as the protocol wants it, with this code and all of these words.
    #[track_caller]
    pub(crate) fn failed(&self, code: u32, words: &[&str]) -> &Self {
        assert_eq!(self.code, Some(1), "{self:?}");
        let json = self.json();
        assert_eq!(json["code"], code, "{self:?}");
        for word in words {
            assert!(self.stdout.contains(word), "no {word:?}: {self:?}");
        }
        self
    }

    #[track_caller]
    pub(crate) fn logged(&self, word: &str) -> &Self {
        assert!(self.stderr.contains(word), "no {word:?} in the log: {self:?}");
        self
    }
}
