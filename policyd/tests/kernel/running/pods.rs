//! Pods as a node without podgate has them: made by the plain chain, with what they have open.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use podgate_testkit::wait::eventually;
use policyd::adopt::SearchPaths;
use serde_json::{Value, json};

use crate::node::{Node, ip, pod};

/// How the pods are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chain {
    /// All at one bridge: what passes between them never meets the node's netfilter.
    Bridge,
    /// Each at a link of its own: everything is routed by the node.
    Ptp,
}

/// The node's pods, by `namespace/name`.
pub(crate) struct Pods<'a> {
    node: &'a Node,
    chain: Chain,
    pods: BTreeMap<&'static str, Pod>,
}

/// A running one.
pub(crate) struct Pod {
    netns: PathBuf,
    /// The first.
    pub(crate) address: IpAddr,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) host_interface: String,
    pub(crate) container_id: String,
}

const NETNS: &str = "/run/netns";

impl<'a> Pods<'a> {
    /// Starts them; their manifests are not written yet. libcni's notes of them are, where `noted`.
    pub(crate) fn start(
        node: &'a Node,
        chain: Chain,
        noted: bool,
        pods: &[(&'static str, &str)],
    ) -> Self {
        // of this test's own mount namespace
        fs::create_dir_all(NETNS).unwrap();
        mount(Some("none"), NETNS, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let mut this = Self { node, chain, pods: BTreeMap::new() };
        for (name, address) in pods {
            this.add(name, address, noted);
        }
        this
    }

    /// Starts one more.
    pub(crate) fn add(&mut self, name: &'static str, address: &str, noted: bool) {
        let short = name.replace('/', "-");
        ip(&format!("netns add {short}"));
        let netns = Path::new(NETNS).join(&short);
        // IPv4, and IPv6 where there is a second
        let addresses: Vec<IpAddr> = address.split(',').map(|each| each.parse().unwrap()).collect();
        let ipam = addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => json!({"address": format!("{v4}/24"), "gateway": "10.77.0.254"}),
            IpAddr::V6(v6) => json!({"address": format!("{v6}/64"), "gateway": "fd77::fe"}),
        });
        let ipam = json!({
            "type": "static",
            "addresses": ipam.collect::<Vec<_>>(),
            "routes": [{"dst": "0.0.0.0/0"}],
        });
        let conf = match self.chain {
            Chain::Bridge => json!({
                "cniVersion": "1.0.0", "name": "plain", "type": "bridge", "bridge": "plain0",
                "isGateway": true, "ipam": ipam,
            }),
            Chain::Ptp => {
                json!({"cniVersion": "1.0.0", "name": "plain", "type": "ptp", "ipam": ipam})
            }
        };
        let container_id = format!("id-{short}");
        let result = plugin(&conf, &container_id, &netns);
        if noted {
            self.note(name, &container_id, &result);
        }
        let interfaces = result["interfaces"].as_array().unwrap();
        let host = interfaces.iter().find(|each| {
            let name = each["name"].as_str().unwrap_or_default();
            each["sandbox"].as_str().unwrap_or_default().is_empty() && name.starts_with("veth")
        });
        let host_interface = host.unwrap()["name"].as_str().unwrap().to_owned();
        let pod = Pod { netns, address: addresses[0], addresses, host_interface, container_id };
        // a bridge port forwards a moment after it came up
        eventually("the pod reaches its gateway", || {
            pod.inside(|| {
                let socket = UdpSocket::bind((pod.address, 0)).ok()?;
                socket.send_to(b"?", ("10.77.0.254", 9)).ok()
            })
        });
        self.pods.insert(name, pod);
    }

    /// As libcni 1.1 (of containerd 1.6) does after an ADD.
    pub(crate) fn note(&self, name: &str, container_id: &str, result: &Value) {
        let (namespace, pod) = name.split_once('/').unwrap();
        let dir = self.cache().join("results");
        fs::create_dir_all(&dir).unwrap();
        let note = json!({
            "kind": "cniCacheV1", "containerId": container_id, "config": "e30=", "ifName": "eth0",
            "networkName": "plain",
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", namespace], ["K8S_POD_NAME", pod],
                ["K8S_POD_INFRA_CONTAINER_ID", container_id], ["K8S_POD_UID", ""]],
            "capabilityArgs": {"dns": {}}, "result": result,
        });
        fs::write(dir.join(format!("plain-{container_id}-eth0")), note.to_string()).unwrap();
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.node.path("cni-cache")
    }

    /// The manifests of all of them: each has the label `app` of its own name.
    pub(crate) fn manifests(&self) -> String {
        let manifest = |(name, at): (&&'static str, &Pod)| {
            let app = name.split_once('/').unwrap().1;
            let ips = at.addresses.iter().map(|ip| format!("{{ip: \"{ip}\"}}"));
            let ips = format!("podIPs: [{}], podIP:", ips.collect::<Vec<_>>().join(", "));
            pod(name, &format!("app: {app}"), &at.address.to_string())
                .replace("podIP:", &ips)
                .replace("spec: {", "spec: {nodeName: n1, ")
        };
        self.pods.iter().map(manifest).collect()
    }

    pub(crate) fn of(&self, name: &str) -> &Pod {
        &self.pods[name]
    }

    /// Where adoption finds them.
    pub(crate) fn search_paths(&self) -> SearchPaths {
        SearchPaths { cni_cache: self.cache(), netns: vec![NETNS.into()] }
    }

    /// policyd, with the search paths of these pods.
    pub(crate) fn policyd(&self, more: &[&str]) -> crate::node::Policyd {
        let cache = self.cache();
        let paths = ["--cni-cache", cache.to_str().unwrap(), "--netns-dirs", NETNS];
        self.node.policyd_with(&[&paths, more].concat())
    }

    /// Waits until all of these are enforced.
    pub(crate) fn enforced(&self, names: &[&str]) {
        eventually(&format!("{names:?} are enforced"), || {
            let endpoints = self.node.get("/v1/endpoints");
            let is = |name: &&str| {
                endpoints.as_array().unwrap().iter().any(|endpoint| {
                    let (namespace, pod) = name.split_once('/').unwrap();
                    endpoint["namespace"] == namespace
                        && endpoint["name"] == pod
                        && endpoint["state"] == "enforced"
                })
            };
            names.iter().all(is).then_some(())
        });
    }

    /// A connection of `from` to a port of `to`: both ends.
    pub(crate) fn connect(&self, from: &str, to: &str, port: u16) -> Line {
        let at = SocketAddr::new(self.of(to).address, port);
        self.connect_by(from, to, at, at)
    }

    /// A connection of `from` to where `seen` leads, which is `at`.
    pub(crate) fn connect_by(
        &self,
        from: &str,
        to: &str,
        seen: SocketAddr,
        at: SocketAddr,
    ) -> Line {
        self.connect_with(to, at, || {
            self.of(from)
                .inside(|| TcpStream::connect_timeout(&seen, CONNECT_TIMEOUT))
                .expect("connect")
        })
    }

    /// A connection that `client` makes to `at`.
    pub(crate) fn connect_with(
        &self,
        to: &str,
        at: SocketAddr,
        client: impl FnOnce() -> TcpStream,
    ) -> Line {
        let listener = self.of(to).inside(|| TcpListener::bind(at)).expect("listen");
        let client = client();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
            end.set_nodelay(true).unwrap();
        }
        Line { client, server, _listener: listener }
    }

    /// Datagrams of `from` to where `seen` leads, which is `at`.
    pub(crate) fn ask(&self, from: &str, to: &str, seen: SocketAddr, at: SocketAddr) -> Questions {
        let server = self.of(to).inside(|| UdpSocket::bind(at)).expect("bind");
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let client = self.of(from).inside(|| UdpSocket::bind((any, 0))).expect("bind");
        for end in [&client, &server] {
            end.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        }
        Questions { client, server, to: seen }
    }
}

/// For what must happen.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For what may not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// An open connection, whose listener is still there.
pub(crate) struct Line {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    _listener: TcpListener,
}

impl Line {
    /// Whether a byte passes each way.
    pub(crate) fn passes(&mut self) -> bool {
        hands_over(&mut self.client, &mut self.server)
            && hands_over(&mut self.server, &mut self.client)
    }
}

/// Datagrams and their answers. The client's socket is not connected.
pub(crate) struct Questions {
    client: UdpSocket,
    server: UdpSocket,
    to: SocketAddr,
}

impl Questions {
    /// Whether a question gets there and its answer back.
    pub(crate) fn pass(&self) -> bool {
        let asked = self.question();
        asked.is_some_and(|client| self.answer(client))
    }

    /// Asks; who is seen to ask, if it gets there.
    pub(crate) fn question(&self) -> Option<SocketAddr> {
        let mut byte = [0];
        self.client.send_to(b"?", self.to).ok()?;
        self.server.recv_from(&mut byte).ok().map(|(_, client)| client)
    }

    /// Answers; whether that gets back.
    pub(crate) fn answer(&self, client: SocketAddr) -> bool {
        let mut byte = [0];
        self.server.send_to(b"!", client).is_ok() && self.client.recv(&mut byte).is_ok()
    }
}

fn hands_over(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    use std::io::Read;
    let mut byte = [0];
    from.write_all(b"x").is_ok() && to.read_exact(&mut byte).is_ok()
}

impl Pod {
    /// Runs something in the pod's network namespace; sockets made there stay there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(&self.netns).expect("open the pod's namespace");
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&netns, CloneFlags::CLONE_NEWNET).expect("enter the pod's namespace");
                work()
            });
            worker.join().unwrap()
        })
    }
}

/// Calls a plugin as a runtime does.
fn plugin(conf: &Value, container_id: &str, netns: &Path) -> Value {
    const DIR: &str = "/usr/lib/cni";
    let path = Path::new(DIR).join(conf["type"].as_str().unwrap());
    let mut child = Command::new(&path)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", container_id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", DIR)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| {
            panic!("{}: {e} (Debian: containernetworking-plugins)", path.display())
        });
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}", path.display());
    serde_json::from_str(&text).unwrap()
}
