//! The addresses of nodes, as the services need them: to tell node ports and node-local addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::NodeAddresses;
use crate::sync::MapSync;

/// What is known of them, and what the services were told of it.
#[derive(Debug)]
pub(super) struct Nodes {
    /// This node's addresses.
    here: NodeAddresses,
    /// What the services were given last: the node's own addresses, and those of all nodes.
    own: Arc<BTreeSet<IpAddr>>,
    all: Arc<BTreeSet<IpAddr>>,
    /// The addresses of other nodes that are part of `all`.
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

    /// Passes changed addresses on.
    pub(super) fn update(&mut self, elsewhere: Arc<BTreeSet<IpAddr>>, maps: &mut MapSync) {
        if !self.changed && Arc::ptr_eq(&self.elsewhere, &elsewhere) {
            return;
        }
        let NodeAddresses { all, of_proxy, .. } = &self.here;
        self.own = Arc::new(all.difference(of_proxy).copied().collect());
        self.all = Arc::new(self.own.union(&elsewhere).copied().collect());
        (self.elsewhere, self.changed) = (elsewhere, false);
        maps.set_addresses(self.own.clone(), self.all.clone());
    }
}
