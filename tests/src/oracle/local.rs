//! What the node's operator says (16): rules of single pods, which come first, and default modes, which come last.

use std::net::IpAddr;

use serde_json::Value;

use super::{
    Decider, Flow, Gate, L4, Ruling, World, cidr_holds, namespace_of, owner_of, read_address,
};

/// All that is said of one pod, or of the node where it names no pod.
#[derive(Clone, Debug)]
pub struct LocalRules {
    /// As the API writes it: `namespace`, `name`, `rules` and `defaults`.
    pub object: Value,
    namespace: String,
    name: String,
    rules: Vec<Rule>,
    ingress: Option<Action>,
    egress: Option<Action>,
}

#[derive(Clone, Debug)]
struct Rule {
    id: u64,
    gate: Gate,
    action: Action,
    peer: Option<String>,
    protocol: Option<String>,
    /// The first and the last.
    ports: Option<(u16, u16)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    Deny,
    Reject,
}

impl From<Value> for LocalRules {
    /// # Panics
    ///
    /// If policyd would not take it.
    fn from(object: Value) -> Self {
        let text = |of: &Value, field: &str| of[field].as_str().map(str::to_owned);
        let rules = object["rules"].as_array().into_iter().flatten().map(|rule| Rule {
            id: rule["id"].as_u64().unwrap_or_else(|| panic!("{rule}: no number")),
            gate: match rule["direction"].as_str() {
                Some("ingress") => Gate::Ingress,
                Some("egress") => Gate::Egress,
                _ => panic!("{rule}: no direction"),
            },
            action: action(&rule["action"]).unwrap_or_else(|| panic!("{rule}: no action")),
            peer: text(rule, "peer"),
            protocol: text(rule, "protocol").map(|name| name.to_uppercase()),
            ports: text(rule, "ports").map(|ports| {
                let (first, last) = ports.split_once('-').unwrap_or((&ports, &ports));
                let number = |of: &str| of.parse().unwrap_or_else(|_| panic!("ports {of:?}"));
                (number(first), number(last))
            }),
        });
        Self {
            namespace: text(&object, "namespace").unwrap_or_default(),
            name: text(&object, "name").unwrap_or_default(),
            rules: rules.collect(),
            ingress: action(&object["defaults"]["ingress"]),
            egress: action(&object["defaults"]["egress"]),
            object,
        }
    }
}

fn action(said: &Value) -> Option<Action> {
    match said.as_str() {
        None | Some("unset") => None,
        Some("allow") => Some(Action::Allow),
        Some("deny") => Some(Action::Deny),
        Some("reject") => Some(Action::Reject),
        Some(other) => panic!("action {other:?}"),
    }
}

fn ruling(action: Action, by: Decider) -> Ruling {
    Ruling { passes: action == Action::Allow, rejects: action == Action::Reject, by }
}

/// 16.1, 16.2: the first rule that matches decides, but for what the pod sends to itself.
pub(super) fn rules(world: &World, flow: Flow<'_>) -> Option<Ruling> {
    if flow.to_itself {
        return None;
    }
    let said = world.local_rules.iter().find(|said| is_about(said, flow))?;
    let first = said.rules.iter().find(|rule| rule.matches(world, flow))?;
    Some(ruling(first.action, Decider::LocalRule(first.id)))
}

/// 16.5: that of the pod before that of the node.
pub(super) fn default(world: &World, flow: Flow<'_>) -> Option<Ruling> {
    if flow.to_itself {
        return None;
    }
    let of = |said: &LocalRules| match flow.gate {
        Gate::Ingress => said.ingress,
        Gate::Egress => said.egress,
    };
    let mut of_pod = world.local_rules.iter().filter(|said| is_about(said, flow));
    let of_node = || world.local_rules.iter().find(|said| said.name.is_empty()).and_then(of);
    let (action, of_pod) = match of_pod.find_map(of) {
        Some(action) => (action, true),
        None => (of_node()?, false),
    };
    Some(ruling(action, Decider::LocalDefault { of_pod }))
}

fn is_about(said: &LocalRules, flow: Flow<'_>) -> bool {
    let pod = &flow.pod.metadata;
    said.namespace == namespace_of(pod) && Some(&said.name) == pod.name.as_ref()
}

impl Rule {
    fn matches(&self, world: &World, flow: Flow<'_>) -> bool {
        self.gate == flow.gate
            && self.peer.as_ref().is_none_or(|peer| is_peer(world, peer, flow.peer))
            && self.protocol.as_ref().is_none_or(|protocol| is_protocol(protocol, flow))
            && self.ports.is_none_or(|(first, last)| match flow.l4 {
                L4::Port(_, port) => (first..=last).contains(&port),
                L4::NoPorts => false,
            })
    }
}

/// 16.4, 16.7: a pod by its name, or whatever has the address.
fn is_peer(world: &World, text: &str, peer: IpAddr) -> bool {
    match text.split_once('/') {
        Some((base, _)) if base.contains(['.', ':']) => cidr_holds(text, peer),
        Some((namespace, name)) => owner_of(world, peer).is_some_and(|pod| {
            namespace_of(&pod.metadata) == namespace && pod.metadata.name.as_deref() == Some(name)
        }),
        None => read_address(text).to_ip() == peer,
    }
}

/// 16.3: by its number; ICMP and ICMPv6 are two.
fn is_protocol(said: &str, flow: Flow<'_>) -> bool {
    let (name, number) = match (flow.l4, flow.peer) {
        (L4::Port("TCP", _), _) => ("TCP", "6"),
        (L4::Port("UDP", _), _) => ("UDP", "17"),
        (L4::Port(..), _) => ("SCTP", "132"),
        (L4::NoPorts, IpAddr::V4(_)) => ("ICMP", "1"),
        (L4::NoPorts, IpAddr::V6(_)) => ("ICMPV6", "58"),
    };
    said == name || said == number
}
