//! Maps from prefixes, with the questions that routing tables answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;

use ipnet::IpNet;

/// A map from prefixes (host bits cleared) to values. It reads like the `BTreeMap` that it derefs to.
///
/// It knows which lengths its keys have, a handful in practice, so that the longest match is a handful of look-ups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixMap<V> {
    nets: BTreeMap<IpNet, V>,
    /// How many keys have a length, of both families together.
    lengths: BTreeMap<u8, usize>,
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self { nets: BTreeMap::new(), lengths: BTreeMap::new() }
    }
}

impl<V> PrefixMap<V> {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the value of a prefix, and returns the one it had.
    pub fn insert(&mut self, prefix: IpNet, value: V) -> Option<V> {
        let before = self.nets.insert(prefix, value);
        if before.is_none() {
            *self.lengths.entry(prefix.prefix_len()).or_default() += 1;
        }
        before
    }

    /// Takes a prefix away.
    pub fn remove(&mut self, prefix: &IpNet) -> Option<V> {
        let before = self.nets.remove(prefix)?;
        if let Some(count) = self.lengths.get_mut(&prefix.prefix_len()) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&prefix.prefix_len());
            }
        }
        Some(before)
    }

    /// The value of a prefix that is there.
    pub fn get_mut(&mut self, prefix: &IpNet) -> Option<&mut V> {
        self.nets.get_mut(prefix)
    }

    /// The prefixes that hold `address` and are no longer than `longest`, longest first.
    pub fn enclosing(
        &self,
        address: IpAddr,
        longest: u8,
    ) -> impl Iterator<Item = (&IpNet, &V)> + use<'_, V> {
        self.lengths.range(..=longest).rev().filter_map(move |(length, _)| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            self.nets.get_key_value(&prefix)
        })
    }

    /// The longest prefix that holds `address`.
    pub fn longest_match(&self, address: IpAddr) -> Option<(&IpNet, &V)> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        self.enclosing(address, longest).next()
    }

    /// The prefixes around one, itself not among them, longest first.
    pub fn around(&self, prefix: &IpNet) -> impl Iterator<Item = (&IpNet, &V)> + use<'_, V> {
        let shorter = prefix.prefix_len().checked_sub(1);
        let address = prefix.addr();
        shorter.into_iter().flat_map(move |longest| self.enclosing(address, longest))
    }

    /// The prefixes inside one, itself among them.
    pub fn inside(&self, prefix: &IpNet) -> impl Iterator<Item = (&IpNet, &V)> + use<'_, V> {
        // sorted by address and then by length, which is just the nested ones
        self.nets.range(*prefix..=IpNet::from(prefix.broadcast()))
    }
}

impl<V> Deref for PrefixMap<V> {
    type Target = BTreeMap<IpNet, V>;

    fn deref(&self) -> &Self::Target {
        &self.nets
    }
}

impl<V> FromIterator<(IpNet, V)> for PrefixMap<V> {
    fn from_iter<I: IntoIterator<Item = (IpNet, V)>>(nets: I) -> Self {
        let mut map = Self::default();
        for (prefix, value) in nets {
            map.insert(prefix, value);
        }
        map
    }
}

impl<'a, V> IntoIterator for &'a PrefixMap<V> {
    type Item = (&'a IpNet, &'a V);
    type IntoIter = std::collections::btree_map::Iter<'a, IpNet, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.nets.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        (any::<bool>(), any::<u8>(), 0..=8u8).prop_map(|(six, low, bits)| match six {
            true => {
                let address = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(low)]);
                IpNet::new(address, 120 + bits).unwrap().trunc()
            }
            false => IpNet::new(IpAddr::from([10, 0, 0, low]), 24 + bits).unwrap().trunc(),
        })
    }

    proptest! {
        #[test]
        fn it_answers_as_a_search_through_all_would(
            events in prop::collection::vec((net(), any::<bool>()), 0..24),
            asked in net(),
        ) {
            let mut map = PrefixMap::new();
            for (number, (net, gone)) in events.into_iter().enumerate() {
                match gone {
                    true => drop(map.remove(&net)),
                    false => drop(map.insert(net, number)),
                }
            }
            let inside: Vec<_> = map.inside(&asked).map(|(net, _)| *net).collect();
            let expected: Vec<_> = map.keys().filter(|net| asked.contains(*net)).copied().collect();
            prop_assert_eq!(inside, expected);
            let around: Vec<_> = map.around(&asked).map(|(net, _)| *net).collect();
            let mut expected: Vec<_> =
                map.keys().filter(|net| net.contains(&asked) && **net != asked).copied().collect();
            expected.sort_by_key(|net| std::cmp::Reverse(net.prefix_len()));
            prop_assert_eq!(around, expected);
            let holding = map.keys().filter(|net| net.contains(&asked.addr()));
            let expected = holding.max_by_key(|net| net.prefix_len());
            prop_assert_eq!(map.longest_match(asked.addr()).map(|(net, _)| net), expected);
            prop_assert_eq!(&map.iter().map(|(net, v)| (*net, *v)).collect::<PrefixMap<_>>(), &map);
        }
    }
}
