//! The API and the metrics.

use std::io::{Read, Write};
use std::net::TcpStream;

use podgate_testkit::wait::eventually;
use serde_json::json;

use crate::node::{Node, on_a_node, pod, policy};

fn world(node: &Node) {
    let pods = [pod("shop/web", "app: web", "10.0.0.1"), pod("shop/api", "app: api", "10.0.0.2")];
    node.manifest("pods.yaml", &pods.concat());
    node.manifest("policies.yaml", &policy("shop/api-from-web", "app: api", "app: web", 80));
}

#[test]
fn it_shows_status_endpoints_and_policies() {
    on_a_node(|node| {
        world(node);
        let api = node.endpoint("shop/api", "10.0.0.2");
        let _policyd = node.policyd();
        node.ready();
        let status = eventually("no pod that ran before waits for its gate", || {
            let status = node.get("/v1/status");
            (status["ready"] == true).then_some(status)
        });
        assert_eq!(status["node"], "n1");
        assert_eq!(
            status["objects"],
            json!({
                "pods": 2, "namespaces": 0, "policies": 1, "cluster_policies": 0,
                "pod_traffic_policies": 0,
            })
        );
        assert_eq!(
            status["endpoints"],
            json!({"enforced": 1, "pending": 0, "degraded": 0, "ungated": 0})
        );
        let endpoint = &node.get("/v1/endpoints")[0];
        assert_eq!(endpoint["ifindex"], api.ifindex);
        assert_eq!(
            endpoint["ingress"],
            json!({"isolated": true, "policies": ["shop/api-from-web"]})
        );
        assert_eq!(endpoint["egress"], json!({"isolated": false, "policies": []}));
        let detail = &node.get("/v1/endpoints/shop/api")[0];
        assert_eq!(detail["name"], "api");
        let allowed = detail["allowed"].as_array().unwrap();
        let rule = allowed.iter().find(|a| a["direction"] == "ingress").unwrap();
        assert_eq!(rule["ports"], "TCP 80");
        assert_eq!(rule["rule"], "shop/api-from-web ingress[0]");
        assert_eq!(rule["peers"]["of"]["members"], json!(["shop/web (10.0.0.1)"]));
        assert_eq!(node.http("GET", "/v1/endpoints/shop/none", "").0, 404);
        let policies = node.get("/v1/policies");
        assert_eq!(policies[0]["pods"], json!(["shop/api"]));
        assert_eq!(policies[0]["source"], "dir");
        assert_eq!(node.http("GET", "/v1/nothing", "").0, 404);
    });
}

#[test]
fn a_local_policy_is_in_force_with_the_answer_and_after_a_restart() {
    on_a_node(|node| {
        world(node);
        let (web, api) =
            (node.endpoint("shop/web", "10.0.0.1"), node.endpoint("shop/api", "10.0.0.2"));
        let policyd = node.policyd();
        node.ready();
        let body = json!({"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 9090}]}]}});
        let (status, answer) = node.http("PUT", "/v1/policies/shop/scrape", &body.to_string());
        assert_eq!((status, &answer["change"]), (201, &json!("created")), "{answer}");
        assert!(node.allows(&api, "192.0.2.1", 6, 9090));
        assert_eq!(node.http("PUT", "/v1/policies/shop/scrape", &body.to_string()).0, 200);
        assert!(!node.allows(&web, "192.0.2.1", 6, 80));
        let enforcement =
            |mode, policy| node.podgatectl(&["enforcement", mode, "--policy", policy]).unwrap();
        let text = enforcement("audit", "shop/scrape");
        assert_eq!(text.trim(), "policy shop/scrape replaced, in force");
        assert!(node.allows(&web, "192.0.2.1", 6, 80), "it is only audited");
        assert!(!node.allows(&api, "192.0.2.1", 6, 80), "the other policy is not");
        policyd.kill();
        let _policyd = node.policyd();
        node.ready();
        assert!(node.allows(&web, "192.0.2.1", 6, 80), "still");
        enforcement("on", "shop/scrape");
        assert!(!node.allows(&web, "192.0.2.1", 6, 80));
        assert!(node.allows(&api, "192.0.2.1", 6, 9090));
        let text = enforcement("audit", "shop/api-from-web");
        assert!(text.contains("manifest of source dir"), "{text}");
        let mode = |policy: &str, mode: &str| {
            let body = json!({"mode": mode}).to_string();
            node.http("PUT", &format!("/v1/policies/{policy}/mode"), &body).0
        };
        assert_eq!(mode("shop/api-from-web", "audit"), 404, "it is not a local one");
        assert_eq!(mode("shop/scrape", "off"), 400);
        assert_eq!(node.http("DELETE", "/v1/policies/shop/scrape", "").0, 200);
        assert!(!node.allows(&api, "192.0.2.1", 6, 9090));
        assert_eq!(node.http("DELETE", "/v1/policies/shop/scrape", "").0, 404);
    });
}

#[test]
fn a_local_cluster_policy_is_kept_listed_and_removed() {
    on_a_node(|node| {
        world(node);
        node.endpoint("shop/api", "10.0.0.2");
        let policyd = node.policyd();
        node.ready();
        let body = json!({"spec": {
            "tier": "Baseline", "priority": 3, "subject": {"namespaces": {}},
            "ingress": [{"action": "Accept", "from": [{"new": {}}]}],
        }});
        let path = "/v1/cluster-policies/base";
        let (status, answer) = node.http("PUT", path, &body.to_string());
        assert_eq!((status, &answer["change"]), (201, &json!("created")), "{answer}");
        assert_eq!((&answer["source"], &answer["name"]), (&json!("local"), &json!("base")));
        let problem = "spec.ingress[0].from[0]: unknown field \"new\"; the rule fails closed: it matches nothing";
        assert_eq!(answer["problems"][0], problem);
        assert_eq!(node.http("PUT", path, &body.to_string()).0, 200);
        policyd.kill();
        let _policyd = node.policyd();
        node.ready();
        assert_eq!(
            node.get("/v1/cluster-policies"),
            json!([{
                "source": "local", "name": "base", "tier": "Baseline", "priority": 3, "directions": ["ingress"],
                "pods": ["shop/api"], "mode": "enforce", "problems": [problem],
            }])
        );
        let text = node.podgatectl(&["cluster-policies"]).unwrap();
        assert!(text.contains("base") && text.contains("Baseline"), "{text}");
        let (status, answer) = node.http("PUT", path, r#"{"spec": {"tier": "Admin"}}"#);
        assert_eq!((status, &answer["field"]), (422, &json!("spec.priority")), "{answer}");
        assert_eq!(node.http("DELETE", path, "").0, 200);
        assert_eq!(node.http("DELETE", path, "").0, 404);
        assert_eq!(node.get("/v1/cluster-policies"), json!([]));
    });
}

#[test]
fn a_wrong_policy_is_refused_by_its_field() {
    on_a_node(|node| {
        let _policyd = node.policyd();
        node.ready();
        let put = |body: serde_json::Value| {
            let (status, answer) = node.http("PUT", "/v1/policies/shop/x", &body.to_string());
            (status, answer["field"].as_str().unwrap_or_default().to_owned())
        };
        let spec = |rule| json!({"spec": {"podSelector": {}, "ingress": [rule]}});
        let wrong_port = json!({"ports": [{"port": 70000}]});
        assert_eq!(put(spec(wrong_port)), (422, "spec.ingress[0].ports[0].port".into()));
        let misspelt = json!({"form": [{"podSelector": {}}]});
        let (status, field) = put(spec(misspelt));
        assert_eq!(status, 422);
        assert!(field.ends_with("form"), "{field}");
        assert_eq!(put(json!({"metadata": {"name": "y"}})), (422, "metadata.name".into()));
        assert_eq!(put(json!({"spec": {"podSelector": 7}})), (422, "spec.podSelector".into()));
        assert_eq!(node.http("PUT", "/v1/policies/shop/x", "no json").0, 400);
        assert_eq!(node.get("/v1/policies"), json!([]));
    });
}

#[test]
fn it_explains_both_gates() {
    on_a_node(|node| {
        world(node);
        node.endpoint("shop/api", "10.0.0.2");
        let _policyd = node.policyd();
        node.ready();
        let yes = node.get("/v1/explain?from=shop/web&to=shop/api&port=80&protocol=TCP");
        assert_eq!(yes["verdict"], "allow", "{yes}");
        let no = node.get("/v1/explain?from=shop/web&to=10.0.0.2&port=81");
        assert_eq!(no["verdict"], "deny", "{no}");
        assert!(no["why"].as_str().unwrap().contains("shop/api-from-web"), "{no}");
        let stranger = node.get("/v1/explain?from=192.0.2.1&to=shop/api&port=80");
        assert_eq!(stranger["verdict"], "deny");
        knows_its_own_address(node);
        for (query, field) in [
            ("from=shop/web&to=shop/nobody&port=80", "to"),
            ("from=web&to=shop/api&port=80", "from"),
            ("from=shop/web&to=shop/api", "port"),
            ("from=shop/web&to=shop/api&port=80&protocol=XYZ", "protocol"),
        ] {
            let (status, answer) = node.http("GET", &format!("/v1/explain?{query}"), "");
            assert_eq!((status, answer["field"].as_str()), (422, Some(field)), "{answer}");
        }
        assert_eq!(node.http("GET", "/v1/explain?from=shop/web", "").0, 400);
    });
}

/// Which may come after the first policies are in force; what the node sends is explained as a stranger's until then.
fn knows_its_own_address(node: &Node) {
    eventually("policyd knows the node's own address", || {
        let answer = node.get("/v1/explain?from=127.0.0.1&to=shop/api&port=80");
        (answer["verdict"] == "allow").then_some(())
    });
}

/// A hostNetwork pod is its node: that reaches its own pods whatever their policies say, and no others.
#[test]
fn it_explains_what_a_node_itself_sends() {
    on_a_node(|node| {
        world(node);
        let on = |more: &str, pod: String| pod.replace("spec: {", &format!("spec: {{{more}, "));
        let host = |node: &str| format!("hostNetwork: true, nodeName: {node}");
        let pods = [
            on(&host("n1"), pod("host/here", "app: host", "127.0.0.1")),
            on(&host("n2"), pod("host/there", "app: host", "192.0.2.2")),
            on("nodeName: n2", pod("shop/away", "app: api", "10.0.0.3")),
        ];
        node.manifest("more.yaml", &pods.concat());
        node.endpoint("shop/api", "10.0.0.2");
        let _policyd = node.policyd();
        node.ready();
        knows_its_own_address(node);
        for (from, to, verdict) in [
            ("host/here", "shop/api", "allow"),
            ("host/there", "shop/api", "deny"),
            ("127.0.0.1", "shop/away", "deny"),
            ("host/here", "shop/away", "deny"),
            ("host/there", "shop/away", "allow"),
            // an address of a node is that node
            ("192.0.2.2", "shop/away", "allow"),
            ("192.0.2.2", "shop/api", "deny"),
            ("node:n2", "shop/away", "allow"),
            ("node:n2", "shop/api", "deny"),
        ] {
            let answer = node.get(&format!("/v1/explain?from={from}&to={to}&port=80"));
            assert_eq!(answer["verdict"], verdict, "{from} to {to}: {answer}");
            assert_eq!(answer["gates"].as_array().unwrap().len(), 1, "{answer}");
        }
    });
}

#[test]
fn enforcement_is_kept_in_the_kernel() {
    on_a_node(|node| {
        let policyd = node.policyd();
        node.ready();
        let nothing_audited =
            json!({"mode": "enforce", "namespaces": [], "policies": [], "cluster_policies": []});
        assert_eq!(node.get("/v1/enforcement"), nothing_audited);
        let set = |body: &str| node.http("PUT", "/v1/enforcement", body);
        assert_eq!(set("{\"mode\":\"audit\"}"), (200, json!({"mode": "audit"})));
        policyd.kill();
        let _policyd = node.policyd();
        node.ready();
        assert_eq!(node.get("/v1/status")["enforcement"], "audit");
        assert_eq!(set("{\"mode\":\"on\"}"), (200, json!({"mode": "enforce"})));
        assert_eq!(set("{\"mode\":\"maybe\"}").0, 400);
    });
}

#[test]
fn metrics_and_health_are_served() {
    on_a_node(|node| {
        world(node);
        node.endpoint("shop/api", "10.0.0.2");
        let _policyd = node.policyd();
        node.ready();
        let get = |path: &str| {
            let mut stream = TcpStream::connect("127.0.0.1:9898").unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(get("/healthz").starts_with("HTTP/1.1 200"));
        eventually("it is ready", || get("/readyz").starts_with("HTTP/1.1 200").then_some(()));
        let metrics = get("/metrics");
        for line in [
            "podgate_endpoints{state=\"enforced\"} 1",
            "podgate_objects{kind=\"policy\"} 1",
            "podgate_ready 1",
            "podgate_packets_total{direction=\"egress\",verdict=\"deny\",reason=\"policy\"} 0",
            "podgate_packet_bytes_total{direction=\"ingress\",verdict=\"allow\",reason=\"flow\"} 0",
            "podgate_datapath_notes_total{note=\"flow-lost\"} 0",
            "podgate_build_info{version=",
            "podgate_commit_duration_seconds_count",
            "podgate_gates_reattached_total 0",
            "# EOF",
        ] {
            assert!(metrics.contains(line), "{line} is not in\n{metrics}");
        }
    });
}

/// It is said, everywhere where an operator may look, instead of being passed over.
#[test]
fn a_kind_that_is_not_enforced_is_named() {
    on_a_node(|node| {
        world(node);
        let policy = |kind: &str, name: &str| {
            format!(
                "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\n\
                 spec: {{priority: 10, subject: {{namespaces: {{}}}}}}\n---\n"
            )
        };
        let kind = "AdminNetworkPolicy";
        node.manifest("cluster.yaml", &[policy(kind, "a"), policy(kind, "b")].concat());
        let item = |name| json!({"metadata": {"name": name}});
        let list = json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicyList",
            "items": [item("c")],
        });
        node.manifest("list.json", &list.to_string());
        let policyd = node.policyd();
        node.ready();
        let status = node.get("/v1/status");
        let expected = json!([{"kind": kind, "objects": 3}]);
        assert_eq!(status["unenforced_kinds"], expected);
        let text = node.podgatectl(&["status"]).unwrap();
        assert!(text.contains("not enforced: 3 AdminNetworkPolicy objects"), "{text}");
        let metrics = node.metrics();
        for line in [
            "podgate_objects_unenforced{kind=\"AdminNetworkPolicy\"} 3",
            "podgate_objects_unenforced{kind=\"BaselineAdminNetworkPolicy\"} 0",
        ] {
            assert!(metrics.contains(line), "{line} is not in\n{metrics}");
        }
        std::fs::remove_file(node.path("manifests/list.json")).unwrap();
        node.manifest("cluster.yaml", &policy("BaselineAdminNetworkPolicy", "default"));
        eventually("the numbers follow", || {
            let expected = json!([{"kind": "BaselineAdminNetworkPolicy", "objects": 1}]);
            (node.get("/v1/status")["unenforced_kinds"] == expected).then_some(())
        });
        let log = policyd.kill();
        let warned: Vec<_> = log.iter().filter(|line| line.contains("does not enforce")).collect();
        assert_eq!(warned.len(), 2, "once for each kind: {warned:#?}");
        assert!(warned.iter().all(|line| line.contains("WARN")), "{warned:#?}");
    });
}
