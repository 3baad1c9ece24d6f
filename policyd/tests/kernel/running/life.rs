//! What happens meanwhile: policyd is killed, pods come and go, sources are late.

use std::time::Duration;

use podgate_bpf::abi::Startup;
use podgate_testkit::wait::eventually;
use serde_json::Value;

use super::pods::{Chain, Pods};
use super::{API, DB, WEB, denied, policy, three};
use crate::node::{Node, ip, on_a_node, pod};

/// Waits until a pod is being adopted.
fn begun(node: &Node, name: &str) {
    eventually(&format!("{name} is being adopted"), || {
        let found = node.registered();
        let begun = |(its, registration): &(String, _)| {
            let registration: &podgate_bpf::maps::Registration = registration;
            its == name && registration.startup == Startup::Learn
        };
        found.iter().any(begun).then_some(())
    });
}

#[test]
fn killed_at_any_step_it_is_taken_up_again() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        let mut allowed = pods.connect(WEB, API, 80);
        let mut forbidden = pods.connect(DB, API, 8080);
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &policy());
        // the watch takes a second: from before its first step to after its last
        for delay in [0, 20, 300, 990, 1010] {
            let policyd = pods.policyd(&[]);
            let watched = |registered: Vec<(String, podgate_bpf::maps::Registration)>| {
                registered.iter().any(|(_, each)| each.startup == Startup::Learn)
            };
            let enforced = |node: &Node| {
                let all = node.registered();
                all.len() == 3 && all.iter().all(|(_, each)| each.startup == Startup::Hold)
            };
            eventually("the adoption is under way", || {
                (watched(node.registered()) || enforced(node)).then_some(())
            });
            std::thread::sleep(Duration::from_millis(delay));
            policyd.kill();
            assert!(allowed.passes(), "killed after {delay} ms");
        }
        assert_eq!(denied(node), []);
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        assert!(allowed.passes());
        assert_eq!(denied(node), []);
        assert!(!forbidden.passes());
        for (_, registration) in node.registered() {
            node.datapath.verify(registration.ifindex).unwrap();
        }
    });
}

#[test]
fn a_pod_that_ends_meanwhile_leaves_nothing() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        let mut allowed = pods.connect(WEB, API, 80);
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &policy());
        let _policyd = pods.policyd(&[]);
        begun(node, DB);
        ip(&format!("link del {}", pods.of(DB).host_interface));
        pods.enforced(&[WEB, API]);
        eventually("only two are left", || {
            let left: Vec<_> = node.registered().into_iter().map(|(name, _)| name).collect();
            (left.len() == 2 && !left.contains(&DB.to_owned())).then_some(())
        });
        assert!(allowed.passes());
        eventually("it is reported", || {
            (unenforced(node, "shop/db")?.contains("no veth leads to its address")).then_some(())
        });
    });
}

fn unenforced(node: &Node, pod: &str) -> Option<String> {
    let status = node.get("/v1/status");
    let found = status["unenforced"].as_array().unwrap().iter().find(|each| each["pod"] == pod);
    found.map(|each| each["reason"].as_str().unwrap().to_owned())
}

#[test]
fn a_pod_from_the_gap_and_one_that_the_sources_do_not_know_yet() {
    on_a_node(|node| {
        let mut pods = Pods::start(node, Chain::Bridge, true, &[(WEB, "10.77.0.2")]);
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &policy());
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB]);
        // started while podgate was not in the conflist; the source is late
        pods.add(API, "10.77.0.3", true);
        let mut open = pods.connect(WEB, API, 80);
        let reason = eventually("it is reported", || unenforced(node, API));
        assert!(reason.contains("not known to any source"), "{reason}");
        assert_eq!(node.registered().len(), 1);
        assert!(open.passes());
        let metrics = node.metrics();
        assert!(metrics.contains("podgate_local_pods_unenforced 1"), "{metrics}");
        node.manifest("pods.yaml", &pods.manifests());
        pods.enforced(&[WEB, API]);
        assert!(open.passes());
        eventually("it is no longer reported", || unenforced(node, API).is_none().then_some(()));
    });
}

/// Neither a veth that leads to no pod, nor pods that have no interface of their own or are elsewhere.
#[test]
fn strangers_are_left_alone() {
    on_a_node(|node| {
        let pods = [(WEB, "10.77.0.2"), ("other/docker", "10.77.0.9")];
        let pods = Pods::start(node, Chain::Bridge, false, &pods);
        let elsewhere =
            pod("shop/far", "app: far", "10.77.0.9").replace("spec: {", "spec: {nodeName: n2, ");
        let on_host = pod("shop/host", "app: host", "192.0.2.1")
            .replace("spec: {", "spec: {hostNetwork: true, nodeName: n1, ");
        let web = pod("shop/web", "app: web", "10.77.0.2");
        node.manifest("pods.yaml", &[web, elsewhere, on_host].concat());
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB]);
        std::thread::sleep(Duration::from_secs(4));
        let names: Vec<_> = node.registered().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [WEB]);
        assert_eq!(node.get("/v1/status")["unenforced"], Value::Array(Vec::new()));
    });
}
