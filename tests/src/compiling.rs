//! The way of an oracle's world into `podgate-policy`, for tests that compare the two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podgate_policy::compile::Engine;
use podgate_policy::convert::{self, ApiClusterPolicy, FieldError};
use podgate_policy::index::Index;
use podgate_policy::model::{
    ClusterPolicy, Direction, IpProtocol, LocalDefaults, ObjectKey, Protocol,
};
use podgate_policy::object::{Event, ObjectId};
use podgate_policy::tables::{Class, Decision, Endpoint, EndpointId, Table, Transport};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::oracle::{Gate, L4, World};

/// The events that tell an index about a world, in the order of its objects.
pub fn changes(world: &World) -> Result<Vec<Event>, FieldError> {
    let namespaces = world.namespaces.iter().map(|object| convert::namespace("kubernetes", object));
    let namespaces = namespaces.map(|namespace| namespace.map(Event::from));
    let pods = world.pods.iter().map(|pod| convert::pod(pod).map(Event::from));
    let policies = world.policies.iter().map(|policy| convert::policy("kubernetes", policy));
    let policies = policies.map(|policy| policy.map(Event::from));
    let nodes = world.nodes.iter().map(|node| convert::node(node).map(Event::from));
    let cluster_policies = world.cluster_policies.iter();
    let cluster_policies =
        cluster_policies.map(|policy| cluster_policy(&policy.object).map(Event::from));
    namespaces.chain(pods).chain(policies).chain(nodes).chain(cluster_policies).collect()
}

fn cluster_policy(policy: &Value) -> Result<ClusterPolicy, FieldError> {
    let policy = ApiClusterPolicy::deserialize(policy);
    let policy = policy.map_err(|e| FieldError::new("spec", e.to_string()))?;
    convert::cluster_policy("kubernetes", &policy)
}

/// An index of a world.
pub fn index(world: &World) -> Result<Index, FieldError> {
    let mut index = Index::new();
    for change in changes(world)? {
        index.apply(change);
    }
    set_local_rules(&mut index, world)?;
    Ok(index)
}

/// Turns an index of something else into one of this world.
pub fn follow(index: &mut Index, world: &World) -> Result<(), FieldError> {
    for change in changes_from(index, world)? {
        index.apply(change);
    }
    set_local_rules(index, world)
}

/// Tells an index what the node's operator says in this world, and nothing else.
pub fn set_local_rules(index: &mut Index, world: &World) -> Result<(), FieldError> {
    let (mut node, mut pods) = (LocalDefaults::default(), BTreeMap::new());
    for said in world.local_rules.iter().map(|said| &said.object) {
        if said.get("name").is_none() {
            node = convert::local_defaults(read(&said["defaults"])?);
            continue;
        }
        let rules = convert::pod_rules(read(said)?)?;
        pods.insert(rules.pod.clone(), rules);
    }
    let known: Vec<ObjectKey> = index.pods_with_local_rules().cloned().collect();
    for pod in known.iter().filter(|pod| !pods.contains_key(pod)) {
        index.remove_local_rules(pod);
    }
    for rules in pods.into_values() {
        index.set_local_rules(rules);
    }
    index.set_local_defaults(node);
    Ok(())
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    T::deserialize(value).map_err(|e| FieldError::new("localRules", e.to_string()))
}

/// The events that do so, but for local rules: the world's objects are set, all others are gone.
fn changes_from(index: &Index, world: &World) -> Result<Vec<Event>, FieldError> {
    let mut changes = changes(world)?;
    let mut there = self::index(world)?;
    there.take_changes();
    let pods = index.pods().filter(|pod| there.pod(&pod.key).is_none());
    changes.extend(pods.map(|pod| Event::Gone(ObjectId::Pod(pod.key.clone()))));
    let policies = index.policies().filter(|policy| there.policy(&policy.id).is_none());
    changes.extend(policies.map(|policy| Event::Gone(ObjectId::Policy(policy.id.clone()))));
    let namespaces = index.namespaces().filter(|known| there.namespace(&known.name).is_none());
    changes.extend(namespaces.map(|known| Event::Gone(ObjectId::Namespace(known.name.clone()))));
    let nodes = index.nodes().filter(|known| there.node(&known.name).is_none());
    changes.extend(nodes.map(|known| Event::Gone(ObjectId::Node(known.name.clone()))));
    let policies = index.cluster_policies().filter(|of| there.cluster_policy(&of.id).is_none());
    changes.extend(policies.map(|of| Event::Gone(ObjectId::ClusterPolicy(of.id.clone()))));
    Ok(changes)
}

/// What an engine holds, with the meanings of classes and rules in place of their numbers: equal for two engines
/// that hold the same.
pub fn essence(engine: &Engine) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let compiled = engine.compiled();
    for (address, class) in &compiled.hosts {
        lines.insert(format!("{address}: {:?}", engine.meaning(*class)));
    }
    for (prefix, class) in &compiled.nets {
        lines.insert(format!("{prefix}: {:?}", engine.meaning(*class)));
    }
    for (endpoint, table) in &compiled.tables {
        let isolating = (&table.ingress, &table.egress);
        lines.insert(format!("{endpoint:?}: {isolating:?} {}", table.ranked));
        for (entry, decision) in &table.entries {
            let (direction, ports) = (entry.direction, entry.ports);
            let class = match entry.class {
                Class::SELF_V4 => "itself over IPv4".to_owned(),
                Class::SELF_V6 => "itself over IPv6".to_owned(),
                class => format!("{:?}", engine.meaning(class)),
            };
            let (effect, log) = (decision.effect, decision.log);
            let rule = engine.origin(decision.rule);
            lines.insert(format!(
                "{endpoint:?} {direction} {class} {ports:?}: {effect:?} {rule:?} {log}"
            ));
        }
    }
    lines
}

/// What decides on what an endpoint sends to itself through a service that leads to this address of its own. `None`: it
/// passes.
pub fn to_itself(
    table: &Table,
    direction: Direction,
    own: IpAddr,
    transport: Transport,
) -> Option<Decision> {
    let class = if own.is_ipv4() { Class::SELF_V4 } else { Class::SELF_V6 };
    let entries = table.column(class);
    Table { entries, ..Table::default() }.lookup(direction, class, transport)
}

/// A world's interfaces: pod number `n` of the world has endpoint `n + 1`.
pub fn endpoints(world: &World) -> Result<Vec<Endpoint>, FieldError> {
    let endpoint = |(pod, addresses): &(usize, Vec<_>)| {
        let pod_object = convert::pod(&world.pods[*pod])?;
        Ok(Endpoint {
            id: endpoint_id(*pod),
            pod: Some(pod_object.key),
            uid: pod_object.uid,
            addresses: addresses.clone(),
        })
    };
    world.interfaces.iter().map(endpoint).collect()
}

/// The endpoint of a pod of the world.
pub fn endpoint_id(pod: usize) -> EndpointId {
    EndpointId(u32::try_from(pod).unwrap_or(u32::MAX - 1) + 1)
}

/// The oracle's gate.
pub fn direction(gate: Gate) -> Direction {
    match gate {
        Gate::Ingress => Direction::Ingress,
        Gate::Egress => Direction::Egress,
    }
}

/// The oracle's packet, to or from this peer.
pub fn transport(l4: L4, peer: IpAddr) -> Transport {
    match l4 {
        L4::Port("TCP", port) => Transport::Port(Protocol::Tcp, port),
        L4::Port("UDP", port) => Transport::Port(Protocol::Udp, port),
        L4::Port("SCTP", port) => Transport::Port(Protocol::Sctp, port),
        L4::Port(..) | L4::NoPorts if peer.is_ipv4() => Transport::Number(IpProtocol::ICMP),
        L4::Port(..) | L4::NoPorts => Transport::Number(IpProtocol::ICMPV6),
    }
}
