//! A map handle that knows its key and value types.

use std::io;
use std::marker::PhantomData;
use std::sync::OnceLock;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::trust::{self, Kind};
use crate::{Error, PinRoot, Result};

/// The errno of a libbpf-rs error. Its `kind()` lacks ENOSPC and its `source()` leaves the io::Error out, so the
/// number is taken from the text that std prints.
pub(crate) fn errno(error: &libbpf_rs::Error) -> io::Error {
    let text = format!("{error:#}");
    let code = text
        .rsplit_once("(os error ")
        .and_then(|(_, rest)| rest.split_once(')'))
        .and_then(|(code, _)| code.parse().ok());
    code.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error)
}

/// Turns a failed write into `Full` where that is what it means: a hash says E2BIG, an LPM trie ENOSPC.
pub(crate) fn write_error(map: &'static str, max_entries: u32, error: &libbpf_rs::Error) -> Error {
    let cause = errno(error);
    match cause.raw_os_error() {
        Some(nix::libc::E2BIG | nix::libc::ENOSPC) => Error::Full { map, max_entries },
        _ => Error::io("write map", map, cause),
    }
}

/// Tells the log of a write that a map took: an event of level trace for each, in their order.
pub(crate) fn wrote(map: &'static str, what: &'static str, key: &[u8]) {
    tracing::trace!(target: "podgate_bpf::writes", map, what, key);
}

/// A pinned map, opened at its first use: the plugin, of which each ADD is a process, needs few of them.
#[derive(Debug)]
pub(crate) struct PinnedMap {
    root: PinRoot,
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    opened: OnceLock<MapHandle>,
}

impl PinnedMap {
    pub(crate) fn new(
        root: &PinRoot,
        name: &'static str,
        kind: MapType,
        key: usize,
        value: usize,
    ) -> Self {
        Self { root: root.clone(), name, kind, key, value, opened: OnceLock::new() }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Opens the pin, the first time, and holds it against what this build takes it for.
    pub(crate) fn handle(&self) -> Result<&MapHandle> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let path = self.root.path(self.name);
        trust::open(&path, Kind::Map)?;
        let map = MapHandle::from_pinned_path(&path)
            .map_err(|e| Error::io("open pin", path.display().to_string(), errno(&e)))?;
        let shape = [
            ("type", u32::from(map.map_type()), u32::from(self.kind)),
            ("key size", map.key_size(), self.key as u32),
            ("value size", map.value_size(), self.value as u32),
        ];
        match shape.into_iter().find(|(_, found, wanted)| found != wanted) {
            None => Ok(self.opened.get_or_init(|| map)),
            Some((field, found, wanted)) => Err(Error::Mismatch { path, field, found, wanted }),
        }
    }
}

#[derive(Debug)]
enum Source {
    Pinned(PinnedMap),
    Opened(MapHandle),
}

/// A map of the kernel with plain keys and values.
#[derive(Debug)]
pub(crate) struct TypedMap<K, V> {
    name: &'static str,
    source: Source,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> TypedMap<K, V>
where
    K: IntoBytes + FromBytes + Immutable + Copy,
    V: IntoBytes + FromBytes + Immutable + Copy,
{
    /// The handle's sizes must be those of the types: [`crate::maps`] has looked.
    pub(crate) fn new(name: &'static str, handle: MapHandle) -> Self {
        debug_assert_eq!(handle.key_size() as usize, size_of::<K>());
        debug_assert_eq!(handle.value_size() as usize, size_of::<V>());
        Self { name, source: Source::Opened(handle), types: PhantomData }
    }

    /// A pinned one.
    pub(crate) fn pinned(root: &PinRoot, name: &'static str, kind: MapType) -> Self {
        let pinned = PinnedMap::new(root, name, kind, size_of::<K>(), size_of::<V>());
        Self { name, source: Source::Pinned(pinned), types: PhantomData }
    }

    pub(crate) fn handle(&self) -> Result<&MapHandle> {
        match &self.source {
            Source::Opened(handle) => Ok(handle),
            Source::Pinned(pinned) => pinned.handle(),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = V::new_zeroed();
        self.handle()?
            .lookup_into(key.as_bytes(), value.as_mut_bytes(), MapFlags::ANY)
            .map(|found| found.then_some(value))
            .map_err(|e| Error::io("read map", self.name, errno(&e)))
    }

    pub(crate) fn set(&self, key: &K, value: &V) -> Result<()> {
        let handle = self.handle()?;
        handle
            .update(key.as_bytes(), value.as_bytes(), MapFlags::ANY)
            .map(|()| wrote(self.name, "set", key.as_bytes()))
            .map_err(|e| write_error(self.name, handle.max_entries(), &e))
    }

    /// Writes the value of a key that is there; false if it is not.
    pub(crate) fn change(&self, key: &K, value: &V) -> Result<bool> {
        self.set_unless(nix::libc::ENOENT, key, value, MapFlags::EXIST)
    }

    /// Writes an entry unless there is one; says whether it did.
    pub(crate) fn add(&self, key: &K, value: &V) -> Result<bool> {
        self.set_unless(nix::libc::EEXIST, key, value, MapFlags::NO_EXIST)
    }

    /// Writes an entry; false if the kernel refuses what the flags ask for, with this errno.
    fn set_unless(&self, refusal: i32, key: &K, value: &V, flags: MapFlags) -> Result<bool> {
        let handle = self.handle()?;
        match handle.update(key.as_bytes(), value.as_bytes(), flags) {
            Ok(()) => {
                wrote(self.name, "set", key.as_bytes());
                Ok(true)
            }
            Err(e) if errno(&e).raw_os_error() == Some(refusal) => Ok(false),
            Err(e) => Err(write_error(self.name, handle.max_entries(), &e)),
        }
    }

    /// Writes many entries with one system call. If it fails, some may be written.
    pub(crate) fn set_all(&self, entries: impl Iterator<Item = (K, V)>) -> Result<()> {
        let (mut keys, mut values, mut count) = (Vec::new(), Vec::new(), 0);
        for (key, value) in entries {
            keys.extend_from_slice(key.as_bytes());
            values.extend_from_slice(value.as_bytes());
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let handle = self.handle()?;
        handle
            .update_batch(&keys, &values, count, MapFlags::ANY, MapFlags::ANY)
            .map(|()| keys.chunks(size_of::<K>()).for_each(|key| wrote(self.name, "set", key)))
            .map_err(|e| write_error(self.name, handle.max_entries(), &e))
    }

    /// Whether there was something to remove.
    pub(crate) fn remove(&self, key: &K) -> Result<bool> {
        match self.handle()?.delete(key.as_bytes()) {
            Ok(()) => {
                wrote(self.name, "remove", key.as_bytes());
                Ok(true)
            }
            Err(e) => match errno(&e) {
                cause if cause.raw_os_error() == Some(nix::libc::ENOENT) => Ok(false),
                cause => Err(Error::io("write map", self.name, cause)),
            },
        }
    }

    pub(crate) fn keys(&self) -> Result<Vec<K>> {
        let keys = self.handle()?.keys();
        Ok(keys.filter_map(|bytes| K::read_from_bytes(&bytes).ok()).collect())
    }

    /// Every entry, some thousand with each system call, while others write: entries that are added or removed
    /// meanwhile may or may not be seen.
    pub(crate) fn each(&self, mut give: impl FnMut(K, V)) -> Result<()> {
        const AT_ONCE: u32 = 4096;
        let entries = self
            .handle()?
            .lookup_batch(AT_ONCE, MapFlags::ANY, MapFlags::ANY)
            .map_err(|e| Error::io("read map", self.name, errno(&e)))?;
        for (key, value) in entries {
            if let (Ok(key), Ok(value)) = (K::read_from_bytes(&key), V::read_from_bytes(&value)) {
                give(key, value);
            }
        }
        Ok(())
    }

    /// The value of a key, read and written back changed at one moment: the map's values have a lock. False if it is not
    /// there, or `change` does not want to. What the programs wrote since the value was read is lost.
    pub(crate) fn amend(&self, key: &K, change: impl FnOnce(&mut V) -> bool) -> Result<bool> {
        let handle = self.handle()?;
        let mut value = V::new_zeroed();
        let found = handle
            .lookup_into(key.as_bytes(), value.as_mut_bytes(), MapFlags::LOCK)
            .map_err(|e| Error::io("read map", self.name, errno(&e)))?;
        if !found || !change(&mut value) {
            return Ok(false);
        }
        self.set_unless(nix::libc::ENOENT, key, &value, MapFlags::EXIST | MapFlags::LOCK)
    }

    /// A snapshot; entries that change meanwhile may be missing. Only for use by a map's one writer.
    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        for key in self.keys()? {
            if let Some(value) = self.get(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errno_of_a_libbpf_error_is_found() {
        let error = libbpf_rs::Error::from_raw_os_error(nix::libc::ENOSPC);
        assert_eq!(errno(&error).raw_os_error(), Some(nix::libc::ENOSPC));
        let full = write_error("nets4", 7, &error);
        assert_eq!(full.to_string(), "write map nets4: full (7 entries)");
    }
}
