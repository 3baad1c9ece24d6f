//! Flows, and what the first fragment of a datagram said.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Addr;

/// Flow was allowed as the own node's.
pub const FLOW_BY_OWN_NODE: u8 = 1;
/// DNAT entry: the key is (pod, service address), `other` the backend.
pub const FLOW_DNAT: u8 = 8;
/// Reverse-NAT entry: the key is (pod, backend), `other` the service address.
pub const FLOW_REVNAT: u8 = 16;
/// With [`FLOW_DNAT`]: the backend is the pod itself.
pub const FLOW_HAIRPIN: u8 = 32;
/// Translated by kube-proxy; policy is evaluated with `other` as the peer.
pub const FLOW_EXTERNAL_NAT: u8 = 64;
/// Written by user space; its next packet assigns it a slot.
pub const FLOW_NO_SLOT: u8 = 128;

c_enum! {
    /// How far a flow is (`enum pg_flow_state`).
    FlowState: u8 {
        /// Only its opener has spoken.
        New = 0 => "new",
        /// Both ends have.
        Established = 1 => "established",
        /// TCP: one end has sent FIN.
        Closing = 2 => "closing",
        /// TCP: both have, or one RST.
        Closed = 3 => "closed",
        /// Policy no longer allows it.
        Revoked = 4 => "cut",
    }
}

mirror! {
    /// `struct pg_flow4_key`.
    Flow4Key {
        /// Host veth.
        ifindex: u32,
        /// Pod's side, network order.
        pod: [u8; 4],
        /// Peer's side.
        peer: [u8; 4],
        /// Network order; identifier of an echo; 0 without ports.
        pod_port: [u8; 2],
        /// Network order.
        peer_port: [u8; 2],
        /// IP protocol.
        protocol: u8,
        /// `enum pg_flow_kind`.
        kind: u8,
        /// Zero.
        pad: [u8; 2],
    }
}

mirror! {
    /// `struct pg_flow6_key`.
    Flow6Key {
        /// Host veth.
        ifindex: u32,
        /// Pod's side.
        pod: Addr,
        /// Peer's side.
        peer: Addr,
        /// Network order; identifier of an echo; 0 without ports.
        pod_port: [u8; 2],
        /// Network order.
        peer_port: [u8; 2],
        /// IP protocol.
        protocol: u8,
        /// `enum pg_flow_kind`.
        kind: u8,
        /// Zero.
        pad: [u8; 2],
    }
}

mirror! {
    /// `struct pg_flow`.
    Flow {
        /// Of its last evaluation.
        epoch: u32,
        /// Coarse seconds.
        expires: u32,
        /// The endpoint's.
        owner: u32,
        /// That allowed it.
        rule: u32,
        /// [`Direction`] of its first packet.
        direction: u8,
        /// `enum pg_flow_state`.
        state: u8,
        /// `FLOW_*`.
        flags: u8,
        /// Of a metered pod: the number of its traffic rule; 0: none.
        traffic_rule: u8,
        /// Peer of the other entry of the pair, if a NAT flag is set.
        other: Addr,
        /// Network order.
        other_port: [u8; 2],
        /// The pod's port in the other entry of the pair; network order.
        own_port: [u8; 2],
        /// With [`FLOW_REVNAT`]: the port from which what the pod sends to the endpoint itself leaves; 0: none. Network
        /// order.
        direct_port: [u8; 2],
        /// Of a metered pod; 1: it is one of the open connections of [`crate::abi::Meter`].
        counted: u8,
        /// Of a metered pod: [`crate::abi::Scope`] of its peer.
        scope: u8,
    }
}

mirror! {
    /// `struct pg_flow_slot_key`: a place in an endpoint's ring; the value is a flow's key.
    FlowSlotKey {
        /// The endpoint's.
        owner: u32,
        /// From 0 to below the ring's `high`.
        index: u32,
    }
}

mirror! {
    /// `struct pg_ring`: the slots of one endpoint and family.
    Ring {
        /// How many slots it has.
        high: u32,
        /// The slot that is looked at next.
        hand: u32,
        /// The slot that was given to a flow last.
        last: u32,
        /// 0: the last look at the hand's slot met no live flow. Else one more than the slots by which the ring still grows
        /// before the next look.
        steps: u32,
        /// Live flows that made room for others of the endpoint.
        evicted: u64,
    }
}

mirror! {
    /// `struct pg_share`: what an endpoint has of what there is only so much of for all.
    Share {
        /// `struct bpf_spin_lock`: the kernel's.
        lock: u32,
        /// The endpoint's.
        owner: u32,
        /// IPv4, IPv6.
        rings: [Ring; 2],
        /// Events that the rate limit held back.
        events_held: u64,
        /// Events that it may raise now, beside the shared limit.
        event_tokens: u32,
        /// Coarse seconds.
        event_second: u32,
        /// When a revoked connection was last evicted, coarse seconds; 0: never.
        cut_evicted: u32,
        /// Answers to denied packets: the second's lower 24 bits, and how many in it (8 bits).
        answers: u32,
    }
}

mirror! {
    /// `struct pg_flow_use`.
    FlowUse {
        /// Slots of all rings of a family.
        slots: u64,
    }
}

mirror! {
    /// `struct pg_frag_key`.
    FragKey {
        /// Host veth.
        ifindex: u32,
        /// Datagram's identification.
        id: u32,
        /// As in the packet.
        source: Addr,
        /// As in the packet.
        destination: Addr,
        /// IP protocol.
        protocol: u8,
        /// [`Direction`].
        direction: u8,
        /// Zero.
        pad: [u8; 2],
    }
}

mirror! {
    /// `struct pg_frag`.
    Frag {
        /// Coarse seconds.
        expires: u32,
        /// Network order.
        pod_port: [u8; 2],
        /// Network order.
        peer_port: [u8; 2],
        /// `enum pg_flow_kind`.
        kind: u8,
        /// [`Verdict`].
        verdict: u8,
        /// IP protocol.
        protocol: u8,
        /// `FLOW_DNAT`, `FLOW_REVNAT`, `FLOW_HAIRPIN`: it is translated.
        flags: u8,
        /// As in [`Flow`].
        other: Addr,
        /// As in [`Flow`].
        other_port: [u8; 2],
        /// As in [`Flow`].
        own_port: [u8; 2],
        /// Of the first fragment's verdict.
        epoch: u32,
        /// Not 0: the first fragment was denied, and passed because of the mode.
        refused: u8,
        /// `enum pg_origin`.
        origin: u8,
        /// Zero.
        pad: [u8; 2],
    }
}

mirror! {
    /// `struct pg_expect_key`.
    ExpectKey {
        /// Host veth.
        ifindex: u32,
        /// Who may answer.
        peer: Addr,
        /// IP protocol.
        protocol: u8,
        /// `enum pg_expect_kind`.
        kind: u8,
        /// Zero.
        pad: [u8; 2],
    }
}

mirror! {
    /// `struct pg_expect`.
    Expect {
        /// The endpoint's.
        owner: u32,
        /// Coarse seconds.
        expires: u32,
        /// The service through which the pod asked; `::` if none.
        service: Addr,
    }
}
