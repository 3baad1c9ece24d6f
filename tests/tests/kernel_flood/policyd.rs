//! The real policyd, which may be killed at any moment, and what it says.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use podgate_contract::client;
use podgate_contract::handshake::{EndpointRef, Request, Response};
use podgate_tests::runtime::node::built;
use serde_json::Value;

use crate::node::{Node, Pod};

/// Long enough for a machine that does much else.
pub(crate) const LONG: Duration = Duration::from_secs(90);

/// Its files, and the process while there is one.
pub(crate) struct Policyd {
    dir: tempfile::TempDir,
    program: PathBuf,
    child: Option<Child>,
}

impl Policyd {
    /// Not started yet.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        Self { dir, program: built("policyd").unwrap(), child: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes all objects at once, as an editor that replaces the file does.
    pub(crate) fn write(&self, world: &str) {
        let new = self.path("manifests").join(".new");
        std::fs::write(&new, world).unwrap();
        std::fs::rename(new, self.path("manifests").join("world.yaml")).unwrap();
    }

    /// Starts it on the node.
    pub(crate) fn start(&mut self, node: &Node) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(&self.program);
        command
            .arg("run")
            .args(["--source".into(), format!("dir:{}", self.path("manifests").display())])
            .args(["--bpf-root".as_ref(), node.root.root().as_os_str()])
            .args(["--cni-socket".as_ref(), self.path("cni.sock").as_os_str()])
            .args(["--api-socket".as_ref(), self.path("api.sock").as_os_str()])
            .args(["--state-dir".as_ref(), self.path("state").as_os_str()])
            .args(["--metrics-addr", "127.0.0.1:9898", "--node-name", "n1"])
            .args(["--log-level", "info", "--reconcile-seconds", "1"])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // by which scripts/leftovers.sh finds what a test leaves behind
        if let Some(mark) = std::env::var_os("PODGATE_TEST_RUN") {
            command.env("PODGATE_TEST_RUN", mark);
        }
        self.child = Some(node.net.run(|| command.spawn()).unwrap());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks on the plugin's socket; `None` if there is no answer.
    fn ask(&self, request: &Request) -> Option<Response> {
        client::send(&self.path("cni.sock"), request, Duration::from_secs(20)).ok()
    }

    /// Waits until it has read everything.
    pub(crate) fn ready(&self) {
        self.eventually("policyd is ready", || self.ask(&Request::Status) == Some(Response::Ok));
    }

    /// Whether the policy of a new pod is in force.
    pub(crate) fn add(&self, pod: &Pod) -> bool {
        let endpoint = EndpointRef { ifindex: pod.ifindex, owner: pod.owner };
        let request = Request::Add { container_id: pod.name.clone(), endpoints: vec![endpoint] };
        self.ask(&request) == Some(Response::Ok)
    }

    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.path("api.sock")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// Waits until it says that this pod allows `ports` ("UDP 20001"): what the commit that brought it has done is in
    /// force then.
    pub(crate) fn allows(&self, pod: &str, ports: &str) {
        let path = format!("/v1/endpoints/shop/{pod}");
        self.eventually(&format!("{pod} allows {ports}"), || {
            let found = self.get(&path).unwrap_or_default();
            let endpoints = found.as_array().cloned().unwrap_or_default();
            endpoints.iter().any(|endpoint| {
                let allowed = endpoint["allowed"].as_array().cloned().unwrap_or_default();
                endpoint["state"] == "enforced"
                    && allowed.iter().any(|allowed| allowed["ports"] == ports)
            })
        });
    }

    /// Waits, and shows the log if it was in vain.
    pub(crate) fn eventually(&self, what: &str, happened: impl Fn() -> bool) {
        let deadline = Instant::now() + LONG;
        while !happened() {
            if Instant::now() > deadline {
                panic!("it never happened that {what}; policyd's log ends:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Policyd {
    fn drop(&mut self) {
        self.kill();
    }
}
