//! What is said of pods without a gate: while they get it, when they cannot get it, and once they have it or are gone.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use podgate_bpf::abi::Startup;
use podgate_contract::handshake::{EndpointRef, Request, Response};
use podgate_testkit::wait::eventually;
use serde_json::{Value, json};

use super::pods::{Chain, Pods};
use super::{API, DB, WEB, policy, three};
use crate::node::{Node, ip, on_a_node, pod};

/// Whether the DaemonSet's probe is content.
fn is_ready() -> bool {
    let Ok(mut stream) = TcpStream::connect("127.0.0.1:9898") else { return false };
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: n\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.starts_with("HTTP/1.1 200")
}

fn count(status: &Value, state: &str) -> u64 {
    status["endpoints"][state].as_u64().unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|each| each["pod"].as_str().unwrap()).collect()
}

/// Pods that run without a gate are pending from the moment when they are known, and ready means gated.
#[test]
fn ready_means_gated() {
    on_a_node(|node| {
        // without notes: each is watched for a while before it is gated
        let pods = three(node, Chain::Bridge, false);
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &policy());
        let _policyd = pods.policyd(&[]);
        let deadline = Instant::now() + Duration::from_secs(40);
        let mut seen_pending = false;
        loop {
            assert!(Instant::now() < deadline, "it never was ready");
            let ready = is_ready();
            let status = node.get("/v1/status");
            if status["objects"]["pods"] == 3 {
                let all: u64 =
                    ["enforced", "pending", "ungated"].iter().map(|s| count(&status, s)).sum();
                assert_eq!(all, 3, "{status:#}");
                assert_eq!(count(&status, "ungated"), 0, "{status:#}");
            }
            if ready {
                assert_eq!(count(&status, "enforced"), 3, "{status:#}");
                assert_eq!(status["ready"], true);
                break;
            }
            if count(&status, "pending") == 3 {
                assert_eq!(names(&status["pending"]), [API, DB, WEB]);
                seen_pending = true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(seen_pending);
        let text = node.podgatectl(&["status"]).unwrap();
        assert!(text.contains("3 enforced, 0 pending, 0 degraded, 0 ungated"), "{text}");
    });
}

/// Also where an earlier policyd has begun with them, so that they have a gate that does nothing yet.
#[test]
fn ready_means_that_what_was_begun_is_done() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &policy());
        let watched = |node: &Node| {
            let registered = node.registered();
            registered.iter().filter(|(_, each)| each.startup == Startup::Learn).count()
        };
        let policyd = pods.policyd(&[]);
        eventually("all are watched", || (watched(node) == 3).then_some(()));
        policyd.kill();
        assert_eq!(watched(node), 3, "killed too late");
        let _policyd = pods.policyd(&[]);
        eventually("policyd is ready", || is_ready().then_some(()));
        assert_eq!(watched(node), 0);
        let status = node.get("/v1/status");
        assert_eq!((count(&status, "enforced"), count(&status, "pending")), (3, 0), "{status:#}");
    });
}

/// Readiness does not wait for a pod that cannot be found: it says so instead.
#[test]
fn a_pod_that_cannot_be_found_is_named_and_holds_nobody_up() {
    on_a_node(|node| {
        let pods = Pods::start(node, Chain::Bridge, true, &[(WEB, "10.77.0.2")]);
        let ghost = pod("shop/ghost", "app: ghost", "10.77.0.9")
            .replace("spec: {", "spec: {nodeName: n1, ");
        // libcni has started it, and its namespace is nowhere that policyd looks
        let result = json!({"cniVersion": "1.0.0", "interfaces": [], "ips": []});
        pods.note("shop/ghost", "id-ghost", &result);
        node.manifest("pods.yaml", &(pods.manifests() + &ghost));
        let _policyd = pods.policyd(&[]);
        eventually("policyd is ready", || is_ready().then_some(()));
        let status = node.get("/v1/status");
        assert_eq!((count(&status, "enforced"), count(&status, "ungated")), (1, 1), "{status:#}");
        assert_eq!(names(&status["unenforced"]), ["shop/ghost"]);
        let text = node.podgatectl(&["status"]).unwrap();
        assert!(text.contains("1 enforced, 0 pending, 0 degraded, 1 ungated"), "{text}");
        assert!(text.contains("not enforced: shop/ghost: no veth leads to its address"), "{text}");
    });
}

/// Neither what was said before its ADD is said of a pod afterwards, nor anything of one that has ended.
#[test]
fn what_is_said_of_a_pod_changes_with_its_gate() {
    on_a_node(|node| {
        let on_n1 =
            pod("shop/api", "app: api", "10.0.0.2").replace("spec: {", "spec: {nodeName: n1, ");
        node.manifest("pods.yaml", &on_n1);
        let _policyd = node.policyd();
        eventually("policyd is ready", || is_ready().then_some(()));
        let silent = |node: &Node| {
            let status = node.get("/v1/status");
            assert_eq!((&status["unenforced"], &status["pending"]), (&json!([]), &json!([])));
            let text = node.podgatectl(&["endpoints"]).unwrap();
            assert!(!text.contains("not enforced") && !text.contains("pending"), "{text}");
        };
        // a manifest of a pod that does not run
        silent(node);
        let api = node.endpoint("shop/api", "10.0.0.2");
        assert_eq!(node.add(&[&api]), Response::Ok);
        silent(node);
        let endpoint = EndpointRef { ifindex: api.ifindex, owner: api.owner };
        node.datapath.remove_endpoint(endpoint).unwrap();
        ip(&format!("link del {}", api.host_interface));
        let del = Request::Del { container_id: "c".into(), endpoints: vec![endpoint] };
        assert_eq!(node.ask(&del), Response::Ok);
        eventually("it is gone", || (node.get("/v1/endpoints") == json!([])).then_some(()));
        // and not at a later look either
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            silent(node);
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}
