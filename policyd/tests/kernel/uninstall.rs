//! `policyd uninstall` under open connections: every packet of them, and of new ones, arrives at the first attempt,
//! by whichever means the gates are attached; and nothing is left.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use podgate_bpf::abi::Mode;
use podgate_bpf::attach::AttachMode;
use podgate_bpf::maps::Registration;
use podgate_testkit::wait::eventually;

use crate::node::{Node, ip, on_a_node, pod, policy};

const WEB: &str = "10.0.0.2";
const API: &str = "10.0.0.3";
const STRANGER: &str = "10.0.0.4";
const PORT: u16 = 80;

const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [\n    { \"type\": \"bridge\" },\n    { \"type\": \"portmap\", \"x\": 1e3 }\n  ]\n}\n";

/// Between two things that [`Traffic`] says. Without it the kernel has hardly time for a grace period.
const PACE: Duration = Duration::from_millis(1);

type Work = Box<dyn FnOnce() + Send>;

/// A thread in a pod's network namespace that executes commands there.
pub(crate) struct Pod {
    pub(crate) registration: Registration,
    work: mpsc::Sender<Work>,
}

impl Pod {
    /// Behind a gate of this kind, on the bridge.
    pub(crate) fn new(node: &Node, name: &str, address: &str, mode: AttachMode) -> Self {
        let registration = node.endpoint(name, address);
        let (work, todo) = mpsc::channel::<Work>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace");
            tell.send(nix::unistd::gettid()).unwrap();
            todo.into_iter().for_each(|work| work());
        });
        let thread = told.recv().unwrap();
        let link = registration.host_interface.clone();
        ip(&format!("link set {link} master br0 up"));
        ip(&format!("link set {link}p netns {thread}"));
        let pod = Self { registration, work };
        let address = address.to_owned();
        pod.run(move || {
            ip("link set lo up");
            ip(&format!("link set {link}p name eth0"));
            ip(&format!("addr add {address}/24 dev eth0"));
            ip("link set eth0 up");
        });
        node.datapath.attach(pod.registration.ifindex, mode).expect("attach");
        pod
    }

    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.start(move || {
            let _ = tell.send(work());
        });
        told.recv().expect("the work in a pod panicked")
    }

    pub(crate) fn start(&self, work: impl FnOnce() + Send + 'static) {
        self.work.send(Box::new(work)).expect("the pod's thread is gone");
    }

    /// Answers every connection with what it says.
    fn serve(&self) {
        self.serve_at(PORT);
    }

    pub(crate) fn serve_at(&self, port: u16) {
        let listener = self.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                thread::spawn(move || {
                    let mut word = [0; 8];
                    while stream
                        .read_exact(&mut word)
                        .and_then(|()| stream.write_all(&word))
                        .is_ok()
                    {}
                });
            }
        });
    }

    pub(crate) fn connects(&self, to: &str, limit: Duration) -> bool {
        let to = SocketAddr::new(to.parse::<IpAddr>().unwrap(), PORT);
        self.run(move || TcpStream::connect_timeout(&to, limit).is_ok())
    }

    /// Segments that its TCP had to send once more: a SYN too.
    pub(crate) fn sent_again(&self) -> u64 {
        self.run(|| {
            let snmp = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
            let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
            let at = names.split(' ').position(|name| name == "RetransSegs").unwrap();
            values.split(' ').nth(at).unwrap().parse().unwrap()
        })
    }
}

/// An exchange on one connection, and new connections one after the other, until dropped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    exchanged: Arc<AtomicU64>,
    opened: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Traffic {
    pub(crate) fn start(from: &Pod, to: &str) -> Self {
        let to = SocketAddr::new(to.parse::<IpAddr>().unwrap(), PORT);
        let stream = from.run(move || TcpStream::connect(to).unwrap());
        stream.set_nodelay(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (exchanged, opened) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), exchanged.clone());
        let old = thread::spawn(move || {
            let mut stream = stream;
            while !stopped.load(Ordering::Relaxed) {
                let number = count.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                stream.write_all(&number).expect("say something on the old connection");
                let mut answer = [0; 8];
                stream.read_exact(&mut answer).expect("hear something on the old connection");
                assert_eq!(answer, number);
                thread::sleep(PACE);
            }
        });
        let (stopped, count) = (stop.clone(), opened.clone());
        // its own thread in the pod's namespace: threads inherit it
        let (tell, told) = mpsc::channel();
        from.start(move || {
            let new = thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5));
                    let mut stream = stream.expect("open a new connection");
                    let mut answer = [0; 8];
                    stream
                        .write_all(&[7; 8])
                        .and_then(|()| stream.read_exact(&mut answer))
                        .unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PACE);
                }
            });
            tell.send(new).unwrap();
        });
        let new = told.recv().unwrap();
        Self { stop, exchanged, opened, threads: vec![old, new] }
    }

    /// Waits until both have gone on for a while.
    pub(crate) fn goes_on(&self) {
        let now = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let before = [now(&self.exchanged), now(&self.opened)];
        eventually("the traffic goes on", || {
            self.threads.iter().for_each(|thread| assert!(!thread.is_finished(), "it broke"));
            (now(&self.exchanged) > before[0] + 50 && now(&self.opened) > before[1] + 20)
                .then_some(())
        });
    }

    pub(crate) fn end(self) {
        self.goes_on();
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("the traffic broke");
        }
    }
}

/// Waits so many seconds for a policyd that runs.
pub(crate) fn uninstall(node: &Node, wait: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_policyd"));
    command
        .arg("uninstall")
        .args(["--cni-conf-dir".as_ref(), node.path("conf").as_os_str()])
        .args(["--cni-bin-dir".as_ref(), node.path("bin").as_os_str()])
        .args(["--cni-cache-dir".as_ref(), node.path("cache").as_os_str()])
        .args(["--bpf-root".as_ref(), node.root.root().as_os_str()])
        .args(["--settle-ms", "10", "--wait-seconds", wait])
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A world in which only web may reach api; both isolated both ways where it matters.
fn world(node: &Node) {
    node.manifest(
        "world.yaml",
        &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\n{}{}{}{}\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: web}}\n\
             spec:\n  podSelector: {{matchLabels: {{app: web}}}}\n  policyTypes: [Ingress, Egress]\n  egress:\n  \
             - to: [{{podSelector: {{matchLabels: {{app: api}}}}}}]\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: api-out}}\n\
             spec:\n  podSelector: {{matchLabels: {{app: api}}}}\n  policyTypes: [Egress]\n",
            pod("shop/web", "app: web", WEB),
            pod("shop/api", "app: api", API),
            pod("shop/stranger", "app: stranger", STRANGER),
            policy("shop/api-from-web", "app: api", "app: web", PORT),
        ),
    );
}

struct Shop {
    web: Pod,
    api: Pod,
    stranger: Pod,
}

fn shop(node: &Node, mode: AttachMode) -> Shop {
    for dir in ["conf", "bin", "cache"] {
        fs::create_dir(node.path(dir)).unwrap();
    }
    let gated = LIST.replace("1e3 }\n", "1e3 },\n    { \"type\": \"podgate\" }\n");
    fs::write(node.path("conf/10-pods.conflist"), gated).unwrap();
    fs::write(node.path("bin/podgate"), "binary").unwrap();
    ip("link add br0 type bridge");
    ip("link set br0 up");
    world(node);
    let shop = Shop {
        web: Pod::new(node, "shop/web", WEB, mode),
        api: Pod::new(node, "shop/api", API, mode),
        stranger: Pod::new(node, "shop/stranger", STRANGER, mode),
    };
    let policyd = node.policyd();
    node.ready();
    policyd.kill();
    shop.api.serve();
    shop.web.serve();
    shop
}

/// No program at any interface, no pin, no entry, no binary.
fn nothing_is_left(node: &Node) {
    assert!(!node.root.root().exists(), "pins are left");
    let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
    for line in String::from_utf8_lossy(&links.stdout).lines() {
        let name = line.split(": ").nth(1).unwrap().split('@').next().unwrap();
        for hook in ["ingress", "egress"] {
            let shown = Command::new("tc").args(["filter", "show", "dev", name, hook]).output();
            let shown = shown.expect("run tc (Debian: apt-get install iproute2)");
            assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), "", "filters at {name}");
        }
    }
    assert_eq!(fs::read_to_string(node.path("conf/10-pods.conflist")).unwrap(), LIST);
    assert!(!node.path("bin/podgate").exists(), "the binary is left");
}

fn no_packet_is_lost(mode: AttachMode) {
    on_a_node(move |node| {
        let Shop { web, api, stranger } = shop(node, mode);
        let limit = Duration::from_millis(300);
        assert!(!stranger.connects(API, limit), "the policy is not in force");
        assert!(!api.connects(WEB, limit), "the policy is not in force");
        let denied = stranger.sent_again() + api.sent_again();
        let traffic = Traffic::start(&web, API);
        traffic.goes_on();
        let done = uninstall(node, "0").output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
        assert!(said(&done).contains("removed 3 gates"), "{}", said(&done));
        traffic.end();
        assert_eq!(web.sent_again(), 0, "segments of web were lost");
        // its own denied attempt above is all that it ever had to repeat
        assert_eq!(stranger.sent_again() + api.sent_again(), denied, "segments of api were lost");
        assert!(stranger.connects(API, limit) && api.connects(WEB, limit), "somebody still denies");
        nothing_is_left(node);

        let again = uninstall(node, "0").output().unwrap();
        assert!(again.status.success(), "{}", said(&again));
        assert!(
            !said(&again).contains("took") && !said(&again).contains("removed"),
            "{}",
            said(&again)
        );
        nothing_is_left(node);
    });
}

#[test]
fn uninstall_loses_no_packet_with_clsact() {
    no_packet_is_lost(AttachMode::Clsact);
}

#[test]
fn uninstall_loses_no_packet_with_tcx() {
    no_packet_is_lost(AttachMode::Tcx);
}

#[test]
fn uninstall_killed_anywhere_converges_and_loses_nothing() {
    for &mode in AttachMode::of_this_kernel() {
        on_a_node(move |node| {
            let Shop { web, api, .. } = shop(node, mode);
            let traffic = Traffic::start(&web, API);
            traffic.goes_on();
            let before = api.sent_again();
            let mut killed = 0;
            for micros in [1_000, 3_000, 6_000, 10_000, 15_000, 22_000, 30_000, 45_000] {
                let mut child = uninstall(node, "0").spawn().unwrap();
                thread::sleep(Duration::from_micros(micros));
                child.kill().unwrap();
                killed += u32::from(child.wait().unwrap().code().is_none());
            }
            assert!(killed >= 3, "only {killed} were killed before they had ended");
            let done = uninstall(node, "0").output().unwrap();
            assert!(done.status.success(), "{}", said(&done));
            traffic.end();
            assert_eq!((web.sent_again(), api.sent_again()), (0, before), "segments were lost");
            nothing_is_left(node);
        });
    }
}

#[test]
fn uninstall_takes_away_filters_whose_pins_are_gone_and_pins_of_an_older_layout() {
    on_a_node(|node| {
        let Shop { stranger, .. } = shop(node, AttachMode::Clsact);
        let limit = Duration::from_millis(300);
        // after an `rm -r` the programs stay attached and cannot be opened any more
        fs::remove_dir_all(node.root.root()).unwrap();
        assert!(!stranger.connects(API, limit), "the filters hold the programs");
        fs::create_dir_all(node.root.root().join("v0/links")).unwrap();
        fs::create_dir_all(node.root.root().join("another's")).unwrap();
        let done = uninstall(node, "0").output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
        assert!(stranger.connects(API, limit), "somebody still denies");
        assert!(node.root.root().join("another's").exists(), "it was not ours");
        fs::remove_dir_all(node.root.root()).unwrap();
        nothing_is_left(node);
    });
}

#[test]
fn uninstall_refuses_while_policyd_runs() {
    on_a_node(|node| {
        let _pods = shop(node, AttachMode::Clsact);
        let policyd = node.policyd();
        node.ready();
        let refused = uninstall(node, "0").output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        assert!(said(&refused).contains("policyd is running"), "{}", said(&refused));
        // nothing has been touched
        assert_eq!(node.maps().control().mode(), Mode::Enforce);
        let list = fs::read_to_string(node.path("conf/10-pods.conflist")).unwrap();
        assert!(list.contains("podgate"), "{list}");
        // one that ends in time is waited for
        let waiting = uninstall(node, "20").spawn().unwrap();
        thread::sleep(Duration::from_millis(300));
        policyd.kill();
        let done = waiting.wait_with_output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
        nothing_is_left(node);
    });
}

#[test]
fn uninstall_where_there_is_nothing() {
    on_a_node(|node| {
        podgate_bpf::Datapath::unload(&node.root).unwrap();
        fs::remove_dir(node.root.root()).unwrap();
        let done = uninstall(node, "0").output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
        assert!(!node.root.root().exists(), "it has made pins");
    });
}
