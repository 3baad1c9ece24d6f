//! Loading the programs once per boot, and opening what is pinned ever after.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use libbpf_rs::{
    MapCore, MapHandle, Object, ObjectBuilder, OpenObject, PrintLevel, ProgramType, libbpf_sys,
};

use crate::abi::Mode;
use crate::clock::tick_shift;
use crate::handover::OtherLayout;
use crate::maps::{Maps, PINNED};
use crate::pins::{FROM_POD, RootLock, TO_POD};
use crate::sys::{ControlWord, SharedControl};
use crate::trust::Kind;
use crate::typed::errno;
use crate::{Error, PinRoot, Result, sys, trust, verifier};

/// The compiled programs.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podgate.bpf.o"));

/// Events of one CPU in a second, until somebody sets another limit.
const EVENTS_PER_SECOND: u32 = 1000;

/// The fewest flows of a family: a table smaller than this has no room for the shares of some pods beside each other.
pub const LEAST_FLOWS: u32 = 1024;

/// How many entries the maps may hold, where that is decided before they are made. What is pinned already
/// keeps its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Gated interfaces of the node.
    pub endpoints: u32,
    /// IPv4 flows of the node, one through a service counted twice; about 230 bytes each, taken at once. At least
    /// [`LEAST_FLOWS`].
    pub flows4: u32,
    /// IPv6 flows; about 290 bytes each, taken at once. At least [`LEAST_FLOWS`].
    pub flows6: u32,
    /// Exact addresses with a class, per family; memory is taken as needed.
    pub peers: u32,
    /// Prefixes with a class, per family; memory is taken as needed.
    pub nets: u32,
    /// Fragmented datagrams under way.
    pub frags: u32,
    /// Addresses of the node.
    pub node_addrs: u32,
    /// Addresses and ports at which services listen, per family; memory is taken as needed.
    pub services: u32,
    /// Endpoints of those, one of several services counted for each; memory is taken as needed.
    pub backends: u32,
    /// Clients that keep their endpoint (session affinity); about 120 bytes each, taken at once.
    pub affinity: u32,
    /// Bytes of the ring of events; a power of two of at least a page.
    pub events: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            endpoints: 4096,
            flows4: 131_072,
            flows6: 65_536,
            peers: 1 << 20,
            nets: 1 << 20,
            frags: 8192,
            node_addrs: 65_536,
            services: 65_536,
            backends: 1 << 18,
            affinity: 16_384,
            events: 1 << 20,
        }
    }
}

impl Sizes {
    fn check(&self) -> Result<()> {
        match [("flows4", self.flows4), ("flows6", self.flows6)]
            .into_iter()
            .find(|(_, size)| *size < LEAST_FLOWS)
        {
            Some((map, size)) => Err(Error::TooSmall { map, size, least: LEAST_FLOWS }),
            None => Ok(()),
        }
    }

    /// The size of a map, if it can be chosen.
    fn of(&self, map: &str) -> Option<u32> {
        match map {
            "endpoints" | "policies" | "shares" => Some(self.endpoints),
            "flows4" | "flow_slots4" => Some(self.flows4),
            "flows6" | "flow_slots6" => Some(self.flows6),
            "peers4" | "peers6" => Some(self.peers),
            "nets4" | "nets6" => Some(self.nets),
            "frags" => Some(self.frags),
            "node_addrs" => Some(self.node_addrs),
            "services4" | "services6" => Some(self.services),
            "slots" | "backends" => Some(self.backends),
            "affinity" => Some(self.affinity),
            "events" => Some(self.events),
            _ => None,
        }
    }
}

/// The loaded programs and their maps.
#[derive(Debug)]
pub struct Gate {
    /// Every map.
    pub maps: Maps,
    pub(crate) root: PinRoot,
    pub(crate) from_pod: OwnedFd,
    pub(crate) to_pod: OwnedFd,
}

impl Gate {
    /// Opens what is pinned; [`Error::NotLoaded`] if any of it is missing.
    pub fn open(root: &PinRoot) -> Result<Self> {
        let gate = Self::open_as_needed(root)?;
        gate.maps.open_all()?;
        Ok(gate)
    }

    /// As [`Gate::open`], but most maps are opened, and looked at, when they are first asked for. For the plugin, each of
    /// whose calls is a process of its own.
    pub fn open_as_needed(root: &PinRoot) -> Result<Self> {
        // one look at the directory, instead of one at each of two dozen names
        let there: BTreeSet<_> = fs::read_dir(root.dir())
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name())
            .collect();
        let missing =
            PINNED.iter().chain(&[FROM_POD, TO_POD]).find(|name| !there.contains(OsStr::new(name)));
        if let Some(name) = missing {
            return Err(Error::NotLoaded { path: root.path(name) });
        }
        trust::check_owner(root)?;
        let program = |name: &str| trust::open(&root.path(name), Kind::Program);
        Ok(Self {
            maps: Maps::pinned(root)?,
            root: root.clone(),
            from_pod: program(FROM_POD)?,
            to_pod: program(TO_POD)?,
        })
    }

    /// Opens what is pinned, or loads and pins it. One process at a time loads, under the lock of the root. A
    /// directory that an earlier loader left half written is completed: maps that are there are used.
    pub fn open_or_load(root: &PinRoot, sizes: &Sizes) -> Result<Self> {
        Self::or_load(root, sizes, Self::open)
    }

    /// As [`Gate::open_or_load`], for the plugin: see [`Gate::open_as_needed`].
    pub fn open_as_needed_or_load(root: &PinRoot, sizes: &Sizes) -> Result<Self> {
        Self::or_load(root, sizes, Self::open_as_needed)
    }

    fn or_load(
        root: &PinRoot,
        sizes: &Sizes,
        open: impl Fn(&PinRoot) -> Result<Self>,
    ) -> Result<Self> {
        match open(root) {
            Err(Error::NotLoaded { .. }) => {}
            opened => return opened,
        }
        let _lock = root.lock()?;
        match open(root) {
            Err(Error::NotLoaded { .. }) => {}
            opened => return opened,
        }
        load(root, sizes)?;
        open(root)
    }

    /// As [`Gate::open_or_load`], and where the pinned programs are another build's puts this one's in their place.
    /// For the daemon, which comes with an upgrade; the plugin takes what is there.
    pub fn open_current(root: &PinRoot, sizes: &Sizes) -> Result<Self> {
        let gate = Self::open_or_load(root, sizes)?;
        check_maps(root)?;
        for path in trust::foreign(root)? {
            tracing::error!(
                path = %path.display(),
                "there is something under bpfRoot that is not podgate's: left alone; remove it, or give podgate a \
                 bpfRoot of its own"
            );
        }
        if gate.is_current() {
            return Ok(gate);
        }
        let lock = root.lock()?;
        // whoever was loading them at that moment is done by now
        if let Ok(gate) = Self::open(root)
            && gate.is_current()
        {
            return Ok(gate);
        }
        tracing::info!("pinned programs are another build's, replacing them");
        Self::replace_locked(root, sizes, &lock)
    }

    /// Where its pins are.
    pub fn pins(&self) -> &PinRoot {
        &self.root
    }

    fn is_current(&self) -> bool {
        self.maps.control().build() == fingerprint()
    }

    /// Puts this build's programs in the place of pinned ones of the same layout: each gate changes over
    /// atomically, flows and policies stay. Interfaces are those with a registration. Programs that cannot be loaded
    /// leave everything as it is.
    pub fn replace_programs(root: &PinRoot, sizes: &Sizes) -> Result<Self> {
        let lock = root.lock()?;
        Self::replace_locked(root, sizes, &lock)
    }

    fn replace_locked(root: &PinRoot, sizes: &Sizes, _lock: &RootLock) -> Result<Self> {
        let before = Self::open(root);
        load(root, sizes)?;
        let gate = Self::open(root)?;
        if before.is_ok() {
            for registration in gate.maps.registrations()? {
                let ifindex = registration.ifindex;
                // One whose interface is gone keeps no other from it. A gate that is left with the programs of
                // before judges by the same maps, and fails the next verification.
                if let Err(error) = gate.renew(ifindex) {
                    tracing::warn!(ifindex, %error, "a gate keeps its earlier programs");
                }
            }
        }
        Ok(gate)
    }

    /// Removes every pin of this layout. Attached programs go with their links and filters: detach first.
    pub fn unload(root: &PinRoot) -> Result<()> {
        let _lock = root.lock()?;
        let dir = root.dir();
        fs::remove_dir_all(&dir).map_err(|e| Error::io("remove", dir.display().to_string(), e))
    }
}

/// Tells builds of the programs apart (FNV-1a, 32 bits); not 0.
fn fingerprint() -> u32 {
    let hash = OBJECT
        .iter()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.max(1)
}

fn remove_pin(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove pin", path.display().to_string(), e))
        }
        _ => Ok(()),
    }
}

/// libbpf's chatter goes to the log: the plugin's stdout and stderr belong to the protocol and the operator.
fn log_libbpf(level: PrintLevel, text: String) {
    let text = text.trim_end();
    match level {
        PrintLevel::Warn => {
            verifier::keep(text);
            tracing::debug!(target: "libbpf", "{text}");
        }
        PrintLevel::Info | PrintLevel::Debug => tracing::trace!(target: "libbpf", "{text}"),
    }
}

pub(crate) fn reroute_libbpf_log() {
    libbpf_rs::set_print(Some((PrintLevel::Warn, log_libbpf)));
}

fn load(root: &PinRoot, sizes: &Sizes) -> Result<()> {
    sizes.check()?;
    reroute_libbpf_log();
    let fresh = !root.path("control").exists();
    let object = load_object(root, sizes, true).or_else(|error| {
        // a kernel that has no tail calls from programs with functions can do everything else
        let object = load_object(root, sizes, false).map_err(|_| error)?;
        tracing::warn!("this kernel cannot hand packets over to another layout's programs");
        if let Some(previous) = object.maps().find(|map| map.name() == "previous") {
            // so that nobody tries: Gate::prepare_handover fails
            sys::freeze(previous.as_fd()).map_err(|e| Error::io("freeze map", "previous", e))?;
        }
        Ok(object)
    })?;
    finish(&object, root, fresh)
}

fn load_object(root: &PinRoot, sizes: &Sizes, hands_over: bool) -> Result<Object> {
    let mut open = ObjectBuilder::default()
        .name("podgate")
        .and_then(|builder| builder.open_memory(OBJECT))
        .map_err(|e| Error::Load(format!("{e:#}")))?;
    prepare_maps(&mut open, root, sizes)?;
    for mut map in open.maps_mut() {
        if map.name() == ".rodata.handover"
            && let Some(constants) = map.initial_value_mut()
        {
            constants[..4].copy_from_slice(&u32::from(hands_over).to_ne_bytes());
        }
    }
    open.load().map_err(|e| Error::Load(verifier::refusal(&errno(&e))))
}

/// What the maps must hold before the programs are pinned, which is what makes the load complete to the plugin.
fn finish(object: &Object, root: &PinRoot, fresh: bool) -> Result<()> {
    let control = object.maps().find(|map| map.name() == "control");
    let control = control.ok_or_else(|| Error::Load("there is no map control".into()))?;
    let shared = SharedControl::map(control.as_fd())
        .map_err(|e| Error::io("map into memory", "control", e))?;
    // Pins of two builds, which a loader that dies among them leaves, are nobody's build: they are replaced again.
    shared.store(ControlWord::Build, 0);
    if fresh && let Some(mode) = mode_of_others(root)? {
        tracing::info!(mode = mode.name(), "the mode is the earlier layout's");
        shared.store(ControlWord::Mode, mode as u32);
    }
    if shared.load(ControlWord::EventsPerSecond) == 0 {
        shared.store(ControlWord::EventsPerSecond, EVENTS_PER_SECOND);
    }
    for program in object.progs() {
        let path = root.path(&program.name().to_string_lossy());
        // The other of the two may be left of a loader that was killed.
        remove_pin(&path)?;
        sys::pin(program.as_fd(), &path)
            .map_err(|e| Error::io("pin program", path.display().to_string(), e))?;
    }
    shared.store(ControlWord::Build, fingerprint());
    Ok(())
}

/// The mode of the other layout that has pods, the newest if several do: a node in audit stays so.
fn mode_of_others(root: &PinRoot) -> Result<Option<Mode>> {
    let others = OtherLayout::all(root)?;
    let has_pods = |other: &&OtherLayout| other.interfaces().is_ok_and(|found| !found.is_empty());
    Ok(others.iter().rev().find(has_pods).and_then(|other| other.mode().ok()))
}

/// Holds every pinned map against the one that the programs were compiled with: maps of the same sizes may be
/// another's all the same.
fn check_maps(root: &PinRoot) -> Result<()> {
    let open = ObjectBuilder::default()
        .name("podgate")
        .and_then(|builder| builder.open_memory(OBJECT))
        .map_err(|e| Error::Load(format!("{e:#}")))?;
    for map in open.maps() {
        let name = map.name().to_string_lossy().into_owned();
        if !PINNED.contains(&name.as_str()) {
            continue;
        }
        let path = root.path(&name);
        let fault =
            |e: libbpf_rs::Error| Error::io("open pin", path.display().to_string(), errno(&e));
        let pinned = MapHandle::from_pinned_path(&path).map_err(fault)?;
        let found = pinned.name().to_string_lossy().into_owned();
        // the kernel keeps 15 bytes of it
        if !name.starts_with(&found) || (found != name && found.len() < 15) {
            let found = format!("a map with the name {found:?}");
            return Err(Error::Foreign { path, found, wanted: format!("the map {name:?}") });
        }
        let info = pinned.info().map_err(fault)?.info;
        let (found, wanted) = (info.map_flags, map.map_flags());
        // what a kernel adds by itself stands above
        if found & FLAGS != wanted & FLAGS {
            return Err(Error::Mismatch { path, field: "flags", found, wanted });
        }
    }
    Ok(())
}

/// BPF_F_NO_PREALLOC, BPF_F_NO_COMMON_LRU, BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG, BPF_F_MMAPABLE of linux/bpf.h: what
/// decides how the programs may use a map.
const FLAGS: u32 = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 10;

/// Whether programs may read the kernel's memory: not in a kernel locked down for confidentiality.
fn reads_kernel() -> bool {
    const READ: libbpf_sys::bpf_func_id = libbpf_sys::BPF_FUNC_probe_read_kernel;
    let reads = ProgramType::SchedCls.is_helper_supported(READ).unwrap_or(false);
    if !reads {
        tracing::warn!(
            "this kernel does not let programs read its memory: the node's own IPv6 datagrams that are fragmented \
             are judged by policy"
        );
    }
    reads
}

fn prepare_maps(open: &mut OpenObject, root: &PinRoot, sizes: &Sizes) -> Result<()> {
    let mut flows = [sizes.flows4, sizes.flows6];
    for mut map in open.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if name == ".rodata.tick"
            && let Some(constants) = map.initial_value_mut()
        {
            constants[..4].copy_from_slice(&tick_shift().to_ne_bytes());
        }
        if name == ".rodata.kernel"
            && let Some(constants) = map.initial_value_mut()
        {
            constants[..4].copy_from_slice(&u32::from(reads_kernel()).to_ne_bytes());
        }
        if !PINNED.contains(&name.as_str()) {
            continue;
        }
        let path = root.path(&name);
        let fault = |e: libbpf_rs::Error| Error::io("prepare map", name.clone(), errno(&e));
        if fs::symlink_metadata(&path).is_ok() {
            trust::open(&path, Kind::Map)?;
            let pinned = MapHandle::from_pinned_path(&path)
                .map_err(|e| Error::io("open pin", path.display().to_string(), errno(&e)))?;
            let wanted = [
                ("type", u32::from(pinned.map_type()), u32::from(map.map_type())),
                ("key size", pinned.key_size(), map.key_size()),
                ("value size", pinned.value_size(), map.value_size()),
            ];
            for (field, found, wanted) in wanted {
                if found != wanted {
                    return Err(Error::Mismatch { path, field, found, wanted });
                }
            }
            if sizes.of(&name).is_some_and(|size| size != pinned.max_entries()) {
                tracing::info!(
                    map = name,
                    size = pinned.max_entries(),
                    "pinned map keeps its size"
                );
            }
            map.set_max_entries(pinned.max_entries()).map_err(fault)?;
        } else if let Some(size) = sizes.of(&name) {
            map.set_max_entries(size).map_err(fault)?;
        }
        match name.as_str() {
            "flows4" => flows[0] = map.max_entries(),
            "flows6" => flows[1] = map.max_entries(),
            _ => {}
        }
        map.set_pin_path(&path).map_err(fault)?;
    }
    // what a pod may have is a part of what the tables, which keep their size, do have
    for mut map in open.maps_mut().filter(|map| map.name() == ".rodata.flows") {
        if let Some(constants) = map.initial_value_mut() {
            constants[..4].copy_from_slice(&flows[0].to_ne_bytes());
            constants[4..8].copy_from_slice(&flows[1].to_ne_bytes());
        }
    }
    Ok(())
}
