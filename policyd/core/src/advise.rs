//! The smallest NetworkPolicies that allow what was seen.
//!
//! Pods of one controller are one *group*: pods of one namespace with the same labels, those left out that tell a
//! controller's pods or roll-outs apart. Each group whose gates were seen gets one policy, with a rule for each set of ports
//! and in it the peers that were seen on just these. Addresses outside the cluster are joined where they fill a prefix, and
//! ports where they fill a range; nothing else is made wider, but for two things that NetworkPolicy cannot say: a
//! protocol without ports is allowed with all ports, and a peer without labels with its whole namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::model::{Direction, Labels, Protocol};
use crate::tables::Transport;

/// Labels that differ between the pods of one controller, or between its roll-outs.
const OF_ONE_POD: [&str; 13] = [
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "helm.sh/chart",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// Labels by whose value a group is called, the first that it has.
const NAMES: [&str; 3] = ["app.kubernetes.io/name", "app", "k8s-app"];

/// A flow that was seen at a pod's gate, or several that differ in nothing else.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The pod at whose gate.
    pub pod: Group,
    /// Seen from the pod.
    pub direction: Direction,
    /// The other end.
    pub peer: SeenPeer,
    /// Protocol and destination port.
    pub transport: Transport,
    /// How many flows.
    pub flows: u64,
    /// When the first was seen, in seconds since 1970.
    pub first: f64,
    /// When the last was.
    pub last: f64,
}

/// The other end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeenPeer {
    /// A pod.
    Pod(Group),
    /// What is no pod.
    Address(IpAddr),
}

/// The pods of a namespace with the same labels, as far as those tell one controller from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The labels that they share.
    pub labels: Labels,
}

impl Group {
    /// The group of a pod of this namespace with these labels.
    pub fn of(namespace: &str, labels: &Labels) -> Self {
        let shared = labels.iter().filter(|(key, _)| !OF_ONE_POD.contains(&&***key));
        let labels = shared.map(|(key, value)| (key.clone(), value.clone())).collect();
        Self { namespace: namespace.into(), labels }
    }

    fn has_no_labels(&self) -> bool {
        self.labels.iter().len() == 0
    }

    /// A name for people, of the characters that an object's name may have.
    fn name(&self) -> String {
        let value = NAMES.iter().find_map(|key| self.labels.get(key));
        let value = value.or_else(|| self.labels.iter().map(|(_, value)| value).next());
        let value = value.map(|value| value.to_lowercase()).unwrap_or_default();
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let value: String = value.chars().map(plain).collect();
        match value.trim_matches('-') {
            "" => "pods".to_owned(),
            value => value.to_owned(),
        }
    }
}

/// What is proposed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advice {
    /// The policies, by namespace and group.
    pub policies: Vec<ProposedPolicy>,
    /// Namespaces with pods that have no labels of their own, which no policy can select alone: what was seen at their gates
    /// is left out.
    pub unlabelled: BTreeSet<Arc<str>>,
}

/// A policy of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct ProposedPolicy {
    /// Its name, unique in the namespace.
    pub name: String,
    /// The pods that it selects.
    pub pods: Group,
    /// Its rules for what reaches them; `None`: nothing was seen, and it does not isolate for the direction.
    pub ingress: Option<Vec<ProposedRule>>,
    /// Its rules for what they send.
    pub egress: Option<Vec<ProposedRule>>,
}

/// A rule of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProposedRule {
    /// Pods, sorted.
    pub pods: Vec<Group>,
    /// Prefixes outside the cluster, sorted.
    pub blocks: Vec<IpNet>,
    /// The ports; `None`: all, because of a protocol without ports.
    pub ports: Option<Vec<ProposedPorts>>,
    /// How many flows it stands for.
    pub flows: u64,
    /// When the first of them was seen, in seconds since 1970.
    pub first: f64,
    /// When the last was.
    pub last: f64,
}

/// Ports of one protocol, from first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProposedPorts {
    /// The protocol.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last, inclusive.
    pub last: u16,
}

/// What one peer was seen on.
#[derive(Debug, Default)]
struct Use {
    ports: BTreeSet<(Protocol, u16)>,
    without_ports: bool,
    flows: u64,
    first: Option<f64>,
    last: f64,
}

impl Use {
    fn add(&mut self, seen: &Seen) {
        match seen.transport {
            Transport::Port(protocol, port) => {
                self.ports.insert((protocol, port));
            }
            _ => self.without_ports = true,
        }
        self.flows += seen.flows;
        self.first = Some(self.first.map_or(seen.first, |first| first.min(seen.first)));
        self.last = self.last.max(seen.last);
    }
}

type Uses = BTreeMap<SeenPeer, Use>;

/// Proposes policies for all that was seen.
pub fn advise(seen: &[Seen]) -> Advice {
    let mut advice = Advice::default();
    let mut groups: BTreeMap<&Group, BTreeMap<Direction, Uses>> = BTreeMap::new();
    for each in seen {
        if each.pod.has_no_labels() {
            advice.unlabelled.insert(each.pod.namespace.clone());
            continue;
        }
        let uses = groups.entry(&each.pod).or_default().entry(each.direction).or_default();
        uses.entry(each.peer.clone()).or_default().add(each);
    }
    let mut names: BTreeMap<(Arc<str>, String), usize> = BTreeMap::new();
    for (group, mut of) in groups {
        let base = format!("allow-seen-{}", group.name());
        let taken = names.entry((group.namespace.clone(), base.clone())).or_default();
        *taken += 1;
        let name = if *taken == 1 { base } else { format!("{base}-{taken}") };
        advice.policies.push(ProposedPolicy {
            name,
            pods: group.clone(),
            ingress: of.remove(&Direction::Ingress).map(rules),
            egress: of.remove(&Direction::Egress).map(rules),
        });
    }
    advice
}

/// One rule for all peers that were seen on the same ports.
fn rules(uses: Uses) -> Vec<ProposedRule> {
    let mut by_ports: BTreeMap<Option<Vec<ProposedPorts>>, Vec<(SeenPeer, Use)>> = BTreeMap::new();
    for (peer, used) in uses {
        let ports = (!used.without_ports).then(|| ranges(&used.ports));
        by_ports.entry(ports).or_default().push((peer, used));
    }
    let rule = |(ports, peers): (Option<Vec<ProposedPorts>>, Vec<(SeenPeer, Use)>)| {
        let (mut pods, mut addresses) = (Vec::new(), Vec::new());
        let (mut flows, mut first, mut last) = (0, f64::INFINITY, 0.0_f64);
        for (peer, used) in peers {
            flows += used.flows;
            first = first.min(used.first.unwrap_or(f64::INFINITY));
            last = last.max(used.last);
            match peer {
                SeenPeer::Pod(group) => pods.push(group),
                SeenPeer::Address(address) => addresses.push(IpNet::from(address)),
            }
        }
        let mut blocks = IpNet::aggregate(&addresses);
        blocks.sort();
        ProposedRule { pods, blocks, ports, flows, first, last }
    };
    by_ports.into_iter().map(rule).collect()
}

/// Neighbouring ports joined.
fn ranges(ports: &BTreeSet<(Protocol, u16)>) -> Vec<ProposedPorts> {
    let mut ranges: Vec<ProposedPorts> = Vec::new();
    for (protocol, port) in ports.iter().copied() {
        match ranges.last_mut() {
            Some(range)
                if range.protocol == protocol && range.last.checked_add(1) == Some(port) =>
            {
                range.last = port;
            }
            _ => ranges.push(ProposedPorts { protocol, first: port, last: port }),
        }
    }
    ranges
}

impl ProposedPolicy {
    /// As an object for the API server.
    pub fn object(&self) -> Value {
        let mut spec = json!({"podSelector": selector(&self.pods.labels), "policyTypes": []});
        let lists = [
            ("Ingress", "ingress", "from", &self.ingress),
            ("Egress", "egress", "to", &self.egress),
        ];
        let mut types = Vec::new();
        for (policy_type, list, ends, rules) in lists {
            let Some(rules) = rules else { continue };
            types.push(policy_type);
            let rules: Vec<Value> = rules.iter().map(|rule| self.rule(rule, ends)).collect();
            spec[list] = rules.into();
        }
        spec["policyTypes"] = types.into();
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": self.name, "namespace": &*self.pods.namespace},
            "spec": spec,
        })
    }

    fn rule(&self, rule: &ProposedRule, ends: &str) -> Value {
        let pods = rule.pods.iter().map(|group| self.peer(group));
        let blocks =
            rule.blocks.iter().map(|block| json!({"ipBlock": {"cidr": block.to_string()}}));
        let mut object = json!({});
        object[ends] = pods.chain(blocks).collect();
        if let Some(ports) = &rule.ports {
            object["ports"] = ports.iter().map(|ports| ports.object()).collect();
        }
        object
    }

    fn peer(&self, group: &Group) -> Value {
        let pods = selector(&group.labels);
        match group.namespace == self.pods.namespace {
            true => json!({"podSelector": pods}),
            false => json!({
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": &*group.namespace}},
                "podSelector": pods,
            }),
        }
    }
}

impl ProposedPorts {
    fn object(self) -> Value {
        let Self { protocol, first, last } = self;
        match first == last {
            true => json!({"protocol": protocol.to_string(), "port": first}),
            false => json!({"protocol": protocol.to_string(), "port": first, "endPort": last}),
        }
    }
}

fn selector(labels: &Labels) -> Value {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(key, value)| (key.to_string(), json!(&**value))).collect();
    match labels.is_empty() {
        true => json!({}),
        false => json!({"matchLabels": labels}),
    }
}
