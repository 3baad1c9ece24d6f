//! Spells compiled tables as entries of the kernel's policy maps: the one place that knows both.
//!
//! What an entry allows becomes one key or a few: every protocol is a prefix of 72 bits, all ports of a
//! protocol 80, one port 96, a range the fewest port prefixes that cover it. Each also gets its
//! "some port" twin, by which a fragment that overtakes the first one of its datagram may pass where some
//! port of that peer is allowed (`bpf/c/abi.h`). All entries allow, so overlaps are harmless.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use podgate_bpf::abi::{
    self, POLICY_PREFIX_ANY, POLICY_PREFIX_PORT, POLICY_PREFIX_PROTOCOL, PolicyKey, PolicyValue,
    SOME_PORT, Verdict,
};
use podgate_policy::compile::{Class, Entry, PortMatch, RuleId, RuleOrigin};
use podgate_policy::diff::EntryKey;
use podgate_policy::model::Direction;

/// A key of a policy map, for [`podgate_policy::diff`]. Sorted by class, so that the entries of one are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapKey(pub PolicyKey);

impl Ord for MapKey {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = |key: &PolicyKey| {
            let PolicyKey { class, direction, protocol, port, prefixlen, owner } = *key;
            (class, direction, protocol, port, prefixlen, owner)
        };
        order(&self.0).cmp(&order(&other.0))
    }
}

impl PartialOrd for MapKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl EntryKey for MapKey {
    fn class(&self) -> Class {
        Class(self.0.class)
    }

    fn with_class(&self, class: Class) -> Self {
        Self(PolicyKey { class: class.0, ..self.0 })
    }

    fn column(table: &BTreeMap<Self, RuleId>, class: Class) -> BTreeMap<Self, RuleId> {
        let first = PolicyKey {
            prefixlen: 0,
            owner: 0,
            class: class.0,
            direction: 0,
            protocol: 0,
            port: [0; 2],
        };
        let entries = table.range(Self(first)..).map(|(key, rule)| (*key, *rule));
        entries.take_while(|(key, _)| key.0.class == class.0).collect()
    }
}

/// The value of an entry: all of them allow, and name the rule that says so.
pub fn value(rule: RuleId) -> PolicyValue {
    PolicyValue { rule: rule.0, verdict: Verdict::Allow as u8, pad: [0; 3], hits: 0 }
}

/// A table's entries, all or all of some classes, as the map entries of the endpoint with this `owner` number. Where
/// two rules need the same key the first by their origins has it.
pub fn table<'a>(
    owner: u32,
    table: &BTreeMap<Entry, RuleId>,
    origin: impl Fn(RuleId) -> Option<&'a RuleOrigin>,
) -> BTreeMap<MapKey, RuleId> {
    let mut entries = BTreeMap::new();
    for (entry, rule) in table {
        for key in keys(owner, entry) {
            match entries.entry(MapKey(key)) {
                Slot::Vacant(vacant) => {
                    vacant.insert(*rule);
                }
                Slot::Occupied(mut taken) => {
                    if origin(*rule) < origin(*taken.get()) {
                        taken.insert(*rule);
                    }
                }
            }
        }
    }
    entries
}

/// The value of an entry that answers for a service's address: the verdict, and the rule that says so or 0.
pub fn left((verdict, rule): (u8, u32)) -> PolicyValue {
    PolicyValue { rule, verdict, pad: [0; 3], hits: 0 }
}

/// The direction as the programs number it.
pub fn direction(direction: Direction) -> abi::Direction {
    match direction {
        Direction::Ingress => abi::Direction::Ingress,
        Direction::Egress => abi::Direction::Egress,
    }
}

/// Every key of one entry.
pub fn keys(owner: u32, entry: &Entry) -> Vec<PolicyKey> {
    let every = PolicyKey {
        prefixlen: POLICY_PREFIX_ANY,
        owner,
        class: entry.class.0,
        direction: direction(entry.direction) as u8,
        protocol: 0,
        port: [0; 2],
    };
    let mut keys = match entry.ports {
        PortMatch::Everything => vec![every],
        PortMatch::Range { protocol, first, last } => {
            let protocol = PolicyKey {
                prefixlen: POLICY_PREFIX_PROTOCOL,
                protocol: protocol.number(),
                ..every
            };
            let prefix = |(port, bits): (u16, u32)| PolicyKey {
                prefixlen: POLICY_PREFIX_PROTOCOL + bits,
                port: port.to_be_bytes(),
                ..protocol
            };
            prefixes(first, last).into_iter().map(prefix).collect()
        }
    };
    if let Some(key) = keys.first().copied() {
        let prefixlen = key.prefixlen.min(POLICY_PREFIX_PROTOCOL);
        keys.push(PolicyKey {
            prefixlen,
            direction: key.direction + SOME_PORT,
            port: [0; 2],
            ..key
        });
    }
    keys
}

/// The fewest prefixes (first port, leading bits) that cover exactly `first..=last`. All ports are the
/// prefix of no bits.
fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    const BITS: u32 = POLICY_PREFIX_PORT - POLICY_PREFIX_PROTOCOL;
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    let mut prefixes = Vec::new();
    while at < end {
        // the largest power of two that starts here and does not pass the end
        let aligned = at.trailing_zeros().min(BITS);
        let size = aligned.min((end - at).ilog2());
        prefixes.push((at as u16, BITS - size));
        at += 1 << size;
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_policy::compile::{Table, Transport};
    use podgate_policy::model::Protocol;
    use proptest::prelude::*;

    /// What the program's longest-prefix look-up finds.
    fn found(keys: &BTreeMap<MapKey, RuleId>, wanted: &PolicyKey) -> Option<RuleId> {
        let bits = |key: &PolicyKey| {
            (u128::from(key.owner) << 64)
                | (u128::from(key.class) << 32)
                | (u128::from(key.direction) << 24)
                | (u128::from(key.protocol) << 16)
                | u128::from(u16::from_be_bytes(key.port))
        };
        keys.iter()
            .filter(|(key, _)| {
                let ignored = 96 - key.0.prefixlen;
                bits(&key.0) >> ignored == bits(wanted) >> ignored
            })
            .max_by_key(|(key, _)| key.0.prefixlen)
            .map(|(_, rule)| *rule)
    }

    fn packet(class: u32, direction: Direction, protocol: u8, port: u16) -> PolicyKey {
        PolicyKey {
            prefixlen: 96,
            owner: 9,
            class,
            direction: super::direction(direction) as u8,
            protocol,
            port: port.to_be_bytes(),
        }
    }

    fn protocol() -> impl Strategy<Value = Protocol> {
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
    }

    fn ports() -> impl Strategy<Value = PortMatch> {
        let range = |(protocol, a, b): (Protocol, u16, u16)| PortMatch::Range {
            protocol,
            first: a.min(b),
            last: a.max(b),
        };
        prop_oneof![
            1 => Just(PortMatch::Everything),
            1 => protocol().prop_map(PortMatch::all),
            3 => (protocol(), any::<u16>()).prop_map(|(p, n)| PortMatch::one(p, n)),
            3 => (protocol(), any::<u16>(), any::<u16>()).prop_map(range),
            2 => (protocol(), 0u16..100, 0u16..100).prop_map(range),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let direction = prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)];
        (direction, 0u32..3, ports()).prop_map(|(direction, class, ports)| Entry {
            direction,
            class: Class(class),
            ports,
        })
    }

    fn some_table() -> impl Strategy<Value = Table> {
        prop::collection::btree_map(entry(), (1u32..9).prop_map(RuleId), 0..8)
            .prop_map(|entries| Table { entries, ..Table::default() })
    }

    #[test]
    fn all_ports_are_one_prefix() {
        assert_eq!(prefixes(0, 65535), [(0, 0)]);
        assert_eq!(prefixes(80, 80), [(80, 16)]);
        assert_eq!(prefixes(65535, 65535), [(65535, 16)]);
        assert_eq!(prefixes(1, 65535).len(), 16);
        assert_eq!(prefixes(1, 65534).len(), 30);
        assert_eq!(prefixes(8000, 8003), [(8000, 14)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Each port of 0..=65535 is covered exactly when it lies in the range.
        #[test]
        fn prefixes_cover_a_range_exactly(a: u16, b: u16) {
            let (first, last) = (a.min(b), a.max(b));
            let mut covered = vec![0u8; 65536];
            for (start, bits) in prefixes(first, last) {
                let size = 1usize << (16 - bits);
                prop_assert_eq!(usize::from(start) % size, 0);
                for slot in &mut covered[usize::from(start)..usize::from(start) + size] {
                    *slot += 1;
                }
            }
            for port in 0..=65535u16 {
                let wanted = u8::from((first..=last).contains(&port));
                prop_assert_eq!(covered[usize::from(port)], wanted, "port {}", port);
            }
        }

        /// The map says allow exactly where the table does, class by class.
        #[test]
        fn the_map_allows_what_the_table_allows(
            compiled in some_table(),
            probes in prop::collection::vec((0u32..3, protocol(), any::<u16>()), 50),
        ) {
            let map = table(9, &compiled.entries, |_| None);
            let edges: Vec<_> = compiled.entries.keys().filter_map(|entry| match entry.ports {
                PortMatch::Everything => None,
                PortMatch::Range { protocol, first, last } => Some([
                    (entry.class.0, protocol, first),
                    (entry.class.0, protocol, last),
                    (entry.class.0, protocol, first.wrapping_sub(1)),
                    (entry.class.0, protocol, last.wrapping_add(1)),
                ]),
            }).flatten().collect();
            for (class, protocol, port) in probes.into_iter().chain(edges) {
                for direction in [Direction::Ingress, Direction::Egress] {
                    let ours = found(&map, &packet(class, direction, protocol.number(), port))
                        .or_else(|| found(&map, &packet(0, direction, protocol.number(), port)));
                    let wanted =
                        compiled.lookup(direction, Class(class), Transport::Port(protocol, port));
                    prop_assert_eq!(ours.is_some(), wanted.is_some());
                    // protocols without ports: only what allows everything
                    let ours = found(&map, &packet(class, direction, 1, 0))
                        .or_else(|| found(&map, &packet(0, direction, 1, 0)));
                    let wanted = compiled.lookup(direction, Class(class), Transport::Other);
                    prop_assert_eq!(ours.is_some(), wanted.is_some());
                    // a fragment without ports: where some port of the protocol is allowed
                    let some = |class| {
                        let mut key = packet(class, direction, protocol.number(), 0);
                        key.direction += SOME_PORT;
                        found(&map, &key)
                    };
                    let ours = some(class).or_else(|| some(0));
                    let wanted = compiled.entries.keys().any(|entry| {
                        let concerned = entry.class.0 == class || entry.class.0 == 0;
                        concerned && entry.direction == direction && match entry.ports {
                            PortMatch::Everything => true,
                            PortMatch::Range { protocol: p, .. } => p == protocol,
                        }
                    });
                    prop_assert_eq!(ours.is_some(), wanted);
                }
            }
        }
    }

    #[test]
    fn the_first_rule_has_a_shared_key() {
        let range = |first, last| Entry {
            direction: Direction::Ingress,
            class: Class(1),
            ports: PortMatch::Range { protocol: Protocol::Tcp, first, last },
        };
        let entries = BTreeMap::from([(range(80, 80), RuleId(5)), (range(80, 81), RuleId(4))]);
        let origins = [
            RuleOrigin::NotIsolated(Direction::Ingress),
            RuleOrigin::NotIsolated(Direction::Egress),
        ];
        let origin = |rule: RuleId| origins.get(usize::from(rule == RuleId(4)));
        let map = table(9, &entries, origin);
        let mut some = packet(1, Direction::Ingress, 6, 0);
        some.direction += SOME_PORT;
        assert_eq!(found(&map, &some), Some(RuleId(5)));
        assert_eq!(found(&map, &packet(1, Direction::Ingress, 6, 80)), Some(RuleId(5)));
        assert_eq!(found(&map, &packet(1, Direction::Ingress, 6, 81)), Some(RuleId(4)));
    }
}
