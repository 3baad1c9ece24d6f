//! Mirrors of `bpf/c/abi_limits.h`: what a metered pod may use.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Counter, Direction};

/// How many kinds of [`Limit`] there are.
pub const LIMIT_COUNT: usize = 4;
/// The first of them are rates.
pub const RATE_COUNT: usize = 3;
/// The fraction bits of [`Rate::cost`].
pub const RATE_SHIFT: u32 = 20;
/// The origin of limits that the plugin has written at ADD, from what the runtime passed.
pub const ORIGIN_RUNTIME: u32 = 0xFFFF_FFFE;
/// No limit of open connections.
pub const OPEN_UNLIMITED: u32 = u32::MAX;
/// Traffic rules that a pod can have: their numbers are 1 to this.
pub const TRAFFIC_RULES_MOST: u32 = 254;
/// Scopes that there is room for.
pub const SCOPE_COUNT: u8 = 8;
/// Hashes by which waiting flows of a pod are told apart.
pub const METER_QUEUES: usize = 64;

c_enum! {
    /// What a limit is of.
    Limit: u8 {
        /// Bytes on the wire a second.
        Bandwidth = 0 => "bandwidth",
        /// Packets on the wire a second.
        Packets = 1 => "packet-rate",
        /// Flows that begin in a second.
        NewConnections = 2 => "connection-rate",
        /// Flows at a time.
        OpenConnections = 3 => "connection-limit",
    }
}

c_enum! {
    /// What else an entry of `limits` says, bit by bit.
    LimitsFlag: u8 {
        /// What exceeds the bandwidth to the pod is delayed: the root qdisc of the host veth is fq.
        Shape = 1 => "shape",
        /// Packets are counted by scope.
        Account = 2 => "account",
        /// The pod has traffic rules.
        Rules = 4 => "rules",
        /// The pod is told that its flow exceeds a limit of connections.
        RejectEgress = 8 => "reject-egress",
        /// The peer is told.
        RejectIngress = 16 => "reject-ingress",
        /// [`LimitsRecord::priority`] is written.
        Priority = 32 => "priority",
        /// [`LimitsRecord::dscp`] is written.
        Dscp = 64 => "dscp",
    }
}

c_enum! {
    /// Where a peer is (`enum pg_scope_kind`).
    Scope: u8 {
        /// No pod and no node of the cluster.
        External = 0 => "external",
        /// A pod of the same node.
        SameNode = 1 => "same-node",
        /// A pod of another node of the same zone.
        SameZone = 2 => "same-zone",
        /// A pod of another zone.
        OtherZone = 3 => "other-zone",
        /// A pod whose node, or the zone of it, is not known.
        Cluster = 4 => "cluster",
        /// A node.
        Node = 5 => "node",
    }
}

mirror! {
    /// `struct pg_limits_key`.
    LimitsKey {
        /// The endpoint's.
        owner: u32,
        /// Number of the traffic rule; 0: the pod as a whole.
        rule: u32,
    }
}

impl LimitsKey {
    /// The key of an endpoint as a whole.
    pub fn of_pod(owner: u32) -> Self {
        Self { owner, rule: 0 }
    }
}

mirror! {
    /// `struct pg_rate`.
    Rate {
        /// 2^-[`RATE_SHIFT`] ns that a unit takes; 0: no limit.
        cost: u64,
        /// How much unused time is kept, ns.
        burst: u64,
    }
}

impl Rate {
    /// No limit.
    pub const NONE: Self = Self { cost: 0, burst: 0 };

    /// So many units a second, and as many at once after a pause. The slowest that can be said is one in 280 minutes; a
    /// rate of 0 is that.
    pub fn per_second(units: u64, burst: u64) -> Self {
        let second = 1_000_000_000_u128 << RATE_SHIFT;
        let cost = (second / u128::from(units.max(1))).max(1);
        let burst = (cost * u128::from(burst)) >> RATE_SHIFT;
        let fits = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        Self { cost: fits(cost), burst: fits(burst) }
    }
}

mirror! {
    /// `struct pg_limits`. Pairs are by [`Direction`].
    LimitsRecord {
        /// By [`Limit`].
        rates: [[Rate; RATE_COUNT]; 2],
        /// What has set the limits, by [`Limit`]: the rule of their events.
        origins: [[u32; LIMIT_COUNT]; 2],
        /// Connections at a time; [`OPEN_UNLIMITED`]: no limit.
        open_most: [u32; 2],
        /// The bits of `mark_mask` in the mark of packets from the pod.
        mark: u32,
        /// The bits of the mark that are written.
        mark_mask: u32,
        /// Of packets from the pod.
        priority: u32,
        /// Of packets from the pod, 0..=63.
        dscp: u8,
        /// [`LimitsFlag`]s.
        flags: u8,
        /// Zero.
        pad: [u8; 2],
    }
}

impl Default for LimitsRecord {
    /// Nothing is limited and nothing written.
    fn default() -> Self {
        Self {
            rates: [[Rate::NONE; RATE_COUNT]; 2],
            origins: [[0; LIMIT_COUNT]; 2],
            open_most: [OPEN_UNLIMITED; 2],
            mark: 0,
            mark_mask: 0,
            priority: 0,
            dscp: 0,
            flags: 0,
            pad: [0; 2],
        }
    }
}

mirror! {
    /// `struct pg_meter`. Pairs are by [`Direction`].
    Meter {
        /// `struct bpf_spin_lock`: the kernel's.
        lock: u32,
        /// Zero.
        pad: u32,
        /// Open connections, by direction of their first packet.
        open: [u32; 2],
        /// When each bucket has room again, CLOCK_MONOTONIC, ns; by [`Limit`].
        next: [[u64; RATE_COUNT]; 2],
        /// The same for flows of which nothing waits.
        next_sparse: [u64; 2],
        /// When the last packet was refused, CLOCK_MONOTONIC, ns.
        refused_at: [u64; 2],
        /// When the last waiting packet of a flow departs, by the flow's hash.
        departs: [u64; METER_QUEUES],
        /// Packets and bytes on the wire that passed.
        passed: [Counter; 2],
        /// Packets that a limit refused; by [`Limit`].
        refused: [[u64; LIMIT_COUNT]; 2],
        /// Packets that were marked (ECN).
        marked: [u64; 2],
        /// Packets that were delayed.
        delayed: [u64; 2],
    }
}

mirror! {
    /// `struct pg_scope`.
    ScopeValue {
        /// [`Scope`].
        kind: u32,
    }
}

mirror! {
    /// `struct pg_account_key`.
    AccountKey {
        /// The endpoint's.
        owner: u32,
        /// [`Scope`].
        scope: u8,
        /// [`Direction`] of the packets.
        direction: u8,
        /// Zero.
        pad: [u8; 2],
    }
}

mirror! {
    /// `struct pg_account`, of one CPU.
    Account {
        /// On the wire.
        packets: u64,
        /// On the wire, Ethernet header included.
        bytes: u64,
        /// That began in this direction.
        flows: u64,
    }
}

impl LimitsRecord {
    /// Sets a limit that is a rate, and what has set it. Open connections are no rate: nothing is set.
    pub fn set_rate(&mut self, direction: Direction, limit: Limit, rate: Rate, origin: u32) {
        let direction = direction as usize;
        if let Some(place) = self.rates[direction].get_mut(limit as usize) {
            *place = rate;
            self.origins[direction][limit as usize] = origin;
        }
    }
}
