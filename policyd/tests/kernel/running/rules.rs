//! Local rules and default modes, with real packets: they come before policies, under open connections, over a killed policyd,
//! and end in time.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use podgate_testkit::wait::eventually;
use serde_json::{Value, json};

use super::pods::{Chain, Pods};
use super::{API, DB, WEB, policy, three};
use crate::node::{Node, Policyd, on_a_node};

/// For what may not connect: the first segment is sent again after one second, and is refused again.
const REFUSED: Duration = Duration::from_millis(1200);

/// Three pods, of which policyd enforces these policies.
fn running<'n>(node: &'n Node, policies: &str) -> (Pods<'n>, Policyd) {
    let pods = three(node, Chain::Ptp, true);
    node.manifest("pods.yaml", &pods.manifests());
    node.manifest("policies.yaml", policies);
    let policyd = pods.policyd(&[]);
    pods.enforced(&[WEB, API, DB]);
    (pods, policyd)
}

/// Whether a new connection is made.
fn reaches(pods: &Pods<'_>, from: &str, to: &str, port: u16) -> bool {
    let at = SocketAddr::new(pods.of(to).address, port);
    let _listener = pods.of(to).inside(|| TcpListener::bind(at)).expect("listen");
    pods.of(from).inside(|| TcpStream::connect_timeout(&at, REFUSED)).is_ok()
}

fn pings(pods: &Pods<'_>, from: &str, to: &str) -> bool {
    let to = pods.of(to).address.to_string();
    let run = pods
        .of(from)
        .inside(|| Command::new("ping").args(["-q", "-n", "-c", "1", "-W", "1", &to]).output());
    run.expect("run ping (Debian: apt-get install iputils-ping)").status.success()
}

/// Adds a rule and returns its number.
fn add(node: &Node, pod: &str, rule: Value) -> u64 {
    let (status, answer) =
        node.http("PUT", &format!("/v1/endpoints/{pod}/rules"), &rule.to_string());
    assert_eq!((status, &answer["change"]), (201, &json!("created")), "{answer}");
    assert_eq!(answer["problems"], json!([]));
    answer["rule"]["id"].as_u64().unwrap()
}

fn remove(node: &Node, pod: &str, rule: u64) {
    let (status, answer) = node.http("DELETE", &format!("/v1/endpoints/{pod}/rules?id={rule}"), "");
    assert_eq!((status, &answer["removed"]), (200, &json!([rule])), "{answer}");
}

fn ids(node: &Node, pod: &str) -> Vec<u64> {
    let said = node.get(&format!("/v1/endpoints/{pod}/rules"));
    said["rules"].as_array().unwrap().iter().map(|rule| rule["id"].as_u64().unwrap()).collect()
}

fn tcp(action: &str, peer: &str, port: u16) -> Value {
    let ports = port.to_string();
    json!({"direction": "ingress", "action": action, "peer": peer, "protocol": "tcp", "ports": ports})
}

#[test]
fn a_local_rule_comes_before_policies_and_survives_a_killed_policyd() {
    on_a_node(|node| {
        let (pods, policyd) = running(node, &policy());

        assert!(!reaches(&pods, DB, API, 9000), "the policy denies it");
        let allow = add(node, API, tcp("allow", DB, 9000));
        assert!(reaches(&pods, DB, API, 9000));
        assert!(!reaches(&pods, WEB, API, 9000) && !reaches(&pods, DB, API, 9001));
        let rule = &node.get("/v1/endpoints/shop/api/rules")["rules"][0];
        assert_eq!(rule["new_flows"], 1, "{rule}");
        let why = node.get("/v1/explain?from=shop/db&to=shop/api&port=9000")["why"].to_string();
        assert!(why.contains(&format!("local rule {allow} of shop/api")), "{why}");

        // under an open connection that the policy allows
        let mut line = pods.connect(WEB, API, 80);
        assert!(line.passes());
        let deny = add(node, API, tcp("deny", &format!("{}/32", pods.of(WEB).address), 80));
        assert!(!line.passes(), "it ends at its next packet");
        drop(line);
        assert!(!reaches(&pods, WEB, API, 81), "nor does the policy allow another port");
        remove(node, API, deny);
        assert!(reaches(&pods, WEB, API, 80));

        // policyd dies without a word: what is in force stays, and is read again
        let reject = add(node, DB, tcp("reject", WEB, 5432));
        assert!(!reaches(&pods, WEB, DB, 5432));
        let rule = &node.get("/v1/endpoints/shop/db/rules")["rules"][0];
        assert!(rule["new_flows"].as_u64() > Some(0), "what it denies counts: {rule}");
        let shown = node.podgatectl(&["rules", DB]).unwrap();
        let by = format!("local rule {reject} of shop/db");
        let rejects = |line: &str| line.contains(&by) && line.contains(" reject ");
        assert!(shown.lines().any(rejects), "{shown}");
        policyd.kill();
        assert!(reaches(&pods, DB, API, 9000) && !reaches(&pods, WEB, DB, 5432));
        let _policyd = pods.policyd(&[]);
        node.ready();
        assert_eq!(ids(node, API), [allow]);
        assert!(reaches(&pods, DB, API, 9000) && !reaches(&pods, WEB, DB, 5432));
        assert!(reaches(&pods, WEB, DB, 5433), "of other ports nothing is said");
        let (status, answer) = node.http("DELETE", "/v1/endpoints/shop/api/rules?id=99", "");
        assert_eq!(status, 404, "{answer}");
    });
}

#[test]
fn a_rule_ends_with_its_lifetime_and_also_while_policyd_is_down() {
    on_a_node(|node| {
        let (pods, policyd) = running(node, &policy());

        let with_lifetime = |port, seconds| {
            let mut rule = tcp("allow", DB, port);
            rule["lifetime"] = json!(seconds);
            rule
        };
        let short = add(node, API, with_lifetime(9000, 3));
        let mut line = pods.connect(DB, API, 9000);
        assert!(line.passes());
        eventually("the rule is gone", || (!ids(node, API).contains(&short)).then_some(()));
        // the list is without it a moment before the maps are
        eventually("its connections end with it", || (!line.passes()).then_some(()));
        drop(line);
        assert!(!reaches(&pods, DB, API, 9000));

        let (while_down, long) =
            (add(node, API, with_lifetime(9001, 2)), add(node, API, with_lifetime(9002, 3600)));
        let over = std::time::SystemTime::now() + Duration::from_secs(4);
        policyd.kill();
        assert!(reaches(&pods, DB, API, 9002));
        // by the clock, which is what the rule goes by
        eventually("its lifetime is over", || (std::time::SystemTime::now() > over).then_some(()));
        let _policyd = pods.policyd(&[]);
        node.ready();
        assert_eq!(ids(node, API), [long], "{while_down} is gone");
        assert!(!reaches(&pods, DB, API, 9001) && reaches(&pods, DB, API, 9002));
    });
}

#[test]
fn a_default_mode_is_for_what_nothing_speaks_of() {
    on_a_node(|node| {
        let (pods, _policyd) = running(node, "");
        let put = |path: &str, body: Value| {
            let (status, answer) = node.http("PUT", path, &body.to_string());
            assert_eq!(status, 200, "{answer}");
            answer
        };
        assert!(reaches(&pods, WEB, DB, 5432) && pings(&pods, WEB, DB));
        put("/v1/defaults", json!({"ingress": "deny"}));
        assert!(!reaches(&pods, WEB, DB, 5432) && !pings(&pods, WEB, DB));
        // what the node opens always passes
        let at = SocketAddr::new(pods.of(DB).address, 7000);
        let _listener = pods.of(DB).inside(|| TcpListener::bind(at)).unwrap();
        assert!(TcpStream::connect_timeout(&at, REFUSED).is_ok());

        add(node, DB, tcp("allow", "10.77.0.0/24", 5432));
        add(node, DB, json!({"direction": "ingress", "action": "allow", "protocol": "1"}));
        assert!(reaches(&pods, WEB, DB, 5432) && !reaches(&pods, WEB, DB, 5433));
        assert!(pings(&pods, WEB, DB) && !pings(&pods, WEB, API));
        // a pod's own mode comes before the node's
        let modes = put("/v1/endpoints/shop/api/defaults", json!({"ingress": "allow"}));
        assert_eq!(modes, json!({"ingress": "allow", "egress": "unset"}));
        assert!(reaches(&pods, WEB, API, 80) && pings(&pods, WEB, API));
        put("/v1/endpoints/shop/web/defaults", json!({"egress": "reject"}));
        assert!(!reaches(&pods, WEB, API, 80));
        // a policy decides everything in the direction that it isolates for
        node.manifest("policies.yaml", &policy());
        eventually("the policy is in force", || {
            let endpoints = node.get("/v1/endpoints/shop/api");
            (endpoints[0]["ingress"]["isolated"] == true).then_some(())
        });
        put("/v1/endpoints/shop/web/defaults", json!({"egress": "unset"}));
        assert!(reaches(&pods, WEB, API, 80) && !reaches(&pods, DB, API, 80));
        put("/v1/defaults", json!({"ingress": "unset"}));
        assert!(reaches(&pods, DB, WEB, 80));
    });
}

#[test]
fn what_is_wrong_with_a_rule_is_said_by_its_field() {
    on_a_node(|node| {
        let _policyd = node.policyd();
        node.ready();
        let put = |pod: &str, body: &str| {
            let (status, answer) = node.http("PUT", &format!("/v1/endpoints/{pod}/rules"), body);
            (status, answer["field"].as_str().unwrap_or_default().to_owned())
        };
        let field = |name: &str| (422, name.to_owned());
        let rule = |more: Value| {
            let mut rule = json!({"direction": "ingress", "action": "deny"});
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rule.to_string()
        };
        assert_eq!(put("shop/web", &rule(json!({"peer": "10.0.0.0/40"}))), field("peer"));
        assert_eq!(put("shop/web", &rule(json!({"direction": "in"}))), field("direction"));
        assert_eq!(put("shop/web", &rule(json!({"action": 7}))), field("action"));
        assert_eq!(put("shop/web", &rule(json!({"peers": "any"}))), field("peers"));
        assert_eq!(put("shop/web", &rule(json!({"ports": "80"}))), field("protocol"));
        assert_eq!(put("shop/web", &rule(json!({"before": 3}))), field("before"));
        assert_eq!(put("shop/w%20b", &rule(json!({}))), field("pod"));
        assert_eq!(put("shop/web", "{"), (400, String::new()));
        assert_eq!(node.get("/v1/rules")["pods"], json!([]));
        // of a pod that is not here it is kept, and said so
        let (status, answer) = node.http("PUT", "/v1/endpoints/shop/later/rules", &rule(json!({})));
        assert_eq!((status, &answer["here"]), (201, &json!(false)), "{answer}");
        let later = node.endpoint("shop/later", "10.0.0.9");
        node.manifest("pods.yaml", &crate::node::pod("shop/later", "app: later", "10.0.0.9"));
        eventually("its rule is in force", || {
            let map = node.maps().policy_map(later.ifindex).unwrap()?;
            let denies = |(_, value): &(_, podgate_bpf::abi::PolicyValue)| {
                value.verdict == podgate_bpf::abi::Verdict::Deny as u8
            };
            map.entries().unwrap().iter().any(denies).then_some(())
        });
        eventually("its pod is here", || {
            (node.get("/v1/rules")["pods"][0]["here"] == true).then_some(())
        });
        assert_eq!(node.http("DELETE", "/v1/endpoints/shop/later/rules", "").0, 200);
    });
}

/// A host without Kubernetes and without manifests: a pod is what the plugin says of it.
#[test]
fn without_any_source_a_pod_is_what_the_plugin_says_of_it() {
    on_a_node(|node| {
        let web = node.endpoint("shop/web", "10.0.0.1");
        let api = node.endpoint("shop/api", "10.0.0.2");
        let policyd = node.policyd_of("local", &[]);
        node.ready();
        assert_eq!(node.add(&[&web, &api]), podgate_contract::handshake::Response::Ok);
        let (status, answer) =
            node.http("PUT", "/v1/defaults", &json!({"ingress": "deny"}).to_string());
        assert_eq!(status, 200, "{answer}");
        add(node, API, tcp("allow", WEB, 80));
        let explained = |from: &str, port: u16| {
            let query = format!("/v1/explain?from={from}&to=shop/api&port={port}");
            node.get(&query)["verdict"].as_str().unwrap().to_owned()
        };
        assert_eq!((explained(WEB, 80), explained(WEB, 81)), ("allow".into(), "deny".into()));
        assert_eq!(explained("192.0.2.1", 80), "deny");
        policyd.kill();
        let _policyd = node.policyd_of("local", &[]);
        node.ready();
        assert_eq!(explained(WEB, 80), "allow");
        let mut refused = node.policyd_of("local,kubernetes", &[]);
        eventually("it ends", || refused.has_ended().then_some(()));
        assert!(refused.end().1.join("\n").contains("local stands for no source"));
    });
}
