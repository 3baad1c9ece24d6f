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
use serde_json::{Value, json};

use crate::node::{Node, eventually, ip, pod};

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
    pub(crate) address: IpAddr,
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
        let ipam = json!({
            "type": "static",
            "addresses": [{"address": format!("{address}/24"), "gateway": "10.77.0.254"}],
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
        let address = address.parse().unwrap();
        let pod = Pod { netns, address, host_interface, container_id };
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
    fn note(&self, name: &str, container_id: &str, result: &Value) {
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
            pod(name, &format!("app: {app}"), &at.address.to_string())
        };
        self.pods.iter().map(manifest).collect()
    }

    pub(crate) fn of(&self, name: &str) -> &Pod {
        &self.pods[name]
    }

    /// policyd, with the places of these pods.
    pub(crate) fn policyd(&self, more: &[&str]) -> crate::node::Policyd {
        let cache = self.cache();
        let places = ["--cni-cache", cache.to_str().unwrap(), "--netns-dirs", NETNS];
        self.node.policyd_with(&[&places, more].concat())
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
        self.connect_at(from, to, port, at)
    }

    /// The same, to where `at` leads.
    pub(crate) fn connect_at(&self, from: &str, to: &str, port: u16, at: SocketAddr) -> Line {
        let listener = self.of(to).inside(|| TcpListener::bind((self.of(to).address, port)));
        let listener = listener.expect("listen");
        let client = self.of(from).inside(|| TcpStream::connect_timeout(&at, SOON));
        let client = client.expect("connect");
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(ANSWER)).unwrap();
            end.set_nodelay(true).unwrap();
        }
        Line { client, server, _listener: listener }
    }
}

/// For what must happen.
const SOON: Duration = Duration::from_secs(10);
/// For what may not.
const ANSWER: Duration = Duration::from_secs(4);

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
