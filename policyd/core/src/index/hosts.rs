//! The addresses of nodes, as their pods give them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::Pod;

/// Every node address that some pod gives, with the number of pods that do; no zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts {
    pods: BTreeMap<IpAddr, usize>,
    /// The same without the numbers, if it has not changed since it was asked for.
    known: Option<Arc<BTreeSet<IpAddr>>>,
}

impl Hosts {
    pub(super) fn add(&mut self, pod: &Pod) {
        for address in &pod.host_addresses {
            let pods = self.pods.entry(*address).or_default();
            *pods += 1;
            if *pods == 1 {
                self.known = None;
            }
        }
    }

    pub(super) fn remove(&mut self, pod: &Pod) {
        for address in &pod.host_addresses {
            let Some(pods) = self.pods.get_mut(address) else { continue };
            *pods -= 1;
            if *pods == 0 {
                self.pods.remove(address);
                self.known = None;
            }
        }
    }

    pub(super) fn all(&mut self) -> Arc<BTreeSet<IpAddr>> {
        let Self { pods, known } = self;
        known.get_or_insert_with(|| Arc::new(pods.keys().copied().collect())).clone()
    }
}
