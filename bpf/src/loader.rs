//! Loading the programs once per boot, and opening what is pinned ever after.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;

use libbpf_rs::{MapCore, MapHandle, Object, ObjectBuilder, OpenObject, ProgramType, libbpf_sys};

use crate::abi::Mode;
use crate::clock::tick_shift;
use crate::handover::OtherLayout;
use crate::maps::{Maps, PINNED};
use crate::pins::{FROM_POD, RootLock, TO_POD};
use crate::programs::{Pair, Programs};
use crate::sys::{ControlWord, SharedControl};
use crate::trust::Kind;
use crate::typed_map::errno;
use crate::{Error, PinRoot, Result, libbpf_log, sys, trust, verifier};

/// The compiled programs.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podgate.bpf.o"));

/// Events in a second beside the endpoints' own, until another limit is set.
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
pub struct Datapath {
    /// Every map.
    pub maps: Maps,
    pub(crate) root: PinRoot,
    pub(crate) plain: Programs,
    /// Opened at its first use, as most nodes do not have it.
    pub(crate) metered: OnceLock<Programs>,
}

impl Datapath {
    /// Opens what is pinned; [`Error::NotLoaded`] if any of it is missing.
    pub fn open(root: &PinRoot) -> Result<Self> {
        let datapath = Self::open_as_needed(root)?;
        datapath.maps.open_all()?;
        Ok(datapath)
    }

    /// As [`Datapath::open`], but most maps are opened, and checked, when they are first used. For the plugin, of
    /// which each call is a process.
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
        Ok(Self {
            maps: Maps::pinned(root)?,
            root: root.clone(),
            plain: Programs::open(root, Pair::Plain)?,
            metered: OnceLock::new(),
        })
    }

    /// Opens what is pinned, or loads and pins it. One process at a time loads, under the lock of the root. A
    /// directory that an earlier loader left half written is completed: maps that are there are used.
    pub fn open_or_load(root: &PinRoot, sizes: &Sizes) -> Result<Self> {
        Self::or_load(root, sizes, Self::open)
    }

    /// As [`Datapath::open_or_load`], for the plugin: see [`Datapath::open_as_needed`].
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
        // they would go on with a map whose pin was missing; loaded again when needed
        for name in Pair::Metered.names() {
            remove_pin(&root.path(name))?;
        }
        open(root)
    }

    /// As [`Datapath::open_or_load`], but programs of another build are replaced by this one's. For the daemon, which
    /// comes with an upgrade; the plugin uses the programs that are loaded.
    pub fn open_current(root: &PinRoot, sizes: &Sizes) -> Result<Self> {
        let datapath = Self::open_or_load(root, sizes)?;
        check_maps(root)?;
        for path in trust::foreign(root)? {
            tracing::error!(
                path = %path.display(),
                "there is something under bpfRoot that is not podgate's: left alone; remove it, or give podgate a \
                 bpfRoot of its own"
            );
        }
        if datapath.is_current() {
            return Ok(datapath);
        }
        let lock = root.lock()?;
        // another process that was loading them has finished by now
        if let Ok(datapath) = Self::open(root)
            && datapath.is_current()
        {
            return Ok(datapath);
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

    fn replace_locked(root: &PinRoot, sizes: &Sizes, lock: &RootLock) -> Result<Self> {
        let before = Self::open(root);
        load(root, sizes)?;
        let datapath = Self::open(root)?;
        if (Pair::Metered.is_pinned(root) || !datapath.maps.limits().all()?.is_empty())
            && let Err(error) = load_metered(root, lock)
        {
            tracing::error!(%error, "pods with limits keep their earlier programs");
        }
        if before.is_ok() {
            for registration in datapath.maps.registrations()? {
                let ifindex = registration.ifindex;
                // An interface that is gone does not stop the others. A gate that keeps its earlier programs uses the
                // same maps, and fails the next verification.
                if let Err(error) = datapath.renew(ifindex) {
                    tracing::warn!(ifindex, %error, "a gate keeps its earlier programs");
                }
            }
        }
        Ok(datapath)
    }

    /// Instructions that the verifier walks of each program, from the statistics in its log: kernels before 5.16 keep no
    /// count with the program. Loads the programs once more, with the maps that are pinned at `root`, and pins nothing.
    pub fn count_verified(root: &PinRoot, sizes: &Sizes) -> Result<BTreeMap<String, u32>> {
        /// BPF_LOG_STATS of linux/bpf_verifier.h.
        const STATISTICS: u32 = 4;
        let loaded = libbpf_log::with_statistics(|| {
            let mut open = open_object(root, Some(sizes), &Pair::ALL, true)?;
            for mut program in open.progs_mut() {
                program.set_log_level(STATISTICS);
            }
            open.load().map_err(|e| verifier::refusal(&errno(&e)))
        });
        loaded.map(|_| verifier::take_statistics())
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

/// Makes what maps are missing, and loads and pins the plain pair.
fn load(root: &PinRoot, sizes: &Sizes) -> Result<()> {
    sizes.check()?;
    let fresh = !root.path("control").exists();
    let object = load_pair(root, Some(sizes), Pair::Plain)?;
    finish(&object, root, fresh)
}

/// Loads and pins the metered pair, with the maps that the plain one uses.
pub(crate) fn load_metered(root: &PinRoot, _lock: &RootLock) -> Result<()> {
    let object = load_pair(root, None, Pair::Metered).map_err(|e| Error::Metered(Box::new(e)))?;
    pin_programs(&object, root)
}

fn load_pair(root: &PinRoot, sizes: Option<&Sizes>, pair: Pair) -> Result<Object> {
    libbpf_log::reroute();
    load_object(root, sizes, pair, true).or_else(|error| {
        // a kernel that has no tail calls from programs with functions can do everything else
        let object = load_object(root, sizes, pair, false).map_err(|_| error)?;
        tracing::warn!("this kernel cannot hand packets over to another layout's programs");
        if let Some(previous) = object.maps().find(|map| map.name() == "previous") {
            // so that Datapath::prepare_handover fails, and no takeover is tried
            sys::freeze(previous.as_fd()).map_err(|e| Error::io("freeze map", "previous", e))?;
        }
        Ok(object)
    })
}

/// libbpf cannot read the object that is compiled in.
fn unreadable(error: libbpf_rs::Error) -> Error {
    Error::Load { errno: None, reason: format!("{error:#}") }
}

fn load_object(
    root: &PinRoot,
    sizes: Option<&Sizes>,
    pair: Pair,
    hands_over: bool,
) -> Result<Object> {
    let open = open_object(root, sizes, &[pair], hands_over)?;
    open.load().map_err(|e| verifier::refusal(&errno(&e)))
}

fn open_object(
    root: &PinRoot,
    sizes: Option<&Sizes>,
    pairs: &[Pair],
    hands_over: bool,
) -> Result<OpenObject> {
    let mut open = ObjectBuilder::default()
        .name("podgate")
        .and_then(|builder| builder.open_memory(OBJECT))
        .map_err(unreadable)?;
    prepare_maps(&mut open, root, sizes)?;
    for mut program in open.progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        program.set_autoload(pairs.iter().any(|pair| pair.names().contains(&name.as_str())));
    }
    for mut map in open.maps_mut() {
        if map.name() == ".rodata.handover"
            && let Some(constants) = map.initial_value_mut()
        {
            constants[..4].copy_from_slice(&u32::from(hands_over).to_ne_bytes());
        }
    }
    Ok(open)
}

/// What the maps must hold before the programs are pinned, which is what makes the load complete to the plugin.
fn finish(object: &Object, root: &PinRoot, fresh: bool) -> Result<()> {
    let control = object.maps().find(|map| map.name() == "control");
    let control = control
        .ok_or_else(|| Error::Load { errno: None, reason: "there is no map control".into() })?;
    let shared = SharedControl::map(control.as_fd())
        .map_err(|e| Error::io("map into memory", "control", e))?;
    // A loader that dies between the two pins leaves programs of two builds: with build 0 they are replaced again.
    shared.store(ControlWord::Build, 0);
    if fresh && let Some(mode) = mode_of_others(root)? {
        tracing::info!(mode = mode.name(), "the mode is the earlier layout's");
        shared.store(ControlWord::Mode, mode as u32);
    }
    if shared.load(ControlWord::EventsPerSecond) == 0 {
        shared.store(ControlWord::EventsPerSecond, EVENTS_PER_SECOND);
    }
    pin_programs(object, root)?;
    shared.store(ControlWord::Build, fingerprint());
    Ok(())
}

fn pin_programs(object: &Object, root: &PinRoot) -> Result<()> {
    for program in object.progs().filter(|program| program.autoload()) {
        let path = root.path(&program.name().to_string_lossy());
        // The other of the two may be left of a loader that was killed.
        remove_pin(&path)?;
        sys::pin(program.as_fd(), &path)
            .map_err(|e| Error::io("pin program", path.display().to_string(), e))?;
    }
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
        .map_err(unreadable)?;
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
        // flags that the kernel adds by itself are above these
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

/// `sizes` are of maps that are not there yet; `None` if all are.
fn prepare_maps(open: &mut OpenObject, root: &PinRoot, sizes: Option<&Sizes>) -> Result<()> {
    let size_of = |map: &str| sizes.and_then(|sizes| sizes.of(map));
    // each is set below, as the two maps are pinned
    let mut flows = [0; 2];
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
            if size_of(&name).is_some_and(|size| size != pinned.max_entries()) {
                tracing::info!(
                    map = name,
                    size = pinned.max_entries(),
                    "pinned map keeps its size"
                );
            }
            map.set_max_entries(pinned.max_entries()).map_err(fault)?;
        } else if let Some(size) = size_of(&name) {
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
