//! Which endpoints a service port leads to: from the conditions that its slices give.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Backend, BackendState, Balance, Catalog};
use crate::model::{Condition, Service, ServicePort, SliceEndpoint, TrafficPolicy};

/// The best condition of each backend.
type Conditions = BTreeMap<Backend, Condition>;

/// How packets for an address may be spread behind the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// As kube-proxy does it for all endpoints alike.
    Cluster,
    /// As some node's kube-proxy does it, which may prefer the endpoints of its own node: those of every node, for
    /// it is not known here whether the packet counts as one of a pod.
    Node,
    /// By rules that podgate does not know: every endpoint, whatever its condition.
    Unknown,
}

/// How the gate spreads a service port's flows at addresses of one family; `None`: there is no usable endpoint.
pub(super) fn balance(
    catalog: &Catalog,
    node: &Arc<str>,
    (service, port): (&Service, &ServicePort),
    (v4, policy): (bool, TrafficPolicy),
) -> Option<Balance> {
    let mut conditions = Conditions::new();
    each(catalog, service, port, v4, |backend, endpoint| {
        if policy == TrafficPolicy::Cluster || endpoint.node.as_ref() == Some(node) {
            note(&mut conditions, backend, endpoint.condition);
        }
    });
    let usable = usable(&conditions)?;
    let state = |condition: Condition| match condition {
        Condition::Unready => None,
        condition if condition >= usable => Some(BackendState::Ready),
        _ => Some(BackendState::Serving),
    };
    let backends = conditions.into_iter();
    Some(Balance {
        service: service.key.clone(),
        port: port.name.clone(),
        affinity: service.affinity,
        backends: backends.filter_map(|(backend, of)| Some((backend, state(of)?))).collect(),
    })
}

/// Every endpoint that a new flow to a service port may get behind the gate.
pub(super) fn reachable(
    catalog: &Catalog,
    (service, port): (&Service, &ServicePort),
    v4: bool,
    spread: Spread,
) -> BTreeSet<Backend> {
    let mut all = Conditions::new();
    let mut of_node: BTreeMap<&Arc<str>, Conditions> = BTreeMap::new();
    each(catalog, service, port, v4, |backend, endpoint| {
        note(&mut all, backend, endpoint.condition);
        if let Some(node) = endpoint.node.as_ref().filter(|_| spread == Spread::Node) {
            note(of_node.entry(node).or_default(), backend, endpoint.condition);
        }
    });
    if spread == Spread::Unknown {
        return all.into_keys().collect();
    }
    let mut reachable = BTreeSet::new();
    for conditions in std::iter::once(&all).chain(of_node.values()) {
        let Some(usable) = usable(conditions) else { continue };
        let picked = conditions.iter().filter(|(_, condition)| **condition >= usable);
        reachable.extend(picked.map(|(backend, _)| *backend));
    }
    reachable
}

/// The condition that a backend must have to get new flows; `None`: none has it.
fn usable(conditions: &Conditions) -> Option<Condition> {
    let best = conditions.values().copied().max()?;
    matches!(best, Condition::Ready | Condition::Draining).then_some(best)
}

/// While a pod moves from one slice to another both have it: the better condition counts.
fn note(conditions: &mut Conditions, backend: Backend, condition: Condition) {
    let known = conditions.entry(backend).or_insert(condition);
    *known = condition.max(*known);
}

/// Every endpoint of one family that the slices give for a service port.
fn each<'a>(
    catalog: &'a Catalog,
    service: &Service,
    port: &ServicePort,
    v4: bool,
    mut found: impl FnMut(Backend, &'a SliceEndpoint),
) {
    for slice in catalog.slices_of(&service.key) {
        let ports =
            slice.ports.iter().filter(|of| of.name == port.name && of.protocol == port.protocol);
        for number in ports.map(|of| of.number) {
            for endpoint in slice.endpoints.iter().filter(|of| of.address.is_ipv4() == v4) {
                found(Backend { address: endpoint.address, port: number }, endpoint);
            }
        }
    }
}
