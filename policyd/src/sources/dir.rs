//! A directory of manifests, watched.
//!
//! A file is read again when its stamp changes: after a file event, once there were no more for [`DEBOUNCE`], and when all
//! stamps are compared every [`RESCAN_INTERVAL`], which also finds changes without an event (a link's target elsewhere, an
//! overflowed event queue, a network file system). A file with a mistake keeps providing its last good state: a
//! half-written policy must not open a pod. One that never had a good state provides what can be read of it, and for a
//! policy that cannot be read one that isolates at least the same pods and allows nothing.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use podgate_manifests::unenforced::Unenforced;

use super::Update;
use super::scan::{Read, Scan};
use crate::dir_watch::{DirEvent, DirWatch, debounce};

/// The directory is read this long after the last event: editors write in several steps.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// The directory is read this long after the first event at the latest.
const MAX_DEBOUNCE: Duration = Duration::from_millis(500);
/// How often stamps are compared without an event.
const RESCAN_INTERVAL: Duration = Duration::from_secs(5);
/// The same while the directory cannot be watched or read.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A watched directory. Dropping it stops the watch.
#[derive(Debug)]
pub struct DirSource {
    wake: mpsc::Sender<Wake>,
    thread: Option<thread::JoinHandle<()>>,
}

enum Wake {
    Dir(DirEvent),
    Stop,
}

impl DirSource {
    /// Starts watching; every update goes to `sink`, the first full one when every file has been looked at.
    /// The directory must be there, so that a misspelt path fails at once.
    pub fn start(dir: PathBuf, sink: impl FnMut(Update) + Send + 'static) -> io::Result<Self> {
        fs::read_dir(&dir)?;
        let (wake, woken) = mpsc::channel();
        let events = wake.clone();
        let watch = thread::Builder::new().name("source-dir".into());
        let thread = watch.spawn(move || {
            let watch = DirWatch::new(vec![dir.clone()]);
            let mut watch = Watch {
                scan: Scan::new(dir),
                sink,
                watch,
                synced: false,
                reported: Reported::default(),
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
    watch: DirWatch,
    synced: bool,
    reported: Reported,
}

/// What the sink was given last.
#[derive(Default)]
struct Reported {
    problems: Vec<String>,
    skipped: Vec<String>,
    unenforced: Unenforced,
    incomplete: bool,
}

impl<S: FnMut(Update)> Watch<S> {
    fn run(&mut self, woken: &mpsc::Receiver<Wake>, events: &mpsc::Sender<Wake>) {
        loop {
            // watched before it is read, so that nothing is missed in between
            let events = events.clone();
            self.watch.refresh(RETRY_INTERVAL, move |event| {
                // fails only while the source is being stopped
                let _ = events.send(Wake::Dir(event));
            });
            let settled = self.read();
            match woken.recv_timeout(if settled { RESCAN_INTERVAL } else { RETRY_INTERVAL }) {
                Ok(Wake::Dir(event)) => {
                    self.watch.handle(event);
                    let goes_on = debounce(woken, DEBOUNCE, MAX_DEBOUNCE, |wake| match wake {
                        Wake::Stop => false,
                        Wake::Dir(event) => {
                            self.watch.handle(event);
                            true
                        }
                    });
                    if !goes_on {
                        return;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Reads changed files and reports what they provide. False if it has to be repeated soon.
    fn read(&mut self) -> bool {
        let scanned = self.scan.read();
        self.report(scanned.as_ref().err());
        let whole = matches!(scanned, Ok(Read::Whole));
        // a file that is being written at the first scan has no last good state
        if scanned.is_ok() && (whole || self.synced) {
            let incomplete = self.scan.is_incomplete();
            // pods are isolated before policies go missing, and until none is missing any more
            if incomplete && !self.reported.incomplete {
                (self.sink)(Update::Incomplete(true));
            }
            let (set, gone) = self.scan.delta();
            if !self.synced {
                self.synced = true;
                (self.sink)(Update::Replace(set));
            } else if !set.is_empty() || !gone.is_empty() {
                (self.sink)(Update::Change { set, gone });
            }
            if !incomplete && self.reported.incomplete {
                (self.sink)(Update::Incomplete(false));
            }
            self.reported.incomplete = incomplete;
        }
        whole && self.watch.is_complete() && self.synced
    }

    /// Reports what cannot be read and what was skipped, if it has changed since the last report.
    fn report(&mut self, error: Option<&io::Error>) {
        let unlisted = error.map(|error| {
            vec![format!(
                "read directory {}: {error}; what it gave before stays in force",
                self.scan.dir.display()
            )]
        });
        let problems = unlisted.as_deref().unwrap_or(self.scan.problems());
        if problems != self.reported.problems {
            for problem in
                problems.iter().filter(|problem| !self.reported.problems.contains(problem))
            {
                tracing::error!("{problem}");
            }
            self.reported.problems = problems.to_vec();
            (self.sink)(Update::Problems(problems.to_vec()));
        }
        if self.scan.skipped() != self.reported.skipped {
            let skipped = self.scan.skipped().to_vec();
            for file in skipped.iter().filter(|file| !self.reported.skipped.contains(file)) {
                tracing::info!("passed over {file}");
            }
            self.reported.skipped.clone_from(&skipped);
            (self.sink)(Update::Skipped(skipped));
        }
        if self.scan.unenforced() != &self.reported.unenforced {
            self.reported.unenforced.clone_from(self.scan.unenforced());
            (self.sink)(Update::Unenforced(self.reported.unenforced.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podgate_policy::object::{Object, ObjectId};
    use std::os::unix::fs::symlink;

    struct Dir {
        dir: tempfile::TempDir,
        updates: mpsc::Receiver<Update>,
        source: Option<DirSource>,
    }

    fn namespace(name: &str) -> String {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }

    impl Dir {
        fn with(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (file, text) in files {
                fs::write(dir.path().join(file), text).unwrap();
            }
            let (sender, updates) = mpsc::channel();
            let sink = move |update| drop(sender.send(update));
            let source = DirSource::start(dir.path().to_owned(), sink).unwrap();
            Self { dir, updates, source: Some(source) }
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.dir.path().join(file), text).unwrap();
        }

        /// The next update, in words.
        fn next(&self) -> String {
            let names = |ids: Vec<ObjectId>| {
                ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            let set = |objects: &[Object]| names(objects.iter().map(Object::id).collect());
            match self.updates.recv_timeout(Duration::from_secs(20)).expect("an update") {
                Update::Replace(objects) => format!("all: {}", set(&objects)),
                Update::Change { set: new, gone } => format!("+ {} - {}", set(&new), names(gone)),
                Update::Problems(problems) => format!("! {}", problems.join("; ")),
                Update::Unenforced(counts) => format!("? {counts:?}"),
                Update::Skipped(skipped) => format!("passed over: {}", skipped.join("; ")),
                Update::Incomplete(incomplete) => format!("incomplete: {incomplete}"),
                other => panic!("a directory says {other:?}"),
            }
        }
    }

    #[test]
    fn changes_are_told_as_they_come() {
        let dir = Dir::with(&[("a.yaml", &namespace("one"))]);
        assert_eq!(dir.next(), "all: namespace one");
        dir.write("b.yml", &(namespace("two") + &namespace("three")));
        assert_eq!(dir.next(), "+ namespace three, namespace two - ");
        dir.write("b.yml", &namespace("three"));
        assert_eq!(dir.next(), "+  - namespace two");
        fs::remove_file(dir.dir.path().join("a.yaml")).unwrap();
        assert_eq!(dir.next(), "+  - namespace one");
        dir.write("notes.txt", &namespace("four"));
        dir.write(
            "c.json",
            "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"five\"}}",
        );
        assert_eq!(dir.next(), "+ namespace five - ");
    }

    #[test]
    fn editors_that_rename_are_understood() {
        let dir = Dir::with(&[("a.yaml", &namespace("one"))]);
        dir.next();
        let (new, old) = (dir.dir.path().join(".a.yaml.swp"), dir.dir.path().join("a.yaml"));
        fs::write(&new, namespace("two")).unwrap();
        fs::rename(&old, dir.dir.path().join("a.yaml~")).unwrap();
        fs::rename(&new, &old).unwrap();
        assert_eq!(dir.next(), "+ namespace two - namespace one");
    }

    #[test]
    fn a_configmap_volume_swaps_its_data() {
        let dir = tempfile::tempdir().unwrap();
        for (version, name) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("a.yaml"), namespace(name)).unwrap();
        }
        symlink("..1", dir.path().join("..data")).unwrap();
        symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
        let (sender, updates) = mpsc::channel();
        let sink = move |update| drop(sender.send(update));
        let source = DirSource::start(dir.path().to_owned(), sink).unwrap();
        let dir = Dir { dir, updates, source: Some(source) };
        assert_eq!(dir.next(), "all: namespace one");
        symlink("..2", dir.dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.dir.path().join("..data_tmp"), dir.dir.path().join("..data")).unwrap();
        assert_eq!(dir.next(), "+ namespace two - namespace one");
    }

    #[test]
    fn a_broken_file_keeps_giving_its_last_good_state() {
        let dir = Dir::with(&[("a.yaml", &(namespace("one") + &namespace("two")))]);
        assert_eq!(dir.next(), "all: namespace one, namespace two");
        // the first document would still be good, the file is not
        dir.write("a.yaml", &(namespace("three") + "---\napiVersion: v1\nkind: Namespace\n"));
        let told = dir.next();
        assert!(
            told.starts_with("! read ") && told.contains("a.yaml, document 2, line 5"),
            "{told}"
        );
        assert!(told.ends_with("stays in force until it is mended"), "{told}");
        dir.write("b.yaml", &namespace("four"));
        assert_eq!(dir.next(), "+ namespace four - ");
        dir.write("a.yaml", &namespace("three"));
        assert_eq!(dir.next(), "! ");
        assert_eq!(dir.next(), "+ namespace three - namespace one, namespace two");
    }

    #[test]
    fn a_file_that_cannot_be_looked_at_is_not_taken_for_a_removed_one() {
        let dir = Dir::with(&[("a.yaml", &namespace("one"))]);
        assert_eq!(dir.next(), "all: namespace one");
        // a link to itself
        symlink("a.yaml", dir.dir.path().join("new")).unwrap();
        fs::rename(dir.dir.path().join("new"), dir.dir.path().join("a.yaml")).unwrap();
        let told = dir.next();
        assert!(told.starts_with("! read ") && told.contains("a.yaml: "), "{told}");
        assert!(told.ends_with("stays in force until it is mended"), "{told}");
        fs::remove_file(dir.dir.path().join("a.yaml")).unwrap();
        assert_eq!(dir.next(), "! ");
        assert_eq!(dir.next(), "+  - namespace one");
    }

    const POLICY: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: s}\n";

    #[test]
    fn a_file_that_was_never_good_costs_its_own_policies_only() {
        let text = namespace("two") + POLICY + "spec: {ingress: 7}\n";
        let dir = Dir::with(&[("a.yaml", &namespace("one")), ("b.yaml", &text)]);
        let told = dir.next();
        assert!(told.contains("b.yaml, document 2, line 9, policy s/p, spec.ingress: "), "{told}");
        assert!(told.ends_with("its pods are isolated and it allows nothing"), "{told}");
        assert_eq!(dir.next(), "all: namespace one, namespace two, policy s/p");
        // worse: nothing of the other documents is known any more
        dir.write("b.yaml", "kind: [");
        let told = dir.next();
        assert!(told.contains("every pod is isolated"), "{told}");
        assert_eq!(dir.next(), "incomplete: true");
        assert_eq!(dir.next(), "+  - namespace two, policy s/p");
        dir.write("b.yaml", &(namespace("two") + POLICY + "spec: {podSelector: {}}\n"));
        assert_eq!(dir.next(), "! ");
        assert_eq!(dir.next(), "+ namespace two, policy s/p - ");
        assert_eq!(dir.next(), "incomplete: false");
        // from now on there is a last good state
        dir.write("b.yaml", "kind: [");
        let told = dir.next();
        assert!(told.ends_with("stays in force until it is mended"), "{told}");
    }

    #[test]
    fn a_file_that_comes_later_counts_once_it_is_whole() {
        let dir = Dir::with(&[("a.yaml", &namespace("one"))]);
        assert_eq!(dir.next(), "all: namespace one");
        // half of it, as a slow copy leaves it
        dir.write("b.yaml", &(namespace("two") + "---\napiVersion: v1\nkind: List\nitems: ["));
        let told = dir.next();
        assert!(told.ends_with("nothing of this file counts until it is mended"), "{told}");
        dir.write("b.yaml", &namespace("two"));
        assert_eq!(dir.next(), "! ");
        assert_eq!(dir.next(), "+ namespace two - ");
    }

    #[test]
    fn what_is_no_object_is_passed_over_unless_it_was_one() {
        let values = "replicas: 3\nimage: {tag: x}\n";
        let dir = Dir::with(&[("a.yaml", &namespace("one")), ("values.yaml", values)]);
        let told = dir.next();
        assert!(told.starts_with("passed over: ") && told.contains("values.yaml, doc"), "{told}");
        assert_eq!(dir.next(), "all: namespace one");
        // the first letters of an object
        dir.write("a.yaml", "apiV");
        let told = dir.next();
        assert!(told.starts_with("! read ") && told.contains("last good state"), "{told}");
        fs::remove_file(dir.dir.path().join("values.yaml")).unwrap();
        assert_eq!(dir.next(), "passed over: ");
    }

    #[test]
    fn of_two_files_the_first_counts_and_the_other_takes_its_place() {
        let pod = |ip: &str| {
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nstatus: {{podIP: {ip}}}\n")
        };
        let dir = Dir::with(&[("a.yaml", &pod("10.0.0.1")), ("b.yaml", &pod("10.0.0.2"))]);
        let told = dir.next();
        assert!(told.contains("pod default/a: already given in"), "{told}");
        assert_eq!(dir.next(), "all: pod default/a");
        fs::remove_file(dir.dir.path().join("a.yaml")).unwrap();
        assert_eq!(dir.next(), "! ");
        assert_eq!(dir.next(), "+ pod default/a - ");
    }

    #[test]
    fn a_directory_that_vanishes_takes_nothing_along_and_may_come_back() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("manifests");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.yaml"), namespace("one")).unwrap();
        let (sender, updates) = mpsc::channel();
        let source =
            DirSource::start(path.clone(), move |update| drop(sender.send(update))).unwrap();
        let dir = Dir { dir: parent, updates, source: Some(source) };
        assert_eq!(dir.next(), "all: namespace one");
        fs::rename(&path, path.with_extension("away")).unwrap();
        let told = dir.next();
        assert!(told.contains("what it gave before stays in force"), "{told}");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.yaml"), namespace("two")).unwrap();
        assert_eq!(dir.next(), "! ");
        assert_eq!(dir.next(), "+ namespace two - namespace one");
    }

    #[test]
    fn a_misspelt_directory_is_an_error_and_a_stopped_watch_ends() {
        assert!(DirSource::start("/no/such/directory".into(), |_| {}).is_err());
        let mut dir = Dir::with(&[]);
        dir.next();
        drop(dir.source.take());
        let timeout = dir.updates.recv_timeout(Duration::from_secs(20));
        assert!(matches!(timeout, Err(mpsc::RecvTimeoutError::Disconnected)), "{timeout:?}");
    }
}
