//! No limit but memory, through the real writer and real maps; and bursts of events.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podgate_bpf::loader::Sizes;
use podgate_policy::model::{
    Block, Labels, NamespaceScope, ObjectKey, Peer, Peers, Pod, PodLife, Policy, PolicyId,
    PolicySettings, Port, Ports, Protocol, Rule,
};
use podgate_policy::object::Object;
use podgate_policy::selector::{Operator, Requirement, Selector};

use crate::node::{on_a_node, on_a_node_of};
use crate::writing::Writing;

/// The pod of this node; it has the label `app=db`.
const DB: &str = "shop/db";

fn pod(name: &str, app: &str, address: impl Into<IpAddr>) -> Object {
    let (namespace, name) = name.split_once('/').unwrap();
    Object::Pod(Pod {
        key: ObjectKey::new(namespace, name),
        uid: "".into(),
        created: 0,
        labels: Labels::from_iter([("app".into(), app.into())]),
        addresses: vec![address.into()],
        ports: Arc::new([]),
        life: PodLife::Live,
        host_network: false,
        node: None,
        host_addresses: Vec::new(),
        annotated_limits: None,
    })
}

fn db() -> Object {
    pod(DB, "db", [10, 0, 0, 1])
}

fn app(name: &str) -> Selector {
    let operator = Operator::In(BTreeSet::from([name.into()]));
    Selector::new([Requirement { key: "app".into(), operator }])
}

fn from_app(name: &str) -> Peers {
    let namespaces = NamespaceScope::Own("shop".into());
    Peers::of([Peer::Pods { namespaces, pods: app(name) }])
}

fn policy(name: &str, ingress: Vec<Rule>) -> Object {
    let id = PolicyId { source: "test".into(), key: ObjectKey::new("shop", name) };
    Object::Policy(Policy {
        id,
        selector: app("db"),
        ingress: Some(ingress),
        egress: None,
        settings: PolicySettings::default(),
    })
}

fn tcp(first: u16, last: u16) -> Port {
    Port::Numbers(Protocol::Tcp, first..=last)
}

/// Another pod's address.
fn peer(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a01_0000 + number)
}

#[test]
fn two_thousand_port_ranges_in_one_policy() {
    on_a_node(|node| {
        let endpoint = node.endpoint(DB, "10.0.0.1");
        let writing = Writing::on(node);
        let ports = (0..2000).map(|n| tcp(1000 + 20 * n, 1000 + 20 * n + 12)).collect();
        let rule = Rule { peers: from_app("web"), ports: Ports::Of(ports) };
        let web = pod("shop/web", "web", peer(1));
        writing.replace(vec![db(), web, policy("ranges", vec![rule])]);
        println!("2,000 port ranges: {} map entries", writing.enforced(&endpoint));
        for n in (0..2000).step_by(97) {
            for (port, expected) in [(0, true), (12, true), (13, false), (19, false)] {
                let port = 1000 + 20 * n + port;
                assert_eq!(node.allows(&endpoint, "10.1.0.1", 6, port), expected, "port {port}");
            }
        }
        assert!(!node.allows(&endpoint, "10.1.0.2", 6, 1000));
    });
}

#[test]
fn ten_thousand_blocks_with_exceptions() {
    on_a_node(|node| {
        let endpoint = node.endpoint(DB, "10.0.0.1");
        let writing = Writing::on(node);
        let block = |n: u32| {
            let net = |low: u32, length| {
                let address = Ipv4Addr::from_bits(0x1400_0000 + 256 * n + low);
                ipnet::IpNet::new(address.into(), length).unwrap()
            };
            Peer::Block(Block { cidr: net(0, 24), except: vec![net(128, 25)] })
        };
        let rule =
            Rule { peers: Peers::of((0..10_000).map(block)), ports: Ports::Of(vec![tcp(80, 80)]) };
        let started = Instant::now();
        writing.replace(vec![db(), policy("blocks", vec![rule])]);
        println!("10,000 blocks with exceptions: {:?}", started.elapsed());
        assert_eq!(writing.shared.snapshot().nets, 20_000);
        assert!(writing.enforced(&endpoint) < 10);
        for n in (0..10_000_u32).step_by(613) {
            for (low, expected) in [(0, true), (127, true), (128, false), (255, false)] {
                let from = Ipv4Addr::from_bits(0x1400_0000 + 256 * n + low).to_string();
                assert_eq!(node.allows(&endpoint, &from, 6, 80), expected, "{from}");
            }
        }
        // and away again
        writing.replace(vec![db()]);
        assert_eq!(node.maps().nets().unwrap().len(), 0);
        assert!(node.allows(&endpoint, "9.9.9.9", 6, 80));
    });
}

#[test]
fn five_hundred_policies_on_one_pod() {
    on_a_node(|node| {
        let endpoint = node.endpoint(DB, "10.0.0.1");
        let writing = Writing::on(node);
        let mut objects = vec![db()];
        for n in 0..500 {
            let (name, port) = (format!("app-{n}"), 1000 + n as u16);
            objects.push(pod(&format!("shop/p{n}"), &name, peer(n)));
            let ports = Ports::Of(vec![tcp(port, port)]);
            objects.push(policy(&name, vec![Rule { peers: from_app(&name), ports }]));
        }
        writing.replace(objects);
        println!("500 policies: {} map entries", writing.enforced(&endpoint));
        for n in (0..500_u16).step_by(7) {
            let from = peer(n.into()).to_string();
            assert!(node.allows(&endpoint, &from, 6, 1000 + n), "{from}");
            assert!(!node.allows(&endpoint, &from, 6, 1001 + n), "{from}");
        }
    });
}

#[test]
fn five_thousand_classes() {
    on_a_node(|node| {
        let endpoint = node.endpoint(DB, "10.0.0.1");
        let writing = Writing::on(node);
        let rule = |n: u16| Rule {
            peers: from_app(&format!("app-{n}")),
            ports: Ports::Of(vec![tcp(1000 + n, 1000 + n)]),
        };
        let peers = (0..5000).map(|n| pod(&format!("shop/p{n}"), &format!("app-{n}"), peer(n)));
        let policy = policy("many", (0..5000).map(rule).collect());
        let started = Instant::now();
        writing.replace([db(), policy].into_iter().chain(peers).collect());
        println!(
            "5,000 classes: {:?}, {} map entries",
            started.elapsed(),
            writing.enforced(&endpoint)
        );
        assert_eq!(writing.shared.snapshot().classes, 5000);
        for n in (0..5000_u16).step_by(71) {
            let from = peer(n.into()).to_string();
            assert!(node.allows(&endpoint, &from, 6, 1000 + n), "{from}");
            assert!(!node.allows(&endpoint, &from, 6, 1001 + n), "{from}");
        }
    });
}

#[test]
fn a_table_that_changes_as_a_whole_is_swapped_and_right() {
    on_a_node(|node| {
        let endpoint = node.endpoint(DB, "10.0.0.1");
        let writing = Writing::on(node);
        let world = |shift: u16| {
            let ports = (0..1000).map(|n| tcp(1001 + 20 * n + shift, 1001 + 20 * n + shift + 12));
            let ports = Ports::Of(ports.collect());
            let rule = |n: u32| Rule { peers: from_app(&format!("app-{n}")), ports: ports.clone() };
            let peers = (0..4).map(|n| pod(&format!("shop/p{n}"), &format!("app-{n}"), peer(n)));
            let policy = policy("wide", (0..4).map(rule).collect());
            [db(), policy].into_iter().chain(peers).collect::<Vec<_>>()
        };
        writing.replace(world(0));
        assert!(writing.enforced(&endpoint) > 16_384, "{}", writing.enforced(&endpoint));
        let in_force = || node.maps().policy_map(endpoint.ifindex).unwrap().unwrap();
        let first = in_force();
        let before = first.entries().unwrap();
        let started = Instant::now();
        writing.replace(world(2));
        println!("{} entries replaced: {:?}", before.len(), started.elapsed());
        // the map that was in force is as it was: another one is now
        assert_eq!(first.entries().unwrap(), before);
        for n in (0..1000_u16).step_by(53) {
            for (port, expected) in [(2, false), (3, true), (15, true), (16, false)] {
                let port = 1000 + 20 * n + port;
                assert_eq!(node.allows(&endpoint, "10.1.0.3", 6, port), expected, "port {port}");
            }
        }
        assert_eq!(in_force().entries().unwrap().len(), writing.enforced(&endpoint));
    });
}

#[test]
fn a_full_class_map_is_turned_over_completely() {
    let sizes = Sizes { peers: 2, flows4: 1024, flows6: 1024, ..Sizes::default() };
    on_a_node_of(&sizes, |node| {
        let endpoint = node.endpoint(DB, "10.0.0.1");
        let writing = Writing::on(node);
        let rule = || Rule { peers: from_app("web"), ports: Ports::Of(vec![tcp(80, 80)]) };
        let world = |first: u32| {
            let web = |n: u32| pod(&format!("shop/web{n}"), "web", peer(n));
            vec![db(), policy("p", vec![rule()]), web(first), web(first + 1)]
        };
        writing.replace(world(1));
        for first in [3, 5, 7] {
            // not one of those that were there stays
            writing.replace(world(first));
            writing.enforced(&endpoint);
            for n in 1..10 {
                let from = peer(n).to_string();
                let there = n == first || n == first + 1;
                assert_eq!(node.allows(&endpoint, &from, 6, 80), there, "{from}");
            }
        }
    });
}

#[test]
fn a_burst_is_few_commits_and_a_lone_event_waits_for_nothing() {
    on_a_node(|node| {
        let endpoint = node.endpoint(DB, "10.0.0.1");
        let writing = Writing::on(node);
        let rule = Rule { peers: from_app("web"), ports: Ports::Of(vec![tcp(80, 80)]) };
        writing.replace(vec![db(), policy("p", vec![rule])]);
        let count = || writing.shared.snapshot().commits.count;

        let mut lone = Vec::new();
        for n in 0..50 {
            let started = Instant::now();
            writing.set(pod(&format!("shop/lone{n}"), "web", peer(n)));
            writing.settle();
            lone.push(started.elapsed());
            assert!(node.allows(&endpoint, &peer(n).to_string(), 6, 80));
        }
        lone.sort_unstable();
        let before = count();
        let started = Instant::now();
        for n in 1000..2000 {
            writing.set(pod(&format!("shop/burst{n}"), "web", peer(n)));
        }
        writing.settle();
        let (took, commits) = (started.elapsed(), count() - before);
        println!(
            "a lone event {:?} (median of 50); 1,000 at once {took:?} in {commits} commits",
            lone[25]
        );
        assert!(node.allows(&endpoint, &peer(1999).to_string(), 6, 80));
        assert!(commits < 500, "{commits} commits for 1,000 events");
        // no timer: far below any that one could see
        assert!(lone[25] < Duration::from_millis(20), "{:?}", lone[25]);
    });
}
