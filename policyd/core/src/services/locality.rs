//! Which ready endpoints a node takes by the topology hints of slices: kube-proxy's rule.
//!
//! Hints alone decide. `trafficDistribution` is for the controller that writes the hints, and where an endpoint really is
//! does not matter.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Backend;
use crate::model::{Condition, SliceEndpoint};

/// Where a node is, in the terms of hints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Its name.
    pub(super) node: Arc<str>,
    /// Its label `topology.kubernetes.io/zone`, if it has a value.
    pub(super) zone: Option<Arc<str>>,
}

/// Whom a backend's hints of one kind are for. The one that counts among several entries of a backend is the greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    /// It has none.
    Missing,
    /// For others only.
    Elsewhere,
    /// For this node too.
    Here,
}

impl Hint {
    fn of(names: &[Arc<str>], here: Option<&Arc<str>>) -> Self {
        match here {
            _ if names.is_empty() => Self::Missing,
            Some(here) if names.contains(here) => Self::Here,
            _ => Self::Elsewhere,
        }
    }
}

/// The hints of one backend.
#[derive(Clone, Copy, Debug)]
struct Hints {
    node: Hint,
    zone: Hint,
}

/// The hints of the ready backends of a service port. Others do not count.
pub(super) struct Hinted<'a> {
    place: &'a Place,
    ready: BTreeMap<Backend, Hints>,
}

impl<'a> Hinted<'a> {
    /// No backends yet, as seen from a node.
    pub(super) fn new(place: &'a Place) -> Self {
        Self { place, ready: BTreeMap::new() }
    }

    /// Notes an entry of a slice. A backend that several slices have is for all whom one of them names: kube-proxy takes
    /// one of the entries at random.
    pub(super) fn note(&mut self, backend: Backend, endpoint: &SliceEndpoint) {
        if endpoint.condition != Condition::Ready {
            return;
        }
        let node = Hint::of(&endpoint.hints.nodes, Some(&self.place.node));
        let zone = Hint::of(&endpoint.hints.zones, self.place.zone.as_ref());
        let known = self.ready.entry(backend).or_insert(Hints { node, zone });
        *known = Hints { node: known.node.max(node), zone: known.zone.max(zone) };
    }

    /// The ready backends that are for others, sorted. Node hints come before zone hints; a kind is used if all ready
    /// backends have it and one of them is for here.
    pub(super) fn left_out(self) -> Vec<Backend> {
        let kinds: [fn(&Hints) -> Hint; 2] = [|hints| hints.node, |hints| hints.zone];
        let usable = |kind: &fn(&Hints) -> Hint| {
            let here = self.ready.values().any(|hints| kind(hints) == Hint::Here);
            here && self.ready.values().all(|hints| kind(hints) != Hint::Missing)
        };
        let Some(kind) = kinds.into_iter().find(usable) else { return Vec::new() };
        let others = self.ready.iter().filter(|(_, hints)| kind(hints) != Hint::Here);
        others.map(|(backend, _)| *backend).collect()
    }
}
