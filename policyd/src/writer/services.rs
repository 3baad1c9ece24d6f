//! The parts of a commit that are about services: before the policies, and after them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use podgate_policy::compile::{Compiled, Endpoint};
use podgate_policy::engine::{Engine, Touched};
use podgate_policy::services::Catalog;

use super::NodeAddresses;
use crate::sync::left::{LeftAlone, Owned};
use crate::sync::services::{ServiceMode, ServiceSync};
use crate::sync::{Kernel, Owners};

/// The addresses by which services are told from what is on a node.
#[derive(Debug)]
pub(super) struct Nodes {
    /// This node's addresses.
    here: NodeAddresses,
    /// The last that services were given: the node's own, and those of all nodes.
    own: Arc<BTreeSet<IpAddr>>,
    all: Arc<BTreeSet<IpAddr>>,
    /// What `all` was made of.
    elsewhere: Arc<BTreeSet<IpAddr>>,
    changed: bool,
}

impl Nodes {
    pub(super) fn new(here: NodeAddresses) -> Self {
        let empty = Arc::<BTreeSet<IpAddr>>::default();
        Self { here, own: empty.clone(), all: empty.clone(), elsewhere: empty, changed: true }
    }

    /// True if this node has other addresses than before.
    pub(super) fn set_here(&mut self, here: &NodeAddresses) -> bool {
        if self.here == *here {
            return false;
        }
        self.here = here.clone();
        self.changed = true;
        true
    }

    fn tell(&mut self, elsewhere: Arc<BTreeSet<IpAddr>>, services: &mut ServiceSync) {
        if !self.changed && Arc::ptr_eq(&self.elsewhere, &elsewhere) {
            return;
        }
        let NodeAddresses { all, of_proxy, .. } = &self.here;
        self.own = Arc::new(all.difference(of_proxy).copied().collect());
        self.all = Arc::new(self.own.union(&elsewhere).copied().collect());
        (self.elsewhere, self.changed) = (elsewhere, false);
        services.set_addresses(self.own.clone(), self.all.clone());
    }
}

/// The endpoints and the numbers of their registrations.
pub(super) fn owned<'a>(engine: &'a Engine, owners: &Owners) -> Vec<(&'a Endpoint, u32)> {
    let owner = |of: &'a Endpoint| Some((of, *owners.get(&of.id)?));
    engine.endpoints().filter_map(owner).collect()
}

/// Before policies change: endpoints that no longer count leave their services, and everything that a packet may be
/// judged by from the first moment of a new policy is made ready.
pub(super) fn before(
    (services, left): (&mut ServiceSync, &mut LeftAlone),
    (catalog, nodes, elsewhere): (&mut Catalog, &mut Nodes, Arc<BTreeSet<IpAddr>>),
    (compiled, touched): (&Compiled, &Touched),
    kernel: &mut Kernel,
    endpoints: &Owned<'_>,
) {
    nodes.tell(elsewhere, services);
    services.follow(catalog);
    services.retire();
    if services.mode() == ServiceMode::Translate && services.is_unused() {
        // the first ones: a policy that came before them would judge packets by the services' addresses
        services.extend();
    }
    let set = services.take_left();
    let shared = !left.is_empty();
    let nothing_in_force = kernel.shadow().tables.is_empty();
    let first = left.prepare(set, (compiled, touched), endpoints, nothing_in_force);
    kernel.share(shared, first);
}

/// After policies have changed: puts in force what is new of services, and the answers that stand in for them; of the two
/// ways the new one stands before the old one goes. True if flows must look again.
pub(super) fn after(
    services: &mut ServiceSync,
    left: &mut LeftAlone,
    (compiled, touched): (&Compiled, &Touched),
    endpoints: &Owned<'_>,
) -> bool {
    let answered = left.answer(compiled, touched, endpoints);
    services.retire_whole();
    services.extend();
    let removed = left.finish(compiled, endpoints);
    services.take_changed() || answered || removed
}
