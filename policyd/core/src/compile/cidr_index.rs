//! Which peer sets contain an address or a prefix by their ipBlocks: nested and overlapping ones, exceptions included.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::ids::PeerSetId;
use crate::model::Block;
use crate::prefixes::PrefixMap;

/// The prefixes that ipBlocks mention, as their `cidr` or in an `except`.
#[derive(Debug, Default)]
pub(crate) struct CidrIndex {
    prefixes: PrefixMap<PrefixNode>,
    /// The cidrs of blocks added or removed since [`CidrIndex::settle`].
    delta: BTreeSet<IpNet>,
}

/// A mentioned prefix.
#[derive(Debug, Default)]
struct PrefixNode {
    /// Per peer set: +1 for each `cidr` equal to this prefix, -1 for each `except`. Zero entries are removed.
    deltas: Vec<(PeerSetId, i32)>,
    /// The sets that contain the whole prefix: those whose deltas, from the root down to here, sum to more than 0. Sorted.
    peer_sets: Arc<[PeerSetId]>,
}

/// A prefix whose peer sets may have changed.
#[derive(Debug)]
pub(crate) struct PrefixChange {
    pub(crate) prefix: IpNet,
    /// Whether any block still mentions it.
    pub(crate) mentioned: bool,
    pub(crate) before: Arc<[PeerSetId]>,
    pub(crate) after: Arc<[PeerSetId]>,
}

impl CidrIndex {
    pub(crate) fn add(&mut self, peer_set: PeerSetId, block: &Block) {
        self.count(peer_set, block, 1);
    }

    pub(crate) fn remove(&mut self, peer_set: PeerSetId, block: &Block) {
        self.count(peer_set, block, -1);
    }

    /// Counts a block `by` 1 in, or -1 out.
    fn count(&mut self, peer_set: PeerSetId, block: &Block, by: i32) {
        let cidr = block.cidr.trunc();
        let holes = holes(block);
        if holes.contains(&cidr) {
            return;
        }
        self.add_delta(cidr, peer_set, by);
        for hole in holes {
            self.add_delta(hole, peer_set, -by);
        }
        self.delta.insert(cidr);
    }

    fn add_delta(&mut self, prefix: IpNet, peer_set: PeerSetId, by: i32) {
        if self.prefixes.get(&prefix).is_none() {
            self.prefixes.insert(prefix, PrefixNode::default());
        }
        let Some(node) = self.prefixes.get_mut(&prefix) else { return };
        match node.deltas.binary_search_by_key(&peer_set, |(known, _)| *known) {
            Err(place) => node.deltas.insert(place, (peer_set, by)),
            Ok(place) => {
                node.deltas[place].1 += by;
                if node.deltas[place].1 == 0 {
                    node.deltas.remove(place);
                }
            }
        }
    }

    /// Recomputes the prefixes inside changed blocks. Returns them, with their peer sets before and after.
    pub(crate) fn settle(&mut self) -> Vec<PrefixChange> {
        let mut dirty = BTreeSet::new();
        let mut done: Option<IpNet> = None;
        // sorted, outer prefixes first: those inside one of them are in `dirty` already
        for root in std::mem::take(&mut self.delta) {
            if done.is_some_and(|done| done.contains(&root)) {
                continue;
            }
            dirty.extend(self.prefixes.inside(&root).map(|(prefix, _)| *prefix));
            done = Some(root);
        }
        let mut changes = Vec::new();
        for prefix in dirty {
            let after = self.holding(&prefix);
            let Some(node) = self.prefixes.get_mut(&prefix) else { continue };
            let mentioned = !node.deltas.is_empty();
            let before = std::mem::replace(&mut node.peer_sets, after.clone());
            if !mentioned {
                // with all deltas gone, nested prefixes sum to the same without it
                self.prefixes.remove(&prefix);
            }
            changes.push(PrefixChange { prefix, mentioned, before, after });
        }
        changes
    }

    fn holding(&self, prefix: &IpNet) -> Arc<[PeerSetId]> {
        let mut deltas: Vec<(PeerSetId, i32)> = Vec::new();
        for (_, node) in self.prefixes.enclosing(prefix.addr(), prefix.prefix_len()) {
            deltas.extend(&node.deltas);
        }
        deltas.sort_unstable();
        let mut peer_sets = Vec::new();
        for of_set in deltas.chunk_by(|(a, _), (b, _)| a == b) {
            if of_set.iter().map(|(_, by)| by).sum::<i32>() > 0 {
                peer_sets.extend(of_set.first().map(|(peer_set, _)| *peer_set));
            }
        }
        peer_sets.into()
    }

    /// The peer sets that contain an address, sorted.
    pub(crate) fn at(&self, address: IpAddr) -> &[PeerSetId] {
        self.prefixes.longest_match(address).map_or(&[], |(_, node)| &node.peer_sets)
    }
}

/// The exceptions of a block: those inside it, each once, none inside another.
fn holes(block: &Block) -> Vec<IpNet> {
    let mut sorted: Vec<IpNet> = block.except.iter().map(IpNet::trunc).collect();
    sorted.sort_unstable();
    let mut holes: Vec<IpNet> = Vec::new();
    for hole in sorted {
        if hole.contains(&block.cidr) {
            return vec![block.cidr.trunc()];
        }
        let inside = block.cidr.contains(&hole);
        if inside && holes.last().is_none_or(|last| !last.contains(&hole)) {
            holes.push(hole);
        }
    }
    holes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// CidrIndex over 10.0.0.0/24 that nest and overlap, each with up to three holes, inside or not.
    fn blocks() -> impl Strategy<Value = Vec<(u32, Block)>> {
        let net = |shortest: u8| {
            (any::<u8>(), shortest..=32u8).prop_map(|(low, length)| {
                IpNet::new(IpAddr::from([10, 0, 0, low]), length).unwrap().trunc()
            })
        };
        let block = (net(22), prop::collection::vec(net(24), 0..4))
            .prop_map(|(cidr, except)| Block { cidr, except });
        // several blocks of one peer set
        prop::collection::vec((0..4u32, block), 0..8)
    }

    proptest! {
        #[test]
        fn an_address_has_every_peer_set_that_contains_it(
            blocks in blocks(),
            gone in prop::collection::vec(any::<bool>(), 8),
            halfway in any::<bool>(),
        ) {
            let mut index = CidrIndex::default();
            for (peer_set, block) in &blocks {
                index.add(PeerSetId(*peer_set), block);
            }
            if halfway {
                index.settle();
            }
            for (number, (peer_set, block)) in blocks.iter().enumerate() {
                if gone[number] {
                    index.remove(PeerSetId(*peer_set), block);
                }
            }
            index.settle();
            for low in 0..=255 {
                let address = IpAddr::from([10, 0, 0, low]);
                let holds = |block: &Block| {
                    block.cidr.contains(&address)
                        && !block.except.iter().any(|hole| hole.contains(&address))
                };
                let left = blocks.iter().enumerate().filter(|(number, _)| !gone[*number]);
                let expected = left.filter(|(_, (_, block))| holds(block));
                let expected: BTreeSet<PeerSetId> = expected.map(|(_, (peer_set, _))| PeerSetId(*peer_set)).collect();
                let found: BTreeSet<PeerSetId> = index.at(address).iter().copied().collect();
                prop_assert_eq!(found, expected, "{}", address);
            }
            for (_, (peer_set, block)) in blocks.iter().enumerate().filter(|(n, _)| !gone[*n]) {
                index.remove(PeerSetId(*peer_set), block);
            }
            index.settle();
            prop_assert!(index.prefixes.is_empty());
        }
    }
}
