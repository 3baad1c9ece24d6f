//! The addresses of nodes, as Node objects and the nodes' pods give them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Node, Pod, PodLife};

/// A node, by its name if that is known: a pod of a manifest may use a node's network and not say which node's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRef(pub Option<Arc<str>>);

/// Every known address of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts {
    nodes: BTreeMap<Arc<str>, Node>,
    of: BTreeMap<(IpAddr, NodeRef), Givers>,
    /// Every address that is a node's, also where pods use it, if that has not changed since it was asked for.
    known: Option<Arc<BTreeSet<IpAddr>>>,
}

/// How many objects give an address; not all are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Givers {
    /// Pods in `status.hostIPs`, and Node objects.
    host_ips: usize,
    /// Pods in `status.podIPs` that use the node's network.
    host_network: usize,
}

impl Hosts {
    pub(super) fn add(&mut self, pod: &Pod) {
        self.change(pod, usize::saturating_add);
    }

    pub(super) fn remove(&mut self, pod: &Pod) {
        self.change(pod, usize::saturating_sub);
    }

    fn change(&mut self, pod: &Pod, by: fn(usize, usize) -> usize) {
        let node = NodeRef(pod.node.clone());
        for address in &pod.host_addresses {
            self.count(*address, &node, |givers| givers.host_ips = by(givers.host_ips, 1));
        }
        if pod.host_network && pod.life != PodLife::Finished {
            for address in &pod.addresses {
                self.count(*address, &node, |of| of.host_network = by(of.host_network, 1));
            }
        }
    }

    /// True if it says something new.
    pub(super) fn set_node(&mut self, node: Node) -> bool {
        if self.nodes.get(&node.name) == Some(&node) {
            return false;
        }
        self.remove_node(&node.name);
        let name = NodeRef(Some(node.name.clone()));
        for address in &node.addresses {
            self.count(*address, &name, |givers| givers.host_ips += 1);
        }
        self.nodes.insert(node.name.clone(), node);
        true
    }

    /// True if it was known.
    pub(super) fn remove_node(&mut self, name: &Arc<str>) -> bool {
        let Some(node) = self.nodes.remove(name) else { return false };
        let name = NodeRef(Some(name.clone()));
        for address in &node.addresses {
            self.count(*address, &name, |of| of.host_ips = of.host_ips.saturating_sub(1));
        }
        true
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    pub(super) fn nodes(&self) -> &BTreeMap<Arc<str>, Node> {
        &self.nodes
    }

    fn count(&mut self, address: IpAddr, node: &NodeRef, change: impl FnOnce(&mut Givers)) {
        let key = (address, node.clone());
        let givers = self.of.entry(key.clone()).or_default();
        let before = givers.host_ips > 0;
        change(givers);
        if before != (givers.host_ips > 0) {
            self.known = None;
        }
        if *givers == Givers::default() {
            self.of.remove(&key);
        }
    }

    pub(super) fn node_at(&self, address: IpAddr) -> Option<NodeRef> {
        let first = (address, NodeRef(None));
        let at = self.of.range(first..).map(|((of, node), _)| (of, node));
        let mut nodes = at.take_while(|(of, _)| **of == address).map(|(_, node)| node);
        let first = nodes.next()?;
        // one that has a name, if there is any
        Some(if first.0.is_some() { first } else { nodes.next().unwrap_or(first) }.clone())
    }

    pub(super) fn addresses_of(&self, node: &str) -> Vec<IpAddr> {
        let mut addresses = self.nodes.get(node).map_or(Vec::new(), |of| of.addresses.clone());
        let of = self.of.iter().filter(|((_, NodeRef(name)), _)| name.as_deref() == Some(node));
        let mut others: Vec<_> = of.map(|((address, _), givers)| (givers, *address)).collect();
        // the address that most pods have as their host's; a pod on the node's network may list others
        others.sort_by_key(|(givers, address)| (Reverse(givers.host_ips), *address));
        others.retain(|(_, address)| !addresses.contains(address));
        addresses.extend(others.into_iter().map(|(_, address)| address));
        addresses
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.of.keys().map(|(address, _)| *address)
    }

    pub(super) fn all(&mut self) -> Arc<BTreeSet<IpAddr>> {
        let Self { of, known, .. } = self;
        let host_ips = of.iter().filter(|(_, givers)| givers.host_ips > 0);
        known
            .get_or_insert_with(|| Arc::new(host_ips.map(|((address, _), _)| *address).collect()))
            .clone()
    }
}
