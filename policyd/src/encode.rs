//! Encodes compiled tables as entries of the kernel's policy maps. No other file knows both.
//!
//! What an entry decides becomes one key or a few: every protocol is a prefix of 72 bits, one protocol or all ports
//! of it 80, one port 96, a range the fewest port prefixes that cover it. Each also gets its
//! "some port" twin, by which a fragment that overtakes the first one of its datagram may pass where some
//! port of that peer is allowed (`bpf/c/abi.h`). Entries of one class overlap only where both allow, or where one is for
//! all ports or for everything: then the more specific one decides, here and there.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use podgate_bpf::abi::{
    self, AccountKey, POLICY_PREFIX_ANY, POLICY_PREFIX_PORT, POLICY_PREFIX_PROTOCOL, PolicyFlag,
    PolicyKey, PolicyValue, SOME_PORT, Verdict,
};
use podgate_contract::api::Scope;
use podgate_policy::diff::EntryKey;
use podgate_policy::model::Direction;
use podgate_policy::tables::{Class, Decision, Effect, Entry, PortMatch, RuleId, RuleOrigin};

/// A key of a policy map, for [`podgate_policy::diff`]. Sorted by class, so that the entries of one are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapKey(pub PolicyKey);

impl Ord for MapKey {
    fn cmp(&self, other: &Self) -> Ordering {
        // class, direction, protocol, port, prefixlen, owner: as one number, for all keys of a commit are sorted
        let order = |key: &PolicyKey| {
            let PolicyKey { class, direction, protocol, port, prefixlen, owner } = *key;
            let [first, second] = port;
            let ports = u32::from_be_bytes([direction, protocol, first, second]);
            let high = u64::from(class) << 32 | u64::from(ports);
            u128::from(high) << 64 | u128::from(u64::from(prefixlen) << 32 | u64::from(owner))
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

    fn depth(&self) -> u32 {
        self.0.prefixlen
    }

    fn covers(&self, other: &Self) -> bool {
        let of = |key: &PolicyKey| {
            let ports = u32::from(key.protocol) << 16 | u32::from(u16::from_be_bytes(key.port));
            // the part after owner, class and direction
            ports.checked_shr(POLICY_PREFIX_PORT - self.0.prefixlen).unwrap_or(0)
        };
        self.0.prefixlen <= other.0.prefixlen
            && (self.0.owner, self.0.direction) == (other.0.owner, other.0.direction)
            && of(&self.0) == of(&other.0)
    }

    fn column(table: &BTreeMap<Self, Decision>, class: Class) -> BTreeMap<Self, Decision> {
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

/// The value of a compiled entry.
pub fn value(decision: Decision) -> PolicyValue {
    let Decision { effect, rule, log } = decision;
    let flags = if log { PolicyFlag::Log as u8 } else { 0 };
    PolicyValue { rule: rule.0, verdict: verdict(effect) as u8, flags, pad: [0; 2], hits: 0 }
}

/// What a compiled entry's value says. A verdict that this build does not know denies, as in the programs.
pub fn decision(value: &PolicyValue) -> Decision {
    let effects = [Effect::Allow, Effect::Audit, Effect::Reject];
    let effect = effects.into_iter().find(|effect| verdict(*effect) as u8 == value.verdict);
    Decision {
        effect: effect.unwrap_or(Effect::Deny),
        rule: RuleId(value.rule),
        log: value.flags & PolicyFlag::Log as u8 != 0,
    }
}

/// The verdict of an entry in the datapath's ABI.
pub fn verdict(effect: Effect) -> Verdict {
    match effect {
        Effect::Allow => Verdict::Allow,
        Effect::Deny => Verdict::Deny,
        Effect::Audit => Verdict::Audit,
        Effect::Reject => Verdict::Reject,
    }
}

/// A table's entries, all or all of some classes, as the map entries of the endpoint with this `owner` number. Where
/// two rules need the same key the first by their origins has it.
pub fn table<'a>(
    owner: u32,
    table: &BTreeMap<Entry, Decision>,
    origin: impl Fn(RuleId) -> Option<&'a RuleOrigin>,
) -> BTreeMap<MapKey, Decision> {
    // of two with one key, that of the earlier entry comes first
    let keep = |taken: &mut (MapKey, Decision), (key, decision): (MapKey, Decision)| {
        if key != taken.0 {
            return false;
        }
        let is_better = match (decision.effect.passes(), taken.1.effect.passes()) {
            (passes, passed) if passes != passed => passes,
            _ => origin(decision.rule) < origin(taken.1.rule),
        };
        if is_better {
            taken.1 = decision;
        }
        true
    };
    let mut entries: Vec<(MapKey, Decision)> = Vec::with_capacity(2 * table.len());
    let mut some_ports: Vec<(MapKey, Decision)> = Vec::new();
    for (entry, decision) in table {
        entries.extend(own_keys(owner, entry).map(|key| (MapKey(key), *decision)));
        // A denied port leaves others. Only what denies all of a protocol denies fragments without ports, and only where no
        // entry lets some port of it pass.
        if decision.effect.passes() || entry.ports.is_all_of_a_protocol() {
            // all ports of a protocol have one
            let twin = (MapKey(some_port(owner, entry)), *decision);
            if !some_ports.last_mut().is_some_and(|last| keep(last, twin)) {
                some_ports.push(twin);
            }
        }
    }
    entries.append(&mut some_ports);
    // a few long runs that are sorted; stable
    entries.sort_by_key(|(key, _)| *key);
    entries.dedup_by(|later, first| keep(first, *later));
    entries.into_iter().collect()
}

/// The direction in the datapath's ABI.
pub fn direction(direction: Direction) -> abi::Direction {
    match direction {
        Direction::Ingress => abi::Direction::Ingress,
        Direction::Egress => abi::Direction::Egress,
    }
}

/// The direction that the programs number so.
pub fn direction_of(direction: abi::Direction) -> Direction {
    match direction {
        abi::Direction::Ingress => Direction::Ingress,
        abi::Direction::Egress => Direction::Egress,
    }
}

/// Of what an account is; `None` for numbers that this build does not know.
pub fn account_of(key: &AccountKey) -> Option<(Scope, Direction)> {
    let direction = abi::Direction::ALL.iter().find(|of| **of as u8 == key.direction)?;
    let scope = match abi::Scope::from_number(key.scope)? {
        abi::Scope::External => Scope::External,
        abi::Scope::SameNode => Scope::SameNode,
        abi::Scope::SameZone => Scope::SameZone,
        abi::Scope::OtherZone => Scope::OtherZone,
        abi::Scope::Cluster => Scope::Cluster,
        abi::Scope::Node => Scope::Node,
    };
    Some((scope, direction_of(*direction)))
}

/// The programs' number of a scope.
pub fn scope(scope: Scope) -> abi::Scope {
    match scope {
        Scope::External => abi::Scope::External,
        Scope::SameNode => abi::Scope::SameNode,
        Scope::SameZone => abi::Scope::SameZone,
        Scope::OtherZone => abi::Scope::OtherZone,
        Scope::Cluster => abi::Scope::Cluster,
        Scope::Node => abi::Scope::Node,
    }
}

/// Every key of one entry.
pub fn keys(owner: u32, entry: &Entry) -> Vec<PolicyKey> {
    own_keys(owner, entry).chain([some_port(owner, entry)]).collect()
}

/// The keys of an entry, without its "some port" twin.
fn own_keys(owner: u32, entry: &Entry) -> impl Iterator<Item = PolicyKey> {
    let every = every_protocol(owner, entry);
    let (one, ports) = match entry.ports {
        PortMatch::Everything => (Some(every), None),
        PortMatch::Numbered(protocol) => (Some(of_protocol(every, protocol.0)), None),
        PortMatch::Range { protocol, first, last } => {
            let protocol = of_protocol(every, protocol.number());
            let prefix = move |(port, bits): (u16, u32)| PolicyKey {
                prefixlen: POLICY_PREFIX_PROTOCOL + bits,
                port: port.to_be_bytes(),
                ..protocol
            };
            (None, Some(prefixes(first, last).map(prefix)))
        }
    };
    one.into_iter().chain(ports.into_iter().flatten())
}

/// The "some port" twin of an entry's keys.
fn some_port(owner: u32, entry: &Entry) -> PolicyKey {
    let every = every_protocol(owner, entry);
    let key = match entry.ports {
        PortMatch::Everything => every,
        PortMatch::Numbered(protocol) => of_protocol(every, protocol.0),
        PortMatch::Range { protocol, .. } => of_protocol(every, protocol.number()),
    };
    PolicyKey { direction: key.direction + SOME_PORT, ..key }
}

fn every_protocol(owner: u32, entry: &Entry) -> PolicyKey {
    PolicyKey {
        prefixlen: POLICY_PREFIX_ANY,
        owner,
        class: entry.class.0,
        direction: direction(entry.direction) as u8,
        protocol: 0,
        port: [0; 2],
    }
}

fn of_protocol(every: PolicyKey, protocol: u8) -> PolicyKey {
    PolicyKey { prefixlen: POLICY_PREFIX_PROTOCOL, protocol, ..every }
}

/// The fewest prefixes (first port, leading bits) that cover exactly `first..=last`. All ports are the
/// prefix of no bits.
fn prefixes(first: u16, last: u16) -> impl Iterator<Item = (u16, u32)> {
    const BITS: u32 = POLICY_PREFIX_PORT - POLICY_PREFIX_PROTOCOL;
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    std::iter::from_fn(move || {
        let size = (end.checked_sub(at)?).checked_ilog2()?;
        // the largest power of two that starts here and does not pass the end
        let size = size.min(at.trailing_zeros().min(BITS));
        let prefix = (at as u16, BITS - size);
        at += 1 << size;
        Some(prefix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_policy::model::{IpProtocol, Protocol};
    use podgate_policy::tables::{Table, Transport};
    use proptest::prelude::*;

    /// What the program's longest-prefix look-up finds.
    fn found(keys: &BTreeMap<MapKey, Decision>, wanted: &PolicyKey) -> Option<Decision> {
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
            .map(|(_, decision)| *decision)
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
            1 => (0u8..3).prop_map(|number| PortMatch::Numbered(IpProtocol(number))),
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
        let decision = (1u32..9).prop_map(|rule| Decision::allow(RuleId(rule)));
        prop::collection::btree_map(entry(), decision, 0..8)
            .prop_map(|entries| Table { entries, ..Table::default() })
    }

    fn covering(first: u16, last: u16) -> Vec<(u16, u32)> {
        prefixes(first, last).collect()
    }

    #[test]
    fn all_ports_are_one_prefix() {
        assert_eq!(covering(0, 65535), [(0, 0)]);
        assert_eq!(covering(80, 80), [(80, 16)]);
        assert_eq!(covering(65535, 65535), [(65535, 16)]);
        assert_eq!(covering(1, 65535).len(), 16);
        assert_eq!(covering(1, 65534).len(), 30);
        assert_eq!(covering(8000, 8003), [(8000, 14)]);
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
                PortMatch::Everything | PortMatch::Numbered(_) => None,
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
                    // protocols without ports: what allows everything, or that protocol
                    for number in 0..4 {
                        let ours = found(&map, &packet(class, direction, number, 0))
                            .or_else(|| found(&map, &packet(0, direction, number, 0)));
                        let sent = Transport::Number(IpProtocol(number));
                        let wanted = compiled.lookup(direction, Class(class), sent);
                        prop_assert_eq!(ours.is_some(), wanted.is_some());
                    }
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
                            PortMatch::Numbered(_) => false,
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
        let allow = |rule| Decision::allow(RuleId(rule));
        let entries = BTreeMap::from([(range(80, 80), allow(5)), (range(80, 81), allow(4))]);
        let origins = [
            RuleOrigin::NotIsolated(Direction::Ingress),
            RuleOrigin::NotIsolated(Direction::Egress),
        ];
        let origin = |rule: RuleId| origins.get(usize::from(rule == RuleId(4)));
        let map = table(9, &entries, origin);
        let mut some = packet(1, Direction::Ingress, 6, 0);
        some.direction += SOME_PORT;
        assert_eq!(found(&map, &some), Some(allow(5)));
        assert_eq!(found(&map, &packet(1, Direction::Ingress, 6, 80)), Some(allow(5)));
        assert_eq!(found(&map, &packet(1, Direction::Ingress, 6, 81)), Some(allow(4)));
    }

    #[test]
    fn what_a_pod_sends_to_itself_has_the_classes_of_the_programs() {
        assert_eq!(Class::SELF_V4.0, abi::CLASS_SELF4);
        assert_eq!(Class::SELF_V6.0, abi::CLASS_SELF6);
    }
}
