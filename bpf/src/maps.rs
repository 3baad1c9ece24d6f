//! Typed access to every pinned map. `c/maps.h` says who may write which.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, libbpf_sys};
use zerocopy::IntoBytes;

use crate::abi::{
    Addr, ClassValue, ControlRecord, Counter, EndpointRecord, Expect, ExpectKey, Frag, FragKey,
    Net4Key, Net6Key, NodeAddr, NodeKey, Peer4Key, Peer6Key, PolicyKey, PolicyValue, Startup,
};
pub use crate::control::{CommitSteps, Control, Counters};
use crate::flow_table::FlowTable;
use crate::limits::LimitMaps;
pub use crate::policy_map::PolicyMap;
pub use crate::registration::{PodRef, Registration};
use crate::services::ServiceMaps;
use crate::sys::{SharedControl, SharedSteps};
use crate::typed_map::{PinnedMap, TypedMap, errno, write_error, wrote};
use crate::{Error, PinRoot, Result, sys};
use podgate_contract::handshake::EndpointRef;

/// Most entries one endpoint's policy map may hold; it grows as needed, so the bound costs nothing.
pub const POLICY_MAP_MAX: u32 = 1 << 20;

/// A prefix: address and length.
pub type Net = (IpAddr, u8);

/// The prefix that holds one address only.
pub fn host_net(address: IpAddr) -> Net {
    (address, if address.is_ipv4() { 32 } else { 128 })
}

/// All pinned maps.
#[derive(Debug)]
pub struct Maps {
    endpoints: TypedMap<u32, EndpointRecord>,
    policies: PinnedMap,
    peers4: TypedMap<Peer4Key, ClassValue>,
    peers6: TypedMap<Peer6Key, ClassValue>,
    nets4: TypedMap<Net4Key, ClassValue>,
    nets6: TypedMap<Net6Key, ClassValue>,
    node_addrs: TypedMap<NodeKey, NodeAddr>,
    flow_table: FlowTable,
    frags: TypedMap<FragKey, Frag>,
    expected: TypedMap<ExpectKey, Expect>,
    services: ServiceMaps,
    limits: LimitMaps,
    counters: PinnedMap,
    events: PinnedMap,
    previous: PinnedMap,
    control: Control,
    commit_step_map: PinnedMap,
    commit_steps: OnceLock<Arc<CommitSteps>>,
}

/// The pinned maps, by the names they have in `c/maps.h` and under the pin root.
pub(crate) const PINNED: &[&str] = &[
    "endpoints",
    "policies",
    "peers4",
    "peers6",
    "nets4",
    "nets6",
    "node_addrs",
    "flows4",
    "flows6",
    "flow_slots4",
    "flow_slots6",
    "shares",
    "flow_use",
    "frags",
    "expected",
    "services4",
    "services6",
    "slots",
    "backends",
    "affinity",
    "counters",
    "control",
    "commit_steps",
    "events",
    "previous",
    "limits",
    "meters",
    "traffic",
    "scopes",
    "accounts",
];

impl Maps {
    /// All of them, none opened yet but the one that is mapped into memory.
    pub(crate) fn pinned(root: &PinRoot) -> Result<Self> {
        const WORD: usize = size_of::<u32>();
        let pin = |name, kind, key, value| PinnedMap::new(root, name, kind, key, value);
        let control = pin("control", MapType::Array, WORD, size_of::<ControlRecord>());
        let shared = SharedControl::map(control.handle()?.as_fd())
            .map_err(|e| Error::io("map into memory", "control", e))?;
        Ok(Self {
            endpoints: TypedMap::pinned(root, "endpoints", MapType::Hash),
            policies: pin("policies", MapType::HashOfMaps, WORD, WORD),
            peers4: TypedMap::pinned(root, "peers4", MapType::Hash),
            peers6: TypedMap::pinned(root, "peers6", MapType::Hash),
            nets4: TypedMap::pinned(root, "nets4", MapType::LpmTrie),
            nets6: TypedMap::pinned(root, "nets6", MapType::LpmTrie),
            node_addrs: TypedMap::pinned(root, "node_addrs", MapType::LpmTrie),
            flow_table: FlowTable::pinned(root),
            frags: TypedMap::pinned(root, "frags", MapType::LruHash),
            expected: TypedMap::pinned(root, "expected", MapType::LruHash),
            services: ServiceMaps::pinned(root),
            limits: LimitMaps::pinned(root),
            counters: pin("counters", MapType::PercpuArray, WORD, size_of::<Counter>()),
            events: pin("events", MapType::RingBuf, 0, 0),
            previous: pin("previous", MapType::ProgArray, WORD, WORD),
            control: Control::new(shared),
            commit_step_map: pin("commit_steps", MapType::Array, WORD, WORD),
            commit_steps: OnceLock::new(),
        })
    }

    /// Opens every map: the programs and this build must agree on each, also on those that user space does not read.
    pub(crate) fn open_all(&self) -> Result<()> {
        self.endpoints.handle()?;
        self.policies.handle()?;
        self.peers4.handle()?;
        self.peers6.handle()?;
        self.nets4.handle()?;
        self.nets6.handle()?;
        self.node_addrs.handle()?;
        self.flow_table.open_all()?;
        self.frags.handle()?;
        self.expected.handle()?;
        self.services.open_all()?;
        self.limits.open_all()?;
        self.counters.handle()?;
        self.events.handle()?;
        self.commit_step_map.handle()?;
        self.previous.handle().map(drop)
    }

    /// Puts the programs of another layout, by direction, into the map `previous`, from which they are called; `None`
    /// empties it.
    pub(crate) fn set_previous(&self, programs: Option<[BorrowedFd<'_>; 2]>) -> Result<()> {
        let map = self.previous.handle()?;
        for slot in 0..2_u32 {
            let key = slot.as_bytes();
            let done = match &programs {
                Some(programs) => {
                    let program = programs[slot as usize].as_raw_fd();
                    map.update(key, program.as_bytes(), MapFlags::ANY)
                }
                None => map.delete(key),
            };
            match done.map_err(|e| errno(&e)) {
                Err(e) if e.raw_os_error() != Some(nix::libc::ENOENT) => {
                    return Err(Error::io("write map", "previous", e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The epoch and the switches.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The count of the steps of commits. Each write of a class or a policy map counts itself.
    pub fn commit_steps(&self) -> Result<&Arc<CommitSteps>> {
        if let Some(steps) = self.commit_steps.get() {
            return Ok(steps);
        }
        let shared = SharedSteps::map(self.commit_step_map.handle()?.as_fd())
            .map_err(|e| Error::io("map into memory", "commit_steps", e))?;
        Ok(self.commit_steps.get_or_init(|| Arc::new(CommitSteps::new(shared))))
    }

    fn count_step(&self) -> Result<()> {
        self.commit_steps().map(|steps| steps.count())
    }

    /// Services and their endpoints.
    pub fn services(&self) -> &ServiceMaps {
        &self.services
    }

    /// What metered pods may use, and how much of it they do.
    pub fn limits(&self) -> &LimitMaps {
        &self.limits
    }

    /// Flows, and what each endpoint has of their tables.
    pub fn flow_table(&self) -> &FlowTable {
        &self.flow_table
    }

    /// Reads all counters.
    pub fn counters(&self) -> Result<Counters> {
        Counters::read(self.counters.handle()?)
    }

    pub(crate) fn events(&self) -> Result<&MapHandle> {
        self.events.handle()
    }

    /// Writes a registration. Bumps the epoch: flows that an earlier pod of this ifindex left are then
    /// compared with the new owner before they serve anybody.
    pub fn register(&self, registration: &Registration) -> Result<()> {
        // One left of an earlier pod would match nothing, which is not what "open" means.
        if self.policy_map_id(registration.ifindex)?.is_some() {
            self.remove_policy_maps(&[registration.ifindex])?;
        }
        if let Some(earlier) = self.registration(registration.ifindex)?
            && earlier.owner != registration.owner
        {
            self.limits.remove_endpoint(registration.ifindex, earlier.owner)?;
        }
        self.endpoints.set(&registration.ifindex, &registration.to_record()?)?;
        self.flow_table.open_share(registration.ifindex, registration.owner)?;
        self.control.bump_epoch();
        Ok(())
    }

    /// As [`Maps::register`], unless the interface is registered already; says whether it did.
    pub fn register_new(&self, registration: &Registration) -> Result<bool> {
        if self.registration(registration.ifindex)?.is_some() {
            return Ok(false);
        }
        // as there: of an earlier pod, and nothing that is added now may be in it
        if self.policy_map_id(registration.ifindex)?.is_some() {
            self.remove_policy_maps(&[registration.ifindex])?;
        }
        let added = self.endpoints.add(&registration.ifindex, &registration.to_record()?)?;
        if added {
            self.flow_table.open_share(registration.ifindex, registration.owner)?;
        }
        self.control.bump_epoch();
        Ok(added)
    }

    /// Changes the startup state of a registration, from the next packet on, and has every flow revalidated. False if
    /// the interface has no registration, or that of another owner.
    pub fn set_startup(&self, endpoint: EndpointRef, startup: Startup) -> Result<bool> {
        let Some(mut record) = self.endpoints.get(&endpoint.ifindex)? else { return Ok(false) };
        if record.owner != endpoint.owner {
            return Ok(false);
        }
        record.startup = startup as u8;
        // one that was removed since must not come back
        let changed = self.endpoints.change(&endpoint.ifindex, &record)?;
        self.control.bump_epoch();
        Ok(changed)
    }

    /// The registration of an interface.
    pub fn registration(&self, ifindex: u32) -> Result<Option<Registration>> {
        Ok(self.endpoints.get(&ifindex)?.map(|record| Registration::from_record(ifindex, &record)))
    }

    /// All registrations.
    pub fn registrations(&self) -> Result<Vec<Registration>> {
        let entries = self.endpoints.entries()?;
        Ok(entries
            .iter()
            .map(|(ifindex, record)| Registration::from_record(*ifindex, record))
            .collect())
    }

    /// Removes a registration, the policy map, the flows, and what is known of its limits. An interface that still has its
    /// gate then passes nothing.
    pub fn unregister(&self, ifindex: u32) -> Result<()> {
        // before the registration, which alone says whose they are, also to a process that finishes what another began
        if let Some(registration) = self.registration(ifindex)? {
            self.limits.remove_endpoint(ifindex, registration.owner)?;
        }
        self.endpoints.remove(&ifindex)?;
        self.remove_policy_maps(&[ifindex])?;
        self.flow_table.close_share(ifindex)?;
        self.control.bump_epoch();
        Ok(())
    }

    /// Prefixes whose addresses count as the node's own.
    pub fn node_nets(&self) -> Result<BTreeSet<Net>> {
        Ok(self.node_addrs.keys()?.into_iter().map(Net::from).collect())
    }

    /// The node's own addresses, without those of shorter prefixes.
    pub fn node_addrs(&self) -> Result<BTreeSet<IpAddr>> {
        let keys = self.node_addrs.keys()?.into_iter();
        Ok(keys.filter(|key| key.prefixlen == 128).map(|key| key.addr.into()).collect())
    }

    /// Whether an address counts as the node's own, by itself or by a prefix.
    pub fn is_node_addr(&self, address: IpAddr) -> Result<bool> {
        self.node_addrs.get(&NodeKey::from(host_net(address))).map(|found| found.is_some())
    }

    /// Adds an address of the node.
    pub fn add_node_addr(&self, address: IpAddr) -> Result<()> {
        self.add_node_net(host_net(address))
    }

    /// Removes an address of the node.
    pub fn remove_node_addr(&self, address: IpAddr) -> Result<()> {
        self.remove_node_net(host_net(address))
    }

    /// Has every address of a prefix count as the node's own.
    pub fn add_node_net(&self, net: Net) -> Result<()> {
        self.node_addrs.set(&NodeKey::from(net), &NodeAddr { pad: 0 })
    }

    /// Takes that back.
    pub fn remove_node_net(&self, net: Net) -> Result<()> {
        self.node_addrs.remove(&NodeKey::from(net)).map(drop)
    }

    /// Sets the class of an exact address.
    pub fn set_peer(&self, address: IpAddr, class: u32) -> Result<()> {
        let value = ClassValue { class };
        match address {
            IpAddr::V4(ip) => self.peers4.set(&Peer4Key::new(ip), &value),
            IpAddr::V6(_) => self.peers6.set(&Peer6Key { addr: address.into() }, &value),
        }?;
        self.count_step()
    }

    /// Forgets the class of an exact address.
    pub fn remove_peer(&self, address: IpAddr) -> Result<()> {
        match address {
            IpAddr::V4(ip) => self.peers4.remove(&Peer4Key::new(ip)),
            IpAddr::V6(_) => self.peers6.remove(&Peer6Key { addr: address.into() }),
        }?;
        self.count_step()
    }

    /// The class of one exact address, if it has any.
    pub fn peer(&self, address: IpAddr) -> Result<Option<u32>> {
        let value = match address {
            IpAddr::V4(ip) => self.peers4.get(&Peer4Key::new(ip)),
            IpAddr::V6(_) => self.peers6.get(&Peer6Key { addr: address.into() }),
        };
        Ok(value?.map(|value| value.class))
    }

    /// All exact addresses and their classes.
    pub fn peers(&self) -> Result<BTreeMap<IpAddr, u32>> {
        let v4 = self
            .peers4
            .entries()?
            .into_iter()
            .map(|(key, value)| (IpAddr::from(key.addr), value.class));
        let v6 =
            self.peers6.entries()?.into_iter().map(|(key, value)| (v6_of(key.addr), value.class));
        Ok(v4.chain(v6).collect())
    }

    /// Sets the class of a prefix.
    pub fn set_net(&self, net: Net, class: u32) -> Result<()> {
        let value = ClassValue { class };
        let prefixlen = net.1.into();
        match net.0 {
            IpAddr::V4(ip) => self.nets4.set(&Net4Key { prefixlen, addr: ip.octets() }, &value),
            IpAddr::V6(_) => self.nets6.set(&Net6Key { prefixlen, addr: net.0.into() }, &value),
        }?;
        self.count_step()
    }

    /// Forgets a prefix.
    pub fn remove_net(&self, net: Net) -> Result<()> {
        let prefixlen = net.1.into();
        match net.0 {
            IpAddr::V4(ip) => self.nets4.remove(&Net4Key { prefixlen, addr: ip.octets() }),
            IpAddr::V6(_) => self.nets6.remove(&Net6Key { prefixlen, addr: net.0.into() }),
        }?;
        self.count_step()
    }

    /// All prefixes and their classes.
    pub fn nets(&self) -> Result<BTreeMap<Net, u32>> {
        let v4 = self
            .nets4
            .entries()?
            .into_iter()
            .map(|(key, value)| ((IpAddr::from(key.addr), key.prefixlen as u8), value.class));
        let v6 = self
            .nets6
            .entries()?
            .into_iter()
            .map(|(key, value)| ((v6_of(key.addr), key.prefixlen as u8), value.class));
        Ok(v4.chain(v6).collect())
    }

    /// Makes and fills a policy map that no packet meets yet.
    pub fn new_policy_map(&self, entries: &[(PolicyKey, PolicyValue)]) -> Result<PolicyMap> {
        let opts = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            map_flags: libbpf_sys::BPF_F_NO_PREALLOC,
            ..Default::default()
        };
        let handle = MapHandle::create(
            MapType::LpmTrie,
            Some("pg_policy"),
            size_of::<PolicyKey>() as u32,
            size_of::<PolicyValue>() as u32,
            POLICY_MAP_MAX,
            &opts,
        )
        .map_err(|e| Error::io("create", "policy map", errno(&e)))?;
        let map = PolicyMap::new(handle, self.commit_steps()?.clone());
        map.fill(entries)?;
        Ok(map)
    }

    /// Puts policy maps in force, each atomically in place of its endpoint's earlier one. The batch waits
    /// for one RCU grace period (about 10 ms), however many there are; each waits for its own before kernel 5.19.
    pub fn install_policy_maps(&self, maps: &[(u32, &PolicyMap)]) -> Result<()> {
        self.put_in_force(maps)?;
        self.count_step()
    }

    fn put_in_force(&self, maps: &[(u32, &PolicyMap)]) -> Result<()> {
        // features::Feature::NestedBatches
        match maps {
            [] => return Ok(()),
            [(ifindex, map)] => return self.install_policy_map(*ifindex, map),
            _ => {}
        }
        let keys: Vec<u8> = maps.iter().flat_map(|(ifindex, _)| ifindex.to_ne_bytes()).collect();
        let mut fds: Vec<u8> = Vec::with_capacity(maps.len() * size_of::<i32>());
        for (_, map) in maps {
            fds.extend(map.handle()?.as_fd().as_raw_fd().to_ne_bytes());
        }
        let policies = self.policies.handle()?;
        let done =
            policies.update_batch(&keys, &fds, maps.len() as u32, MapFlags::ANY, MapFlags::ANY);
        match done {
            Ok(()) => {
                keys.chunks(size_of::<u32>()).for_each(|key| wrote("policies", "set", key));
                Ok(())
            }
            Err(e) if errno(&e).raw_os_error() == Some(sys::ENOTSUPP) => {
                maps.iter().try_for_each(|(ifindex, map)| self.install_policy_map(*ifindex, map))
            }
            Err(e) => Err(write_error("policies", policies.max_entries(), &e)),
        }
    }

    fn install_policy_map(&self, ifindex: u32, map: &PolicyMap) -> Result<()> {
        let fd = map.handle()?.as_fd().as_raw_fd();
        let policies = self.policies.handle()?;
        policies
            .update(&ifindex.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
            .map(|()| wrote("policies", "set", ifindex.as_bytes()))
            .map_err(|e| write_error("policies", policies.max_entries(), &e))
    }

    /// Takes policy maps out of force; missing ones are fine.
    pub fn remove_policy_maps(&self, ifindexes: &[u32]) -> Result<()> {
        for ifindex in ifindexes {
            match self.policies.handle()?.delete(ifindex.as_bytes()).map_err(|e| errno(&e)) {
                Ok(()) => wrote("policies", "remove", ifindex.as_bytes()),
                Err(cause) if cause.raw_os_error() == Some(nix::libc::ENOENT) => {}
                Err(cause) => return Err(Error::io("write map", "policies", cause)),
            }
        }
        Ok(())
    }

    /// The kernel's number of the policy map in force at an interface.
    fn policy_map_id(&self, ifindex: u32) -> Result<Option<u32>> {
        let mut id = 0_u32;
        let found = self
            .policies
            .handle()?
            .lookup_into(ifindex.as_bytes(), id.as_mut_bytes(), MapFlags::ANY)
            .map_err(|e| Error::io("read map", "policies", errno(&e)))?;
        Ok(found.then_some(id))
    }

    /// Reopens the policy map in force at an interface.
    pub fn policy_map(&self, ifindex: u32) -> Result<Option<PolicyMap>> {
        let Some(id) = self.policy_map_id(ifindex)? else { return Ok(None) };
        match MapHandle::from_map_id(id).map_err(|e| errno(&e)) {
            Ok(handle) => Ok(Some(PolicyMap::new(handle, self.commit_steps()?.clone()))),
            // It was replaced or removed since.
            Err(cause) if cause.raw_os_error() == Some(nix::libc::ENOENT) => Ok(None),
            Err(cause) => {
                Err(Error::io("open", format!("policy map of interface {ifindex}"), cause))
            }
        }
    }

    /// The interfaces that have a policy map.
    pub fn installed_policy_maps(&self) -> Result<Vec<u32>> {
        Ok(self
            .policies
            .handle()?
            .keys()
            .filter_map(|key| key.try_into().ok().map(u32::from_ne_bytes))
            .collect())
    }
}

/// Keys of the v6 maps are v6, also where the bytes look like a mapped IPv4 address.
fn v6_of(addr: Addr) -> IpAddr {
    IpAddr::V6(addr.bytes.into())
}
