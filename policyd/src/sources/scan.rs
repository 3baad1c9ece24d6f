//! What the files of a directory say, and what of it is new.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::manifest::{self, Manifest, ManifestError};
use super::unenforced::Unenforced;
use super::{Object, ObjectId, complete};

/// What changes when a file's content does, also when it is replaced by another of the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Path) -> io::Result<Self> {
        let meta = fs::metadata(file)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// What the files of a directory said when they were last read.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// As told by the last [`Scan::delta`].
    given: BTreeMap<ObjectId, Object>,
}

#[derive(Debug, Default)]
struct File {
    /// `None`: to be read again.
    stamp: Option<Stamp>,
    /// Of its last whole state.
    objects: Vec<Object>,
    /// Of its last whole state.
    unenforced: Unenforced,
    /// Of its present state; with any, `objects` is older than that.
    errors: Vec<ManifestError>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Whole,
    /// Some file changed while it was read.
    Moving,
}

impl Scan {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, files: BTreeMap::new(), given: BTreeMap::new() }
    }

    pub(super) fn read(&mut self) -> io::Result<Read> {
        let present = manifest::list(&self.dir)?;
        self.files.retain(|file, _| present.binary_search(file).is_ok());
        let mut read = Read::Whole;
        for path in present {
            let file = self.files.entry(path.clone()).or_default();
            let before = Stamp::of(&path).ok();
            if before.is_some() && before == file.stamp {
                continue;
            }
            let Manifest { objects, errors, unenforced } = manifest::read_file(&path);
            if before.is_none() || Stamp::of(&path).ok() != before {
                // somebody is writing: what was read may be half of it
                (file.stamp, read) = (None, Read::Moving);
                if before.is_none() {
                    // or it cannot even be looked at
                    file.errors = errors;
                }
                continue;
            }
            file.stamp = before;
            if errors.is_empty() {
                (file.objects, file.unenforced) = (objects, unenforced);
            }
            file.errors = errors;
        }
        Ok(read)
    }

    pub(super) fn has_broken(&self) -> bool {
        self.files.values().any(|file| !file.errors.is_empty())
    }

    /// Every object and the file that gives it (of two files the first in lexical order), and a complaint
    /// about each that is given twice.
    fn merge(&self) -> (BTreeMap<ObjectId, (&Path, &Object)>, Vec<ManifestError>) {
        let mut merged: BTreeMap<ObjectId, (&Path, &Object)> = BTreeMap::new();
        let mut twice = Vec::new();
        for (path, file) in &self.files {
            for object in &file.objects {
                match merged.entry(object.id()) {
                    Entry::Vacant(vacant) => {
                        vacant.insert((path, object));
                    }
                    Entry::Occupied(first) => {
                        let (id, first) = (first.key().to_string(), first.get().0);
                        twice.push(manifest::duplicate(path, first, &id));
                    }
                }
            }
        }
        (merged, twice)
    }

    /// What is new since the last call, what no control plane has added to services included.
    pub(super) fn delta(&mut self) -> (Vec<Object>, Vec<ObjectId>) {
        let merged = self.merge().0;
        let mut objects: Vec<_> = merged.into_values().map(|(_, object)| object.clone()).collect();
        complete(&mut objects, &BTreeMap::new());
        let merged: BTreeMap<ObjectId, Object> =
            objects.into_iter().map(|object| (object.id(), object)).collect();
        let is_new = |(id, object): &(&ObjectId, &Object)| self.given.get(*id) != Some(*object);
        let set = merged.iter().filter(is_new).map(|(_, object)| object.clone()).collect();
        let gone = self.given.keys().filter(|id| !merged.contains_key(*id)).cloned().collect();
        self.given = merged;
        (set, gone)
    }

    /// How many objects there are of kinds that are not enforced.
    pub(super) fn unenforced(&self) -> Unenforced {
        let mut sum = Unenforced::new();
        for (kind, count) in self.files.values().flat_map(|file| &file.unenforced) {
            *sum.entry(*kind).or_default() += count;
        }
        sum
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for file in self.files.values() {
            let kept = match file.objects.len() {
                0 => "nothing of this file counts until it is mended",
                _ => "the file's last good state stays in force until it is mended",
            };
            problems.extend(file.errors.iter().map(|error| format!("{error}; {kept}")));
        }
        problems.extend(self.merge().1.iter().map(ToString::to_string));
        problems
    }
}
