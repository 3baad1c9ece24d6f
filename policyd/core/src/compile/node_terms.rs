//! Node peers: a selector over Node objects stands for every address of the nodes that it matches, so to the index of
//! prefixes each address is a block of its own.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::cidr_index::CidrIndex;
use super::ids::PeerSetId;
use crate::index::Index;
use crate::model::{Block, Node};
use crate::selector::Selector;

/// A selector of nodes, and what it matches.
#[derive(Debug, Default)]
struct NodeTerm {
    /// The sets that contain it.
    peer_sets: Vec<PeerSetId>,
    /// The addresses of each node that it matches.
    nodes: BTreeMap<Arc<str>, Vec<IpAddr>>,
}

/// The node peers in use.
#[derive(Debug, Default)]
pub(super) struct NodeTerms {
    terms: HashMap<Selector, NodeTerm>,
}

impl NodeTerms {
    /// A set contains the nodes of this selector.
    pub(super) fn add(
        &mut self,
        peer_set: PeerSetId,
        selector: &Selector,
        index: &Index,
        cidrs: &mut CidrIndex,
    ) {
        let term = self.terms.entry(selector.clone()).or_insert_with(|| {
            let matching = index.nodes().filter(|node| selector.matches(&node.labels));
            let nodes = matching.map(|node| (node.name.clone(), node.addresses.clone())).collect();
            NodeTerm { peer_sets: Vec::new(), nodes }
        });
        term.peer_sets.push(peer_set);
        for address in term.nodes.values().flatten() {
            cidrs.add(peer_set, &block(*address));
        }
    }

    /// A set does not any more.
    pub(super) fn remove(
        &mut self,
        peer_set: PeerSetId,
        selector: &Selector,
        cidrs: &mut CidrIndex,
    ) {
        let Some(term) = self.terms.get_mut(selector) else { return };
        for address in term.nodes.values().flatten() {
            cidrs.remove(peer_set, &block(*address));
        }
        term.peer_sets.retain(|known| *known != peer_set);
        if term.peer_sets.is_empty() {
            self.terms.remove(selector);
        }
    }

    /// A node is new, changed or gone.
    pub(super) fn follow_node(&mut self, name: &Arc<str>, index: &Index, cidrs: &mut CidrIndex) {
        let node = index.node(name);
        for (selector, term) in &mut self.terms {
            let matched = node.filter(|node: &&Node| selector.matches(&node.labels));
            let now = matched.map(|node| node.addresses.clone()).unwrap_or_default();
            let before = match now.is_empty() {
                true => term.nodes.remove(name),
                false => term.nodes.insert(name.clone(), now.clone()),
            };
            let before = before.unwrap_or_default();
            if before == now {
                continue;
            }
            for peer_set in &term.peer_sets {
                before.iter().for_each(|address| cidrs.remove(*peer_set, &block(*address)));
                now.iter().for_each(|address| cidrs.add(*peer_set, &block(*address)));
            }
        }
    }
}

fn block(address: IpAddr) -> Block {
    Block { cidr: IpNet::from(address.to_canonical()), except: Vec::new() }
}
