//! Which of many blocks hold an address or a prefix: nested and overlapping ones, exceptions included.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Block;

/// The longest prefix that holds `address` among the keys of a map, and its value.
///
/// `lengths` are those that the map's keys have (see [`lengths`]): a handful in practice, so that a
/// lookup is a handful of map lookups.
pub(crate) fn longest_match<'a, V>(
    nets: &'a BTreeMap<IpNet, V>,
    lengths: &BTreeSet<u8>,
    address: IpAddr,
) -> Option<(&'a IpNet, &'a V)> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    enclosing(nets, lengths, address, longest).next()
}

/// The entries whose prefixes hold `address` and are no longer than `longest`, longest first.
pub(crate) fn enclosing<'a, V>(
    nets: &'a BTreeMap<IpNet, V>,
    lengths: &BTreeSet<u8>,
    address: IpAddr,
    longest: u8,
) -> impl Iterator<Item = (&'a IpNet, &'a V)> {
    lengths.range(..=longest).rev().filter_map(move |length| {
        let prefix = IpNet::new(address, *length).ok()?.trunc();
        nets.get_key_value(&prefix)
    })
}

/// The prefix lengths among the keys, of both families together.
pub(crate) fn lengths<V>(nets: &BTreeMap<IpNet, V>) -> BTreeSet<u8> {
    nets.keys().map(IpNet::prefix_len).collect()
}

/// Numbered blocks, for the question "which of them hold this?".
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    prefixes: BTreeMap<IpNet, Mentions>,
    lengths: BTreeSet<u8>,
    /// The blocks of each prefix that is a cidr or an except: an address has those of its longest match.
    members: BTreeMap<IpNet, BTreeSet<u32>>,
}

/// The blocks that mention a prefix.
#[derive(Debug, Default)]
struct Mentions {
    as_cidr: Vec<u32>,
    as_except: Vec<u32>,
}

impl Blocks {
    /// Blocks and their numbers.
    pub(crate) fn new<'a>(blocks: impl IntoIterator<Item = (u32, &'a Block)>) -> Self {
        let mut prefixes: BTreeMap<IpNet, Mentions> = BTreeMap::new();
        for (number, block) in blocks {
            prefixes.entry(block.cidr.trunc()).or_default().as_cidr.push(number);
            for hole in &block.except {
                prefixes.entry(hole.trunc()).or_default().as_except.push(number);
            }
        }
        let lengths = lengths(&prefixes);
        let mut blocks = Self { prefixes, lengths, members: BTreeMap::new() };
        blocks.members =
            blocks.prefixes.keys().map(|prefix| (*prefix, blocks.containing(prefix))).collect();
        blocks
    }

    /// The blocks that hold a whole prefix: every enclosing cidr counts, not only the longest, and an
    /// except takes away its own block only.
    fn containing(&self, prefix: &IpNet) -> BTreeSet<u32> {
        let mut holding = BTreeSet::new();
        let mut punched = BTreeSet::new();
        let all = enclosing(&self.prefixes, &self.lengths, prefix.addr(), prefix.prefix_len());
        for (_, mentions) in all {
            holding.extend(&mentions.as_cidr);
            punched.extend(&mentions.as_except);
        }
        &holding - &punched
    }

    /// Every prefix that some block mentions, with the blocks that hold it.
    pub(crate) fn members(&self) -> &BTreeMap<IpNet, BTreeSet<u32>> {
        &self.members
    }

    /// The blocks that hold an address.
    pub(crate) fn holding(&self, address: IpAddr) -> Option<&BTreeSet<u32>> {
        longest_match(&self.members, &self.lengths, address).map(|(_, blocks)| blocks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Blocks over 10.0.0.0/24 that nest and overlap, each with up to three holes.
    fn blocks() -> impl Strategy<Value = Vec<Block>> {
        let net = |shortest: u8| {
            (any::<u8>(), shortest..=32u8).prop_map(|(low, length)| {
                IpNet::new(IpAddr::from([10, 0, 0, low]), length).unwrap().trunc()
            })
        };
        let block = (net(22), prop::collection::vec(net(24), 0..4)).prop_map(|(cidr, holes)| {
            let inside = |hole: &IpNet| cidr.contains(hole) && *hole != cidr;
            Block { cidr, except: holes.into_iter().filter(inside).collect() }
        });
        prop::collection::vec(block, 0..8)
    }

    proptest! {
        #[test]
        fn an_address_has_every_block_that_holds_it(blocks in blocks()) {
            let numbered: Vec<(u32, &Block)> = (0..).zip(&blocks).collect();
            let index = Blocks::new(numbered.iter().copied());
            for low in 0..=255 {
                let address = IpAddr::from([10, 0, 0, low]);
                let holds = |block: &Block| {
                    block.cidr.contains(&address)
                        && !block.except.iter().any(|hole| hole.contains(&address))
                };
                let expected = numbered.iter().filter(|(_, block)| holds(block));
                let expected: BTreeSet<u32> = expected.map(|(number, _)| *number).collect();
                let found = index.holding(address).cloned().unwrap_or_default();
                prop_assert_eq!(found, expected, "{}", address);
            }
        }
    }
}
