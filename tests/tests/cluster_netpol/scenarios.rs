//! The suite, in its order, each with what it expects of three pods in each of three namespaces. (The suite itself makes
//! fewer pods in most of them; what it says of those it has is said here of all alike.)

use anyhow::Result;
use podgate_tests::cluster::matrix::Matrix;
use serde_json::{Value, json};

use super::reach::*;

/// All that need no SCTP.
pub(crate) fn every_scenario() -> Vec<Scenario> {
    let mut found = selectors();
    found.extend(ports());
    found.extend(changes());
    found.extend(directions());
    found.extend(blocks_and_protocols());
    found.extend(by_udp());
    found
}

fn scenario(number: u8, name: &'static str, steps: fn(&Matrix) -> Result<Vec<Step>>) -> Scenario {
    Scenario { number, name, steps }
}

/// 1-13: who is selected.
fn selectors() -> Vec<Scenario> {
    vec![
        scenario(1, "should support a 'default-deny-ingress' policy", |_| {
            let policy = ingress("x", "deny-ingress", json!({}), json!([]));
            Ok(vec![step(policy, [tcp(80, all_of_x_closed())])])
        }),
        scenario(2, "should support a 'default-deny-all' policy", |_| {
            let reach = all().no("*", "x/*").no("x/*", "*");
            Ok(vec![step(deny_all(), [tcp(80, reach)])])
        }),
        scenario(
            3,
            "should enforce policy to allow traffic from pods within server namespace based on PodSelector",
            |_| Ok(vec![only_b(json!([{ "podSelector": pod("b") }]))]),
        ),
        scenario(4, "should enforce policy to allow ingress traffic for a target", |_| {
            let deny = ingress("x", "deny-all", json!({}), json!([]));
            let everybody = json!([{ "from": [{ "podSelector": {}, "namespaceSelector": {} }] }]);
            let allow = ingress("x", "allow-all-to-a", pod("a"), everybody);
            let reach = all().no("*", "x/*").yes("*", "x/a");
            Ok(vec![Step {
                policies: vec![deny, allow],
                looks: vec![tcp(80, reach)],
                ..Step::default()
            }])
        }),
        scenario(
            5,
            "should enforce policy to allow ingress traffic from pods in all namespaces",
            |_| Ok(vec![from_peers(json!([{ "namespaceSelector": {} }]), all())]),
        ),
        scenario(
            6,
            "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector",
            |_| Ok(vec![from_peers(json!([{ "namespaceSelector": ns("y") }]), only_from_y())]),
        ),
        scenario(7, "should enforce policy based on PodSelector with MatchExpressions", |_| {
            Ok(vec![only_b(json!([{ "podSelector": expression("pod", "In", &["b"]) }]))])
        }),
        scenario(
            8,
            "should enforce policy based on NamespaceSelector with MatchExpressions",
            |_| {
                let peers = json!([{ "namespaceSelector": expression("ns", "In", &["y"]) }]);
                Ok(vec![from_peers(peers, only_from_y())])
            },
        ),
        scenario(9, "should enforce policy based on PodSelector or NamespaceSelector", |_| {
            let peers = json!([{ "namespaceSelector": not_x() }, { "podSelector": pod("b") }]);
            Ok(vec![from_peers(peers, all().no("x/c", "x/a"))])
        }),
        scenario(10, "should enforce policy based on PodSelector and NamespaceSelector", |_| {
            let peers = json!([{ "namespaceSelector": not_x(), "podSelector": pod("b") }]);
            let reach = all().no("*", "x/a").yes("y/b", "x/a").yes("z/b", "x/a");
            Ok(vec![from_peers(peers, reach)])
        }),
        scenario(
            11,
            "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
            |_| {
                let pods = expression("pod", "In", &["b", "c"]);
                let peers = json!([{ "namespaceSelector": not_x(), "podSelector": pods }]);
                let reach = all().no("x/*", "x/a").no("y/a", "x/a").no("z/a", "x/a");
                Ok(vec![from_peers(peers, reach)])
            },
        ),
        scenario(12, "should enforce policy based on any PodSelectors", |_| {
            let peers = json!([{ "podSelector": pod("b") }, { "podSelector": pod("c") }]);
            let reach = all().no("*", "x/a").yes("x/b", "x/a").yes("x/c", "x/a");
            Ok(vec![from_peers(peers, reach)])
        }),
        scenario(
            13,
            "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
            |_| Ok(vec![only_ya(tcp(80, ya_to_xa()))]),
        ),
    ]
}

/// 14-19: which ports.
fn ports() -> Vec<Scenario> {
    vec![
        scenario(14, "should enforce policy based on Ports", |_| {
            Ok(vec![step(y_on("p81", 81, "TCP"), [tcp(81, only_from_y())])])
        }),
        scenario(
            15,
            "should enforce multiple, stacked policies with overlapping podSelectors",
            |_| {
                let closed = all().no("*", "x/a");
                Ok(vec![
                    step(y_on("p81", 81, "TCP"), [tcp(81, only_from_y()), tcp(80, closed)]),
                    step(y_on("p80", 80, "TCP"), [tcp(80, only_from_y())]),
                ])
            },
        ),
        scenario(16, "should support allow-all policy", |_| {
            let policy = ingress("x", "allow-all", json!({}), json!([{}]));
            Ok(vec![step(policy, [tcp(80, all()), tcp(81, all())])])
        }),
        scenario(17, "should allow ingress access on one named port", |_| {
            let rules = json!([{ "ports": [{ "port": "serve-81-tcp" }] }]);
            let policy = ingress("x", "allow-all", json!({}), rules);
            Ok(vec![step(policy, [tcp(81, all()), tcp(80, all_of_x_closed())])])
        }),
        scenario(18, "should allow ingress access from namespace on one named port", |_| {
            let rules = json!([{
                "from": [{ "namespaceSelector": ns("y") }],
                "ports": [{ "port": "serve-80-tcp", "protocol": "TCP" }],
            }]);
            let policy = ingress("x", "named", pod("a"), rules);
            let looks = [tcp(80, only_from_y()), tcp(81, all().no("*", "x/a"))];
            Ok(vec![step(policy, looks)])
        }),
        scenario(19, "should allow egress access on one named port", |_| {
            let rules = json!([{ "ports": [{ "port": "serve-80-tcp" }] }]);
            let policy = egress("x", "allow-egress", json!({}), rules);
            Ok(vec![step(policy, [tcp(80, all()), tcp(81, all().no("x/*", "*"))])])
        }),
    ]
}

/// 20-24, 33: what changes.
fn changes() -> Vec<Scenario> {
    vec![
        scenario(20, "should enforce updated policy", |_| {
            let allow = ingress("x", "mutates", json!({}), json!([{}]));
            let deny = ingress("x", "mutates", json!({}), json!([]));
            Ok(vec![step(allow, [tcp(81, all())]), step(deny, [tcp(81, all_of_x_closed())])])
        }),
        scenario(21, "should allow ingress access from updated namespace", |_| {
            let updated = json!({ "matchLabels": { "ns2": "updated" } });
            let closed = all().no("*", "x/a");
            Ok(vec![
                from_peers(json!([{ "namespaceSelector": updated }]), closed.clone()),
                Step {
                    labels: vec![("namespace", "y", "ns2=updated")],
                    looks: vec![tcp(80, closed.yes("y/*", "x/a"))],
                    ..Step::default()
                },
            ])
        }),
        scenario(22, "should allow ingress access from updated pod", |_| {
            let updated = json!({ "matchLabels": { "pod": "b", "pod2": "updated" } });
            let closed = all().no("*", "x/a");
            Ok(vec![
                from_peers(json!([{ "podSelector": updated }]), closed.clone()),
                Step {
                    labels: vec![("pod", "x/b", "pod2=updated")],
                    looks: vec![tcp(80, closed.yes("x/b", "x/a"))],
                    ..Step::default()
                },
            ])
        }),
        scenario(23, "should deny ingress from pods on other namespaces", |_| {
            let rules = json!([{ "from": [{ "podSelector": {} }] }]);
            let policy = ingress("x", "deny-others", json!({}), rules);
            Ok(vec![step(policy, [tcp(80, all().no("y/*", "x/*").no("z/*", "x/*"))])])
        }),
        scenario(24, "should deny ingress access to updated pod", |_| {
            let isolated = json!({ "matchLabels": { "target": "isolated" } });
            let policy = ingress("x", "by-label", isolated, json!([]));
            Ok(vec![
                step(policy, [tcp(80, all())]),
                Step {
                    labels: vec![("pod", "x/a", "target=isolated")],
                    looks: vec![tcp(80, all().no("*", "x/a"))],
                    ..Step::default()
                },
            ])
        }),
        scenario(33, "should stop enforcing policies after they are deleted", |_| {
            let closed = all().no("x/*", "*").no("*", "x/*");
            Ok(vec![
                step(deny_all(), [tcp(80, closed)]),
                Step { clean: true, looks: vec![tcp(80, all())], ..Step::default() },
            ])
        }),
    ]
}

/// 25-32, 37: from the pod, and both ways.
fn directions() -> Vec<Scenario> {
    vec![
        scenario(25, "should deny egress from pods based on PodSelector", |_| {
            let policy = egress("x", "deny-egress-pod-a", pod("a"), json!([]));
            Ok(vec![step(policy, [tcp(80, all().no("x/a", "*"))])])
        }),
        scenario(26, "should deny egress from all pods in a namespace", |_| {
            let policy = egress("x", "deny-egress-ns-x", json!({}), json!([]));
            Ok(vec![step(policy, [tcp(80, all().no("x/*", "*"))])])
        }),
        scenario(27, "should work with Ingress, Egress specified together", |_| {
            let policy = policy(
                "x",
                "both",
                json!({
                    "podSelector": pod("a"),
                    "policyTypes": ["Egress", "Ingress"],
                    "ingress": [{ "from": [{ "podSelector": pod("b") }] }],
                    "egress": [{ "ports": [{ "port": 80 }] }],
                }),
            );
            let on_80 = all().no("*", "x/a").yes("x/b", "x/a");
            let on_81 = all().no("*", "x/a").no("x/a", "*").yes("x/b", "x/a");
            Ok(vec![step(policy, [tcp(80, on_80), tcp(81, on_81)])])
        }),
        scenario(
            28,
            "should support denying of egress traffic on the client side (even if the server explicitly allows this traffic)",
            |_| {
                let from_xa = json!([{
                    "from": [{ "namespaceSelector": ns("x"), "podSelector": pod("a") }],
                }]);
                let reach = all().no("x/a", "*").no("*", "y/a").yes("x/a", "y/a").no("*", "y/b");
                Ok(vec![Step {
                    policies: vec![
                        egress("x", "allow-to-ns-y-pod-a", pod("a"), to_ya()),
                        ingress("y", "allow-from-xa-on-ya", pod("a"), from_xa.clone()),
                        ingress("y", "allow-from-xa-on-yb", pod("b"), from_xa),
                    ],
                    looks: vec![tcp(80, reach)],
                    ..Step::default()
                }])
            },
        ),
        scenario(
            29,
            "should enforce egress policy allowing traffic to a server in a different namespace based on PodSelector and NamespaceSelector",
            |_| {
                let policy = egress("x", "allow-to-ns-y-pod-a", pod("a"), to_ya());
                Ok(vec![step(policy, [tcp(80, all().no("x/a", "*").yes("x/a", "y/a"))])])
            },
        ),
        scenario(
            30,
            "should enforce ingress policy allowing any port traffic to a server on a specific protocol",
            |_| {
                let rules = json!([{ "ports": [{ "protocol": "TCP" }] }]);
                let policy = ingress("x", "allow-ingress-by-proto", pod("a"), rules);
                Ok(vec![step(policy, [tcp(80, all()), udp(80, all().no("*", "x/a"))])])
            },
        ),
        scenario(
            31,
            "should enforce multiple ingress policies with ingress allow-all policy taking precedence",
            |_| {
                let rules = json!([{ "ports": [{ "port": 80 }] }]);
                let only_80 = ingress("x", "allow-ingress-port-80", json!({}), rules);
                let allow = ingress("x", "allow-ingress", json!({}), json!([{}]));
                Ok(vec![step(only_80, [tcp(81, all_of_x_closed())]), step(allow, [tcp(81, all())])])
            },
        ),
        scenario(
            32,
            "should enforce multiple egress policies with egress allow-all policy taking precedence",
            |_| {
                let rules = json!([{ "ports": [{ "port": 80 }] }]);
                let only_80 = egress("x", "allow-egress-port-80", json!({}), rules);
                let allow = egress("x", "allow-egress", json!({}), json!([{}]));
                let closed = all().no("x/*", "*");
                Ok(vec![step(only_80, [tcp(81, closed)]), step(allow, [tcp(81, all())])])
            },
        ),
        scenario(
            37,
            "should enforce policies to check ingress and egress policies can be controlled independently based on PodSelector",
            |_| {
                let allow = egress("x", "allow-egress-for-target", pod("a"), json!([{}]));
                let deny = ingress("x", "deny-ingress", pod("a"), json!([]));
                let closed = all().no("*", "x/a");
                Ok(vec![step(allow, [tcp(80, all())]), step(deny, [tcp(80, closed)])])
            },
        ),
    ]
}

/// 34-36, 38-42: addresses, protocols, the label that every namespace has.
fn blocks_and_protocols() -> Vec<Scenario> {
    vec![
        scenario(34, "should allow egress access to server in CIDR block", |matrix| {
            let policy =
                egress_to("cidr", [host_block(matrix, "y/b", 0)?, host_block(matrix, "y/b", 1)?]);
            Ok(vec![step(policy, [tcp(80, all().no("x/a", "*").yes("x/a", "y/b"))])])
        }),
        scenario(
            35,
            "should enforce except clause while egress access to server in CIDR block",
            |matrix| Ok(vec![step(all_but_xb(matrix)?, [tcp(80, all().no("x/a", "x/b"))])]),
        ),
        scenario(
            36,
            "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed",
            |matrix| {
                let only_xb = egress_to(
                    "except",
                    [host_block(matrix, "x/b", 0)?, host_block(matrix, "x/b", 1)?],
                );
                Ok(vec![
                    step(all_but_xb(matrix)?, [tcp(80, all().no("x/a", "x/b"))]),
                    step(only_xb, [tcp(80, all().no("x/a", "*").yes("x/a", "x/b"))]),
                ])
            },
        ),
        scenario(
            38,
            "should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin doesn't support SCTP",
            |_| {
                let deny = ingress("x", "deny-ingress", json!({}), json!([]));
                let rules = json!([{ "ports": [{ "port": 81, "protocol": "SCTP" }] }]);
                let sctp = ingress("x", "sctp-81", pod("a"), rules);
                Ok(vec![Step {
                    policies: vec![deny, sctp],
                    looks: vec![tcp(81, all_of_x_closed())],
                    ..Step::default()
                }])
            },
        ),
        scenario(
            39,
            "should properly isolate pods that are selected by a policy allowing SCTP, even if the plugin doesn't support SCTP",
            |_| {
                let rules = json!([{ "ports": [{ "port": 80, "protocol": "SCTP" }] }]);
                let policy = ingress("x", "sctp-80", pod("a"), rules);
                Ok(vec![step(policy, [tcp(81, all().no("*", "x/a"))])])
            },
        ),
        scenario(40, "should not allow access by TCP when a policy specifies only UDP", |_| {
            let rules = json!([{ "ports": [{ "port": 81, "protocol": "UDP" }] }]);
            let policy = ingress("x", "udp-81", pod("a"), rules);
            Ok(vec![step(policy, [tcp(81, all().no("*", "x/a")), udp(81, all())])])
        }),
        scenario(
            41,
            "should enforce policy to allow traffic based on NamespaceSelector with MatchLabels using default ns label",
            |_| {
                let y = json!({ "matchLabels": { "kubernetes.io/metadata.name": "y" } });
                Ok(vec![from_peers(json!([{ "namespaceSelector": y }]), only_from_y())])
            },
        ),
        scenario(
            42,
            "should enforce policy based on NamespaceSelector with MatchExpressions using default ns label",
            |_| {
                let not_y = expression("kubernetes.io/metadata.name", "NotIn", &["y"]);
                let rules = json!([{ "to": [{ "namespaceSelector": not_y }] }]);
                let policy = egress("x", "not-y", pod("a"), rules);
                Ok(vec![step(policy, [tcp(80, all().no("x/a", "y/*"))])])
            },
        ),
    ]
}

/// 43-45: three of them again, by UDP.
fn by_udp() -> Vec<Scenario> {
    vec![
        scenario(43, "using UDP: should support a 'default-deny-ingress' policy", |_| {
            let policy = ingress("x", "deny-all", json!({}), json!([]));
            Ok(vec![step(policy, [udp(80, all_of_x_closed())])])
        }),
        scenario(44, "using UDP: should enforce policy based on Ports", |_| {
            let looks = [udp(81, only_from_y()), udp(80, all().no("*", "x/a"))];
            Ok(vec![step(y_on("p81", 81, "UDP"), looks)])
        }),
        scenario(
            45,
            "using UDP: should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
            |_| Ok(vec![only_ya(udp(80, ya_to_xa()))]),
        ),
    ]
}

fn all_of_x_closed() -> Reach {
    all().no("*", "x/*")
}

fn only_from_y() -> Reach {
    all().no("x/*", "x/a").no("z/*", "x/a")
}

fn ya_to_xa() -> Reach {
    all().no("*", "x/a").yes("y/a", "x/a")
}

fn not_x() -> Value {
    expression("ns", "NotIn", &["x"])
}

fn deny_all() -> Value {
    policy("x", "deny-all", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }))
}

/// One policy for x/a that allows these peers.
fn from_peers(peers: Value, reach: Reach) -> Step {
    let policy = ingress("x", "from-peers", pod("a"), json!([{ "from": peers }]));
    step(policy, [tcp(80, reach)])
}

fn only_b(peers: Value) -> Step {
    from_peers(peers, all().no("*", "x/a").yes("x/b", "x/a"))
}

fn only_ya(look: Look) -> Step {
    let peers = json!([{ "namespaceSelector": ns("y"), "podSelector": pod("a") }]);
    let policy = ingress("x", "only-ya", pod("a"), json!([{ "from": peers }]));
    step(policy, [look])
}

/// One policy for x/a that allows namespace y on a port.
fn y_on(name: &str, port: u16, protocol: &str) -> Value {
    let rules = json!([{
        "from": [{ "namespaceSelector": ns("y") }],
        "ports": [{ "port": port, "protocol": protocol }],
    }]);
    ingress("x", name, pod("a"), rules)
}

fn to_ya() -> Value {
    json!([{ "to": [{ "namespaceSelector": ns("y"), "podSelector": pod("a") }] }])
}

/// A pod's address of a family as a block of its own.
fn host_block(matrix: &Matrix, id: &str, family: usize) -> Result<Value> {
    let address = matrix.pod(id)?.addresses[family];
    let length = if address.is_ipv4() { 32 } else { 128 };
    Ok(json!({ "cidr": format!("{address}/{length}") }))
}

/// The suite has one family at a time, and one block; here a block of each stands beside the other.
fn egress_to(name: &str, blocks: [Value; 2]) -> Value {
    let peers = blocks.map(|block| json!({ "ipBlock": block }));
    egress("x", name, pod("a"), json!([{ "to": peers }]))
}

/// As large a block as the suite's, which the services' addresses are in too, without x/b.
fn all_but_xb(matrix: &Matrix) -> Result<Value> {
    let [mut v4, mut v6] = [host_block(matrix, "x/b", 0)?, host_block(matrix, "x/b", 1)?];
    v4 = json!({ "cidr": "0.0.0.0/4", "except": [v4["cidr"]] });
    v6 = json!({ "cidr": "f000::/4", "except": [v6["cidr"]] });
    Ok(egress_to("except", [v4, v6]))
}
