//! Services, their endpoints, and the clients that keep theirs.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Addr;

c_enum! {
    /// What becomes of a service's endpoint (`enum pg_backend_state`).
    BackendState: u32 {
        /// May be picked for new flows.
        Ready = 1 => "ready",
        /// Keeps the flows it has, is not picked.
        Serving = 2 => "serving",
    }
}

mirror! {
    /// `struct pg_service4_key`.
    Service4Key {
        /// Network order.
        addr: [u8; 4],
        /// Network order.
        port: [u8; 2],
        /// IP protocol.
        protocol: u8,
        /// Zero.
        pad: u8,
    }
}

mirror! {
    /// `struct pg_service6_key`.
    Service6Key {
        /// Network order.
        addr: Addr,
        /// Network order.
        port: [u8; 2],
        /// IP protocol.
        protocol: u8,
        /// Zero.
        pad: u8,
    }
}

mirror! {
    /// `struct pg_service`.
    ServiceValue {
        /// Not 0.
        id: u32,
        /// Slots that may be picked.
        count: u32,
        /// 0: none.
        affinity_seconds: u32,
        /// The number in the `affinity` map, shared by the addresses of a service port; 0: `id`.
        affinity: u32,
    }
}

mirror! {
    /// `struct pg_slot_key`.
    SlotKey {
        /// The service's number.
        service: u32,
        /// From 0.
        slot: u32,
    }
}

mirror! {
    /// `struct pg_backend`.
    BackendRecord {
        /// IPv4 is mapped.
        addr: Addr,
        /// Network order.
        port: [u8; 2],
        /// Zero.
        pad: [u8; 2],
    }
}

mirror! {
    /// `struct pg_backend_key`.
    BackendKey {
        /// The service's number.
        service: u32,
        /// IPv4 is mapped.
        addr: Addr,
        /// Network order.
        port: [u8; 2],
        /// Zero.
        pad: [u8; 2],
    }
}

mirror! {
    /// `struct pg_backend_value`.
    BackendValue {
        /// [`BackendState`].
        state: u32,
    }
}

mirror! {
    /// `struct pg_affinity_key`.
    AffinityKey {
        /// The `affinity` of a [`ServiceValue`], or its `id` where that is 0.
        service: u32,
        /// The pod's address; IPv4 is mapped.
        client: Addr,
    }
}

mirror! {
    /// `struct pg_affinity`.
    AffinityValue {
        /// The endpoint's.
        addr: Addr,
        /// Network order.
        port: [u8; 2],
        /// Zero.
        pad: [u8; 2],
        /// Coarse seconds.
        seen: u32,
    }
}
