//! Section 16 (local rules) of docs/semantics.md, line by line.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod cluster;

use std::collections::BTreeMap;
use std::net::IpAddr;

use cluster::{Cluster, STRANGER, key};
use podgate_policy::compile::Engine;
use podgate_policy::model::{
    Action, Block, ClusterPolicy, ClusterPolicyId, Direction, IpProtocol, LocalAction,
    LocalDefaults, LocalRule, LocalRules, ObjectKey, Peer, Peers, PolicySettings, Port, Ports,
    Protocol, RankedRule, Subject, Tier,
};
use podgate_policy::selector::Selector;
use podgate_policy::tables::{Compiled, Transport};
use proptest::prelude::*;
use serde_json::json;

const WEB: &str = "10.0.0.1";
const API: &str = "10.0.0.2";
const DB: &str = "10.0.0.3";

use LocalAction::{Allow, Deny, Reject};

fn rule(
    id: u32,
    direction: Direction,
    action: LocalAction,
    peers: Peers,
    ports: Ports,
) -> LocalRule {
    LocalRule { id, direction, action, peers, ports }
}

fn block(cidr: &str) -> Peers {
    Peers::of([Peer::Block(Block { cidr: cidr.parse().unwrap(), except: Vec::new() })])
}

fn named(pod: &str) -> Peers {
    Peers::of([Peer::Pod(key(pod))])
}

fn tcp(port: u16) -> Ports {
    Ports::Of(vec![Port::Numbers(Protocol::Tcp, port..=port)])
}

fn numbered(protocol: u8) -> Ports {
    Ports::Of(vec![Port::Of(IpProtocol(protocol))])
}

fn rules(pod: &str, rules: Vec<LocalRule>) -> LocalRules {
    LocalRules { pod: key(pod), rules, defaults: LocalDefaults::default() }
}

fn defaults(ingress: Option<LocalAction>, egress: Option<LocalAction>) -> LocalDefaults {
    LocalDefaults { ingress, egress }
}

/// The shop, where `shop/web` has these rules.
fn with(list: Vec<LocalRule>) -> Cluster {
    let mut cluster = Cluster::shop();
    assert!(cluster.index.set_local_rules(rules("shop/web", list)));
    cluster
}

/// A cluster policy over all pods with one rule for all peers and ports.
fn everywhere(tier: Tier, action: Action) -> ClusterPolicy {
    ClusterPolicy {
        id: ClusterPolicyId { name: "everywhere".into(), source: "kubernetes".into() },
        tier,
        priority: 0,
        subject: Subject { namespaces: Selector::everything(), pods: Selector::everything() },
        ingress: vec![RankedRule { name: None, action, peers: Peers::Any, ports: Ports::Any }],
        egress: Vec::new(),
        settings: PolicySettings::default(),
        problems: Vec::new(),
    }
}

#[test]
fn s16_1_the_first_local_rule_that_matches_decides_before_every_policy() {
    let ingress = Direction::Ingress;
    let mut cluster = with(vec![
        rule(2, ingress, Allow, block("10.0.0.2/32"), tcp(80)),
        rule(1, ingress, Deny, Peers::Any, tcp(80)),
        rule(3, ingress, Allow, block("10.0.0.0/24"), tcp(80)),
        rule(4, ingress, Allow, Peers::Any, tcp(443)),
    ]);
    cluster.policy("shop/deny", json!({"policyTypes": ["Ingress"]}));
    cluster.index.set_cluster_policy(everywhere(Tier::Admin, Action::Deny));
    for (peer, port, passes) in [
        (API, "80/TCP", true),
        (DB, "80/TCP", false),
        (STRANGER, "80/TCP", false),
        (STRANGER, "443/TCP", true),
        (API, "443/TCP", true),
        (API, "81/TCP", false),
        (API, "ICMP", false),
    ] {
        assert_eq!(cluster.ingress("shop/web", peer, port), passes, "{peer} {port}");
    }
    let why = cluster.explain("shop/web", ingress, DB, "80/TCP").unwrap().why;
    assert_eq!(why, "denied by local rule 1 of shop/web");
    let why = cluster.explain("shop/web", ingress, API, "80/TCP").unwrap().why;
    assert_eq!(why, "allowed by local rule 2 of shop/web");
    // an allowed port of a policy, denied here
    let mut cluster = with(vec![rule(1, ingress, Reject, Peers::Any, tcp(80))]);
    cluster.policy("shop/allow", json!({"ingress": [{}]}));
    assert!(!cluster.ingress("shop/web", API, "80/TCP"));
    assert!(cluster.ingress("shop/web", API, "81/TCP"));
    assert!(cluster.ingress("shop/api", DB, "80/TCP"), "of another pod nothing is said");
}

#[test]
fn s16_2_a_pod_always_reaches_itself() {
    let deny = |direction| rule(1, direction, Deny, Peers::Any, Ports::Any);
    let cluster = with(vec![deny(Direction::Ingress), deny(Direction::Egress)]);
    assert!(cluster.connects("shop/web", "shop/web", "80/TCP"));
    assert!(!cluster.connects("shop/web", "shop/api", "80/TCP"));
    let compiled = cluster.compile();
    let own = compiled.tables.values().flat_map(|table| table.entries.keys());
    assert!(own.into_iter().all(|entry| !entry.class.is_self()), "through a service too");
}

#[test]
fn s16_3_a_rule_for_a_protocol_matches_that_protocol_only() {
    let cluster = with(vec![
        rule(1, Direction::Ingress, Deny, Peers::Any, numbered(1)),
        rule(2, Direction::Ingress, Deny, block("10.0.0.0/24"), numbered(47)),
        rule(3, Direction::Ingress, Deny, Peers::Any, Ports::Of(vec![Port::All(Protocol::Udp)])),
    ]);
    let judge = |peer: &str, transport| {
        let compiled = cluster.compile();
        let web = cluster.endpoints.iter().find(|e| e.pod == Some(key("shop/web"))).unwrap();
        let peer = peer.parse().unwrap();
        compiled.judge(web.id, Direction::Ingress, peer, transport).unwrap().allowed()
    };
    let number = |number| Transport::Number(IpProtocol(number));
    assert!(!judge(API, Transport::Other) && !judge(API, number(1)));
    assert!(judge("fd00::1", Transport::Other), "ICMPv6 is another protocol");
    assert!(!judge(API, number(47)) && judge(STRANGER, number(47)) && judge(API, number(50)));
    assert!(!judge(API, Transport::Port(Protocol::Udp, 53)));
    assert!(judge(API, Transport::Port(Protocol::Tcp, 53)));
    assert!(judge(API, Transport::Port(Protocol::Sctp, 53)));
}

#[test]
fn s16_4_a_peer_by_name_is_that_pod_wherever_it_moves() {
    let mut cluster = with(vec![rule(1, Direction::Ingress, Deny, named("shop/api"), Ports::Any)]);
    let mut engine = Engine::new();
    cluster.update(&mut engine);
    let passes = |compiled: &Compiled, cluster: &Cluster, peer: &str| {
        let web = cluster.endpoints.iter().find(|e| e.pod == Some(key("shop/web"))).unwrap();
        let transport = Transport::Port(Protocol::Tcp, 80);
        let judged = compiled.judge(web.id, Direction::Ingress, peer.parse().unwrap(), transport);
        judged.unwrap().allowed()
    };
    let compiled = cluster.compile();
    assert!(!passes(&compiled, &cluster, API) && passes(&compiled, &cluster, DB));
    // replicas have the same labels, and another name
    cluster.pod("shop/api-2", &["10.0.0.9"], json!({"app": "api"}));
    let compiled = cluster.update(&mut engine);
    assert!(passes(&compiled, &cluster, "10.0.0.9"));
    cluster.pod("shop/api", &["10.0.0.20", "fd00::20"], json!({"app": "api"}));
    let compiled = cluster.update(&mut engine);
    assert!(passes(&compiled, &cluster, API));
    assert!(!passes(&compiled, &cluster, "10.0.0.20") && !passes(&compiled, &cluster, "fd00::20"));
    // another rule, another name
    cluster.index.set_local_rules(rules(
        "shop/web",
        vec![rule(2, Direction::Ingress, Deny, named("shop/db"), Ports::Any)],
    ));
    let compiled = cluster.update(&mut engine);
    assert!(passes(&compiled, &cluster, "10.0.0.20") && !passes(&compiled, &cluster, DB));
    assert!(cluster.index.remove_local_rules(&key("shop/web")));
    let compiled = cluster.update(&mut engine);
    assert!(passes(&compiled, &cluster, DB));
    assert!(compiled.hosts.is_empty() && compiled.nets.iter().next().is_none());
}

#[test]
fn s16_5_a_default_is_for_what_nothing_speaks_of() {
    let mut cluster = Cluster::shop();
    cluster.index.set_local_defaults(defaults(Some(Deny), None));
    assert!(
        !cluster.ingress("shop/web", API, "80/TCP") && !cluster.ingress("ops/probe", API, "ICMP")
    );
    assert!(cluster.egress("shop/web", API, "80/TCP"));
    let why = cluster.explain("shop/web", Direction::Ingress, API, "80/TCP").unwrap().why;
    assert_eq!(why, "denied by the local default of the node for ingress");
    // the pod's own comes first
    let of_web = |rules| LocalRules {
        pod: key("shop/web"),
        rules,
        defaults: defaults(Some(Allow), Some(Deny)),
    };
    cluster.index.set_local_rules(of_web(vec![rule(
        7,
        Direction::Egress,
        Allow,
        Peers::Any,
        tcp(53),
    )]));
    assert!(
        cluster.ingress("shop/web", API, "80/TCP") && !cluster.ingress("shop/db", API, "80/TCP")
    );
    assert!(
        !cluster.egress("shop/web", API, "80/TCP") && cluster.egress("shop/web", API, "53/TCP")
    );
    // what a policy decides has no default
    cluster.policy(
        "shop/it",
        json!({"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 9}]}]}),
    );
    assert!(
        !cluster.ingress("shop/web", API, "80/TCP") && cluster.ingress("shop/db", API, "9/TCP")
    );
    cluster.index.set_cluster_policy(everywhere(Tier::Baseline, Action::Accept));
    assert!(cluster.ingress("ops/probe", API, "80/TCP"));
    assert!(cluster.index.set_local_defaults(LocalDefaults::default()));
    assert!(!cluster.index.set_local_defaults(LocalDefaults::default()));
}

#[test]
fn s16_6_rules_wait_for_their_pod() {
    let mut cluster = Cluster::shop();
    let mut engine = Engine::new();
    cluster.index.set_local_rules(rules(
        "shop/late",
        vec![rule(1, Direction::Ingress, Deny, Peers::Any, Ports::Any)],
    ));
    cluster.update(&mut engine);
    cluster.pod("shop/late", &["10.0.0.30"], json!({}));
    let compiled = cluster.update(&mut engine);
    let late = cluster.endpoints.iter().find(|e| e.pod == Some(key("shop/late"))).unwrap().id;
    let transport = Transport::Port(Protocol::Tcp, 80);
    let peer = API.parse().unwrap();
    assert!(!compiled.judge(late, Direction::Ingress, peer, transport).unwrap().allowed());
    assert!(cluster.index.pods_with_local_rules().eq([&key("shop/late")]));
    // a hostNetwork pod is its node
    cluster.object(&cluster::pod_object(
        "shop/late",
        &["10.0.0.30"],
        json!({}),
        json!({"spec": {"hostNetwork": true}}),
    ));
    let compiled = cluster.update(&mut engine);
    assert!(compiled.judge(late, Direction::Ingress, peer, transport).unwrap().allowed());
}

#[test]
fn s16_7_a_block_of_a_rule_holds_the_pods_inside_it() {
    let cluster = with(vec![rule(1, Direction::Ingress, Deny, block("10.0.0.0/30"), Ports::Any)]);
    assert!(
        !cluster.ingress("shop/web", API, "80/TCP") && !cluster.ingress("shop/web", DB, "80/TCP")
    );
    assert!(cluster.ingress("shop/web", "10.0.0.4", "80/TCP"));
    assert!(!cluster.ingress("shop/web", "10.0.0.0", "80/TCP"), "an address that no pod has");
}

fn some_rule() -> impl Strategy<Value = LocalRule> {
    let peers = prop_oneof![
        Just(Peers::Any),
        prop::sample::select(vec!["10.0.0.0/24", "10.0.0.2/32", "8.0.0.0/8"]).prop_map(block),
        prop::sample::select(vec!["shop/web", "shop/api", "shop/db", "ops/none"]).prop_map(named),
    ];
    let ports = prop_oneof![
        Just(Ports::Any),
        (78u16..82).prop_map(tcp),
        prop::sample::select(vec![1u8, 47]).prop_map(numbered),
        Just(Ports::Of(vec![Port::All(Protocol::Udp)])),
    ];
    let direction = prop::sample::select(vec![Direction::Ingress, Direction::Egress]);
    let action = prop::sample::select(vec![Allow, Deny, Reject]);
    (1u32..9, direction, action, peers, ports)
        .prop_map(|(id, direction, action, peers, ports)| rule(id, direction, action, peers, ports))
}

/// One change of a cluster.
#[derive(Clone, Debug)]
enum Step {
    Rules(&'static str, Vec<LocalRule>),
    NoRules(&'static str),
    Default(Option<LocalAction>),
    Moves(&'static str, u8),
    Policy(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let pod = || prop::sample::select(vec!["shop/web", "shop/api", "shop/db"]);
    prop_oneof![
        4 => (pod(), prop::collection::vec(some_rule(), 0..5)).prop_map(|(pod, rules)| Step::Rules(pod, rules)),
        1 => pod().prop_map(Step::NoRules),
        1 => prop::sample::select(vec![None, Some(Allow), Some(Deny)]).prop_map(Step::Default),
        2 => (pod(), 1u8..6).prop_map(|(pod, last)| Step::Moves(pod, last)),
        1 => any::<bool>().prop_map(Step::Policy),
    ]
}

/// What was said so far.
#[derive(Default)]
struct Said {
    rules: BTreeMap<&'static str, Vec<LocalRule>>,
    default: Option<LocalAction>,
    /// Whether the policy over all pods of the shop allows all ingress, if there is one.
    policy: Option<bool>,
}

impl Said {
    /// Whether a packet passes, in the most naive way. `owner`: the pod that has the peer's address.
    fn passes(
        &self,
        pod: &str,
        direction: Direction,
        peer: IpAddr,
        owner: Option<&ObjectKey>,
        transport: Transport,
    ) -> bool {
        let is_peer = |peers: &Peers| match peers {
            Peers::Any => true,
            Peers::Of(peers) => peers.iter().any(|of| match of {
                Peer::Block(block) => block.cidr.contains(&peer),
                Peer::Pod(name) => owner == Some(name),
                Peer::Pods { .. } | Peer::Nodes(_) => panic!("no rule here has it"),
            }),
        };
        let is_port = |ports: &Ports| match ports {
            Ports::Any => true,
            Ports::Of(ports) => ports.iter().any(|port| match (port, transport) {
                (Port::All(of), Transport::Port(protocol, _)) => *of == protocol,
                (Port::Numbers(of, range), Transport::Port(protocol, port)) => {
                    *of == protocol && range.contains(&port)
                }
                (Port::Of(of), Transport::Number(protocol)) => *of == protocol,
                (Port::Of(of), Transport::Other) => *of == IpProtocol::ICMP,
                _ => false,
            }),
        };
        let mut rules = self.rules.get(pod).into_iter().flatten();
        let first = rules.find(|rule| {
            rule.direction == direction && is_peer(&rule.peers) && is_port(&rule.ports)
        });
        if let Some(rule) = first {
            return rule.action == Allow;
        }
        match (direction, self.policy.filter(|_| pod.starts_with("shop/"))) {
            (Direction::Egress, _) => true,
            (Direction::Ingress, Some(allows)) => allows,
            (Direction::Ingress, None) => self.default.is_none_or(|action| action == Allow),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// After any changes an engine that followed them says what one says that has read the result, and both say what the rules
    /// say, evaluated one by one.
    #[test]
    fn any_order_of_changes_is_a_fresh_build(steps in prop::collection::vec(step(), 1..8)) {
        let (mut cluster, mut said) = (Cluster::shop(), Said::default());
        let mut engine = Engine::new();
        cluster.update(&mut engine);
        for step in steps {
            match step {
                Step::Rules(pod, list) => {
                    cluster.index.set_local_rules(rules(pod, list.clone()));
                    said.rules.insert(pod, list);
                }
                Step::NoRules(pod) => {
                    cluster.index.remove_local_rules(&key(pod));
                    said.rules.remove(pod);
                }
                Step::Default(action) => {
                    cluster.index.set_local_defaults(defaults(action, None));
                    said.default = action;
                }
                Step::Moves(pod, last) => {
                    cluster.pod(pod, &[&format!("10.0.0.{last}")], json!({"app": "it"}));
                }
                Step::Policy(allows) => {
                    let ingress = if allows { json!([{}]) } else { json!([]) };
                    cluster.policy("shop/it", json!({"podSelector": {}, "ingress": ingress}));
                    said.policy = Some(allows);
                }
            }
            let followed = cluster.update(&mut engine);
            let fresh = cluster.compile();
            for endpoint in &cluster.endpoints {
                for peer in [WEB, API, DB, "10.0.0.4", "10.0.0.5", STRANGER] {
                    let peer: IpAddr = peer.parse().unwrap();
                    // the caller of a table knows that a pod reaches itself
                    if endpoint.addresses.contains(&peer) {
                        continue;
                    }
                    // of pods that claim one address the first by name, as all are alike else
                    let claims = cluster.endpoints.iter().filter(|of| of.addresses.contains(&peer));
                    let owner = claims.filter_map(|of| of.pod.as_ref()).min();
                    for (transport, direction) in packets() {
                        let verdict = |compiled: &Compiled| {
                            compiled.judge(endpoint.id, direction, peer, transport).unwrap().allowed()
                        };
                        let pod = endpoint.pod.as_ref().unwrap().to_string();
                        let wanted = said.passes(&pod, direction, peer, owner, transport);
                        prop_assert_eq!(verdict(&followed), wanted, "{} {} {}", pod, peer, transport);
                        prop_assert_eq!(verdict(&fresh), wanted, "fresh: {} {} {}", pod, peer, transport);
                    }
                }
            }
        }
    }
}

fn packets() -> impl Iterator<Item = (Transport, Direction)> {
    let transports = [
        Transport::Port(Protocol::Tcp, 80),
        Transport::Port(Protocol::Tcp, 9),
        Transport::Port(Protocol::Udp, 80),
        Transport::Other,
        Transport::Number(IpProtocol(47)),
    ];
    let both = [Direction::Ingress, Direction::Egress];
    transports.into_iter().flat_map(move |transport| both.map(|direction| (transport, direction)))
}
