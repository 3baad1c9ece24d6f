//! A cluster that looks like a real one, of any size, the same at every run.
//!
//! Namespaces have skewed sizes: the n-th has 1/n of the biggest one's pods. Pods belong to apps of 1 to 50
//! replicas that share their labels but for the StatefulSets among them, a tenth, whose pods each have a name label.
//! Policies come in the shapes that one meets: default deny, the own namespace, one app to another, an
//! ingress controller, monitoring by a port's name, DNS, the world but for the private ranges, partners by their
//! addresses. 110 pods are on this node, of all namespaces, as a scheduler would spread them.

#![allow(dead_code, reason = "every bench uses its own part")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use podgate_policy::index::Index;
use podgate_policy::model::{
    Action, Block, ClusterPolicy, ClusterPolicyId, Labels, NamedPort, Namespace, NamespaceScope,
    ObjectKey, Peer, Peers, Pod, PodLife, Policy, PolicyId, PolicySettings, Port, Ports, Protocol,
    RankedRule, Rule, Subject, Tier,
};
use podgate_policy::object::Event;
use podgate_policy::selector::{Operator, Requirement, Selector};
use podgate_policy::tables::{Endpoint, EndpointId};

/// Pods on this node.
pub(crate) const HERE: usize = 110;

/// Sizes worth comparing: pods, policies.
pub(crate) const SIZES: [(usize, usize); 3] = [(1_000, 100), (10_000, 1_000), (100_000, 10_000)];

/// How many ClusterNetworkPolicies stand beside the policies.
pub(crate) const CLUSTER_POLICIES: [usize; 3] = [0, 10, 500];

/// A cluster. Its pods are made when they are asked for, so that they need no memory here.
pub(crate) struct Cluster {
    pub(crate) namespaces: Vec<Namespace>,
    apps: Vec<App>,
    pub(crate) policies: Vec<Policy>,
    /// What is on this node.
    pub(crate) endpoints: Vec<Endpoint>,
}

/// A small generator of numbers that look random (SplitMix64), so that every run has the same cluster.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }
}

struct App {
    /// The number of its first pod.
    first: usize,
    namespace: usize,
    labels: Labels,
    ports: Arc<[NamedPort]>,
    pods: usize,
    stateful: bool,
}

pub(crate) fn text(text: impl AsRef<str>) -> Arc<str> {
    text.as_ref().into()
}

fn labels<const N: usize>(labels: [(&str, String); N]) -> Labels {
    labels.into_iter().map(|(key, value)| (text(key), text(value))).collect()
}

/// The selector of one label.
pub(crate) fn with(key: &str, value: &str) -> Selector {
    let operator = Operator::In(BTreeSet::from([text(value)]));
    Selector::new([Requirement { key: text(key), operator }])
}

pub(crate) fn address(pod: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + 256 + pod as u32).into()
}

fn port(name: &str, number: u16) -> NamedPort {
    NamedPort { name: text(name), protocol: Protocol::Tcp, number }
}

fn tcp(number: u16) -> Port {
    Port::Numbers(Protocol::Tcp, number..=number)
}

impl Cluster {
    /// A cluster of this many pods and policies.
    pub(crate) fn new(pods: usize, policies: usize) -> Self {
        let mut dice = Dice::new(7);
        let count = (pods / 100).clamp(10, 500);
        let namespaces: Vec<Namespace> = (0..count)
            .map(|number| {
                let name = format!("team-{number}");
                let labels = labels([
                    ("team", format!("t{}", number % 20)),
                    ("stage", ["dev", "test", "prod"][number % 3].to_owned()),
                ]);
                Namespace::new(name, labels)
            })
            .collect();
        let apps = apps(&mut dice, count, pods);
        let policies =
            (0..policies).map(|number| policy(&mut dice, number, &namespaces, &apps)).collect();
        let mut cluster = Self { namespaces, apps, policies, endpoints: Vec::new() };
        let step = pods / HERE;
        let here = (0..HERE).map(|nth| cluster.pod(nth * step + dice.roll(step)));
        let endpoints = here.zip(1..).map(|(pod, id)| Endpoint {
            id: EndpointId(id),
            pod: Some(pod.key),
            uid: pod.uid,
            addresses: pod.addresses,
        });
        cluster.endpoints = endpoints.collect();
        cluster
    }

    /// How many pods it has.
    pub(crate) fn size(&self) -> usize {
        self.apps.last().map_or(0, |app| app.first + app.pods)
    }

    /// A pod by its number.
    pub(crate) fn pod(&self, number: usize) -> Pod {
        let app = self.apps.partition_point(|app| app.first <= number) - 1;
        let of = &self.apps[app];
        of.pod(&self.namespaces[of.namespace], app, number - of.first, number)
    }

    /// Everything as events.
    pub(crate) fn changes(&self) -> impl Iterator<Item = Event> {
        let namespaces = self.namespaces.iter().cloned().map(Event::from);
        let pods = (0..self.size()).map(|number| Event::from(self.pod(number)));
        namespaces.chain(pods).chain(self.policies.iter().cloned().map(Event::from))
    }

    pub(crate) fn index(&self) -> Index {
        let mut index = Index::new();
        for change in self.changes() {
            index.apply(change);
        }
        index
    }

    /// A pod that is new: the next replica of some app, on another node.
    pub(crate) fn new_pod(&self, number: usize) -> Pod {
        let like = self.pod(number * 7919 % self.size());
        Pod {
            key: ObjectKey::new(like.key.namespace.clone(), format!("new-{number}")),
            uid: text(format!("new-{number}")),
            addresses: vec![address(self.size() + number)],
            ..like
        }
    }

    /// A pod of another node that has got a label which some selectors ask for.
    pub(crate) fn relabelled(&self, number: usize) -> Pod {
        let mut pod = self.pod(number * 7919 % self.size());
        pod.labels.insert(text("app"), text(format!("app-{}", number % 40)));
        pod
    }

    /// A policy that selects pods here, with one more port.
    pub(crate) fn edited(&self, number: usize) -> Policy {
        let here: BTreeSet<_> =
            self.endpoints.iter().filter_map(|e| Some(e.pod.as_ref()?.namespace.clone())).collect();
        let candidates: Vec<_> =
            self.policies.iter().filter(|policy| here.contains(&policy.id.key.namespace)).collect();
        let mut policy = candidates[number % candidates.len()].clone();
        let rule =
            Rule { peers: Peers::Any, ports: Ports::Of(vec![tcp(20_000 + number as u16 % 999)]) };
        policy.ingress.get_or_insert_default().push(rule);
        policy
    }
}

fn apps(dice: &mut Dice, namespaces: usize, pods: usize) -> Vec<App> {
    let mut apps: Vec<App> = Vec::new();
    let harmonic: f64 = (1..=namespaces).map(|n| 1.0 / n as f64).sum();
    let mut left = pods;
    for namespace in 0..namespaces {
        let share = pods as f64 / harmonic / (namespace + 1) as f64;
        let mut here =
            if namespace + 1 == namespaces { left } else { (share as usize).clamp(1, left) };
        left -= here;
        let mut number = 0;
        while here > 0 {
            let size = [1, 1, 2, 2, 3, 3, 5, 8, 10, 20, 50][dice.roll(11)].min(here);
            let hash = format!("{:x}", 0x5bd1_e995_usize.wrapping_mul(apps.len() + 1) & 0xff_ffff);
            apps.push(App {
                first: pods - left - here,
                namespace,
                labels: labels([
                    ("app", format!("app-{number}")),
                    ("app.kubernetes.io/part-of", format!("suite-{}", number % 7)),
                    ("tier", ["front", "back", "data"][number % 3].to_owned()),
                    ("pod-template-hash", hash),
                ]),
                ports: match number % 4 {
                    0 => Arc::new([port("http", 8080), port("metrics", 9090)]),
                    1 => Arc::new([port("http", 8000 + (number % 50) as u16)]),
                    2 => Arc::new([port("metrics", 9100)]),
                    _ => Arc::new([]),
                },
                pods: size,
                stateful: number % 10 == 9,
            });
            here -= size;
            number += 1;
        }
    }
    apps
}

impl App {
    fn pod(&self, namespace: &Namespace, app: usize, replica: usize, number: usize) -> Pod {
        let name = format!("app-{app}-{replica}");
        let mut labels = self.labels.clone();
        if self.stateful {
            labels.insert(text("statefulset.kubernetes.io/pod-name"), text(&name));
        }
        // as a source gives it: no two objects share a string
        let own = labels.iter().map(|(key, value)| (text(key), text(value)));
        Pod {
            key: ObjectKey::new(text(&namespace.name), name),
            uid: text(format!("{:08x}-0000-4000-8000-{number:012x}", number * 31)),
            created: number as i64,
            labels: own.collect(),
            addresses: vec![address(number)],
            ports: self.ports.iter().map(|p| NamedPort { name: text(&p.name), ..*p }).collect(),
            life: PodLife::Live,
            host_network: false,
            node: Some(text(format!("node-{}", number % (1 + number / HERE)))),
            host_addresses: Vec::new(),
            annotated_limits: None,
        }
    }
}

fn policy(dice: &mut Dice, number: usize, namespaces: &[Namespace], apps: &[App]) -> Policy {
    let target = &apps[dice.roll(apps.len())];
    let namespace = &namespaces[target.namespace];
    let app = |labels: &Labels| with("app", labels.get("app").map_or("", |value| &**value));
    let own = |selector| Peer::Pods {
        namespaces: NamespaceScope::Own(namespace.name.clone()),
        pods: selector,
    };
    let of = |label: (&str, &str), pods| Peer::Pods {
        namespaces: NamespaceScope::Matching(with(label.0, label.1)),
        pods,
    };
    let everything = Selector::everything;
    let rule = |peers: Vec<Peer>, ports: Vec<Port>| Rule {
        peers: if peers.is_empty() { Peers::Any } else { Peers::of(peers) },
        ports: if ports.is_empty() { Ports::Any } else { Ports::Of(ports) },
    };
    let mut policy = Policy {
        id: PolicyId {
            source: text("kubernetes"),
            key: ObjectKey::new(namespace.name.clone(), format!("policy-{number}")),
        },
        selector: app(&target.labels),
        ingress: None,
        egress: None,
        settings: PolicySettings::default(),
    };
    match dice.roll(10) {
        0 => {
            policy.selector = everything();
            policy.ingress = Some(Vec::new());
        }
        1 => {
            policy.selector = everything();
            policy.ingress = Some(vec![rule(vec![own(everything())], Vec::new())]);
        }
        2..=4 => {
            let peer = &apps[dice.roll(apps.len())];
            let port = tcp(8000 + dice.roll(50) as u16);
            policy.ingress = Some(vec![rule(vec![own(app(&peer.labels))], vec![port])]);
        }
        5 => {
            let name = ("kubernetes.io/metadata.name", "team-0");
            let http = Port::Named(Protocol::Tcp, text("http"));
            policy.ingress = Some(vec![rule(vec![of(name, with("app", "app-0"))], vec![http])]);
        }
        6 => {
            let metrics = Port::Named(Protocol::Tcp, text("metrics"));
            policy.selector = with("tier", ["front", "back", "data"][number % 3]);
            let stage = ("stage", "prod");
            policy.ingress = Some(vec![rule(vec![of(stage, with("tier", "back"))], vec![metrics])]);
        }
        7 => {
            let dns = vec![Port::Numbers(Protocol::Udp, 53..=53), tcp(53)];
            let cluster = ("team", "t0");
            let peer = &apps[dice.roll(apps.len())];
            let http = Port::Named(Protocol::Tcp, text("http"));
            policy.egress = Some(vec![
                rule(vec![of(cluster, everything())], dns),
                rule(vec![own(app(&peer.labels))], vec![http]),
            ]);
        }
        8 => {
            let all = "0.0.0.0/0".parse().unwrap_or_default();
            let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
            let except = private.iter().filter_map(|net| net.parse().ok()).collect();
            let world = Peer::Block(Block { cidr: all, except });
            policy.egress = Some(vec![rule(vec![world], vec![tcp(443)])]);
        }
        _ => {
            let partners = (0..3 + dice.roll(5)).filter_map(|_| {
                let address = Ipv4Addr::from_bits(0xcb00_0000 + 256 * dice.roll(1 << 16) as u32);
                let cidr = IpNet::new(address.into(), 24).ok()?.trunc();
                Some(Peer::Block(Block { cidr, except: Vec::new() }))
            });
            let partners = partners.collect();
            policy.ingress = Some(vec![rule(partners, vec![tcp(443), tcp(8443)])]);
        }
    }
    policy
}

/// The ClusterNetworkPolicies of administrators: the first denies by default, in the Baseline tier, what pods send to
/// pods. The others are of the Admin tier, about the namespaces of one team each or about all of them: what may not
/// be reached, who watches, who may always be asked.
pub(crate) fn cluster_policy(number: usize) -> ClusterPolicy {
    let everything = Selector::everything;
    let namespaces =
        |of: Selector| Peer::Pods { namespaces: NamespaceScope::Matching(of), pods: everything() };
    let network = |text: &str| {
        Peer::Block(Block { cidr: text.parse().unwrap_or_default(), except: Vec::new() })
    };
    let rule = |action, peers: Vec<Peer>, ports: Vec<Port>| RankedRule {
        name: None,
        action,
        peers: Peers::of(peers),
        ports: if ports.is_empty() { Ports::Any } else { Ports::Of(ports) },
    };
    let team = format!("t{}", number % 20);
    let mut policy = ClusterPolicy {
        id: ClusterPolicyId {
            name: text(format!("cluster-policy-{number}")),
            source: text("kubernetes"),
        },
        tier: Tier::Admin,
        priority: (number * 7 % 1000) as u16,
        subject: Subject { namespaces: with("team", &team), pods: everything() },
        ingress: Vec::new(),
        egress: Vec::new(),
        settings: PolicySettings::default(),
        problems: Vec::new(),
    };
    match number % 5 {
        0 if number == 0 => {
            policy.tier = Tier::Baseline;
            policy.subject.namespaces = everything();
            policy.ingress = vec![rule(Action::Deny, vec![namespaces(everything())], Vec::new())];
        }
        0 => {
            let denied = network(&format!("10.{}.0.0/16", 200 + number % 50));
            policy.egress = vec![
                rule(Action::Accept, vec![network("169.254.20.10/32")], vec![tcp(53)]),
                rule(Action::Deny, vec![denied], Vec::new()),
            ];
        }
        1 => {
            let watchers = namespaces(with("kubernetes.io/metadata.name", "team-0"));
            policy.ingress = vec![rule(
                Action::Accept,
                vec![watchers],
                vec![tcp(9090), Port::Named(Protocol::Tcp, text("metrics"))],
            )];
        }
        2 => {
            let dev = namespaces(with("stage", "dev"));
            policy.ingress = vec![
                rule(Action::Pass, vec![namespaces(with("team", &team))], Vec::new()),
                rule(Action::Deny, vec![dev], vec![tcp(22), tcp(5432)]),
            ];
        }
        3 => {
            let port = tcp(3000 + (number % 40) as u16);
            policy.subject.pods = with("tier", ["front", "back", "data"][number % 3]);
            policy.ingress =
                vec![rule(Action::Deny, vec![namespaces(with("stage", "test"))], vec![port])];
        }
        _ => {
            let metadata = network("169.254.169.254/32");
            policy.egress = vec![rule(Action::Deny, vec![metadata], vec![tcp(80)])];
        }
    }
    policy
}

/// A cluster policy with one more rule.
pub(crate) fn edited_cluster_policy(count: usize, number: usize) -> ClusterPolicy {
    let mut policy = cluster_policy(number * 31 % count.max(1));
    policy.ingress.push(RankedRule {
        name: None,
        action: Action::Accept,
        peers: Peers::of([Peer::Pods {
            namespaces: NamespaceScope::Matching(Selector::everything()),
            pods: Selector::everything(),
        }]),
        ports: Ports::Of(vec![tcp(20_000 + number as u16 % 999)]),
    });
    policy
}
