//! The plugin's socket.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use podgate_contract::handshake::{EndpointRef, MAX_LINE, Request, Response};
use podgate_testkit::wait::eventually;

use crate::node::{on_a_node, pod};

#[test]
fn the_socket_is_roots_alone_and_a_stale_one_is_replaced() {
    on_a_node(|node| {
        let stale = std::os::unix::net::UnixListener::bind(node.path("cni.sock")).unwrap();
        drop(stale);
        let _policyd = node.policyd();
        node.ready();
        for socket in ["cni.sock", "api.sock"] {
            let mode = std::fs::metadata(node.path(socket)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{socket}");
        }
    });
}

#[test]
fn what_is_no_request_is_named() {
    on_a_node(|node| {
        let _policyd = node.policyd();
        node.ready();
        let error = |text: &str| match serde_json::from_str(&node.say(text)).unwrap() {
            Response::Error { message } => message,
            other => panic!("{other:?}"),
        };
        assert!(error("nonsense\n").starts_with("read request: expected"));
        assert!(error("{\"op\":\"dance\"}\n").contains("unknown variant `dance`"));
        assert!(
            error("{\"op\":\"add\",\"containerId\":\"c\"}\n").contains("missing field `endpoints`")
        );
        let long = format!("{}\n", "x".repeat(MAX_LINE + 10));
        assert_eq!(error(&long), format!("read request: longer than {MAX_LINE} bytes"));
        // and the next one is served
        assert_eq!(node.ask(&Request::Status), Response::Ok);
    });
}

#[test]
fn a_silent_plugin_holds_nobody_up() {
    on_a_node(|node| {
        let _policyd = node.policyd();
        let mut half = node.connect("cni.sock");
        half.write_all(b"{\"op\":").unwrap();
        node.ready();
    });
}

#[test]
fn an_unknown_pod_is_pending_with_the_reason_and_served_when_it_is_known() {
    on_a_node(|node| {
        let _policyd = node.policyd_with(&["--cni-wait-ms", "300"]);
        node.ready();
        let api = node.endpoint("shop/api", "10.0.0.2");
        let started = Instant::now();
        let reason = match node.add(&[&api]) {
            Response::Pending { reason } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason, "pod shop/api is not known to any source");
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert!(node.maps().policy_map(api.ifindex).unwrap().is_none());
        node.manifest("pods.yaml", &pod("shop/api", "app: api", "10.0.0.2"));
        eventually("it is programmed", || node.maps().policy_map(api.ifindex).unwrap().map(drop));
        assert_eq!(node.add(&[&api]), Response::Ok);
    });
}

#[test]
fn a_pod_that_becomes_known_meanwhile_is_answered_at_once() {
    on_a_node(|node| {
        let _policyd = node.policyd_with(&["--cni-wait-ms", "15000"]);
        node.ready();
        let api = node.endpoint("shop/api", "10.0.0.2");
        std::thread::scope(|scope| {
            let add = scope.spawn(|| node.add(&[&api]));
            std::thread::sleep(Duration::from_millis(100));
            node.manifest("pods.yaml", &pod("shop/api", "app: api", "10.0.0.2"));
            assert_eq!(add.join().unwrap(), Response::Ok);
        });
    });
}

#[test]
fn a_registration_that_is_not_there_is_an_error() {
    on_a_node(|node| {
        let _policyd = node.policyd();
        node.ready();
        let api = node.endpoint("shop/api", "10.0.0.2");
        let other = EndpointRef { ifindex: api.ifindex, owner: api.owner + 7 };
        let response = node.ask(&Request::Add { container_id: "c".into(), endpoints: vec![other] });
        let Response::Error { message } = response else { panic!("{response:?}") };
        assert!(message.contains("has no registration"), "{message}");
    });
}

/// An API server that nothing answers for.
const NO_SERVER: &str = "
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
";

#[test]
fn nothing_is_programmed_before_the_sources_have_spoken() {
    on_a_node(|node| {
        node.manifest("pods.yaml", &pod("shop/api", "app: api", "10.0.0.2"));
        let config = node.path("kubeconfig");
        std::fs::write(&config, NO_SERVER).unwrap();
        let source = format!("kubernetes:{}", config.display());
        let _policyd = node.policyd_with(&["--source", &source, "--cni-wait-ms", "100"]);
        let api = node.endpoint("shop/api", "10.0.0.2");
        let Response::Pending { reason } = node.add(&[&api]) else { panic!("programmed") };
        assert!(reason.starts_with("not read whole yet: source "), "{reason}");
        assert!(reason.contains(&source), "{reason}");
        let Response::Pending { reason } = node.ask(&Request::Status) else { panic!("ready") };
        assert!(reason.contains("has not been read whole yet"), "{reason}");
    });
}
