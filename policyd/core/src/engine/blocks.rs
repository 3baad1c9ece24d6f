//! Which asks hold an address or a prefix by their ipBlocks: nested and overlapping ones, exceptions included.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::asks::AskId;
use crate::model::Block;
use crate::prefixes::PrefixMap;

/// The prefixes that blocks mention, as their cidr or as an exception.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    prefixes: PrefixMap<Mentions>,
    /// Changed blocks, since [`Blocks::settle`].
    touched: BTreeSet<IpNet>,
}

/// What a prefix does.
#[derive(Debug, Default)]
struct Mentions {
    /// For each ask how many of its blocks begin here, less how many are cut out here. Never 0.
    steps: Vec<(AskId, i32)>,
    /// The asks some block of which holds all of the prefix: those whose steps up to here do not sum to 0. Sorted.
    asks: Arc<[AskId]>,
}

/// A prefix whose asks have changed.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) prefix: IpNet,
    /// Whether it is still mentioned.
    pub(crate) there: bool,
    pub(crate) before: Arc<[AskId]>,
    pub(crate) after: Arc<[AskId]>,
}

impl Blocks {
    pub(crate) fn add(&mut self, ask: AskId, block: &Block) {
        self.step(ask, block, 1);
    }

    pub(crate) fn remove(&mut self, ask: AskId, block: &Block) {
        self.step(ask, block, -1);
    }

    fn step(&mut self, ask: AskId, block: &Block, by: i32) {
        let cidr = block.cidr.trunc();
        let holes = holes(block);
        if holes.contains(&cidr) {
            return;
        }
        self.mention(cidr, ask, by);
        for hole in holes {
            self.mention(hole, ask, -by);
        }
        self.touched.insert(cidr);
    }

    fn mention(&mut self, prefix: IpNet, ask: AskId, by: i32) {
        if self.prefixes.get(&prefix).is_none() {
            self.prefixes.insert(prefix, Mentions::default());
        }
        let Some(mentions) = self.prefixes.get_mut(&prefix) else { return };
        match mentions.steps.binary_search_by_key(&ask, |(known, _)| *known) {
            Err(place) => mentions.steps.insert(place, (ask, by)),
            Ok(place) => {
                mentions.steps[place].1 += by;
                if mentions.steps[place].1 == 0 {
                    mentions.steps.remove(place);
                }
            }
        }
    }

    /// Takes note of all changes, and tells which prefixes are held by others than before.
    pub(crate) fn settle(&mut self) -> Vec<Moved> {
        let mut dirty = BTreeSet::new();
        let mut done: Option<IpNet> = None;
        // outer ones come first: what is inside of one has been looked at
        for root in std::mem::take(&mut self.touched) {
            if done.is_some_and(|done| done.contains(&root)) {
                continue;
            }
            dirty.extend(self.prefixes.inside(&root).map(|(prefix, _)| *prefix));
            done = Some(root);
        }
        let mut moved = Vec::new();
        for prefix in dirty {
            let after = self.holding(&prefix);
            let Some(mentions) = self.prefixes.get_mut(&prefix) else { continue };
            let there = !mentions.steps.is_empty();
            let before = std::mem::replace(&mut mentions.asks, after.clone());
            if !there {
                // what is nested in it sums the same without it
                self.prefixes.remove(&prefix);
            }
            moved.push(Moved { prefix, there, before, after });
        }
        moved
    }

    fn holding(&self, prefix: &IpNet) -> Arc<[AskId]> {
        let mut steps: Vec<(AskId, i32)> = Vec::new();
        for (_, mentions) in self.prefixes.enclosing(prefix.addr(), prefix.prefix_len()) {
            steps.extend(&mentions.steps);
        }
        steps.sort_unstable();
        let mut asks = Vec::new();
        for of_ask in steps.chunk_by(|(a, _), (b, _)| a == b) {
            if of_ask.iter().map(|(_, by)| by).sum::<i32>() > 0 {
                asks.extend(of_ask.first().map(|(ask, _)| *ask));
            }
        }
        asks.into()
    }

    /// The asks that hold an address, sorted.
    pub(crate) fn at(&self, address: IpAddr) -> &[AskId] {
        self.prefixes.longest_match(address).map_or(&[], |(_, mentions)| &mentions.asks)
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

    /// Blocks over 10.0.0.0/24 that nest and overlap, each with up to three holes, inside or not.
    fn blocks() -> impl Strategy<Value = Vec<(u32, Block)>> {
        let net = |shortest: u8| {
            (any::<u8>(), shortest..=32u8).prop_map(|(low, length)| {
                IpNet::new(IpAddr::from([10, 0, 0, low]), length).unwrap().trunc()
            })
        };
        let block = (net(22), prop::collection::vec(net(24), 0..4))
            .prop_map(|(cidr, except)| Block { cidr, except });
        // several blocks of one ask
        prop::collection::vec((0..4u32, block), 0..8)
    }

    proptest! {
        #[test]
        fn an_address_has_every_ask_that_holds_it(
            blocks in blocks(),
            gone in prop::collection::vec(any::<bool>(), 8),
            halfway in any::<bool>(),
        ) {
            let mut index = Blocks::default();
            for (ask, block) in &blocks {
                index.add(AskId(*ask), block);
            }
            if halfway {
                index.settle();
            }
            for (number, (ask, block)) in blocks.iter().enumerate() {
                if gone[number] {
                    index.remove(AskId(*ask), block);
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
                let expected: BTreeSet<AskId> = expected.map(|(_, (ask, _))| AskId(*ask)).collect();
                let found: BTreeSet<AskId> = index.at(address).iter().copied().collect();
                prop_assert_eq!(found, expected, "{}", address);
            }
            for (_, (ask, block)) in blocks.iter().enumerate().filter(|(n, _)| !gone[*n]) {
                index.remove(AskId(*ask), block);
            }
            index.settle();
            prop_assert!(index.prefixes.is_empty());
        }
    }
}
