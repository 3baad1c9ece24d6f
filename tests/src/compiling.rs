//! The way of an oracle's world into `podgate-policy`, for tests that compare the two.

use std::collections::BTreeSet;

use podgate_policy::compile::{Endpoint, EndpointId, Transport};
use podgate_policy::convert::{self, ConvertError};
use podgate_policy::engine::Engine;
use podgate_policy::index::{Change, Index};
use podgate_policy::model::{Direction, Protocol};

use crate::oracle::{Gate, L4, World};

/// The events that tell an index about a world, in the order of its objects.
pub fn changes(world: &World) -> Result<Vec<Change>, ConvertError> {
    let namespaces = world.namespaces.iter().map(convert::namespace);
    let namespaces = namespaces.map(|namespace| namespace.map(Change::NamespaceSet));
    let pods = world.pods.iter().map(|pod| convert::pod(pod).map(Change::PodSet));
    let policies = world.policies.iter().map(|policy| convert::policy("kubernetes", policy));
    let policies = policies.map(|policy| policy.map(Change::PolicySet));
    namespaces.chain(pods).chain(policies).collect()
}

/// An index of a world.
pub fn index(world: &World) -> Result<Index, ConvertError> {
    let mut index = Index::new();
    for change in changes(world)? {
        index.apply(change);
    }
    Ok(index)
}

/// What turns an index of something else into one of this world: its objects are set, all others are gone.
pub fn changes_from(index: &Index, world: &World) -> Result<Vec<Change>, ConvertError> {
    let mut changes = changes(world)?;
    let mut there = self::index(world)?;
    there.take_changes();
    let pods = index.pods().filter(|pod| there.pod(&pod.key).is_none());
    changes.extend(pods.map(|pod| Change::PodGone(pod.key.clone())));
    let policies = index.policies().filter(|policy| there.policy(&policy.id).is_none());
    changes.extend(policies.map(|policy| Change::PolicyGone(policy.id.clone())));
    let namespaces = index.namespaces().filter(|known| there.namespace(&known.name).is_none());
    changes.extend(namespaces.map(|known| Change::NamespaceGone(known.name.clone())));
    Ok(changes)
}

/// What an engine holds, with the meanings of classes and rules in place of their numbers: equal for two engines
/// that hold the same.
pub fn essence(engine: &Engine) -> String {
    let mut lines = BTreeSet::new();
    let compiled = engine.compiled();
    for (address, class) in &compiled.hosts {
        lines.insert(format!("{address}: {:?}", engine.meaning(*class)));
    }
    for (prefix, class) in &compiled.nets {
        lines.insert(format!("{prefix}: {:?}", engine.meaning(*class)));
    }
    for (endpoint, table) in &compiled.tables {
        lines.insert(format!("{endpoint:?}: {:?} {:?}", table.ingress, table.egress));
        for (entry, rule) in &table.entries {
            let (direction, ports) = (entry.direction, entry.ports);
            let (class, rule) = (engine.meaning(entry.class), engine.origin(*rule));
            lines.insert(format!("{endpoint:?} {direction} {class:?} {ports:?}: {rule:?}"));
        }
    }
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

/// A world's interfaces: pod number `n` of the world has endpoint `n + 1`.
pub fn endpoints(world: &World) -> Result<Vec<Endpoint>, ConvertError> {
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

/// The oracle's packet.
pub fn transport(l4: L4) -> Transport {
    match l4 {
        L4::Port("TCP", port) => Transport::Port(Protocol::Tcp, port),
        L4::Port("UDP", port) => Transport::Port(Protocol::Udp, port),
        L4::Port("SCTP", port) => Transport::Port(Protocol::Sctp, port),
        L4::Port(..) | L4::NoPorts => Transport::Other,
    }
}
