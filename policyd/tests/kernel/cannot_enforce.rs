//! A node on which policyd cannot enforce: it stays up, says so wherever operators look, takes nothing from a policyd
//! that can, and goes on by itself once the cause is gone.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::http::StatusCode;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use podgate_contract::handshake::{EndpointRef, Request, Response};
use podgate_testkit::wait::{WAIT_TIMEOUT, eventually};
use serde_json::Value;

use crate::node::{Node, Policyd, on_a_node, pod, policy};

/// Answers of the metrics' port: the status code and the body.
fn http(path: &str) -> (u16, String) {
    let mut stream =
        eventually("the metrics' port is served", || TcpStream::connect(("127.0.0.1", 9898)).ok());
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Mounts a file system over the node's pins, which are there again when it is gone.
fn cover(node: &Node, kind: &str, flags: MsFlags) {
    mount(Some(kind), &node.path("bpf"), Some(kind), flags, None::<&str>).unwrap();
}

fn uncover(node: &Node) {
    umount2(&node.path("bpf"), MntFlags::MNT_DETACH).unwrap();
}

/// Root with these capabilities only.
fn confined(node: &Node, capabilities: &str, more: &[&str]) -> Policyd {
    let program = [
        "setpriv",
        &format!("--bounding-set=-all,{capabilities}"),
        "--inh-caps=-all",
        "--no-new-privs",
        "--",
        env!("CARGO_BIN_EXE_policyd"),
    ];
    node.policyd_by(&program, more)
}

/// Every place that must show the cause; none may ask for a restart.
fn says_everywhere(node: &Node, reason: &str, cause: &str) {
    let Response::Error { message } = node.ask(&Request::Status) else { panic!("it is ready") };
    assert!(
        message.starts_with("policyd cannot enforce NetworkPolicy on this node: "),
        "{message}"
    );
    assert!(message.contains(cause), "{message}");
    let endpoints = vec![EndpointRef { ifindex: 1, owner: 1 }];
    let add = Request::Add { container_id: "c".into(), endpoints: endpoints.clone() };
    assert_eq!(node.ask(&add), Response::Error { message: message.clone() });
    let del = Request::Del { container_id: "c".into(), endpoints };
    assert_eq!(node.ask(&del), Response::Ok);

    assert_eq!(http("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(http("/readyz"), (503, format!("{message}\n")));
    let (_, metrics) = http("/metrics");
    for line in
        [format!("podgate_cannot_enforce{{reason=\"{reason}\"}} 1"), "podgate_ready 0".into()]
    {
        assert!(metrics.lines().any(|found| found == line), "no {line} in {metrics}");
    }
    assert_eq!(metrics.matches("podgate_cannot_enforce{").count(), 6, "{metrics}");

    let status = node.podgatectl(&["status"]).unwrap();
    assert!(status.contains("on n1: CANNOT ENFORCE\n") && status.contains(&message), "{status}");
    assert_eq!(node.get("/v1/status")["ready"], false);
    let endpoints = node.podgatectl(&["endpoints"]).unwrap_err();
    assert!(endpoints.contains(&message), "{endpoints}");
}

#[test]
fn without_a_bpffs_policyd_says_so_everywhere_and_goes_on_once_there_is_one() {
    on_a_node(|node| {
        cover(node, "tmpfs", MsFlags::empty());
        let mut policyd = node.policyd();
        says_everywhere(node, "bpffs", "not on a BPF file system");
        uncover(node);
        // a client that connects while one listener follows the other may be reset: podgatectl then says so
        let is_ready = |status: String| status.contains("on n1: ready");
        eventually("policyd is ready", || node.podgatectl(&["status"]).is_ok_and(is_ready));
        assert!(!policyd.has_ended());
        let (_, metrics) = http("/metrics");
        assert!(metrics.contains("podgate_cannot_enforce{reason=\"bpffs\"} 0"), "{metrics}");
        assert_eq!(http("/readyz"), (200, "ok\n".to_owned()));
    });
}

#[test]
fn a_bpffs_that_cannot_be_written_is_the_cause_that_is_named() {
    on_a_node(|node| {
        cover(node, "bpf", MsFlags::MS_RDONLY);
        let policyd = node.policyd();
        says_everywhere(node, "bpffs", "Read-only file system");
        drop(policyd);
        uncover(node);
    });
}

/// An API server that takes every Event and has nothing else: what was sent to it.
fn api_server() -> (u16, mpsc::Receiver<(String, Value)>) {
    let (sender, events) = mpsc::channel();
    let (started, port) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            started.send(listener.local_addr().unwrap().port()).unwrap();
            let router = Router::new().fallback(async move |request: HttpRequest| {
                let path = request.uri().path().to_owned();
                let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
                let Ok(event) = serde_json::from_slice::<Value>(&body) else {
                    return (StatusCode::NOT_FOUND, String::new());
                };
                let answer = event.to_string();
                // the test may have ended
                let _ = sender.send((path, event));
                (StatusCode::CREATED, answer)
            });
            axum::serve(listener, router).await.unwrap();
        });
    });
    (port.recv().unwrap(), events)
}

#[test]
fn without_its_capabilities_policyd_says_so_on_the_node_object() {
    on_a_node(|node| {
        let (port, events) = api_server();
        let kubeconfig = node.path("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        );
        std::fs::write(&kubeconfig, text).unwrap();
        // nothing is loaded yet
        cover(node, "bpf", MsFlags::empty());
        let source = format!("kubernetes:{}", kubeconfig.display());
        let policyd = confined(node, "+net_admin", &["--source", &source]);
        says_everywhere(node, "permission", "the process lacks the right to load programs");
        let (path, event) = events.recv_timeout(WAIT_TIMEOUT).expect("an Event on the node");
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/default/events");
        assert_eq!(event["regarding"]["kind"], "Node");
        assert_eq!(event["regarding"]["name"], "n1");
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["reason"], "PolicyNotEnforced");
        let note = event["note"].as_str().unwrap();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        for part in [
            "cannot enforce NetworkPolicy on this node",
            &format!("kernel {}", release.trim()),
            "run as root, or with CAP_BPF",
            "what becomes of new pods is not known",
        ] {
            assert!(note.contains(part), "no {part:?} in {note}");
        }
        drop(policyd);
        uncover(node);
    });
}

#[test]
fn maps_that_must_not_be_reopened_are_a_cause_too() {
    on_a_node(|node| {
        node.manifest(
            "world.yaml",
            &(pod("shop/api", "app: api", "10.0.0.2")
                + &policy("shop/api-from-web", "app: api", "app: web", 80)),
        );
        let api = node.endpoint("shop/api", "10.0.0.2");
        let first = node.policyd();
        node.ready();
        assert_eq!(node.add(&[&api]), Response::Ok);
        first.kill();
        // programs and shared maps can be used, the pod's table cannot be opened by its number
        let second = confined(node, "+net_admin,+bpf,+perfmon", &[]);
        says_everywhere(node, "permission", "read the maps: ");
        let table = node.maps().policy_map(api.ifindex).unwrap();
        assert!(table.is_some(), "the pod's policy was taken away");
        drop(second);
    });
}

#[test]
fn a_policyd_that_cannot_enforce_leaves_the_sockets_to_one_that_can() {
    on_a_node(|node| {
        let mut able = node.policyd();
        node.ready();
        // the pins are hidden from this one only
        let hidden = format!("mount -t tmpfs tmpfs {} && exec \"$@\"", node.path("bpf").display());
        let program =
            ["unshare", "--mount", "sh", "-c", &hidden, "sh", env!("CARGO_BIN_EXE_policyd")];
        let unable = node.policyd_by(&program, &["--metrics-addr", "127.0.0.1:9899"]);
        // it looks at once when loading has failed, and again a second later
        thread::sleep(Duration::from_secs(3));
        assert_eq!(node.ask(&Request::Status), Response::Ok);
        assert!(TcpStream::connect(("127.0.0.1", 9899)).is_err());
        let log = unable.kill();
        let said = |text: &str| log.iter().any(|line| line.contains(text));
        assert!(said("policyd cannot enforce") && said("another policyd listens there"), "{log:?}");
        assert_eq!(node.ask(&Request::Status), Response::Ok);
        assert!(!able.has_ended());
    });
}

#[test]
fn a_policyd_that_cannot_enforce_stops_when_it_is_asked_to() {
    on_a_node(|node| {
        cover(node, "tmpfs", MsFlags::empty());
        let mut policyd = node.policyd();
        node.connect("cni.sock");
        policyd.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(policyd.end().0, Some(0));
        for socket in ["cni.sock", "api.sock"] {
            assert!(!node.path(socket).exists(), "{socket} is left");
        }
        uncover(node);
    });
}
