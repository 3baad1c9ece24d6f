//! A directory of manifests, watched.
//!
//! Files are read again when their stamp changes: on a file event, once the directory has been quiet for
//! [`QUIET`], and by a look at all stamps every [`RESCAN`], which also finds what no event told (a link's
//! target elsewhere, an overflowed event queue, a network file system). A file with a mistake keeps giving what it
//! gave when it was last whole; a half-written policy must not open a pod.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::manifest::{self, Manifest, ManifestError};
use super::{Object, ObjectId, Update};

/// How long the directory must be quiet before it is read: editors write in several steps.
const QUIET: Duration = Duration::from_millis(50);
/// A directory that is never quiet is read this long after the first event all the same.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often stamps are compared without an event.
const RESCAN: Duration = Duration::from_secs(5);
/// The same while something is wrong.
const RETRY: Duration = Duration::from_secs(1);

/// A watched directory. Dropping it stops the watch.
#[derive(Debug)]
pub struct DirSource {
    wake: mpsc::Sender<Wake>,
    thread: Option<thread::JoinHandle<()>>,
}

enum Wake {
    Touched,
    Stop,
}

impl DirSource {
    /// Starts watching; every update goes to `sink`, the first full one when every file could be read.
    /// The directory must be there, so that a misspelt path fails at once.
    pub fn start(dir: PathBuf, sink: impl FnMut(Update) + Send + 'static) -> io::Result<Self> {
        fs::read_dir(&dir)?;
        let (wake, woken) = mpsc::channel();
        let events = wake.clone();
        let watch = thread::Builder::new().name("source-dir".into());
        let thread = watch.spawn(move || {
            let mut watch = Watch {
                scan: Scan::new(dir),
                sink,
                watcher: None,
                watched: None,
                synced: false,
                told: Vec::new(),
            };
            watch.run(&woken, &events);
        })?;
        Ok(Self { wake, thread: Some(thread) })
    }
}

impl Drop for DirSource {
    fn drop(&mut self) {
        // the thread may have ended already
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watch<S> {
    scan: Scan,
    sink: S,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the watched directory: another one may take its name.
    watched: Option<(u64, u64)>,
    synced: bool,
    told: Vec<String>,
}

impl<S: FnMut(Update)> Watch<S> {
    fn run(&mut self, woken: &mpsc::Receiver<Wake>, events: &mpsc::Sender<Wake>) {
        loop {
            // watched before it is read, so that nothing is missed in between
            self.watch(events);
            let settled = self.read();
            match woken.recv_timeout(if settled { RESCAN } else { RETRY }) {
                Ok(Wake::Touched) => {
                    if !wait_for_quiet(woken) {
                        return;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn watch(&mut self, events: &mpsc::Sender<Wake>) {
        let Ok(meta) = fs::metadata(&self.scan.dir) else { return };
        let identity = (meta.dev(), meta.ino());
        if self.watched == Some(identity) {
            return;
        }
        let events = events.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_write(event.kind)) {
                let _ = events.send(Wake::Touched);
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(&self.scan.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => (self.watcher, self.watched) = (Some(watcher), Some(identity)),
            Err(error) => tracing::warn!(
                dir = %self.scan.dir.display(), %error,
                "cannot watch the directory, looking at it every {} s", RETRY.as_secs()
            ),
        }
    }

    /// Reads what changed and tells it. False if it should be looked at again soon.
    fn read(&mut self) -> bool {
        let scanned = self.scan.read();
        let problems = match &scanned {
            Ok(_) => self.scan.problems(),
            Err(error) => vec![format!(
                "read directory {}: {error}; what it gave before stays in force",
                self.scan.dir.display()
            )],
        };
        if problems != self.told {
            for problem in problems.iter().filter(|problem| !self.told.contains(problem)) {
                tracing::error!("{problem}");
            }
            self.told.clone_from(&problems);
            (self.sink)(Update::Problems(problems));
        }
        let whole = matches!(scanned, Ok(Read::Whole));
        // the first time, a file that cannot be read has no last good state to stand in for it
        let ready = self.synced || whole && !self.scan.has_broken();
        if scanned.is_ok() && ready {
            let (set, gone) = self.scan.delta();
            if !self.synced {
                self.synced = true;
                (self.sink)(Update::Replace(set));
            } else if !set.is_empty() || !gone.is_empty() {
                (self.sink)(Update::Change { set, gone });
            }
        }
        whole && self.watched.is_some() && self.synced
    }
}

/// Whether an event may have changed content; our own reading raises events too.
fn is_write(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// False if the watch was stopped meanwhile.
fn wait_for_quiet(woken: &mpsc::Receiver<Wake>) -> bool {
    let patience = Instant::now() + PATIENCE;
    while Instant::now() < patience {
        match woken.recv_timeout(QUIET) {
            Ok(Wake::Touched) => {}
            Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            Err(mpsc::RecvTimeoutError::Timeout) => return true,
        }
    }
    true
}

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
struct Scan {
    dir: PathBuf,
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
    /// Of its present state; with any, `objects` is older than that.
    errors: Vec<ManifestError>,
}

#[derive(Debug, PartialEq, Eq)]
enum Read {
    Whole,
    /// Some file changed while it was read.
    Moving,
}

impl Scan {
    fn new(dir: PathBuf) -> Self {
        Self { dir, files: BTreeMap::new(), given: BTreeMap::new() }
    }

    fn read(&mut self) -> io::Result<Read> {
        let present = manifest::list(&self.dir)?;
        self.files.retain(|file, _| present.binary_search(file).is_ok());
        let mut read = Read::Whole;
        for path in present {
            let file = self.files.entry(path.clone()).or_default();
            let before = Stamp::of(&path).ok();
            if before.is_some() && before == file.stamp {
                continue;
            }
            let Manifest { objects, errors } = manifest::read_file(&path);
            if before.is_none() || Stamp::of(&path).ok() != before {
                // somebody is writing: what was read may be half of it
                (file.stamp, read) = (None, Read::Moving);
                continue;
            }
            file.stamp = before;
            if errors.is_empty() {
                file.objects = objects;
            }
            file.errors = errors;
        }
        Ok(read)
    }

    fn has_broken(&self) -> bool {
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

    /// What is new since the last call.
    fn delta(&mut self) -> (Vec<Object>, Vec<ObjectId>) {
        let merged: BTreeMap<ObjectId, Object> =
            self.merge().0.into_iter().map(|(id, (_, object))| (id, object.clone())).collect();
        let is_new = |(id, object): &(&ObjectId, &Object)| self.given.get(*id) != Some(*object);
        let set = merged.iter().filter(is_new).map(|(_, object)| object.clone()).collect();
        let gone = self.given.keys().filter(|id| !merged.contains_key(*id)).cloned().collect();
        self.given = merged;
        (set, gone)
    }

    fn problems(&self) -> Vec<String> {
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
