//! What the files of a directory say, and what of it is new.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::complete::services;
use super::manifest::{self, Lost, Manifest, ManifestError};
use super::names::Names;
use super::unenforced::Unenforced;
use super::{Kind, Object, ObjectId};

/// How often a file may change under the reader before it counts as one that cannot be read.
const PATIENCE: u32 = 5;

/// How many problems of all files, and how many files that are passed over, are listed one by one.
const MAX_LISTED: usize = 200;

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
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// What the files of a directory said when they were last read.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// What files gave that give something else since the last [`Scan::delta`].
    before: BTreeMap<PathBuf, Vec<Object>>,
    /// Services and slices as handed on last, with what a control plane would have added.
    services: BTreeMap<ObjectId, Object>,
    names: Names,
    /// Whether anything was handed on.
    started: bool,
    problems: Vec<String>,
    skipped: Vec<String>,
    unenforced: Unenforced,
}

#[derive(Debug, Default)]
struct File {
    /// `None`: to be read again.
    stamp: Option<Stamp>,
    /// How often it changed while it was read, one time after the other.
    restless: u32,
    /// Of its last whole state. If there was none: what can be read, and what stands in for policies that cannot.
    objects: Vec<Object>,
    /// Whether `objects` are of a whole state.
    whole: bool,
    /// Whether it came while policyd ran: then nothing of it was ever in force before it is whole, and one that is copied
    /// slowly must not isolate anything meanwhile.
    late: bool,
    /// Of its present state; with any, and a whole state, `objects` is older than that.
    errors: Vec<ManifestError>,
    /// It was never whole, and may hold policies of any namespace.
    incomplete: bool,
    skipped: Vec<String>,
    /// Of the same state as `objects`.
    unenforced: Unenforced,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Whole,
    /// Some file changed while it was read.
    Moving,
}

impl Scan {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: BTreeMap::new(),
            before: BTreeMap::new(),
            services: BTreeMap::new(),
            names: Names::default(),
            started: false,
            problems: Vec::new(),
            skipped: Vec::new(),
            unenforced: Unenforced::new(),
        }
    }

    /// Reads the files whose stamps changed. Without any, this costs a look at each.
    pub(super) fn read(&mut self) -> io::Result<Read> {
        let present = manifest::list(&self.dir)?;
        let mut changed = false;
        if present.len() < self.files.len()
            || self.files.keys().any(|file| find(&present, file).is_none())
        {
            let before = &mut self.before;
            self.files.retain(|path, file| {
                let stays = find(&present, path).is_some();
                if !stays {
                    before.entry(path.clone()).or_insert_with(|| std::mem::take(&mut file.objects));
                }
                stays
            });
            changed = true;
        }
        let mut read = Read::Whole;
        for (path, looks) in present {
            let stamp = looks.as_ref().ok().map(Stamp::of);
            if stamp.is_some() && self.files.get(&path).is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            let said = match &looks {
                Ok(_) => manifest::read_file(&path),
                Err(error) => Manifest::unreadable(&path, error.to_string()),
            };
            let after = std::fs::metadata(&path).ok().as_ref().map(Stamp::of);
            let late = self.started;
            let file =
                self.files.entry(path.clone()).or_insert_with(|| File { late, ..File::default() });
            if after != stamp {
                // it is being written: what was read may be half of it
                file.stamp = None;
                file.restless += 1;
                if file.restless <= PATIENCE {
                    read = Read::Moving;
                    continue;
                }
                let cause = "it changes whenever it is read; replace it in one step".to_owned();
                let said = Manifest::unreadable(&path, cause);
                changed |= file.take(said, &path, &mut self.before, &mut self.names);
                continue;
            }
            (file.stamp, file.restless) = (stamp, 0);
            changed |= file.take(said, &path, &mut self.before, &mut self.names);
        }
        if changed {
            self.describe();
        }
        Ok(read)
    }

    /// Whether some file that was never whole may hold policies of any namespace.
    pub(super) fn is_incomplete(&self) -> bool {
        self.files.values().any(|file| file.incomplete)
    }

    /// What cannot be read, and what is in force instead.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// What was passed over.
    pub(super) fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// How many objects there are of kinds that are not enforced.
    pub(super) fn unenforced(&self) -> &Unenforced {
        &self.unenforced
    }

    /// What is new since the last call, with what a control plane would have added to services.
    pub(super) fn delta(&mut self) -> (Vec<Object>, Vec<ObjectId>) {
        self.started = true;
        if self.before.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let mut files: BTreeMap<&Path, &[Object]> = BTreeMap::new();
        files.extend(self.files.iter().map(|(path, file)| (path.as_path(), &file.objects[..])));
        let now = merge(files.iter().map(|(path, objects)| (*path, *objects))).0;
        files.extend(self.before.iter().map(|(path, objects)| (path.as_path(), &objects[..])));
        let was = merge(files.into_iter()).0;

        let (mut set, mut gone) = (Vec::new(), Vec::new());
        let is_plain = |object: &&&Object| !is_service(object);
        let mut old = was.iter().filter(is_plain).peekable();
        for object in now.iter().filter(is_plain) {
            while let Some(object) = old.next_if(|old| order(old, object) == Ordering::Less) {
                gone.push(object.id());
            }
            let same = old.next_if(|old| order(old, object) == Ordering::Equal);
            if same.is_none_or(|old| old != object) {
                set.push((*object).clone());
            }
        }
        gone.extend(old.map(|object| object.id()));

        let services = match now.iter().any(|object| is_service(object)) {
            true => services(&now),
            false => Vec::new(),
        };
        let services: BTreeMap<ObjectId, Object> =
            services.into_iter().map(|object| (object.id(), object)).collect();
        let is_new = |(id, object): &(&ObjectId, &Object)| self.services.get(*id) != Some(*object);
        set.extend(services.iter().filter(is_new).map(|(_, object)| object.clone()));
        gone.extend(self.services.keys().filter(|id| !services.contains_key(*id)).cloned());
        self.services = services;
        self.before.clear();
        (set, gone)
    }

    fn describe(&mut self) {
        let mut problems = Vec::new();
        for file in self.files.values() {
            problems.extend(file.errors.iter().map(|error| file.describe(error)));
        }
        let files = self.files.iter().map(|(path, file)| (path.as_path(), &file.objects[..]));
        problems.extend(merge(files).1.into_iter().map(|[path, first, object]| {
            manifest::duplicate(Path::new(&path), Path::new(&first), &object).to_string()
        }));
        self.problems = shortened(problems);
        self.unenforced.clear();
        for (kind, count) in self.files.values().flat_map(|file| &file.unenforced) {
            *self.unenforced.entry(*kind).or_default() += count;
        }
        self.skipped =
            shortened(self.files.values().flat_map(|file| &file.skipped).cloned().collect());
    }
}

impl File {
    /// Takes what was read. What it gave before goes to `before`, if it gives something else now. True if anything changed.
    fn take(
        &mut self,
        said: Manifest,
        path: &Path,
        before: &mut BTreeMap<PathBuf, Vec<Object>>,
        names: &mut Names,
    ) -> bool {
        let Manifest { mut objects, mut errors, closed, incomplete, skipped, unenforced, .. } =
            said;
        // Half of a policy may be no object at all. What was passed over from the beginning stays so.
        let vanished = self.whole && !self.objects.is_empty() && self.skipped.is_empty();
        if vanished && !skipped.is_empty() {
            let cause =
                "something in it is no object of Kubernetes, where everything was".to_owned();
            errors.push(ManifestError::of_file(path, Lost::Object, cause));
        }
        let kept = self.whole && !errors.is_empty();
        let changed = self.errors != errors
            || !kept && (self.skipped != skipped || self.unenforced != unenforced);
        self.errors = errors;
        if kept {
            return changed;
        }
        self.whole = self.errors.is_empty();
        (self.skipped, self.unenforced) = (skipped, unenforced);
        if self.late && !self.whole {
            objects.clear();
        } else {
            self.incomplete = incomplete;
            objects.extend(closed.into_iter().map(Object::Policy));
        }
        if objects == self.objects {
            return changed;
        }
        objects.iter_mut().for_each(|object| names.share(object));
        objects.shrink_to_fit();
        let old = std::mem::replace(&mut self.objects, objects);
        before.entry(path.to_owned()).or_insert(old);
        true
    }

    fn describe(&self, error: &ManifestError) -> String {
        let instead = match (self.whole, error.lost) {
            _ if self.objects.is_empty() && (self.whole || self.late) => {
                "nothing of this file counts until it is mended"
            }
            (true, _) => "the file's last good state stays in force until it is mended",
            (false, Lost::Object) => "until it is mended, what else can be read of the file counts",
            (false, Lost::Policy) => {
                "until it is mended, its pods are isolated and it allows nothing"
            }
            (false, Lost::Any) => {
                "it may hold policies of any namespace: until it is mended, every pod is isolated \
                 and only what other policies allow passes"
            }
        };
        format!("{error}; {instead}")
    }
}

/// As many as people can read.
fn shortened(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(MAX_LISTED);
    if more > 0 {
        lines.truncate(MAX_LISTED);
        lines.push(format!("and {more} more"));
    }
    lines
}

fn find<'a>(
    present: &'a [(PathBuf, io::Result<Metadata>)],
    file: &Path,
) -> Option<&'a (PathBuf, io::Result<Metadata>)> {
    let place = present.binary_search_by(|(path, _)| path.as_path().cmp(file)).ok()?;
    present.get(place)
}

/// Every object once, by kind and name: of two files the first in lexical order gives it. And those that are given twice: by
/// which file, by which other one before, and which.
fn merge<'a>(
    files: impl Iterator<Item = (&'a Path, &'a [Object])>,
) -> (Vec<&'a Object>, Vec<[String; 3]>) {
    let mut all: Vec<(&Path, &Object)> = Vec::new();
    for (path, objects) in files {
        all.extend(objects.iter().map(|object| (path, object)));
    }
    // stable: of two that are the same the first file's comes first
    all.sort_by(|(_, a), (_, b)| order(a, b));
    let mut twice = Vec::new();
    all.dedup_by(|(path, object), (first, other)| {
        let same = order(object, other) == Ordering::Equal;
        if same {
            let [path, first] = [*path, *first].map(|path| path.display().to_string());
            twice.push([path, first, object.id().to_string()]);
        }
        same
    });
    (all.into_iter().map(|(_, object)| object).collect(), twice)
}

fn is_service(object: &Object) -> bool {
    matches!(object, Object::Service(_) | Object::EndpointSlice(_))
}

/// As the order of their ids.
fn order(a: &Object, b: &Object) -> Ordering {
    place(a).cmp(&place(b))
}

fn place(object: &Object) -> (Kind, &str, &str, &str) {
    match object {
        Object::Pod(pod) => (Kind::Pod, "", &pod.key.namespace, &pod.key.name),
        Object::Namespace(namespace) => (Kind::Namespace, "", "", &namespace.name),
        Object::Policy(policy) => {
            (Kind::Policy, &policy.id.source, &policy.id.key.namespace, &policy.id.key.name)
        }
        Object::Service(service) => (Kind::Service, "", &service.key.namespace, &service.key.name),
        Object::EndpointSlice(slice) => {
            (Kind::EndpointSlice, "", &slice.key.namespace, &slice.key.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn namespace(name: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }

    #[test]
    fn a_look_without_changes_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), namespace("one")).unwrap();
        let mut scan = Scan::new(dir.path().to_owned());
        assert_eq!(scan.read().unwrap(), Read::Whole);
        assert_eq!((scan.delta().0.len(), scan.before.len()), (1, 0));
        // written again, the same: nothing is compared beyond the file
        fs::write(dir.path().join("a.yaml"), namespace("one")).unwrap();
        for _ in 0..2 {
            assert_eq!(scan.read().unwrap(), Read::Whole);
            assert!(scan.before.is_empty());
            assert_eq!(scan.delta(), (Vec::new(), Vec::new()));
        }
    }

    #[test]
    fn pods_share_what_they_have_in_common() {
        let dir = tempfile::tempdir().unwrap();
        let pod = |name: &str| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\n"
            )
        };
        fs::write(dir.path().join("a.yaml"), pod("a") + &pod("b")).unwrap();
        let mut scan = Scan::new(dir.path().to_owned());
        scan.read().unwrap();
        let (set, _) = scan.delta();
        let [Object::Pod(a), Object::Pod(b)] = &set[..] else { panic!("{set:?}") };
        let (a, b) = (a.labels.get("app").unwrap(), b.labels.get("app").unwrap());
        assert!(std::sync::Arc::ptr_eq(a, b));
    }
}
