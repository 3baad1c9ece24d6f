//! A node of one test: namespaces, pins, sockets and manifests of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podgate_bpf::abi::{Direction, PolicyKey, Startup};
use podgate_bpf::loader::Sizes;
use podgate_bpf::maps::{Maps, PodRef, Registration};
use podgate_bpf::{Datapath, PinRoot};
use podgate_contract::handshake::{EndpointRef, Request, Response};
use podgate_testkit::sandbox::{enter_namespaces, mount_bpffs};
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use policyd::encode;
use serde_json::Value;

/// Runs a test on a node of its own. The namespaces belong to a thread made for the test and to what it starts;
/// with the last of them go the pins, the links and the mounts.
pub(crate) fn on_a_node(test: impl FnOnce(&Node) + Send) {
    let sizes = Sizes { flows4: 1024, flows6: 1024, frags: 64, ..Sizes::default() };
    on_a_node_of(&sizes, test);
}

/// The same, with maps of these sizes.
pub(crate) fn on_a_node_of(sizes: &Sizes, test: impl FnOnce(&Node) + Send) {
    on_a_node_with(sizes, PinRoot::new, test);
}

/// A node whose pins are where another layout has them; `policyd` uses this layout nevertheless.
pub(crate) fn on_another_layout(test: impl FnOnce(&Node) + Send) {
    let sizes = Sizes { flows4: 65_536, flows6: 1024, frags: 64, ..Sizes::default() };
    on_a_node_with(&sizes, |bpf| PinRoot::of_layout(bpf, 77), test);
}

fn on_a_node_with(
    sizes: &Sizes,
    root: impl FnOnce(PathBuf) -> PinRoot + Send,
    test: impl FnOnce(&Node) + Send,
) {
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            let node = Node::new(sizes, root);
            test(&node);
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub(crate) struct Node {
    dir: tempfile::TempDir,
    pub(crate) root: PinRoot,
    pub(crate) datapath: Datapath,
    next_owner: AtomicU32,
}

impl Node {
    fn new(sizes: &Sizes, root: impl FnOnce(PathBuf) -> PinRoot) -> Self {
        enter_namespaces().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bpf = dir.path().join("bpf");
        std::fs::create_dir(&bpf).unwrap();
        mount_bpffs(&bpf).unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        ip("link set lo up");
        let root = root(bpf.join("podgate"));
        let datapath = Datapath::open_or_load(&root, sizes).expect("load the programs");
        Self { dir, root, datapath, next_owner: AtomicU32::new(0x1001) }
    }

    pub(crate) fn maps(&self) -> &Maps {
        &self.datapath.maps
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a manifest, as an editor that replaces the file does.
    pub(crate) fn manifest(&self, file: &str, text: &str) {
        let new = self.path("manifests").join(".new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path("manifests").join(file)).unwrap();
    }

    /// A link and its registration, as the plugin leaves them: `pod` is `namespace/name`.
    pub(crate) fn endpoint(&self, pod: &str, address: &str) -> Registration {
        let (namespace, name) = pod.split_once('/').unwrap();
        let owner = self.next_owner.fetch_add(1, Ordering::Relaxed);
        let link = format!("d{owner:x}");
        ip(&format!("link add {link} type veth peer name {link}p"));
        let registration = Registration {
            ifindex: nix::net::if_::if_nametoindex(link.as_str()).unwrap(),
            owner,
            startup: Startup::Hold,
            anti_spoofing: true,
            addresses: vec![address.parse::<IpAddr>().unwrap()],
            mac: None,
            netns_cookie: 1,
            container_id: format!("c{owner}"),
            interface: "eth0".into(),
            host_interface: link,
            network: "test".into(),
            pod: Some(PodRef {
                namespace: namespace.into(),
                name: name.into(),
                uid: String::new(),
            }),
            netns: "/run/netns/none".into(),
        };
        self.maps().register(&registration).unwrap();
        registration
    }

    /// Starts the real policyd over the manifests.
    pub(crate) fn policyd(&self) -> Policyd {
        self.policyd_with(&[])
    }

    pub(crate) fn policyd_with(&self, more: &[&str]) -> Policyd {
        self.policyd_by(&[env!("CARGO_BIN_EXE_policyd")], more)
    }

    /// Started by another program, to which policyd is an argument.
    pub(crate) fn policyd_by(&self, program: &[&str], more: &[&str]) -> Policyd {
        let manifests = format!("dir:{}", self.path("manifests").display());
        self.start(program, &manifests, more)
    }

    /// Over another source.
    pub(crate) fn policyd_of(&self, source: &str, more: &[&str]) -> Policyd {
        self.start(&[env!("CARGO_BIN_EXE_policyd")], source, more)
    }

    fn start(&self, program: &[&str], source: &str, more: &[&str]) -> Policyd {
        let mut child = Command::new(program[0])
            .args(&program[1..])
            .arg("run")
            .args(["--source", source])
            .args(["--bpf-root".as_ref(), self.root.root().as_os_str()])
            .args(["--cni-socket".as_ref(), self.path("cni.sock").as_os_str()])
            .args(["--api-socket".as_ref(), self.path("api.sock").as_os_str()])
            .args(["--state-dir".as_ref(), self.path("state").as_os_str()])
            .args(["--node-name", "n1", "--log-level", "debug"])
            .args(more)
            .env_clear()
            // an option wins over a variable
            .env("PODGATE_METRICS_ADDR", "127.0.0.1:9898")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start policyd");
        let stderr = child.stderr.take().unwrap();
        let log = thread::spawn(move || {
            let mut log = Vec::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // shown by the test harness when the test fails
                eprintln!("policyd: {line}");
                log.push(line);
            }
            log
        });
        Policyd { child, log: Some(log) }
    }

    /// What the plugin says, and what it hears.
    pub(crate) fn ask(&self, request: &Request) -> Response {
        let answer = self.say(&format!("{}\n", serde_json::to_string(request).unwrap()));
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    }

    pub(crate) fn say(&self, text: &str) -> String {
        let mut stream = self.connect("cni.sock");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        // a refused line may be answered before it has been read to its end
        let _ = stream.write_all(text.as_bytes());
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer
    }

    pub(crate) fn add(&self, endpoints: &[&Registration]) -> Response {
        let endpoints =
            endpoints.iter().map(|r| EndpointRef { ifindex: r.ifindex, owner: r.owner });
        self.ask(&Request::Add { container_id: "c".into(), endpoints: endpoints.collect() })
    }

    /// Connects to a socket of policyd, as soon as it is there.
    pub(crate) fn connect(&self, socket: &str) -> UnixStream {
        let path = self.path(socket);
        eventually(&format!("{socket} is listened on"), || UnixStream::connect(&path).ok())
    }

    /// Waits for readiness.
    pub(crate) fn ready(&self) {
        eventually("policyd is ready", || {
            (self.ask(&Request::Status) == Response::Ok).then_some(())
        });
    }

    /// A request to the API: status and body.
    pub(crate) fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = self.connect("api.sock");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
        (status, body)
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, body) = self.http("GET", path, "");
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// What `podgatectl` prints of this node.
    pub(crate) fn podgatectl(&self, arguments: &[&str]) -> Result<String, String> {
        let podgatectl = Path::new(env!("CARGO_BIN_EXE_policyd")).with_file_name("podgatectl");
        assert!(podgatectl.is_file(), "no {}: cargo build -p podgatectl", podgatectl.display());
        let run = Command::new(podgatectl)
            .arg("--socket")
            .arg(self.path("api.sock"))
            .args(arguments)
            .env_clear()
            .output();
        let output = run.expect("run podgatectl");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// The registrations by their pods.
    pub(crate) fn registered(&self) -> Vec<(String, Registration)> {
        let name = |each: &Registration| {
            let pod = each.pod.as_ref().unwrap();
            format!("{}/{}", pod.namespace, pod.name)
        };
        let all = self.maps().registrations().unwrap();
        all.into_iter().map(|each| (name(&each), each)).collect()
    }

    /// What a scrape of the metrics says.
    pub(crate) fn metrics(&self) -> String {
        let mut stream = eventually("the metrics are served", || {
            std::net::TcpStream::connect(("127.0.0.1", 9898)).ok()
        });
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// What the kernel's maps say of a new flow, as the programs look it up.
    pub(crate) fn allows(&self, to: &Registration, peer: &str, protocol: u8, port: u16) -> bool {
        self.verdict(to, Direction::Ingress, peer, protocol, port)
    }

    /// What the maps say, as the programs look it up.
    pub(crate) fn verdict(
        &self,
        at: &Registration,
        direction: Direction,
        peer: &str,
        protocol: u8,
        port: u16,
    ) -> bool {
        let peer: IpAddr = peer.parse().unwrap();
        let class = self.class(peer);
        let Some(map) = self.maps().policy_map(at.ifindex).unwrap() else { return false };
        let entries = map.entries().unwrap();
        let matches = |class: u32, key: &PolicyKey| {
            let at =
                key.owner == at.owner && key.class == class && key.direction == direction as u8;
            let protocol = key.prefixlen == 72 || key.protocol == protocol;
            let bits = key.prefixlen.saturating_sub(80).min(16);
            let mask = if bits == 0 { 0 } else { u16::MAX << (16 - bits) };
            at && protocol && port & mask == u16::from_be_bytes(key.port) & mask
        };
        let of_class = |class| {
            let matching = entries.iter().filter(|(key, _)| matches(class, key));
            matching.max_by_key(|(key, _)| key.prefixlen)
        };
        let decides = of_class(class).or_else(|| of_class(0));
        decides.is_some_and(|(_, value)| encode::decision(value).effect.passes())
    }

    /// The class of an address, as the programs look it up.
    pub(crate) fn class(&self, peer: IpAddr) -> u32 {
        if let Some(class) = self.maps().peers().unwrap().get(&peer) {
            return *class;
        }
        let nets = self.maps().nets().unwrap();
        let holding = nets.iter().filter(|((address, length), _)| {
            ipnet::IpNet::new(*address, *length).unwrap().contains(&peer)
        });
        holding.max_by_key(|((_, length), _)| *length).map_or(0, |(_, class)| *class)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // a directory cannot be removed while something is mounted in it
        let _ = umount2(&self.dir.path().join("bpf"), MntFlags::MNT_DETACH);
    }
}

pub(crate) struct Policyd {
    child: Child,
    log: Option<thread::JoinHandle<Vec<String>>>,
}

impl Policyd {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.end().1
    }

    /// Waits for its end: the exit code and the log.
    pub(crate) fn end(&mut self) -> (Option<i32>, Vec<String>) {
        let status = self.child.wait().unwrap();
        (status.code(), self.log.take().map(|log| log.join().unwrap()).unwrap_or_default())
    }
}

impl Drop for Policyd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks again and again while `work` is done, and once more; fails if it ever sees what it must not.
pub(crate) fn never(wrong: impl Fn() -> bool + Sync, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut looks = 0;
            loop {
                let last = done.load(Ordering::Relaxed);
                if wrong() {
                    return Err(format!("at look {looks}"));
                }
                looks += 1;
                if last {
                    return Ok(looks);
                }
            }
        });
        work();
        done.store(true, Ordering::Relaxed);
        let looks = watch.join().unwrap().expect("a moment in which packets are lost");
        assert!(looks > 10, "{looks}");
    });
}

pub(crate) fn ip(arguments: &str) {
    let run = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = run.expect("run ip (Debian: apt-get install iproute2)");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A pod's manifest.
pub(crate) fn pod(name: &str, labels: &str, address: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}}}\n\
         spec: {{containers: [{{name: c, image: i}}]}}\nstatus: {{podIP: \"{address}\", phase: Running}}\n---\n"
    )
}

/// A policy that lets `from` (labels) reach `to` on a TCP port, and no other pod.
pub(crate) fn policy(name: &str, to: &str, from: &str, port: u16) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: {namespace}, name: {name}}}\n\
         spec:\n  podSelector: {{matchLabels: {{{to}}}}}\n  policyTypes: [Ingress]\n  ingress:\n  \
         - from: [{{podSelector: {{matchLabels: {{{from}}}}}}}]\n    ports: [{{port: {port}}}]\n---\n"
    )
}
