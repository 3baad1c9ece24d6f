//! Random worlds with ranked rules: ClusterNetworkPolicies of both tiers, nodes, annotations that audit or log, local rules.
//!
//! Few priorities, so that many are equal; few peers and ports, so that rules overlap; every action, and now and then
//! what a later version of the API may bring: unknown actions, tiers, peers and protocols.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};
use serde_json::{Value, json};

use super::*;

/// Names whose order is not that of the list.
const CLUSTER_POLICY_NAMES: [&str; 5] = ["d", "b", "e", "a", "c"];
const NODE_NAMES: [&str; 3] = ["n0", "n1", "n2"];

/// As [`worlds`], with nodes, with ClusterNetworkPolicies, with policies that are audited or logged, and half of them with local
/// rules.
pub fn ranked_worlds() -> impl Strategy<Value = World> {
    let cluster_policies = vec(cluster_policy(), 0..=CLUSTER_POLICY_NAMES.len());
    let annotations = (vec(annotations(), NAMESPACES.len()), vec(annotations(), 8));
    let nodes = vec(node(), 0..=NODE_NAMES.len());
    let local_rules = weighted(0.5, local::local_rules());
    (worlds(), cluster_policies, nodes, annotations, local_rules).prop_map(
        |(mut world, mut cluster_policies, mut nodes, annotations, local_rules)| {
            let (of_namespaces, of_policies) = annotations;
            for (policy, name) in cluster_policies.iter_mut().zip(CLUSTER_POLICY_NAMES) {
                policy["metadata"]["name"] = name.into();
            }
            for (node, name) in nodes.iter_mut().zip(NODE_NAMES) {
                node.metadata.name = Some(name.to_owned());
            }
            for (namespace, annotations) in world.namespaces.iter_mut().zip(of_namespaces) {
                namespace.metadata.annotations = annotations;
            }
            for (policy, annotations) in world.policies.iter_mut().zip(of_policies) {
                policy.metadata.annotations = annotations;
            }
            let cluster_policies = cluster_policies.into_iter().map(From::from).collect();
            let local_rules = local_rules.map(|said| local::of(&world, said)).unwrap_or_default();
            World { cluster_policies, local_rules, nodes, ..world }
        },
    )
}

/// Two such worlds, as [`successive_worlds`].
pub fn successive_ranked_worlds() -> impl Strategy<Value = (World, World)> {
    (ranked_worlds(), ranked_worlds(), any::<u64>(), any::<u64>()).prop_map(
        |(old, new, keep, keep_ranked)| {
            let (old, mut new) = keeping(old, new, keep);
            let kept = |index: usize| keep_ranked >> (index % 64) & 1 == 1;
            for (index, policy) in old.cluster_policies.iter().enumerate() {
                if let Some(same) = new.cluster_policies.get_mut(index).filter(|_| kept(index)) {
                    *same = policy.clone();
                }
            }
            for (index, node) in old.nodes.iter().enumerate() {
                if let Some(same) = new.nodes.get_mut(index).filter(|_| kept(index + 20)) {
                    *same = node.clone();
                }
            }
            if kept(50) {
                new.local_rules = old.local_rules.clone();
            }
            for namespace in old.namespaces.iter().filter(|_| kept(40)) {
                let same = |of: &&mut Namespace| of.metadata.name == namespace.metadata.name;
                if let Some(same) = new.namespaces.iter_mut().find(same) {
                    *same = namespace.clone();
                }
            }
            (old, new)
        },
    )
}

/// Few are audited, and some logged.
fn annotations() -> impl Strategy<Value = Option<BTreeMap<String, String>>> {
    let mode = prop_oneof![7 => Just(None), 1 => Just(Some("enforce")), 2 => Just(Some("audit"))];
    let log = prop_oneof![4 => Just(None), 1 => Just(Some("label"))];
    weighted(
        0.6,
        (mode, log).prop_map(|(mode, log)| {
            let both = [("podgate.io/mode", mode), ("podgate.io/log", log)];
            let given = both.into_iter().filter_map(|(name, value)| Some((name, value?)));
            given.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        }),
    )
}

fn node() -> impl Strategy<Value = Node> {
    let strangers = ["10.0.0.17", "fd00::11", "8.8.8.8", "2001:db8::1"].map(str::to_owned);
    let address = prop_oneof![
        5 => pod_address().prop_map(|address| address.to_string()),
        2 => select(strangers.to_vec()),
        1 => Just("node.example".to_owned()),
    ];
    let kind = select(&["InternalIP", "ExternalIP", "Hostname", "InternalDNS"][..]);
    let address =
        (address, kind).prop_map(|(address, kind)| NodeAddress { address, type_: kind.to_owned() });
    (labels(), weighted(0.9, vec(address, 0..4))).prop_map(|(labels, addresses)| Node {
        metadata: ObjectMeta { labels, ..ObjectMeta::default() },
        status: Some(NodeStatus { addresses, ..NodeStatus::default() }),
        ..Node::default()
    })
}

/// Without its name.
fn cluster_policy() -> impl Strategy<Value = Value> {
    let tier = prop_oneof![6 => Just("Admin"), 6 => Just("Baseline"), 1 => Just("Sky")];
    let priority = select(&[0, 5, 5, 10, 1000][..]);
    let subject = prop_oneof![
        3 => Just(json!({"namespaces": {}})),
        1 => selector_or_all().prop_map(|namespaces| json!({"namespaces": namespaces})),
        2 => pods(),
    ];
    let rules = |direction| maybe(vec(rule(direction), 0..4));
    let rules = (rules(Direction::Ingress), rules(Direction::Egress));
    (tier, priority, subject, rules, annotations()).prop_map(
        |(tier, priority, subject, (ingress, egress), annotations)| {
            let mut spec = json!({"tier": tier, "priority": priority, "subject": subject});
            for (name, rules) in [("ingress", ingress), ("egress", egress)] {
                if let Some(rules) = rules {
                    spec[name] = rules.into();
                }
            }
            let mut metadata = json!({});
            if let Some(annotations) = annotations {
                metadata["annotations"] = json!(annotations);
            }
            json!({"metadata": metadata, "spec": spec})
        },
    )
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

fn rule(direction: Direction) -> impl Strategy<Value = Value> {
    let action = prop_oneof![
        6 => Just("Accept"), 6 => Just("Deny"), 5 => Just("Pass"), 1 => Just("Log"),
    ];
    let protocols = maybe(vec(protocol(), 1..4));
    (action, vec(peer(direction), 1..3), protocols, any::<bool>()).prop_map(
        move |(action, peers, protocols, named)| {
            let peers_field = if direction == Direction::Ingress { "from" } else { "to" };
            let mut rule = json!({"action": action, peers_field: peers});
            if let Some(protocols) = protocols {
                rule["protocols"] = protocols.into();
            }
            if named {
                rule["name"] = "a rule".into();
            }
            rule
        },
    )
}

fn selector_or_all() -> impl Strategy<Value = Value> {
    prop_oneof![1 => Just(json!({})), 2 => selector().prop_map(|selector| json!(selector))]
}

fn pods() -> impl Strategy<Value = Value> {
    (maybe(selector_or_all()), selector_or_all()).prop_map(|(namespaces, pods)| {
        let mut of = json!({"podSelector": pods});
        if let Some(namespaces) = namespaces {
            of["namespaceSelector"] = namespaces;
        }
        json!({"pods": of})
    })
}

fn peer(direction: Direction) -> impl Strategy<Value = Value> {
    let namespaces = selector_or_all().prop_map(|namespaces| json!({"namespaces": namespaces}));
    let networks = vec(block().prop_map(|block| block.cidr), 1..3);
    let networks = networks.prop_map(|cidrs| json!({"networks": cidrs}));
    let nodes = selector_or_all().prop_map(|nodes| json!({"nodes": nodes}));
    let strange = select(vec![
        json!({}),
        json!({"serviceAccounts": {}}),
        json!({"domainNames": ["example.com", "*.example.org"]}),
    ]);
    let of_egress = match direction {
        Direction::Ingress => 0,
        Direction::Egress => 12,
    };
    prop_oneof![
        12 => namespaces,
        12 => pods(),
        // at ingress what only a later version may know
        1 + of_egress => networks,
        1 + of_egress / 2 => nodes,
        1 => strange,
    ]
}

fn protocol() -> impl Strategy<Value = Value> {
    let protocol = || select(&["tcp", "tcp", "udp", "sctp"][..]);
    let number = (protocol(), select(&PORTS[..]))
        .prop_map(|(protocol, number)| json!({protocol: {"destinationPort": {"number": number}}}));
    let range = (protocol(), 1u16..500, 1u16..500).prop_map(|(protocol, start, more)| {
        json!({protocol: {"destinationPort": {"range": {"start": start, "end": start + more}}}})
    });
    let wide = (protocol(), select(&PORTS[..])).prop_map(|(protocol, start)| {
        let (start, end) = if start == u16::MAX { (1, start) } else { (start, u16::MAX) };
        json!({protocol: {"destinationPort": {"range": {"start": start, "end": end}}}})
    });
    let all = protocol().prop_map(|protocol| json!({protocol: {}}));
    let named = select(&PORT_NAMES[..]).prop_map(|name| json!({"destinationNamedPort": name}));
    let strange = select(vec![
        json!({}),
        json!({"icmp": {"type": 8}}),
        json!({"tcp": {"destinationPort": {}}}),
        json!({"udp": {"destinationPort": {"set": [53, 80]}}}),
    ]);
    prop_oneof![8 => number, 4 => range, 4 => wide, 4 => all, 8 => named, 1 => strange]
}

/// The world without anything that is audited only.
pub fn without_audits(mut world: World) -> World {
    let remove = |annotations: &mut Option<BTreeMap<String, String>>| {
        annotations.iter_mut().for_each(|of| drop(of.remove("podgate.io/mode")));
    };
    world.namespaces.iter_mut().for_each(|of| remove(&mut of.metadata.annotations));
    world.policies.iter_mut().for_each(|of| remove(&mut of.metadata.annotations));
    for policy in &mut world.cluster_policies {
        let mut object = policy.object.clone();
        if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
            annotations.remove("podgate.io/mode");
        }
        *policy = object.into();
    }
    world
}

/// The addresses of a world's interfaces under which a pod may meet itself: those of families of which it has one only.
pub fn sole_addresses(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let sole = |own: &&IpAddr| {
        addresses.iter().filter(|other| other.is_ipv4() == own.is_ipv4()).count() == 1
    };
    addresses.iter().filter(sole).copied().collect()
}
