//! The objects of the files of a directory, and what has changed of them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use podgate_manifests::interner::Interner;
use podgate_manifests::manifest::{self, Lost, Manifest, ManifestError};
use podgate_manifests::synthesize::services;
use podgate_manifests::unenforced::Unenforced;
use podgate_policy::object::{Kind, Object, ObjectId};

use crate::file_stamp::FileStamp;

/// How often in a row a file may change while it is read before it counts as unreadable.
const MAX_UNSTABLE_READS: u32 = 5;

/// How many problems of all files, and how many files that are passed over, are listed one by one.
const MAX_LISTED: usize = 200;

/// The files of a directory as they were last read.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// The former objects of files that have changed since [`Scan::delta`].
    before: BTreeMap<PathBuf, Vec<Object>>,
    /// The services and slices reported last, with what a control plane would have added.
    services: BTreeMap<ObjectId, Object>,
    interner: Interner,
    /// Whether [`Scan::delta`] was called.
    started: bool,
    problems: Vec<String>,
    skipped: Vec<String>,
    unenforced: Unenforced,
}

#[derive(Debug, Default)]
struct File {
    /// `None`: to be read again.
    stamp: Option<FileStamp>,
    /// How often in a row it changed while it was read.
    unstable_reads: u32,
    /// The objects of its last good state. If there was none: those that can be read, and substitutes for policies that
    /// cannot.
    objects: Vec<Object>,
    /// Whether `objects` are those of a good state.
    whole: bool,
    /// Whether it appeared while policyd ran. Then it provides nothing before its first good state: a file that is being
    /// copied slowly must not isolate pods.
    late: bool,
    /// The errors of its present state. With any, `objects` may be those of an older, good state.
    errors: Vec<ManifestError>,
    /// It never had a good state, and may have policies of any namespace.
    incomplete: bool,
    skipped: Vec<String>,
    /// Counts of the same state as `objects`.
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
            interner: Interner::default(),
            started: false,
            problems: Vec::new(),
            skipped: Vec::new(),
            unenforced: Unenforced::new(),
        }
    }

    /// Reads the files whose stamps have changed.
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
            let stamp = looks.as_ref().ok().map(FileStamp::of);
            if stamp.is_some() && self.files.get(&path).is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            let manifest = match &looks {
                Ok(_) => manifest::read_file(&path),
                Err(error) => Manifest::unreadable(&path, error.to_string()),
            };
            let after = FileStamp::at(&path);
            let late = self.started;
            let file =
                self.files.entry(path.clone()).or_insert_with(|| File { late, ..File::default() });
            if after != stamp {
                // it is being written: only half of it may have been read
                file.stamp = None;
                file.unstable_reads += 1;
                if file.unstable_reads <= MAX_UNSTABLE_READS {
                    read = Read::Moving;
                    continue;
                }
                let cause = "it changes whenever it is read; replace it in one step".to_owned();
                let manifest = Manifest::unreadable(&path, cause);
                changed |= file.take(manifest, &path, &mut self.before, &mut self.interner);
                continue;
            }
            (file.stamp, file.unstable_reads) = (stamp, 0);
            changed |= file.take(manifest, &path, &mut self.before, &mut self.interner);
        }
        if changed {
            self.describe();
        }
        Ok(read)
    }

    /// Whether a file that never had a good state may have policies of any namespace.
    pub(super) fn is_incomplete(&self) -> bool {
        self.files.values().any(|file| file.incomplete)
    }

    /// What cannot be read, and what is in force instead.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The files and documents that were skipped.
    pub(super) fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// How many objects there are of kinds that are not enforced.
    pub(super) fn unenforced(&self) -> &Unenforced {
        &self.unenforced
    }

    /// The changes since the last call, with what a control plane would have added to services.
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
            while let Some(object) = old.next_if(|old| old.cmp_id(object) == Ordering::Less) {
                gone.push(object.id());
            }
            let same = old.next_if(|old| old.cmp_id(object) == Ordering::Equal);
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
    /// Sets what was read. Its former objects go to `before` if they differ. True if anything changed.
    fn take(
        &mut self,
        manifest: Manifest,
        path: &Path,
        before: &mut BTreeMap<PathBuf, Vec<Object>>,
        interner: &mut Interner,
    ) -> bool {
        let Manifest { mut objects, mut errors, closed, incomplete, skipped, unenforced, .. } =
            manifest;
        // Half of a policy may be no object at all. A file that was always skipped stays skipped.
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
        objects.iter_mut().for_each(|object| interner.share(object));
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
            (false, Lost::ClusterPolicy) => {
                "until it is mended, it has no effect: what it denies may pass"
            }
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

/// The first [`MAX_LISTED`] lines, and how many more there are.
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

/// Every object once, sorted by id: of two files the first in lexical order provides it. And each duplicate: its file, the
/// file that provides the object, and its id.
fn merge<'a>(
    files: impl Iterator<Item = (&'a Path, &'a [Object])>,
) -> (Vec<&'a Object>, Vec<[String; 3]>) {
    let mut all: Vec<(&Path, &Object)> = Vec::new();
    for (path, objects) in files {
        all.extend(objects.iter().map(|object| (path, object)));
    }
    // stable: of two that are the same the first file's comes first
    all.sort_by(|(_, a), (_, b)| a.cmp_id(b));
    let mut twice = Vec::new();
    all.dedup_by(|(path, object), (first, other)| {
        let same = object.cmp_id(other) == Ordering::Equal;
        if same {
            let [path, first] = [*path, *first].map(|path| path.display().to_string());
            twice.push([path, first, object.id().to_string()]);
        }
        same
    });
    (all.into_iter().map(|(_, object)| object).collect(), twice)
}

fn is_service(object: &Object) -> bool {
    matches!(object.kind(), Kind::Service | Kind::EndpointSlice)
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

    #[test]
    fn a_cluster_policy_that_cannot_be_read_is_left_out_at_start_and_keeps_its_last_version_later()
    {
        let dir = tempfile::tempdir().unwrap();
        let policy = |priority: &str, action: &str| {
            format!(
                "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\n\
                 spec: {{tier: Admin, priority: {priority}, subject: {{namespaces: {{}}}}, \
                 ingress: [{{action: {action}, from: [{{namespaces: {{}}}}]}}]}}\n"
            )
        };
        let file = dir.path().join("a.yaml");
        let mut scan = Scan::new(dir.path().to_owned());
        let mut read = |text: String| {
            fs::write(&file, text).unwrap();
            assert_eq!(scan.read().unwrap(), Read::Whole);
            (scan.delta(), scan.problems().to_vec())
        };
        let (delta, problems) = read(policy("1001", "Deny") + "---\n" + &namespace("one"));
        assert_eq!(delta.0.iter().map(Object::kind).collect::<Vec<_>>(), [Kind::Namespace]);
        assert!(problems[0].contains("clusternetworkpolicy p, spec.priority: "), "{problems:?}");
        assert!(problems[0].ends_with("what it denies may pass"), "{problems:?}");
        let (delta, problems) = read(policy("7", "Deny"));
        assert_eq!((delta.0.len(), problems), (1, Vec::new()));
        let (delta, problems) = read(policy("1001", "Accept"));
        assert_eq!(delta, (Vec::new(), Vec::new()));
        assert!(problems[0].contains("last good state stays"), "{problems:?}");
        // what fails closed by itself is no reason to keep an earlier state
        let (delta, problems) = read(policy("8", "Log"));
        assert_eq!((delta.0.len(), problems), (1, Vec::new()));
    }
}
