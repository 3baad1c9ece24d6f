//! Mirrors of `bpf/c/abi.h`: same names, same order, same bytes (`tests/abi_btf.rs` compares them with the object's
//! BTF). The header says what each field means.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of all layouts here, part of the pin path.
pub const ABI_VERSION: u32 = 2;
/// Addresses per family that a registration holds.
pub const ENDPOINT_ADDRS: usize = 4;
/// Added to a direction in policy keys: "some port of this protocol".
pub const SOME_PORT: u8 = 2;
/// Matched by no atom; entries for it hold for every peer.
pub const CLASS_ANY: u32 = 0;
/// No address's: entries for what a pod sends to itself through a service over IPv4.
pub const CLASS_SELF4: u32 = 0xF7FF_FFFE;
/// The same over IPv6.
pub const CLASS_SELF6: u32 = 0xF7FF_FFFF;
/// Prefix bits of a policy key for every protocol.
pub const POLICY_PREFIX_ANY: u32 = 72;
/// Prefix bits for all ports of a protocol.
pub const POLICY_PREFIX_PROTOCOL: u32 = 80;
/// Prefix bits for one port.
pub const POLICY_PREFIX_PORT: u32 = 96;
/// Slots of the counters per direction.
pub const REASON_COUNT: u32 = 32;
/// Reasons from here on are denials.
pub const DENY_FIRST: u8 = 16;
/// First slot of the statistics.
pub const STAT_BASE: u32 = 2 * REASON_COUNT;
/// Slots of the statistics.
pub const STAT_COUNT: u32 = 8;
/// All slots.
pub const COUNTER_COUNT: u32 = STAT_BASE + STAT_COUNT;

/// Numbers of IP protocols in keys and events.
pub mod ip_protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// A C enum of one byte (or word) with its numbers, its stable name and the way back from a number.
macro_rules! c_enum {
    ($(#[$meta:meta])* $name:ident: $repr:ty { $($(#[$vmeta:meta])* $variant:ident = $value:literal => $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)* }

        impl $name {
            /// Every variant, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The variant of a number, if there is one.
            pub fn from_number(number: $repr) -> Option<Self> {
                match number { $($value => Some(Self::$variant),)* _ => None }
            }

            /// Its name in metrics, JSON and tables; never changes.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

c_enum! {
    /// Seen from the pod.
    Direction: u8 {
        /// From the pod: TC ingress of its host veth.
        Egress = 0 => "egress",
        /// To the pod.
        Ingress = 1 => "ingress",
    }
}

c_enum! {
    /// What an endpoint without a policy map does.
    Startup: u8 {
        /// Only its own node may reach it.
        Hold = 0 => "hold",
        /// Everything passes.
        Open = 1 => "open",
        /// Everything passes and is remembered as a flow, policy map or not: a running pod that is being adopted.
        Learn = 2 => "watch",
        /// Being taken over from another layout, whose programs decide on packets of flows not known here.
        Previous = 3 => "previous",
        /// As before, but for TCP connections that begin now.
        Opening = 4 => "opening",
        /// The other layout's programs decide only on what would be denied here.
        Remainder = 5 => "remainder",
    }
}

c_enum! {
    /// What a denial does.
    Mode: u32 {
        /// The packet is dropped.
        Enforce = 0 => "enforce",
        /// It passes, is counted and reported as an event.
        Audit = 1 => "audit",
        /// It passes and is counted.
        Off = 2 => "off",
    }
}

c_enum! {
    /// Why a packet passed or not.
    Reason: u8 {
        /// Of a known flow.
        AllowFlow = 1 => "flow",
        /// A rule, or no isolation, allows this new flow.
        AllowPolicy = 2 => "policy",
        /// Ingress that the pod's own node itself sends.
        AllowOwnNode = 3 => "own-node",
        /// A pod to itself.
        AllowOwnAddress = 4 => "own-address",
        /// ARP, neighbour discovery, multicast listener, DHCP.
        AllowControl = 5 => "control",
        /// ICMP error that quotes an allowed flow.
        AllowRelated = 6 => "related",
        /// Startup state `open`.
        AllowStartup = 7 => "startup",
        /// A fragment ahead of its first one.
        AllowFragment = 8 => "fragment",
        /// Would be denied, but the mode is not `enforce`, or the policy is only audited.
        AllowAudit = 9 => "audit",
        /// Isolated, and no rule allows it.
        DenyPolicy = 16 => "policy",
        /// Startup state `hold`.
        DenyStartup = 17 => "startup",
        /// An address in the pod's place is not the pod's.
        DenySpoofed = 18 => "spoofed",
        /// No transport header where one must be.
        DenyMalformed = 19 => "malformed",
        /// VLAN tag or foreign ethertype.
        DenyNotIp = 20 => "not-ip",
        /// Its first fragment was denied, or no port of that peer is allowed.
        DenyFragment = 21 => "fragment",
        /// The interface is not registered.
        DenyNoEndpoint = 22 => "no-endpoint",
        /// Two flows of the pod would look the same to one backend.
        DenyPortTaken = 23 => "port-taken",
        /// Allowed, but its translation failed: it must not leave partly rewritten. Holds in every mode.
        DenyRewrite = 24 => "rewrite",
        /// Allowed, but more bytes than the pod may send or receive. This and the next three hold in every mode.
        DenyBandwidth = 25 => "bandwidth",
        /// The same of packets.
        DenyPacketRate = 26 => "packet-rate",
        /// The first packet of a flow, and too many began.
        DenyConnectionRate = 27 => "connection-rate",
        /// The same, and too many are open.
        DenyConnectionLimit = 28 => "connection-limit",
    }
}

impl Reason {
    /// Whether the packet was refused.
    pub fn is_denial(self) -> bool {
        self as u8 >= DENY_FIRST
    }

    /// Whether a limit of the pod refused it: an event's rule is then the number of what has set the limit.
    pub fn is_limit(self) -> bool {
        matches!(
            self,
            Self::DenyBandwidth
                | Self::DenyPacketRate
                | Self::DenyConnectionRate
                | Self::DenyConnectionLimit
        )
    }
}

c_enum! {
    /// Which flow of two ends it is (`enum pg_flow_kind`).
    FlowKind: u8 {
        /// The one that addresses, ports and protocol name.
        Plain = 0 => "plain",
        /// Queries of the pod and their answers.
        EchoByPod = 1 => "echo-by-pod",
        /// Queries of the peer and their answers.
        EchoByPeer = 2 => "echo-by-peer",
    }
}

c_enum! {
    /// Statistics that are not verdicts; the metric's label is called `note`.
    Stat: u32 {
        /// An allowed flow could not be remembered.
        FlowLost = 0 => "flow-lost",
        /// The ring of events was full.
        EventLost = 1 => "event-lost",
        /// Events held back by the rate limit.
        EventLimit = 2 => "event-limit",
        /// Flows revalidated after a change of policy.
        Revalidated = 3 => "judged-again",
        /// Live flows that had to make room for others of their pod.
        FlowEvicted = 4 => "flow-evicted",
    }
}

c_enum! {
    /// What happened to a packet, or what an entry says.
    Verdict: u8 {
        /// Refused.
        Deny = 0 => "deny",
        /// Passed.
        Allow = 1 => "allow",
        /// Of entries only: passes, and is reported as what the rule would deny if its policy were not only audited.
        Audit = 2 => "audit",
        /// Of entries only: refused, and the sender is told.
        Reject = 3 => "reject",
    }
}

c_enum! {
    /// What else an entry says, bit by bit.
    PolicyFlag: u8 {
        /// Each new flow that it decides is reported.
        Log = 1 => "log",
    }
}

c_enum! {
    /// What else an event says, bit by bit.
    EventFlag: u8 {
        /// The entry that decided is one with [`PolicyFlag::Log`].
        Logged = 1 => "logged",
    }
}

/// Declares a mirror: plain bytes, no padding (zerocopy refuses a struct that has any).
macro_rules! mirror {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
    };
}

mod flows;
mod limits;
mod services;

pub use flows::*;
pub use limits::*;
pub use services::*;

mirror! {
    /// `struct pg_counter`.
    Counter {
        /// Packets.
        packets: u64,
        /// Bytes, Ethernet header included.
        bytes: u64,
    }
}

mirror! {
    /// `struct pg_addr`: an address of either family; IPv4 is mapped.
    Addr {
        /// Network order.
        bytes: [u8; 16],
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self { bytes: v4.to_ipv6_mapped().octets() },
            IpAddr::V6(v6) => Self { bytes: v6.octets() },
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        IpAddr::V6(Ipv6Addr::from(addr.bytes)).to_canonical()
    }
}

mirror! {
    /// `struct pg_endpoint`: the whole registration; [`crate::maps::Registration`] is its readable form.
    EndpointRecord {
        /// Random, not 0; tells registrations apart.
        owner: u32,
        /// [`Startup`].
        startup: u8,
        /// 0 or 1.
        anti_spoofing: u8,
        /// Used slots of `addr4`.
        addr4_count: u8,
        /// Used slots of `addr6`.
        addr6_count: u8,
        /// Network order.
        addr4: [[u8; 4]; ENDPOINT_ADDRS],
        /// Network order.
        addr6: [Addr; ENDPOINT_ADDRS],
        /// Of the pod's interface; 0: unknown.
        mac: [u8; 6],
        /// Zero.
        pad: [u8; 2],
        /// 0 where the kernel has none.
        netns_cookie: u64,
        /// CNI_CONTAINERID.
        container_id: [u8; 256],
        /// CNI_IFNAME.
        interface: [u8; 16],
        /// Name of the host end.
        host_interface: [u8; 16],
        /// Name of the network configuration.
        network: [u8; 128],
        /// K8S_POD_NAMESPACE, or empty.
        pod_namespace: [u8; 64],
        /// K8S_POD_NAME, or empty.
        pod_name: [u8; 256],
        /// K8S_POD_UID, or empty.
        pod_uid: [u8; 64],
        /// CNI_NETNS at ADD.
        netns: [u8; 256],
    }
}

mirror! {
    /// `struct pg_policy_key`: LPM key of an endpoint's inner map.
    PolicyKey {
        /// 72, 80..=96.
        prefixlen: u32,
        /// The endpoint's owner number.
        owner: u32,
        /// Class of the peer; 0 for every peer.
        class: u32,
        /// [`Direction`], or that + [`SOME_PORT`].
        direction: u8,
        /// IP protocol.
        protocol: u8,
        /// Network order.
        port: [u8; 2],
    }
}

mirror! {
    /// `struct pg_policy_value`.
    PolicyValue {
        /// Number of the rule that decides.
        rule: u32,
        /// [`Verdict`].
        verdict: u8,
        /// [`PolicyFlag`]s.
        flags: u8,
        /// Zero.
        pad: [u8; 2],
        /// New flows it decided; written by the programs.
        hits: u64,
    }
}

mirror! {
    /// `struct pg_peer4_key`.
    Peer4Key {
        /// Network order.
        addr: [u8; 4],
    }
}

mirror! {
    /// `struct pg_peer6_key`.
    Peer6Key {
        /// Network order.
        addr: Addr,
    }
}

mirror! {
    /// `struct pg_net4_key`.
    Net4Key {
        /// 0..=32.
        prefixlen: u32,
        /// Network order.
        addr: [u8; 4],
    }
}

mirror! {
    /// `struct pg_net6_key`.
    Net6Key {
        /// 0..=128.
        prefixlen: u32,
        /// Network order.
        addr: Addr,
    }
}

mirror! {
    /// `struct pg_class`.
    ClassValue {
        /// The class.
        class: u32,
    }
}

mirror! {
    /// `struct pg_node_key`.
    NodeKey {
        /// 0..=128; of IPv4 prefixes 96 more than their length.
        prefixlen: u32,
        /// Network order.
        addr: Addr,
    }
}

mirror! {
    /// `struct pg_node_addr`.
    NodeAddr {
        /// Zero.
        pad: u32,
    }
}

mirror! {
    /// `struct pg_control`.
    ControlRecord {
        /// Bumped with every change.
        epoch: u32,
        /// [`Mode`].
        mode: u32,
        /// Not 0: new allowed flows raise events.
        tell_allowed: u32,
        /// Limit that all endpoints share, beside their own tokens; 0: no events at all, but for logged entries.
        events_per_second: u32,
        /// Fingerprint of the object that the pinned programs came from.
        build: u32,
    }
}

mirror! {
    /// `struct pg_event`.
    EventRecord {
        /// CLOCK_MONOTONIC, ns.
        time: u64,
        /// Host veth.
        ifindex: u32,
        /// The endpoint's owner number.
        owner: u32,
        /// That decided, 0 if none did.
        rule: u32,
        /// Class of the peer.
        peer_class: u32,
        /// Of the packet, bytes.
        length: u32,
        /// Pod's side.
        pod: Addr,
        /// Peer's side.
        peer: Addr,
        /// Network order.
        pod_port: [u8; 2],
        /// Network order.
        peer_port: [u8; 2],
        /// [`Direction`] of the packet.
        direction: u8,
        /// IP protocol.
        protocol: u8,
        /// [`Reason`].
        reason: u8,
        /// [`Verdict`].
        verdict: u8,
        /// 4, 6, or 0.
        family: u8,
        /// [`EventFlag`]s.
        flags: u8,
        /// Network order; 0: through no service.
        service_port: [u8; 2],
        /// The service's address.
        service: Addr,
    }
}

impl Peer4Key {
    /// The key of an address.
    pub fn new(addr: Ipv4Addr) -> Self {
        Self { addr: addr.octets() }
    }
}

impl From<(IpAddr, u8)> for NodeKey {
    fn from((address, length): (IpAddr, u8)) -> Self {
        let mapped = if address.is_ipv4() { 96 } else { 0 };
        Self { prefixlen: u32::from(length) + mapped, addr: address.into() }
    }
}

impl From<NodeKey> for (IpAddr, u8) {
    fn from(key: NodeKey) -> Self {
        let address = IpAddr::from(key.addr);
        let mapped = if address.is_ipv4() { 96 } else { 0 };
        (address, key.prefixlen.saturating_sub(mapped) as u8)
    }
}
