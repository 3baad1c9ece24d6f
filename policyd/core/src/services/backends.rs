//! Which backends a service port has, from the conditions in its slices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::locality::{Hinted, Place};
use super::{Backend, BackendSet, BackendState, Catalog};
use crate::model::{Condition, Service, ServicePort, SliceEndpoint, TrafficPolicy};

/// The best condition of each backend.
type Conditions = BTreeMap<Backend, Condition>;

/// How kube-proxy, or another proxy, may spread the packets of an untranslated address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// Over the ready endpoints of all nodes, as kube-proxy does: each node may take a part of them only, by topology hints.
    Cluster,
    /// Over the endpoints of one node only: any node's, because it is not known here which node translates the packet.
    Node,
    /// By rules that podgate does not know: over every endpoint, whatever its condition.
    Unknown,
}

/// The backends of a service port at addresses of one family; `None`: there is no usable one.
pub(super) fn backend_set(
    catalog: &Catalog,
    place: &Place,
    (service, port): (&Service, &ServicePort),
    (v4, policy): (bool, TrafficPolicy),
) -> Option<BackendSet> {
    let mut conditions = Conditions::new();
    let mut hinted = Hinted::new(place);
    each(catalog, service, port, v4, |backend, endpoint| match policy {
        TrafficPolicy::Cluster => {
            note(&mut conditions, backend, endpoint.condition);
            hinted.note(backend, endpoint);
        }
        TrafficPolicy::Local if endpoint.node.as_ref() == Some(&place.node) => {
            note(&mut conditions, backend, endpoint.condition);
        }
        TrafficPolicy::Local => {}
    });
    let usable = usable(&conditions)?;
    let left_out = hinted.left_out();
    let state = |backend: &Backend, condition: Condition| match condition {
        Condition::Unready => None,
        condition if condition >= usable && left_out.binary_search(backend).is_err() => {
            Some(BackendState::Ready)
        }
        _ => Some(BackendState::Serving),
    };
    let backends = conditions.into_iter();
    Some(BackendSet {
        service: service.key.clone(),
        port: port.name.clone(),
        affinity: service.affinity,
        backends: backends
            .filter_map(|(backend, of)| Some((backend, state(&backend, of)?)))
            .collect(),
        left_out,
    })
}

/// Every backend that kube-proxy, or another proxy, may select for a new flow to a service port.
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

/// The condition that a backend needs to get new flows; `None`: no backend has it.
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
