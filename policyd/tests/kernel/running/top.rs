//! `podgatectl top` counts what the programs count.

use std::net::{SocketAddr, UdpSocket};

use serde_json::{Value, json};

use super::pods::Chain;
use super::{API, DB, WEB, denied, policy, three};
use crate::node::on_a_node;

#[test]
fn two_denied_packets_are_two() {
    on_a_node(|node| {
        let pods = three(node, Chain::Bridge, true);
        node.manifest("pods.yaml", &pods.manifests());
        node.manifest("policies.yaml", &policy());
        let _policyd = pods.policyd(&[]);
        pods.enforced(&[WEB, API, DB]);
        assert_eq!(denied(node), []);
        let to = SocketAddr::new(pods.of(DB).address, 9);
        pods.of(API).inside(|| {
            let socket = UdpSocket::bind((pods.of(API).address, 0)).unwrap();
            for _ in 0..2 {
                assert_eq!(socket.send_to(b"twelve bytes", to).unwrap(), 12);
            }
        });
        let mut open = pods.connect(WEB, API, 80);
        assert!(open.passes());
        let top: Value =
            serde_json::from_str(&node.podgatectl(&["top", "-o", "json"]).unwrap()).unwrap();
        let packets = top["packets"].as_array().unwrap();
        let denials: Vec<_> = packets.iter().filter(|each| each["verdict"] == "deny").collect();
        let expected = json!({
            "direction": "egress", "verdict": "deny", "reason": "policy",
            "packets": 2, "bytes": denials[0]["bytes"],
        });
        assert_eq!(denials, [&expected]);
        assert!(denials[0]["bytes"].as_u64().unwrap() >= 2 * (20 + 8 + 12));
        let rule = top["rules"].as_array().unwrap().iter().find(|rule| {
            rule["pod"] == API && rule["direction"] == "ingress" && rule["ports"] == "TCP 80"
        });
        assert_eq!(rule.unwrap()["hits"], 1, "{top:#}");

        let text = node.podgatectl(&["top"]).unwrap();
        let cells = |line: &str| {
            let cells = line.split(|c: char| !(c.is_alphanumeric() || "/-.[]".contains(c)));
            cells.filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let bytes = expected["bytes"].to_string();
        let line = ["2", &bytes, "egress", "deny", "policy"];
        assert!(text.lines().any(|each| cells(each) == line), "{text}");
        assert!(text.contains("shop/api"), "{text}");
    });
}
