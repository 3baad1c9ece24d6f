//! `/v1/endpoints/{namespace}/{pod}/limits`: what a pod may use, and what says so.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Direction;

/// Answer of `GET /v1/endpoints/{namespace}/{pod}/limits`, and of `podgatectl limits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLimits {
    /// `namespace/name`.
    pub pod: String,
    /// What holds for the pod as a whole.
    pub limits: Vec<Limit>,
    /// What holds for some of its connections, in the order in which they are matched. The first that matches a connection holds
    /// for it, beside the limits of the pod.
    pub rules: Vec<TrafficRule>,
    /// What could not be read and has no effect, and why.
    pub problems: Vec<String>,
    /// What the pod has used since its limits hold, on this node; absent in an answer from manifests, and of a pod without
    /// limits here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used: Vec<LimitUse>,
}

/// What a pod has used of its limits in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitUse {
    /// Name of the pod's host interface.
    pub interface: String,
    /// Seen from the pod; of connections that of their first packet.
    pub direction: Direction,
    /// `shaped`, or `policed` and why packets to the pod cannot wait; absent where that bandwidth is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_held: Option<String>,
    /// Connections that are open.
    pub open_connections: u32,
    /// Packets on the wire that passed.
    pub packets: u64,
    /// Bytes on the wire that passed.
    pub bytes: u64,
    /// Packets that were given a later time of departure.
    pub delayed: u64,
    /// Packets that were marked (ECN) instead of refused.
    pub marked: u64,
    /// Packets refused, by the limit that they exceeded.
    pub refused: RefusedPackets,
}

/// Packets refused, by the limit that they exceeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedPackets {
    /// Of bandwidth.
    pub bandwidth: u64,
    /// Of packets a second.
    pub packets: u64,
    /// Of new connections a second.
    pub new_connections: u64,
    /// Of open connections.
    pub open_connections: u64,
}

/// One value that holds for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Seen from the pod; absent where the value is for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// The value.
    #[serde(flatten)]
    pub value: LimitValue,
    /// What says so.
    pub origin: LimitOrigin,
    /// What other objects say of the same, in the order of precedence. It does not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<OverriddenLimit>,
}

/// A value that does not hold, because something that comes before it says another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverriddenLimit {
    /// The value.
    #[serde(flatten)]
    pub value: LimitValue,
    /// What says so.
    pub origin: LimitOrigin,
}

/// Which field of which object says something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitOrigin {
    /// `podtrafficpolicy shop/web`, `pod shop/web`, `namespace shop`, or `runtime`: the container runtime, as it added the pod.
    pub object: String,
    /// As in `spec.bandwidth.ingress`.
    pub field: String,
}

/// A value, by what it limits or sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "limit", rename_all = "kebab-case")]
pub enum LimitValue {
    /// Bytes on the wire.
    Bandwidth {
        /// Bits a second.
        rate: u64,
        /// Bits that may pass at once after a pause.
        burst: u64,
    },
    /// Packets on the wire.
    Packets {
        /// Packets a second.
        rate: u64,
        /// Packets that may pass at once after a pause.
        burst: u64,
    },
    /// Connections that begin.
    NewConnections {
        /// Connections a second.
        rate: u64,
        /// Connections that may begin at once after a pause.
        burst: u64,
    },
    /// Connections that are open.
    OpenConnections {
        /// At a time.
        max: u32,
    },
    /// What becomes of a connection above a limit of connections.
    OnExceed {
        /// Whether its sender is told.
        action: OnExceed,
    },
    /// The differentiated services code point of what the pod sends.
    Dscp {
        /// 0 to 63.
        dscp: u8,
    },
    /// The kernel's priority of what the pod sends.
    Priority {
        /// 0 to 15.
        priority: u8,
    },
    /// The kernel's mark of what the pod sends.
    Mark {
        /// The bits, within the mask.
        value: u32,
        /// Which bits are set or cleared.
        mask: u32,
    },
    /// Whether the pod's traffic is accounted.
    Accounting {
        /// Whether it is.
        enabled: bool,
    },
}

/// What becomes of a connection above a limit of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExceed {
    /// Its packets are dropped.
    #[default]
    Drop,
    /// They are dropped, and their sender is told.
    Reject,
}

/// A rule of a PodTrafficPolicy, as one pod has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficRule {
    /// Its name in the policy.
    pub name: String,
    /// The direction of a connection's first packet, seen from the pod.
    pub direction: Direction,
    /// Where it is written.
    pub origin: LimitOrigin,
    /// What holds for each pod's connections that it matches, all together.
    pub limits: Vec<RuleLimit>,
}

/// One value of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleLimit {
    /// Seen from the pod; absent where the value is for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// The value.
    #[serde(flatten)]
    pub value: LimitValue,
}

impl LimitValue {
    /// What is limited or set, in words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bandwidth { .. } => "bandwidth",
            Self::Packets { .. } => "packets",
            Self::NewConnections { .. } => "new connections",
            Self::OpenConnections { .. } => "open connections",
            Self::OnExceed { .. } => "connections above a limit",
            Self::Dscp { .. } => "DSCP",
            Self::Priority { .. } => "priority",
            Self::Mark { .. } => "mark",
            Self::Accounting { .. } => "accounting",
        }
    }
}

/// The value without its name: `10M bit/s, burst 1048576 bit`.
impl fmt::Display for LimitValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bandwidth { rate, burst } => {
                write!(f, "{} bit/s, burst {} bit", decimal(*rate), decimal(*burst))
            }
            Self::Packets { rate, burst } | Self::NewConnections { rate, burst } => {
                write!(f, "{}/s, burst {}", decimal(*rate), decimal(*burst))
            }
            Self::OpenConnections { max } => write!(f, "{max}"),
            Self::OnExceed { action: OnExceed::Drop } => f.write_str("dropped"),
            Self::OnExceed { action: OnExceed::Reject } => f.write_str("rejected"),
            Self::Dscp { dscp } => write!(f, "{dscp}"),
            Self::Priority { priority } => write!(f, "{priority}"),
            Self::Mark { value, mask } => write!(f, "{value:#x}/{mask:#x}"),
            Self::Accounting { enabled: true } => f.write_str("on"),
            Self::Accounting { enabled: false } => f.write_str("off"),
        }
    }
}

/// A number with the largest suffix that leaves it whole.
fn decimal(number: u64) -> String {
    let suffixes = [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")];
    let fits = |(unit, _): &&(u64, &str)| number >= *unit && number.is_multiple_of(*unit);
    match suffixes.iter().find(fits) {
        Some((unit, suffix)) => format!("{}{suffix}", number / unit),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_one_flat_object_and_a_short_text() {
        let limit = Limit {
            direction: Some(Direction::Egress),
            value: LimitValue::Bandwidth { rate: 10_000_000, burst: 1_048_576 },
            origin: LimitOrigin { object: "pod shop/web".to_owned(), field: "a".to_owned() },
            overridden: Vec::new(),
        };
        assert_eq!(limit.value.to_string(), "10M bit/s, burst 1048576 bit");
        let json = serde_json::to_value(&limit).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "direction": "egress", "limit": "bandwidth", "rate": 10_000_000, "burst": 1_048_576,
                "origin": {"object": "pod shop/web", "field": "a"},
            })
        );
        assert_eq!(serde_json::from_value::<Limit>(json).unwrap(), limit);
        let mark = LimitValue::Mark { value: 0x10, mask: 0xf0 };
        assert_eq!(mark.to_string(), "0x10/0xf0");
        assert_eq!(LimitValue::Packets { rate: 1500, burst: 64 }.to_string(), "1500/s, burst 64");
    }
}
