//! The maps of services: service addresses and their backends.
//!
//! Every method is one operation on one map (the batches are many of the same kind). `services4` in `c/abi.h` says in
//! which order they are safe at each moment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use libbpf_rs::MapType;

use crate::abi::{
    AffinityKey, AffinityValue, BackendKey, BackendRecord, BackendState, BackendValue, Service4Key,
    Service6Key, ServiceValue, SlotKey,
};
use crate::typed_map::TypedMap;
use crate::{PinRoot, Result};

/// Where a service listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Cluster IP, external IP or load balancer's address.
    pub address: IpAddr,
    /// The service's port.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
}

/// One endpoint of a service; of the frontend's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Usually a pod's.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
}

/// What the programs know of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceEntry {
    /// Of this frontend alone; not 0.
    pub id: u32,
    /// Slots that may be picked, from 0; not 0.
    pub count: u32,
    /// Whether a client keeps its endpoint.
    pub affinity: Option<Affinity>,
}

/// Session affinity: a client keeps its endpoint while that one may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// For how long after the client's last new flow, in the programs' coarse seconds.
    pub seconds: NonZeroU32,
    /// The number under which the programs remember clients' endpoints. Frontends with the same number share what is
    /// remembered. `None`: the frontend's own id, as in the entries of an older policyd.
    pub number: Option<NonZeroU32>,
}

impl From<Backend> for BackendRecord {
    fn from(backend: Backend) -> Self {
        Self { addr: backend.address.into(), port: backend.port.to_be_bytes(), pad: [0; 2] }
    }
}

impl From<BackendRecord> for Backend {
    fn from(record: BackendRecord) -> Self {
        Self { address: record.addr.into(), port: u16::from_be_bytes(record.port) }
    }
}

impl From<ServiceEntry> for ServiceValue {
    fn from(entry: ServiceEntry) -> Self {
        let ServiceEntry { id, count, affinity } = entry;
        let affinity_seconds = affinity.map_or(0, |of| of.seconds.get());
        let number = affinity.and_then(|of| of.number);
        Self { id, count, affinity_seconds, affinity: number.map_or(0, NonZeroU32::get) }
    }
}

impl From<ServiceValue> for ServiceEntry {
    fn from(value: ServiceValue) -> Self {
        let ServiceValue { id, count, affinity_seconds, affinity } = value;
        let affinity = NonZeroU32::new(affinity_seconds)
            .map(|seconds| Affinity { seconds, number: NonZeroU32::new(affinity) });
        Self { id, count, affinity }
    }
}

fn backend_key(service: u32, backend: Backend) -> BackendKey {
    let BackendRecord { addr, port, pad } = backend.into();
    BackendKey { service, addr, port, pad }
}

/// A frontend's key in the map of its family.
enum Key {
    V4(Service4Key),
    V6(Service6Key),
}

impl From<&Frontend> for Key {
    fn from(frontend: &Frontend) -> Self {
        let Frontend { address, port, protocol } = *frontend;
        let port = port.to_be_bytes();
        match address {
            IpAddr::V4(ip) => Self::V4(Service4Key { addr: ip.octets(), port, protocol, pad: 0 }),
            IpAddr::V6(_) => Self::V6(Service6Key { addr: address.into(), port, protocol, pad: 0 }),
        }
    }
}

/// The maps. Their only writer is policyd's writer thread.
#[derive(Debug)]
pub struct ServiceMaps {
    services4: TypedMap<Service4Key, ServiceValue>,
    services6: TypedMap<Service6Key, ServiceValue>,
    slots: TypedMap<SlotKey, BackendRecord>,
    backends: TypedMap<BackendKey, BackendValue>,
    /// Read by the programs alone.
    affinity: TypedMap<AffinityKey, AffinityValue>,
}

impl ServiceMaps {
    pub(crate) fn pinned(root: &PinRoot) -> Self {
        Self {
            services4: TypedMap::pinned(root, "services4", MapType::Hash),
            services6: TypedMap::pinned(root, "services6", MapType::Hash),
            slots: TypedMap::pinned(root, "slots", MapType::Hash),
            backends: TypedMap::pinned(root, "backends", MapType::Hash),
            affinity: TypedMap::pinned(root, "affinity", MapType::LruHash),
        }
    }

    pub(crate) fn open_all(&self) -> Result<()> {
        self.services4.handle()?;
        self.services6.handle()?;
        self.slots.handle()?;
        self.backends.handle()?;
        self.affinity.handle().map(drop)
    }

    /// Adds or changes a frontend. Every slot below `entry.count` must hold a backend by now.
    pub fn set_service(&self, frontend: &Frontend, entry: ServiceEntry) -> Result<()> {
        match Key::from(frontend) {
            Key::V4(key) => self.services4.set(&key, &entry.into()),
            Key::V6(key) => self.services6.set(&key, &entry.into()),
        }
    }

    /// Removes a frontend: its packets are left alone from now on. A missing one is fine.
    pub fn remove_service(&self, frontend: &Frontend) -> Result<()> {
        match Key::from(frontend) {
            Key::V4(key) => self.services4.remove(&key),
            Key::V6(key) => self.services6.remove(&key),
        }
        .map(drop)
    }

    /// All frontends.
    pub fn services(&self) -> Result<BTreeMap<Frontend, ServiceEntry>> {
        let v4 = self.services4.entries()?.into_iter().map(|(key, value)| {
            let Service4Key { addr, port, protocol, pad: _ } = key;
            (frontend(addr.into(), port, protocol), value.into())
        });
        let v6 = self.services6.entries()?.into_iter().map(|(key, value)| {
            let Service6Key { addr, port, protocol, pad: _ } = key;
            // keys of the v6 map are v6, also where the bytes look like a mapped IPv4 address
            (frontend(IpAddr::V6(addr.bytes.into()), port, protocol), value.into())
        });
        Ok(v4.chain(v6).collect())
    }

    /// Puts a backend into a slot.
    pub fn set_slot(&self, service: u32, slot: u32, backend: Backend) -> Result<()> {
        self.slots.set(&SlotKey { service, slot }, &backend.into())
    }

    /// As [`ServiceMaps::set_slot`], many at once: service, slot, backend. If it fails, some may be written.
    pub fn set_slots(&self, slots: &[(u32, u32, Backend)]) -> Result<()> {
        let entry = |&(service, slot, backend): &(u32, u32, Backend)| {
            (SlotKey { service, slot }, backend.into())
        };
        self.slots.set_all(slots.iter().map(entry))
    }

    /// Empties a slot that no frontend counts any more. A missing one is fine.
    pub fn remove_slot(&self, service: u32, slot: u32) -> Result<()> {
        self.slots.remove(&SlotKey { service, slot }).map(drop)
    }

    /// All slots, by service and number.
    pub fn slots(&self) -> Result<BTreeMap<(u32, u32), Backend>> {
        let entries = self.slots.entries()?.into_iter();
        Ok(entries.map(|(key, record)| ((key.service, key.slot), record.into())).collect())
    }

    /// Adds a backend or changes its state.
    pub fn set_backend(&self, service: u32, backend: Backend, state: BackendState) -> Result<()> {
        let value = BackendValue { state: state as u32 };
        self.backends.set(&backend_key(service, backend), &value)
    }

    /// As [`ServiceMaps::set_backend`], many at once. If it fails, some may be written.
    pub fn set_backends(&self, backends: &[(u32, Backend, BackendState)]) -> Result<()> {
        let entry = |&(service, backend, state): &(u32, Backend, BackendState)| {
            (backend_key(service, backend), BackendValue { state: state as u32 })
        };
        self.backends.set_all(backends.iter().map(entry))
    }

    /// Forgets a backend: datagram flows to it move to another at their next packet after the epoch's. A missing one
    /// is fine.
    pub fn remove_backend(&self, service: u32, backend: Backend) -> Result<()> {
        self.backends.remove(&backend_key(service, backend)).map(drop)
    }

    /// All backends, by service. A state that this build does not know is left out.
    pub fn backends(&self) -> Result<BTreeMap<(u32, Backend), BackendState>> {
        let entries = self.backends.entries()?.into_iter();
        let known = entries.filter_map(|(key, value)| {
            let BackendKey { service, addr, port, pad } = key;
            let state = BackendState::from_number(value.state)?;
            Some(((service, BackendRecord { addr, port, pad }.into()), state))
        });
        Ok(known.collect())
    }
}

fn frontend(address: IpAddr, port: [u8; 2], protocol: u8) -> Frontend {
    Frontend { address, port: u16::from_be_bytes(port), protocol }
}
