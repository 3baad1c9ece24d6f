//! What may be said of a pod's traffic, and where it was said.

use std::fmt;
use std::sync::Arc;

use podgate_contract::api::LimitValue;

use crate::model::{Direction, ObjectKey, Peers, PolicyId, Ports};

pub use podgate_contract::api::OnExceed;

/// A bucket: how much a second, and how much at once after a pause. Both in bytes on the wire, packets or connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How much a second, at least 1.
    pub per_second: u64,
    /// How much at once, at least 1.
    pub burst: u64,
}

/// Bits of `skb->mark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The bits, none outside of the mask.
    pub value: u32,
    /// Which bits are written; the others stay.
    pub mask: u32,
}

/// A value, with what says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stated<T> {
    /// The value.
    pub value: T,
    /// What says it.
    pub origin: Origin,
}

impl<T> Stated<T> {
    /// Another value of the same origin.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Stated<U> {
        Stated { value: map(self.value), origin: self.origin }
    }
}

/// Which field of which object says something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The object.
    pub object: OriginObject,
    /// As in `spec.bandwidth.ingress` or `metadata.annotations[kubernetes.io/ingress-bandwidth]`.
    pub field: Arc<str>,
}

/// The objects that say something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OriginObject {
    /// A PodTrafficPolicy.
    PodTrafficPolicy(PolicyId),
    /// The pod itself.
    Pod(ObjectKey),
    /// Its namespace.
    Namespace(Arc<str>),
}

impl fmt::Display for OriginObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodTrafficPolicy(id) => write!(f, "podtrafficpolicy {id}"),
            Self::Pod(key) => write!(f, "pod {key}"),
            Self::Namespace(name) => write!(f, "namespace {name}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.field)
    }
}

/// The same for each direction, seen from the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EachWay<T> {
    /// Of what it receives.
    pub ingress: T,
    /// Of what it sends.
    pub egress: T,
}

impl<T> EachWay<T> {
    /// That of a direction.
    pub fn of(&self, direction: Direction) -> &T {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// That of a direction.
    pub fn of_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

/// What a pod may use, as one source says it or as it holds. `None`: nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// What it may use, by direction.
    pub each_way: EachWay<DirectionLimits>,
    /// What is written into the packets that it sends.
    pub marks: Marks,
    /// Whether its traffic is accounted.
    pub accounting: Option<Stated<bool>>,
    /// What holds for some of its connections, in order: the first that matches one holds for it. The number of a rule in the
    /// kernel is its place from 1.
    pub rules: Vec<Arc<TrafficRule>>,
}

/// What a pod may use in one direction. Connections are of the direction of their first packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectionLimits {
    /// Bytes on the wire.
    pub bandwidth: Option<Stated<Rate>>,
    /// Packets on the wire.
    pub packets: Option<Stated<Rate>>,
    /// Connections that begin.
    pub new_connections: Option<Stated<Rate>>,
    /// Connections that are open at a time.
    pub open_connections: Option<Stated<u32>>,
    /// What becomes of a connection above one of the two.
    pub on_exceed: Option<Stated<OnExceed>>,
}

/// What is written into packets of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The differentiated services code point, 0 to 63.
    pub dscp: Option<Stated<u8>>,
    /// `skb->priority`, 0 to 15.
    pub priority: Option<Stated<u8>>,
    /// `skb->mark`.
    pub mark: Option<Stated<Mark>>,
}

/// A rule of a PodTrafficPolicy. Each pod that the policy selects has buckets of its own for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficRule {
    /// Its name, one of its policy.
    pub name: Arc<str>,
    /// Where it is written.
    pub origin: Origin,
    /// The direction of a connection's first packet, seen from the pod.
    pub direction: Direction,
    /// The other end of the connection.
    pub peers: Peers,
    /// Destination ports, as in a NetworkPolicy.
    pub ports: Ports,
    /// What all matching connections of a pod may use together.
    pub bandwidth: EachWay<Option<Stated<Rate>>>,
    /// What is written into their packets that the pod sends, in the place of what holds for the pod.
    pub marks: Marks,
}

impl Limits {
    /// Whether anything is limited, written or accounted. Rules are not enforced yet.
    pub fn has_effect(&self) -> bool {
        let Self { each_way: EachWay { ingress, egress }, marks, accounting, rules: _ } = self;
        let unlimited = DirectionLimits::default();
        let limited =
            |of: &DirectionLimits| DirectionLimits { on_exceed: None, ..of.clone() } != unlimited;
        limited(ingress)
            || limited(egress)
            || *marks != Marks::default()
            || accounting.as_ref().is_some_and(|accounting| accounting.value)
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Rate {
    /// As bandwidth, in the API's units.
    fn bits(self) -> LimitValue {
        let bits = |bytes: u64| bytes.saturating_mul(8);
        LimitValue::Bandwidth { rate: bits(self.per_second), burst: bits(self.burst) }
    }
}

/// One value of some [`Limits`]: its direction, what it is, and what says it.
pub type NamedValue<'a> = (Option<Direction>, LimitValue, &'a Origin);

impl Limits {
    /// Every value that is there, but for the rules.
    pub fn values(&self) -> Vec<NamedValue<'_>> {
        let mut values = Vec::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            let way = Some(direction);
            let DirectionLimits {
                bandwidth,
                packets,
                new_connections,
                open_connections,
                on_exceed,
            } = self.each_way.of(direction);
            values.extend(value(way, bandwidth, Rate::bits));
            values.extend(value(way, packets, |Rate { per_second: rate, burst }| {
                LimitValue::Packets { rate, burst }
            }));
            values.extend(value(way, new_connections, |Rate { per_second: rate, burst }| {
                LimitValue::NewConnections { rate, burst }
            }));
            values.extend(value(way, open_connections, |max| LimitValue::OpenConnections { max }));
            values.extend(value(way, on_exceed, |action| LimitValue::OnExceed { action }));
        }
        values.extend(self.marks.values());
        values.extend(value(None, &self.accounting, |enabled| LimitValue::Accounting { enabled }));
        values
    }
}

impl Marks {
    fn values(&self) -> impl Iterator<Item = NamedValue<'_>> {
        let Self { dscp, priority, mark } = self;
        let dscp = value(None, dscp, |dscp| LimitValue::Dscp { dscp });
        let priority = value(None, priority, |priority| LimitValue::Priority { priority });
        let mark = value(None, mark, |Mark { value, mask }| LimitValue::Mark { value, mask });
        dscp.into_iter().chain(priority).chain(mark)
    }
}

impl TrafficRule {
    /// Every value that is there.
    pub fn values(&self) -> Vec<NamedValue<'_>> {
        let EachWay { ingress, egress } = &self.bandwidth;
        let ingress = value(Some(Direction::Ingress), ingress, Rate::bits);
        let egress = value(Some(Direction::Egress), egress, Rate::bits);
        ingress.into_iter().chain(egress).chain(self.marks.values()).collect()
    }
}

fn value<T: Copy>(
    direction: Option<Direction>,
    stated: &Option<Stated<T>>,
    of: impl Fn(T) -> LimitValue,
) -> Option<NamedValue<'_>> {
    stated.as_ref().map(|stated| (direction, of(stated.value), &stated.origin))
}
