//! Policies that are only audited: what they would deny passes and is summed up, whatever else is denied.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use podgate_testkit::wait::eventually;
use serde_json::{Value, json};

use super::pods::{Chain, Pods};
use super::{API, DB, WEB, denied, policy, three};
use crate::node::{Node, on_a_node};

/// Nothing reaches `app: db`, if the policy is enforced.
fn closed(annotations: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: shop, name: closed{annotations}}}\n\
         spec: {{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress]}}\n---\n"
    )
}

const AUDIT: &str = ", annotations: {podgate.io/mode: audit}";

fn audited_world(node: &Node) -> Pods<'_> {
    node.manifest("policies.yaml", &(policy() + &closed(AUDIT)));
    let pods = three(node, Chain::Bridge, true);
    node.manifest("pods.yaml", &pods.manifests());
    pods
}

fn refused(pods: &Pods<'_>, from: &str, to: &str, port: u16) -> bool {
    let at = SocketAddr::new(pods.of(to).address, port);
    let dial = || TcpStream::connect_timeout(&at, Duration::from_secs(2));
    pods.of(from).inside(dial).is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

/// The summary, once it has so many pairs.
fn audit(node: &Node, path: &str, pairs: usize) -> Value {
    eventually("the flows are summed up", || {
        let audit = node.get(path);
        (audit["flows"].as_array().unwrap().len() == pairs).then_some(audit)
    })
}

#[test]
fn what_an_audited_policy_would_deny_passes_and_is_told_by_names() {
    on_a_node(|node| {
        let pods = audited_world(node);
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        assert!(node.podgatectl(&["audit"]).unwrap().starts_with("no flow would have been denied"));
        assert!(pods.connect(WEB, DB, 5432).passes(), "the policy is only audited");
        assert!(pods.connect(WEB, DB, 5432).passes());
        assert!(pods.connect(WEB, API, 80).passes(), "allowed by the other policy");
        assert!(refused(&pods, DB, API, 8080), "the other policy is in force");

        let summary = eventually("both flows are summed up", || {
            let summary = audit(node, "/v1/audit", 1);
            (summary["flows"][0]["flows"] == 2).then_some(summary)
        });
        let row = &summary["flows"][0];
        assert_eq!(summary["lost"], 0, "{summary}");
        assert_eq!((&row["pod"], &row["peer"]), (&json!(DB), &json!(WEB)), "{row}");
        assert_eq!((&row["direction"], &row["port"]), (&json!("ingress"), &json!(5432)));
        assert_eq!(row["rule"], "shop/closed isolates for ingress");
        assert_eq!((&row["policies"], &row["allowable"]), (&json!(["shop/closed"]), &json!(true)));
        assert_eq!(
            (&row["pod_labels"]["app"], &row["peer_labels"]["app"]),
            (&json!("db"), &json!("web"))
        );
        audit(node, "/v1/audit?policy=shop/closed&namespace=shop&pod=shop/web", 1);
        audit(node, "/v1/audit?policy=shop/api", 0);
        assert_eq!(node.http("GET", "/v1/audit?of=x", "").0, 400);

        let text = node.podgatectl(&["audit"]).unwrap();
        let line = text.lines().find(|line| line.contains("5432/TCP")).expect(&text);
        assert!(line.starts_with("shop/web") && line.contains("shop/closed isolates"), "{text}");
        assert!(text.contains("shop/closed: 1 pair, 2 flows since"), "{text}");
        let metrics = node.metrics();
        let sample = "podgate_audited_flows_total{namespace=\"shop\",policy=\"closed\"} 2";
        assert!(metrics.contains(sample), "{metrics}");
        let modes: Vec<Value> = node
            .get("/v1/policies")
            .as_array()
            .unwrap()
            .iter()
            .map(|of| of["mode"].clone())
            .collect();
        assert_eq!(modes, ["enforce", "audit"]);
        assert_eq!(node.get("/v1/enforcement")["policies"][0]["name"], "closed");
        let text = node.podgatectl(&["enforcement", "on", "--policy", "shop/closed"]).unwrap();
        assert!(text.contains("no annotation podgate.io/mode"), "{text}");

        assert_eq!(node.http("DELETE", "/v1/audit", "").1["flows"], json!([]));
        audit(node, "/v1/audit", 0);
    });
}

#[test]
fn the_annotation_goes_and_comes_under_live_connections() {
    on_a_node(|node| {
        let pods = audited_world(node);
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        let mut audited = pods.connect(WEB, DB, 5432);
        let mut allowed = pods.connect(WEB, API, 80);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let talk = scope.spawn(|| {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) {
                    assert!(allowed.passes(), "after {rounds} rounds");
                    rounds += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                rounds
            });
            assert!(audited.passes());
            assert_eq!(denied(node), [], "an audit denies nothing");
            node.manifest("policies.yaml", &(policy() + &closed("")));
            eventually("the connection is cut", || (!audited.passes()).then_some(()));
            assert!(refused(&pods, WEB, DB, 5433), "a new one too");
            node.manifest("policies.yaml", &(policy() + &closed(AUDIT)));
            eventually("the connection goes on", || audited.passes().then_some(()));
            done.store(true, Ordering::Relaxed);
            let rounds: u32 = talk.join().unwrap();
            assert!(rounds > 100, "only {rounds} rounds");
        });
    });
}

#[test]
fn what_was_open_before_the_audit_is_summed_up_once() {
    on_a_node(|node| {
        let pods = audited_world(node);
        node.manifest("policies.yaml", &policy());
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        let mut open = pods.connect(WEB, DB, 5432);
        assert!(open.passes());
        node.manifest("policies.yaml", &(policy() + &closed(AUDIT)));
        eventually("the open connection is summed up", || {
            assert!(open.passes(), "the policy is only audited");
            let summary = node.get("/v1/audit");
            (summary["flows"][0]["rule"] == "shop/closed isolates for ingress").then_some(())
        });
        // another change, after which it is judged again
        node.manifest("policies.yaml", &closed(AUDIT));
        eventually("a pod is free", || (!refused(&pods, DB, API, 8080)).then_some(()));
        assert!(open.passes());
        assert!(pods.connect(WEB, DB, 5433).passes(), "what is told after it");
        let summary = audit(node, "/v1/audit", 2);
        for row in summary["flows"].as_array().unwrap() {
            assert_eq!(row["flows"], 1, "{summary}");
        }
    });
}

#[test]
fn what_advise_proposes_lets_the_seen_flows_pass_once_the_policy_is_enforced() {
    on_a_node(|node| {
        let pods = audited_world(node);
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        let mut seen = pods.connect(WEB, DB, 5432);
        audit(node, "/v1/audit", 1);
        let proposed = node.podgatectl(&["advise", "--namespace", "shop"]).unwrap();
        assert!(proposed.contains("name: allow-seen-db"), "{proposed}");
        node.manifest("proposed.yaml", &proposed);
        eventually("the proposal is known", || {
            let policies = node.get("/v1/policies");
            let known = |of: &Value| of["name"] == "allow-seen-db";
            policies.as_array().unwrap().iter().any(known).then_some(())
        });
        node.manifest("policies.yaml", &(policy() + &closed("")));
        eventually("another port is denied", || refused(&pods, WEB, DB, 5433).then_some(()));
        assert!(seen.passes(), "the open connection");
        drop(seen);
        assert!(pods.connect(WEB, DB, 5432).passes(), "a new one");
        assert!(refused(&pods, API, DB, 5432), "another pod");
    });
}

/// In the node's audit mode every packet that is denied is told, answers too; they are one flow.
#[test]
fn the_nodes_audit_mode_tells_connections_and_not_their_packets() {
    on_a_node(|node| {
        node.manifest("policies.yaml", &policy());
        let pods = three(node, Chain::Bridge, true);
        node.manifest("pods.yaml", &pods.manifests());
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        node.podgatectl(&["enforcement", "audit"]).unwrap();
        let mut line = pods.connect(DB, API, 8080);
        for _ in 0..20 {
            assert!(line.passes());
        }
        let summary = audit(node, "/v1/audit", 1);
        let row = &summary["flows"][0];
        assert_eq!(
            (&row["pod"], &row["peer"], &row["port"]),
            (&json!(API), &json!(DB), &json!(8080))
        );
        assert_eq!((&row["flows"], &row["policies"]), (&json!(1), &json!(["shop/api"])), "{row}");
        let text = node.podgatectl(&["audit"]).unwrap();
        assert!(text.contains("shop/api: no rule allows it"), "{text}");
        assert!(text.contains("it is in force; this node's mode is audit"), "{text}");
    });
}
