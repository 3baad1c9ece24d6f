//! What a node's operator says of the pods of a random world, of a pod that is not there, and of the node.

use serde_json::{Value, json};

use super::*;
use crate::oracle::LocalRules;

/// The number of a pod, its rules without their numbers, and its default modes.
type OfPod = (usize, Vec<Value>, Value);

/// Rules and modes of some pods by their numbers, the highest of which is no pod's, and those of the node.
pub(super) fn local_rules() -> impl Strategy<Value = (Vec<OfPod>, Option<Value>)> {
    let of_pods = subsequence((0..11).collect::<Vec<usize>>(), 0..=8);
    let said = vec((vec(rule(), 0..4), modes(1)), 8);
    let of_pods = (of_pods, said).prop_map(|(pods, said)| {
        pods.into_iter().zip(said).map(|(pod, (rules, modes))| (pod, rules, modes)).collect()
    });
    (of_pods, weighted(0.3, modes(2)))
}

/// The same of the pods that have these numbers in a world.
pub(super) fn of(world: &World, (pods, node): (Vec<OfPod>, Option<Value>)) -> Vec<LocalRules> {
    let mut id = 0;
    let pods = pods.into_iter().map(|(number, mut rules, defaults)| {
        let pod = world.pods.get(number).and_then(|pod| pod.metadata.namespace.as_deref());
        for rule in &mut rules {
            id += 1;
            rule["id"] = id.into();
        }
        json!({
            "namespace": pod.unwrap_or("default"), "name": format!("pod-{number}"), "here": true,
            "rules": rules, "defaults": defaults,
        })
    });
    let pods: Vec<Value> = pods.collect();
    let node = node.map(|defaults| json!({"defaults": defaults}));
    pods.into_iter().chain(node).map(LocalRules::from).collect()
}

/// A pod by its name; the highest number is no pod's.
fn namespaced() -> impl Strategy<Value = (&'static str, String)> {
    (select(&NAMESPACES[..]), 0..11u32).prop_map(|(namespace, n)| (namespace, format!("pod-{n}")))
}

/// Default modes, each there with `weight` to two.
fn modes(weight: u32) -> impl Strategy<Value = Value> {
    let mode = move || {
        prop_oneof![
            4 => Just("unset"),
            weight => Just("allow"),
            weight => Just("deny"),
            weight => Just("reject"),
        ]
    };
    (mode(), mode()).prop_map(|(ingress, egress)| json!({"ingress": ingress, "egress": egress}))
}

/// Without its number.
fn rule() -> impl Strategy<Value = Value> {
    let peer = prop_oneof![
        3 => Just(None),
        4 => block().prop_map(|block| Some(block.cidr)),
        2 => pod_address().prop_map(|address| Some(address.to_string())),
        4 => namespaced().prop_map(|(namespace, name)| Some(format!("{namespace}/{name}"))),
    ];
    let with_ports = select(&["TCP", "tcp", "6", "UDP", "17", "sctp"][..]);
    let number = select(&PORTS[..]).prop_map(|port| port.to_string());
    let range =
        (1u16..500, 1u16..500).prop_map(|(first, more)| format!("{first}-{}", first + more));
    let ports = prop_oneof![1 => Just(None), 4 => number.prop_map(Some), 2 => range.prop_map(Some)];
    let protocol = prop_oneof![
        3 => Just((None, None)),
        6 => (with_ports, ports).prop_map(|(protocol, ports)| (Some(protocol), ports)),
        2 => select(&["ICMP", "icmpv6", "58", "GRE"][..]).prop_map(|of| (Some(of), None)),
    ];
    let direction = select(&["ingress", "egress"][..]);
    let action = select(&["allow", "allow", "deny", "reject"][..]);
    (direction, action, peer, protocol).prop_map(|(direction, action, peer, (protocol, ports))| {
        let mut rule = json!({"direction": direction, "action": action});
        let more = [("peer", peer), ("protocol", protocol.map(str::to_owned)), ("ports", ports)];
        for (name, value) in more {
            if let Some(value) = value {
                rule[name] = value.into();
            }
        }
        rule
    })
}
