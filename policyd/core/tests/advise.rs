//! Proposed policies allow what was seen, and nothing else that labels can tell apart.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::BTreeSet;
use std::net::IpAddr;

use cluster::Cluster;
use podgate_policy::advise::{Group, Seen, SeenPeer, advise};
use podgate_policy::model::{Direction, Labels, Protocol};
use podgate_policy::tables::Transport;
use proptest::prelude::*;
use serde_json::{Value, json};

const APPS: [&str; 4] = ["web", "api", "db", "cron"];
const NAMESPACES: [&str; 2] = ["shop", "ops"];
/// Pods of each application, with labels of their own that no policy should name.
const REPLICAS: usize = 2;
const STRANGERS: [&str; 4] = ["198.51.100.4", "198.51.100.5", "198.51.100.6", "2001:db8::7"];

/// An application of a namespace.
type App = (usize, usize);

fn labels_of((_, app): App, replica: usize) -> Value {
    let hash = format!("{app}{replica}");
    json!({"app": APPS[app], "tier": "t", "pod-template-hash": hash})
}

fn address_of((namespace, app): App, replica: usize) -> String {
    format!("10.{namespace}.{app}.{}", replica + 1)
}

fn labels(value: &Value) -> Labels {
    let label =
        |(key, value): (&String, &Value)| (key.as_str().into(), value.as_str().unwrap().into());
    value.as_object().unwrap().iter().map(label).collect()
}

fn group(app: App, replica: usize) -> Group {
    Group::of(NAMESPACES[app.0], &labels(&labels_of(app, replica)))
}

fn apps() -> impl Iterator<Item = App> {
    (0..NAMESPACES.len()).flat_map(|namespace| (0..APPS.len()).map(move |app| (namespace, app)))
}

/// The other end: an application, or a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    App(App),
    Stranger(usize),
}

/// What was seen, by application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    app: App,
    direction: Direction,
    end: End,
    /// 0: a protocol without ports.
    port: u16,
}

impl Flow {
    fn transport(port: u16) -> Transport {
        match port {
            0 => Transport::Other,
            53 => Transport::Port(Protocol::Udp, 53),
            port => Transport::Port(Protocol::Tcp, port),
        }
    }

    fn seen(self, replica: usize) -> Seen {
        let peer = match self.end {
            End::App(app) => SeenPeer::Pod(group(app, replica)),
            End::Stranger(number) => SeenPeer::Address(STRANGERS[number].parse().unwrap()),
        };
        Seen {
            pod: group(self.app, replica),
            direction: self.direction,
            peer,
            transport: Self::transport(self.port),
            flows: 1,
            first: 1.0,
            last: 2.0,
        }
    }
}

fn app() -> impl Strategy<Value = App> {
    (0..NAMESPACES.len(), 0..APPS.len())
}

fn flow() -> impl Strategy<Value = Flow> {
    let direction = prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)];
    let end = prop_oneof![3 => app().prop_map(End::App), 1 => (0..STRANGERS.len()).prop_map(End::Stranger)];
    let port = prop_oneof![1 => Just(0u16), 8 => prop::sample::select(vec![53, 80, 81, 82, 443])];
    (app(), direction, end, port).prop_map(|(app, direction, end, port)| Flow {
        app,
        direction,
        end,
        port,
    })
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for namespace in NAMESPACES {
        cluster.namespace(namespace, json!({}));
    }
    for app in apps() {
        for replica in 0..REPLICAS {
            let name = format!("{}/{}-{replica}", NAMESPACES[app.0], APPS[app.1]);
            cluster.pod(&name, &[&address_of(app, replica)], labels_of(app, replica));
        }
    }
    cluster
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn proposals_allow_what_was_seen_and_nothing_that_was_not(
        flows in prop::collection::btree_set(flow(), 1..12),
        replica in 0..REPLICAS,
    ) {
        let seen: Vec<Seen> = flows.iter().map(|flow| flow.seen(replica)).collect();
        let advice = advise(&seen);
        let mut cluster = cluster();
        for policy in &advice.policies {
            let object = policy.object();
            let name = format!("{}/{}", policy.pods.namespace, policy.name);
            cluster.policy(&name, object["spec"].clone());
        }
        let engine = cluster.engine();
        let isolated: BTreeSet<(App, Direction)> =
            flows.iter().map(|flow| (flow.app, flow.direction)).collect();
        // a protocol without ports is allowed with all ports
        let allowed = |flow: Flow| flows.contains(&flow) || flows.contains(&Flow { port: 0, ..flow });
        for (app, direction) in isolated {
            let strangers = (0..STRANGERS.len()).map(End::Stranger);
            for end in apps().map(End::App).chain(strangers) {
                for (port, replica) in [0, 53, 80, 81, 82, 443, 8080].into_iter().zip([0, 1].into_iter().cycle()) {
                    if end == End::App(app) {
                        continue; // its own addresses pass whatever policy says
                    }
                    let address: IpAddr = match end {
                        End::App(app) => address_of(app, replica).parse().unwrap(),
                        End::Stranger(number) => STRANGERS[number].parse().unwrap(),
                    };
                    let name = format!("{}/{}-{replica}", NAMESPACES[app.0], APPS[app.1]);
                    let endpoint = engine.endpoints_of(&cluster::key(&name)).next().unwrap().id;
                    let judged = engine.compiled().judge(endpoint, direction, address, Flow::transport(port));
                    let wanted = allowed(Flow { app, direction, end, port });
                    prop_assert_eq!(judged.unwrap().allowed(), wanted, "{} {} {} {}", name, direction, address, port);
                }
            }
        }
    }
}

fn seen(pod: &Value, peer: SeenPeer, direction: Direction, transport: Transport) -> Seen {
    let pod = Group::of("shop", &labels(pod));
    Seen { pod, direction, peer, transport, flows: 3, first: 10.0, last: 20.0 }
}

#[test]
fn replicas_are_one_group_and_peers_on_the_same_ports_one_rule() {
    let tcp = |port| Transport::Port(Protocol::Tcp, port);
    let web = |hash: &str| json!({"app": "web", "pod-template-hash": hash});
    let pod = |namespace: &str, app: &str| {
        SeenPeer::Pod(Group::of(namespace, &labels(&json!({"app": app, "job-name": "x-1"}))))
    };
    let outside = |address: &str| SeenPeer::Address(address.parse().unwrap());
    let ingress = Direction::Ingress;
    let advice = advise(&[
        seen(&web("a"), pod("shop", "api"), ingress, tcp(8080)),
        seen(&web("b"), pod("ops", "probe"), ingress, tcp(8080)),
        seen(&web("b"), outside("198.51.100.4"), ingress, tcp(8080)),
        seen(&web("a"), outside("198.51.100.5"), ingress, tcp(8080)),
        seen(&web("a"), pod("shop", "db"), Direction::Egress, tcp(1)),
        seen(&web("a"), pod("shop", "db"), Direction::Egress, tcp(2)),
        seen(&json!({"pod-template-hash": "a"}), pod("shop", "db"), ingress, tcp(1)),
    ]);
    assert_eq!(advice.unlabelled, BTreeSet::from(["shop".into()]));
    let [policy] = advice.policies.as_slice() else { panic!("{advice:?}") };
    assert_eq!(policy.ingress.as_ref().unwrap()[0].flows, 12);
    let ops = json!({"matchLabels": {"kubernetes.io/metadata.name": "ops"}});
    assert_eq!(
        policy.object(),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "allow-seen-web", "namespace": "shop"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{
                    "from": [
                        {"namespaceSelector": ops, "podSelector": {"matchLabels": {"app": "probe"}}},
                        {"podSelector": {"matchLabels": {"app": "api"}}},
                        {"ipBlock": {"cidr": "198.51.100.4/31"}},
                    ],
                    "ports": [{"protocol": "TCP", "port": 8080}],
                }],
                "egress": [{
                    "to": [{"podSelector": {"matchLabels": {"app": "db"}}}],
                    "ports": [{"protocol": "TCP", "port": 1, "endPort": 2}],
                }],
            },
        })
    );
}

#[test]
fn names_are_valid_and_unique_in_a_namespace() {
    let peer = || SeenPeer::Address("192.0.2.1".parse().unwrap());
    let of = |labels: Value| seen(&labels, peer(), Direction::Ingress, Transport::Other);
    let advice = advise(&[
        of(json!({"app": "Web_1"})),
        of(json!({"app": "web-1", "x": "y"})),
        of(json!({"team": "-"})),
    ]);
    let names: BTreeSet<&str> = advice.policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(
        names,
        BTreeSet::from(["allow-seen-pods", "allow-seen-web-1", "allow-seen-web-1-2"])
    );
}
