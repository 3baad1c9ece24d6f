//! Floods at one listener: the others answer meanwhile, and afterwards this one does again.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use podgate_contract::handshake::Response;
use podgate_testkit::wait::eventually;
use socket2::{Domain, Socket, Type};

use crate::node::{Node, Policyd, ip, on_a_node, pod, policy};

/// More than a process may have open without asking.
const FLOOD: usize = 1100;
/// What is not held up is done by then, on a busy machine too; the plugin waits no longer than this.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Two addresses of the node, one of which stands for another host: what counts is source and destination.
const NODE: &str = "10.9.0.1";
const STRANGER: &str = "10.9.0.2";

fn world(node: &Node) -> Policyd {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    for address in [NODE, STRANGER] {
        ip(&format!("address add {address}/32 dev lo"));
    }
    node.manifest("pods.yaml", &pod("shop/api", "app: api", "10.0.0.2"));
    node.manifest("policies.yaml", &policy("shop/api-from-web", "app: api", "app: web", 80));
    // the process that starts it may leave it the usual limit
    let limited = ["prlimit", "--nofile=1024:", env!("CARGO_BIN_EXE_policyd")];
    let policyd = node.policyd_by(&limited, &["--metrics-addr", "0.0.0.0:9898"]);
    node.ready();
    policyd
}

/// A connection from the stranger to the metrics port.
fn stranger() -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let at = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
    socket.bind(&at(STRANGER, 0).into()).unwrap();
    socket.connect(&at(NODE, 9898).into()).unwrap();
    socket.into()
}

/// The status of an answer, as far as there is one.
fn status(mut stream: TcpStream, path: &str) -> Option<u16> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: n\r\n\r\n").ok()?;
    let mut answer = String::new();
    // one that is refused may be reset
    let _ = stream.read_to_string(&mut answer);
    answer.split(' ').nth(1)?.parse().ok()
}

fn of_the_node(path: &str) -> Option<u16> {
    status(TcpStream::connect("127.0.0.1:9898").unwrap(), path)
}

fn at_once<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    assert!(began.elapsed() < REFUSAL_TIMEOUT, "{what} took {:?}", began.elapsed());
    done
}

/// The plugin, the kubelet and the operator are answered.
fn all_answer(node: &Node, owner: &str) {
    let name = format!("shop/{owner}");
    let address = format!("10.0.1.{}", owner.len());
    node.manifest(&format!("{owner}.yaml"), &pod(&name, "app: x", &address));
    eventually("the pod is known", || {
        let text = node.podgatectl(&["status", "-o", "json"]).expect("podgatectl is answered");
        text.contains("\"ready\":true").then_some(())
    });
    let endpoint = node.endpoint(&name, &address);
    eventually("ADD says it is in force, at once", || {
        let answer = at_once("ADD", || node.add(&[&endpoint]));
        (answer == Response::Ok).then_some(())
    });
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(at_once(path, || of_the_node(path)), Some(200), "{path}");
    }
    let text = at_once("podgatectl", || node.podgatectl(&["status"])).unwrap();
    assert!(text.contains("on n1: ready"), "{text}");
}

#[test]
fn idle_connections_at_the_metrics_port_stop_nobody() {
    on_a_node(|node| {
        let policyd = world(node);
        let before = policyd.descriptors();
        let mut idle: Vec<TcpStream> = (0..FLOOD).map(|_| stranger()).collect();
        // and some that never end their request
        for stream in idle.iter_mut().step_by(50) {
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nX-");
        }
        all_answer(node, "a");
        let open = policyd.descriptors();
        assert!(open < before + 100, "{open} descriptors, {before} before");
        let metrics = node.metrics();
        let refused = metrics
            .lines()
            .find_map(|line| line.strip_prefix("podgate_connections_refused_total "))
            .and_then(|count| count.parse::<usize>().ok());
        assert!(refused.is_some_and(|count| count > FLOOD - 100), "{refused:?} in\n{metrics}");
        // the flood goes on, and still there is no room for it
        idle.extend((0..FLOOD).map(|_| stranger()));
        all_answer(node, "bb");
        drop(idle);
        eventually("the stranger is answered again", || {
            (status(stranger(), "/metrics") == Some(200)).then_some(())
        });
        assert!(policyd.descriptors() < before + 20);
    });
}

#[test]
fn who_is_slow_to_ask_is_left() {
    on_a_node(|node| {
        let _policyd = world(node);
        let mut slow = stranger();
        let mut idle = stranger();
        slow.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
        let began = Instant::now();
        // a byte now and then is no reason to wait for ever
        let closed = eventually("it is closed", || {
            slow.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let alive = slow.write_all(b"X").is_ok();
            match slow.read(&mut [0; 512]) {
                Ok(0) => Some(began.elapsed()),
                // it says why
                Ok(_) => None,
                Err(error) if error.kind() == ErrorKind::WouldBlock && alive => None,
                Err(_) => Some(began.elapsed()),
            }
        });
        assert!(closed >= Duration::from_secs(4), "after {closed:?}");
        idle.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        assert!(matches!(idle.read(&mut [0; 512]), Ok(0)), "an idle connection stays");
        // and one that says too much
        let mut long = TcpStream::connect("127.0.0.1:9898").unwrap();
        let _ = write!(long, "GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20 << 10));
        let mut answer = String::new();
        let _ = long.read_to_string(&mut answer);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
}

#[test]
fn idle_connections_at_the_api_stop_neither_the_plugin_nor_health() {
    on_a_node(|node| {
        let _policyd = world(node);
        let idle: Vec<UnixStream> = (0..100).map(|_| node.connect("api.sock")).collect();
        let endpoint = node.endpoint("shop/api", "10.0.0.2");
        assert_eq!(at_once("ADD", || node.add(&[&endpoint])), Response::Ok);
        assert_eq!(at_once("health", || of_the_node("/healthz")), Some(200));
        // an operator waits until the first of them are given up
        let text = node.podgatectl(&["status"]).unwrap();
        assert!(text.contains("on n1: ready"), "{text}");
        drop(idle);
    });
}

/// Streams of verdicts last; their number is bounded, and the last one says so.
#[test]
fn streams_leave_room_for_questions() {
    on_a_node(|node| {
        let _policyd = world(node);
        let follow = || {
            let mut stream = node.connect("api.sock");
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(b"GET /v1/flows HTTP/1.1\r\nHost: n\r\n\r\n").unwrap();
            let mut head = [0; 12];
            stream.read_exact(&mut head).unwrap();
            (stream, String::from_utf8_lossy(&head).into_owned())
        };
        let mut streams = Vec::new();
        for _ in 0..16 {
            let (stream, head) = follow();
            assert_eq!(head, "HTTP/1.1 200");
            streams.push(stream);
        }
        assert_eq!(follow().1, "HTTP/1.1 503");
        let refused = node.podgatectl(&["observe", "-n", "1"]).unwrap_err();
        assert!(refused.contains("16 clients do already"), "{refused}");
        assert!(node.podgatectl(&["status"]).is_ok());
        drop(streams);
        eventually("there is room again", || (follow().1 == "HTTP/1.1 200").then_some(()));
    });
}
