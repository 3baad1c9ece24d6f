//! Takes the steps of a plan one by one and judges what passes after each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;

use podgate_bpf::abi::{
    POLICY_PREFIX_ANY, POLICY_PREFIX_PORT, POLICY_PREFIX_PROTOCOL, PolicyKey, SOME_PORT,
};
use podgate_policy::diff::{Change, EntryKey, State, Step, plan};
use podgate_policy::model::{Direction, IpProtocol, Protocol};
use podgate_policy::tables::{Class, Decision, Effect, EndpointId, Entry, Table, Transport};
use podgate_tests::worlds::probe_addresses;
use policyd::encode::MapKey;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// What a flow's packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Of(Transport),
    /// A part of a datagram without its ports.
    Fragment(Protocol),
}

/// Key of a table in which a packet's entry can be found.
pub(crate) trait Key: EntryKey + Debug {
    /// The packets that the table tells apart.
    const FRAGMENTS: &[Protocol];

    /// The decision of one column.
    fn lookup(
        column: &BTreeMap<Self, Decision>,
        class: Class,
        direction: Direction,
        packet: Packet,
    ) -> Option<Decision>;
}

impl Key for Entry {
    const FRAGMENTS: &[Protocol] = &[];

    fn lookup(
        column: &BTreeMap<Self, Decision>,
        class: Class,
        direction: Direction,
        packet: Packet,
    ) -> Option<Decision> {
        let Packet::Of(transport) = packet else { return None };
        let table = Table { entries: column.clone(), ..Table::default() };
        table.lookup(direction, class, transport)
    }
}

impl Key for MapKey {
    const FRAGMENTS: &[Protocol] = &[Protocol::Tcp, Protocol::Udp];

    /// The longest prefix, as the kernel's map finds it.
    fn lookup(
        column: &BTreeMap<Self, Decision>,
        _: Class,
        direction: Direction,
        packet: Packet,
    ) -> Option<Decision> {
        let direction = match direction {
            Direction::Ingress => podgate_bpf::abi::Direction::Ingress as u8,
            Direction::Egress => podgate_bpf::abi::Direction::Egress as u8,
        };
        let (direction, protocol, port) = match packet {
            Packet::Of(Transport::Port(protocol, port)) => (direction, protocol.number(), port),
            // of a number that no rule of the worlds has
            Packet::Of(Transport::Other) => (direction, 253, 0),
            Packet::Of(Transport::Number(protocol)) => (direction, protocol.0, 0),
            Packet::Fragment(protocol) => (direction + SOME_PORT, protocol.number(), 0),
        };
        let holds = |key: &PolicyKey| {
            let bits = key.prefixlen.saturating_sub(POLICY_PREFIX_PROTOCOL);
            let differing = u16::from_be_bytes(key.port) ^ port;
            key.direction == direction
                && (key.prefixlen == POLICY_PREFIX_ANY
                    || key.protocol == protocol
                        && differing.checked_shr(16 - bits).unwrap_or(0) == 0)
        };
        let found = column.iter().filter(|(key, _)| holds(&key.0));
        found.max_by_key(|(key, _)| key.0.prefixlen).map(|(key, decision)| {
            assert!((POLICY_PREFIX_ANY..=POLICY_PREFIX_PORT).contains(&key.0.prefixlen));
            *decision
        })
    }
}

fn packets<K: Key>() -> Vec<Packet> {
    let ports = [53, 80, 81, 443, 8080];
    let tcp = ports.map(|port| Transport::Port(Protocol::Tcp, port));
    let udp = [53, 80].map(|port| Transport::Port(Protocol::Udp, port));
    let whole = tcp.into_iter().chain(udp);
    let whole =
        whole.chain([Transport::Number(IpProtocol::ICMP), Transport::Other]).map(Packet::Of);
    whole.chain(K::FRAGMENTS.iter().copied().map(Packet::Fragment)).collect()
}

/// The other end of a flow: an address worth asking about, or the pod itself, behind a service, over one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Address(IpAddr),
    Itself(Class),
}

/// The peers with their classes, always in the same order.
fn classes<K: EntryKey>(state: &State<K>) -> Vec<(Peer, Class)> {
    let classifier = state.classifier();
    let addresses = probe_addresses().into_iter();
    let addresses = addresses.map(|address| (Peer::Address(address), classifier.class_of(address)));
    let itself = [Class::SELF_V4, Class::SELF_V6].map(|class| (Peer::Itself(class), class));
    addresses.chain(itself).collect()
}

/// The verdicts on the flows with one peer.
fn judge<K: Key>(table: &BTreeMap<K, Decision>, (peer, class): (Peer, Class)) -> Vec<Effect> {
    let (of_class, any) = (K::column(table, class), K::column(table, Class::ANY));
    let mut verdicts = Vec::new();
    for direction in DIRECTIONS {
        for packet in packets::<K>() {
            let own = K::lookup(&of_class, class, direction, packet);
            let decision = match peer {
                Peer::Address(_) => own.or_else(|| K::lookup(&any, Class::ANY, direction, packet)),
                Peer::Itself(_) => own,
            };
            verdicts.push(match (decision, peer) {
                (Some(decision), _) => decision.effect,
                (None, Peer::Address(_)) => Effect::Deny,
                // nothing is said of it: it passes
                (None, Peer::Itself(_)) => Effect::Allow,
            });
        }
    }
    verdicts
}

/// The verdicts on the flows of each endpoint, by peer.
type Verdicts = BTreeMap<EndpointId, Vec<Vec<Effect>>>;

fn verdicts<K: Key>(state: &State<K>) -> Verdicts {
    let classes = classes(state);
    let of = |table| classes.iter().map(|of| judge(table, *of)).collect();
    state.tables.iter().map(|(endpoint, table)| (*endpoint, of(table))).collect()
}

/// Asserts that keys of the kernel's map say what the entries say that they encode.
pub(crate) fn assert_alike(
    entries: &State<Entry>,
    keys: &State<MapKey>,
) -> Result<(), TestCaseError> {
    let kinds = packets::<MapKey>();
    let whole = |(nth, effect): (usize, &Effect)| {
        matches!(kinds[nth % kinds.len()], Packet::Of(_)).then_some(*effect)
    };
    let mut of_keys = verdicts(keys);
    for by_peer in of_keys.values_mut().flatten() {
        *by_peer = by_peer.iter().enumerate().filter_map(whole).collect();
    }
    prop_assert_eq!(&verdicts(entries), &of_keys, "entries {:#?}\nkeys {:#?}", entries, keys);
    Ok(())
}

/// How a verdict may change within one plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// If both states have one, it is that all the time.
    Shared,
    /// The same, and it changes once at most.
    Once,
}

/// Takes the steps of the plan and judges after each what it may have changed. Returns the number of steps and of
/// verdicts.
pub(crate) fn walk<K: Key>(
    old: &State<K>,
    new: &State<K>,
    change: &Change<K>,
) -> Result<(u64, u64), TestCaseError> {
    let promise = if old.ranked || new.ranked { Promise::Once } else { Promise::Shared };
    let (before, after) = (verdicts(old), verdicts(new));
    let steps = plan(old, change);
    let (mut now, mut members, mut judged) = (old.clone(), classes(old), 0);
    let mut arrived: BTreeSet<(EndpointId, usize, usize)> = BTreeSet::new();
    for (number, step) in steps.iter().enumerate() {
        now.apply(step.clone());
        let moved = classes(&now);
        // what the step is about: one table or all, and of the peers those that meet what has changed
        let (table, class) = match step {
            Step::SetEntry { endpoint, key, .. } | Step::RemoveEntry { endpoint, key } => {
                (Some(*endpoint), Some(key.class()))
            }
            Step::NewTable { endpoint, .. } | Step::DropTable { endpoint } => {
                (Some(*endpoint), Some(Class::ANY))
            }
            Step::SetHost { .. }
            | Step::SetNet { .. }
            | Step::RemoveNet { .. }
            | Step::RemoveHost { .. } => (None, None),
        };
        let concerned = |place: &usize| match class {
            Some(Class::ANY) => true,
            Some(class) => moved[*place].1 == class,
            None => moved[*place] != members[*place],
        };
        let places: Vec<usize> = (0..moved.len()).filter(concerned).collect();
        for (endpoint, entries) in &now.tables {
            // a table that is about to vanish is held to nothing
            let Some(after) = after.get(endpoint) else { continue };
            if table.is_some_and(|only| only != *endpoint) {
                continue;
            }
            for place in places.iter().copied() {
                for (nth, verdict) in judge(entries, moved[place]).into_iter().enumerate() {
                    // an endpoint without a table in the old state is held to the new one at once
                    let to = after[place][nth];
                    let from = before.get(endpoint).map_or(to, |before| before[place][nth]);
                    judged += 1;
                    let has_arrived = arrived.contains(&(*endpoint, place, nth));
                    let holds = match promise {
                        Promise::Shared => from != to || verdict == from,
                        Promise::Once => verdict == to || (verdict == from && !has_arrived),
                    };
                    if verdict == to && from != to {
                        arrived.insert((*endpoint, place, nth));
                    }
                    prop_assert!(
                        holds,
                        "{endpoint:?}, {:?}, flow {nth}: from {from:?} to {to:?} ({promise:?}, there before: \
                         {has_arrived}), but {verdict:?} after step {number} of {steps:#?}\n\
                         old {old:#?}\nnew {new:#?}",
                        moved[place],
                    );
                }
            }
        }
        members = moved;
    }
    now.ranked = new.ranked;
    prop_assert_eq!(&now, new, "where the plan ends");
    Ok((steps.len() as u64, judged))
}
