//! Taking pods over from another layout, under traffic: an upgrade, or a rollback.
//!
//! The other layout's maps are read by the names of their fields, so that any two builds that have this code can take
//! pods over from each other, and from the first one, which had none. The other layout's programs need not know of
//! it. `c/handover.h` says what the programs do. The order, which a policyd that dies in between goes on with at step
//! 3:
//!
//! 1. [`Datapath::prepare_handover`]: the other programs are put into the map `previous`.
//! 2. Register in this layout, as [`Startup::Previous`]. The other gate stays attached.
//! 3. [`Datapath::replace_gate`]: this layout's programs replace the others, hook by hook, atomically. They call the
//!    others for every packet.
//! 4. The pod's policies are written here. The other programs still decide on every packet.
//! 5. [`Startup::Opening`]: new TCP connections are decided on here, by the new policies.
//! 6. [`Datapath::copy_flows`]: the flows of the other layout are copied, translated ones too.
//! 7. [`Startup::Remainder`]: everything is decided on here, and the other programs are called before a denial, for
//!    flows that began there during 6; [`Datapath::copy_flows`] then copies those.
//! 8. `hold` or `open`: the other programs are called no more.
//! 9. [`OtherLayout::forget`]; [`OtherLayout::remove`] when no pod is left there.
//!
//! At each moment one gate decides on a packet, by a complete policy.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::btf::Btf;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use podgate_contract::handshake::EndpointRef;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::abi::{EndpointRecord, FLOW_NO_SLOT, Flow, Flow4Key, Flow6Key, Mode, Startup};
use crate::attach::{AttachMode, Attached, HOOKS, open_route};
use crate::clock::coarse_now;
use crate::clsact::{filter, our_filters};
use crate::maps::Registration;
use crate::pins::{FROM_POD, TO_POD};
use crate::programs::Pair;
use crate::record::{Conversion, Number, StructLayout, conversion};
use crate::typed_map::errno;
use crate::{Datapath, Error, PinRoot, Result, sys};

impl Startup {
    /// Whether the pod is being taken over from another layout.
    pub fn is_handover(self) -> bool {
        matches!(self, Self::Previous | Self::Opening | Self::Remainder)
    }
}

/// The pinned maps and programs of another layout.
#[derive(Debug)]
pub struct OtherLayout {
    pins: PinRoot,
    /// By direction.
    programs: [OwnedFd; 2],
    /// Of all programs that may be at a gate: those of metered pods too, where that layout has loaded any.
    ids: Vec<u32>,
    contents: std::result::Result<Contents, String>,
}

#[derive(Debug)]
struct Contents {
    endpoints: MapHandle,
    endpoint: Conversion<EndpointRecord>,
    policies: MapHandle,
    control: MapHandle,
    mode: Number,
    flows4: Flows<Flow4Key>,
    flows6: Flows<Flow6Key>,
}

/// One of its two maps of flows.
#[derive(Debug)]
struct Flows<K> {
    map: MapHandle,
    ifindex: Number,
    owner: Number,
    key: Conversion<K>,
    flow: Conversion<Flow>,
}

/// Whose flows are copied: the number of the registration there, and the one here.
pub type Owners = BTreeMap<u32, (u32, u32)>;

impl OtherLayout {
    /// Opens every other layout that is there, by number. One without programs has no gate that can be recognized and is
    /// left out.
    pub fn all(root: &PinRoot) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for pins in root.others()? {
            match Self::open(&pins) {
                Ok(layout) => found.push(layout),
                Err(error) => {
                    tracing::warn!(layout = %pins.dir().display(), %error, "cannot open another layout");
                }
            }
        }
        Ok(found)
    }

    /// Opens one. What its maps hold may be unreadable all the same: then the methods that read it say so.
    pub fn open(pins: &PinRoot) -> Result<Self> {
        let program = |name| {
            let path = pins.path(name);
            sys::open_pin(&path).map_err(|e| Error::io("open pin", path.display().to_string(), e))
        };
        let programs = [program(FROM_POD)?, program(TO_POD)?];
        let id = |program: &OwnedFd| {
            sys::program_id(program.as_fd())
                .map_err(|e| Error::io("look at program of", pins.dir().display().to_string(), e))
        };
        let mut ids = vec![id(&programs[0])?, id(&programs[1])?];
        for name in Pair::Metered.names() {
            if let Ok(program) = program(name) {
                ids.push(id(&program)?);
            }
        }
        Ok(Self { contents: Contents::open(pins, ids[0]), pins: pins.clone(), programs, ids })
    }

    /// Where it is.
    pub fn pins(&self) -> &PinRoot {
        &self.pins
    }

    fn contents(&self) -> Result<&Contents> {
        self.contents.as_ref().map_err(|reason| self.fault(reason.clone()))
    }

    fn fault(&self, reason: String) -> Error {
        Error::Layout { dir: self.pins.dir(), reason }
    }

    /// The interfaces that are registered there.
    pub fn interfaces(&self) -> Result<Vec<u32>> {
        let keys = self.contents()?.endpoints.keys();
        Ok(keys.filter_map(|key| key.try_into().ok().map(u32::from_ne_bytes)).collect())
    }

    /// The registration of an interface there.
    pub fn registration(&self, ifindex: u32) -> Result<Option<Registration>> {
        let contents = self.contents()?;
        let found = contents
            .endpoints
            .lookup(ifindex.as_bytes(), MapFlags::ANY)
            .map_err(|e| self.fault(format!("read endpoints: {}", errno(&e))))?;
        let Some(bytes) = found else { return Ok(None) };
        let record = contents.endpoint.of(&bytes);
        let record = record.map_err(|e| self.fault(format!("interface {ifindex}: {e}")))?;
        Ok(Some(Registration::from_record(ifindex, &record)))
    }

    /// What a denial does there.
    pub fn mode(&self) -> Result<Mode> {
        let record = self.control()?;
        Ok(Mode::from_number(self.contents()?.mode.of(&record)).unwrap_or(Mode::Enforce))
    }

    /// Changes what a denial does there.
    pub fn set_mode(&self, mode: Mode) -> Result<()> {
        let contents = self.contents()?;
        let mut record = self.control()?;
        contents.mode.set(&mut record, mode as u32);
        contents.control.update(0_u32.as_bytes(), &record, MapFlags::ANY).map_err(|e| {
            Error::io("write map", self.pins.path("control").display().to_string(), errno(&e))
        })
    }

    fn control(&self) -> Result<Vec<u8>> {
        let found = self.contents()?.control.lookup(0_u32.as_bytes(), MapFlags::ANY);
        let found = found.map_err(|e| self.fault(format!("read control: {}", errno(&e))))?;
        found.ok_or_else(|| self.fault("control is empty".into()))
    }

    /// Whether one of its programs is at the interface.
    pub fn is_attached(&self, ifindex: u32) -> Result<bool> {
        let route = open_route(ifindex, "look at")?;
        let fault =
            |e: io::Error| Error::Attach { verb: "look at", ifindex, reason: e.to_string() };
        for hook in &HOOKS {
            match sys::tcx_programs(ifindex, hook.tcx) {
                Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => return Ok(false),
                programs => {
                    if programs.map_err(fault)?.iter().any(|id| self.ids.contains(id)) {
                        return Ok(true);
                    }
                }
            }
            for handle in our_filters(&route, ifindex, hook).map_err(fault)? {
                let mut standing = filter(self.programs[0].as_fd(), ifindex, hook, handle);
                if standing.query().is_ok_and(|id| self.ids.contains(&id)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Removes its programs from an interface, and the registration there. A gate of another layout stays.
    pub fn remove_endpoint(&self, endpoint: EndpointRef) -> Result<()> {
        let EndpointRef { ifindex, owner } = endpoint;
        if self.registration(ifindex)?.is_some_and(|found| found.owner != owner) {
            return Ok(());
        }
        let route = open_route(ifindex, "detach")?;
        let fault = |reason: String| Error::Attach { verb: "detach", ifindex, reason };
        for hook in &HOOKS {
            if let Ok(link) = sys::open_pin(&self.pins.link(ifindex, hook.program)) {
                // the pin outlives the device; detaching a dead link is an error without meaning
                let _ = sys::link_detach(link.as_fd());
            }
            for handle in our_filters(&route, ifindex, hook).map_err(|e| fault(e.to_string()))? {
                let mut standing = filter(self.programs[0].as_fd(), ifindex, hook, handle);
                if standing.query().is_ok_and(|id| self.ids.contains(&id)) {
                    standing.detach().map_err(|e| fault(errno(&e).to_string()))?;
                }
            }
        }
        self.forget(ifindex)
    }

    /// Removes the registration of an interface there, its policies, and the pins of its links.
    pub fn forget(&self, ifindex: u32) -> Result<()> {
        let contents = self.contents()?;
        for hook in &HOOKS {
            let pin = self.pins.link(ifindex, hook.program);
            match fs::remove_file(&pin) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove pin", pin.display().to_string(), e));
                }
                _ => {}
            }
        }
        for (name, map) in [("endpoints", &contents.endpoints), ("policies", &contents.policies)] {
            match map.delete(ifindex.as_bytes()).map_err(|e| errno(&e)) {
                Err(e) if e.raw_os_error() != Some(nix::libc::ENOENT) => {
                    let path = self.pins.path(name).display().to_string();
                    return Err(Error::io("write map", path, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes all of its pins. A TCX gate is detached with the pin of its link.
    pub fn remove(&self) -> Result<()> {
        let dir = self.pins.dir();
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", dir.display().to_string(), e))
            }
            _ => Ok(()),
        }
    }
}

impl Contents {
    fn open(pins: &PinRoot, program: u32) -> std::result::Result<Self, String> {
        let btf =
            Btf::from_prog_id(program).map_err(|e| format!("its programs have no BTF: {e:#}"))?;
        let map = |name: &str| {
            MapHandle::from_pinned_path(pins.path(name))
                .map_err(|e| format!("open {}: {}", pins.path(name).display(), errno(&e)))
        };
        let fits = |map: &MapHandle, name: &str, key: usize, value: usize| {
            let found = (map.key_size() as usize, map.value_size() as usize);
            match found == (key, value) {
                true => Ok(()),
                false => Err(format!(
                    "its map {name} has entries of {found:?} bytes, its programs say ({key}, {value})"
                )),
            }
        };
        let endpoint = StructLayout::of(&btf, "pg_endpoint")?;
        let endpoints = map("endpoints")?;
        fits(&endpoints, "endpoints", size_of::<u32>(), endpoint.size)?;
        let endpoint = conversion!(&endpoint => EndpointRecord {
            owner, startup, anti_spoofing, addr4_count, addr6_count, addr4, addr6, netns_cookie,
            container_id, interface, host_interface, network, pod_namespace, pod_name, pod_uid, netns,
        })?;
        let (control, policies) = (map("control")?, map("policies")?);
        fits(&policies, "policies", size_of::<u32>(), size_of::<u32>())?;
        let word = StructLayout::of(&btf, "pg_control")?;
        fits(&control, "control", size_of::<u32>(), word.size)?;
        let mode = word.number("mode")?;
        let flow = StructLayout::of(&btf, "pg_flow")?;
        let owner = flow.number("owner")?;
        let flow_of = conversion!(&flow => Flow {
            expires, direction, state, flags, other, other_port, own_port,
        })?;
        let key4 = StructLayout::of(&btf, "pg_flow4_key")?;
        let key6 = StructLayout::of(&btf, "pg_flow6_key")?;
        let (map4, map6) = (map("flows4")?, map("flows6")?);
        fits(&map4, "flows4", key4.size, flow.size)?;
        fits(&map6, "flows6", key6.size, flow.size)?;
        let flows4 = Flows {
            map: map4,
            ifindex: key4.number("ifindex")?,
            owner,
            key: conversion!(&key4 => Flow4Key {
                ifindex, pod, peer, pod_port, peer_port, protocol, kind,
            })?,
            flow: flow_of.clone(),
        };
        let flows6 = Flows {
            map: map6,
            ifindex: key6.number("ifindex")?,
            owner,
            key: conversion!(&key6 => Flow6Key {
                ifindex, pod, peer, pod_port, peer_port, protocol, kind,
            })?,
            flow: flow_of,
        };
        Ok(Self { endpoints, endpoint, policies, control, mode, flows4, flows6 })
    }
}

impl<K: FromBytes + IntoBytes + Immutable> Flows<K> {
    /// The live flows of these registrations, as this layout writes them, to be revalidated at their next packet.
    fn of(&self, owners: &Owners, epoch: u32) -> std::result::Result<Vec<(K, Flow)>, String> {
        let now = coarse_now();
        let mut found = Vec::new();
        let mut failed = None;
        let sizes = (self.map.key_size() as usize, self.map.value_size() as usize);
        let each = |key: &[u8], value: &[u8]| {
            let Some((there, here)) = owners.get(&self.ifindex.of(key)) else { return };
            if self.owner.of(value) != *there {
                return;
            }
            match (self.key.of(key), self.flow.of(value)) {
                (Ok(key), Ok(flow)) if (flow.expires.wrapping_sub(now) as i32) >= 0 => {
                    let flags = flow.flags | FLOW_NO_SLOT;
                    found.push((key, Flow { epoch, owner: *here, flags, ..flow }));
                }
                (Ok(_), Ok(_)) => {}
                (Err(e), _) | (_, Err(e)) => failed = Some(e),
            }
        };
        sys::each_entry(self.map.as_fd(), sizes, each).map_err(|e| format!("read flows: {e}"))?;
        match failed {
            Some(error) => Err(error),
            None => Ok(found),
        }
    }
}

impl Datapath {
    /// Step 1. While pods are being taken over it must be the same layout all the time.
    pub fn prepare_handover(&self, from: &OtherLayout) -> Result<()> {
        let programs = [from.programs[0].as_fd(), from.programs[1].as_fd()];
        self.maps.set_previous(Some(programs)).map_err(|error| match error {
            // frozen by the loader
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                from.fault("this kernel cannot hand packets over to them (arm64 before 6.0)".into())
            }
            error => error,
        })
    }

    /// No pod is being taken over any more.
    pub fn end_handover(&self) -> Result<()> {
        self.maps.set_previous(None)
    }

    /// Step 3: replaces another layout's programs by this one's. An interface whose gate is gone gets one.
    pub fn replace_gate(
        &self,
        from: &OtherLayout,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<Attached> {
        for hook in &HOOKS {
            let pin = from.pins.link(ifindex, hook.program);
            let Ok(link) = sys::open_pin(&pin) else { continue };
            let fault = |e: io::Error| Error::Attach {
                verb: "replace",
                ifindex,
                reason: format!("TCX {}: {e}", hook.program),
            };
            sys::link_update(link.as_fd(), self.programs_for("replace", ifindex)?.at(hook))
                .map_err(fault)?;
            // one that is killed between the two finds the link here and updates it once more
            fs::rename(&pin, self.root.link(ifindex, hook.program)).map_err(fault)?;
        }
        self.renew(ifindex)?;
        self.verify(ifindex).or_else(|_| {
            self.attach(ifindex, mode)?;
            self.verify(ifindex)
        })
    }

    /// Steps 6 and 7: writes the other layout's flows of these interfaces, unless the programs know better. Returns how
    /// many were new.
    pub fn copy_flows(&self, from: &OtherLayout, owners: &Owners) -> Result<usize> {
        let contents = from.contents()?;
        let epoch = self.maps.control().epoch().wrapping_sub(1);
        let mut new = 0;
        for (key, flow) in contents.flows4.of(owners, epoch).map_err(|e| from.fault(e))? {
            new += usize::from(self.maps.flow_table().v4.flows.add(&key, &flow)?);
        }
        for (key, flow) in contents.flows6.of(owners, epoch).map_err(|e| from.fault(e))? {
            new += usize::from(self.maps.flow_table().v6.flows.add(&key, &flow)?);
        }
        Ok(new)
    }
}
