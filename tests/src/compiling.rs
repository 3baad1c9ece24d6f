//! The way of an oracle's world into `podgate-policy`, for tests that compare the two.

use podgate_policy::compile::{Endpoint, EndpointId, Transport};
use podgate_policy::convert::{self, ConvertError};
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
