//! Watches directories for changes by inotify.
//!
//! A watch belongs to an inode, so it is set again when a directory is replaced by another one of the same path. Events can
//! be lost, and some file systems have none: callers compare at intervals as well.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirEvent {
    /// Something in a directory may have changed.
    Changed,
    /// A directory was removed, and its watch with it.
    Removed,
}

/// Watches some directories, each without its subdirectories.
#[derive(Debug)]
pub(crate) struct DirWatch {
    dirs: Vec<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of each directory when it was watched; `None` for one that did not exist.
    watched: Vec<Option<(u64, u64)>>,
    /// The last error, which was logged.
    error: Option<String>,
}

impl DirWatch {
    /// Does not watch yet.
    pub(crate) fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, watcher: None, watched: Vec::new(), error: None }
    }

    /// Starts the watch, or starts it again if a directory was created or replaced. Events go to `send`. An error is logged
    /// once, with the `interval` at which the caller looks without events.
    pub(crate) fn refresh(&mut self, interval: Duration, send: impl Fn(DirEvent) + Send + 'static) {
        let identity =
            |dir: &PathBuf| fs::metadata(dir).ok().map(|found| (found.dev(), found.ino()));
        let now: Vec<_> = self.dirs.iter().map(identity).collect();
        if self.watcher.is_some() && self.watched == now {
            return;
        }
        match watch(&self.dirs, send) {
            Ok(watcher) => {
                (self.watcher, self.watched, self.error) = (Some(watcher), now, None);
            }
            Err(error) => {
                self.watcher = None;
                let error = Some(error.to_string());
                if self.error != error {
                    let dirs: Vec<_> =
                        self.dirs.iter().map(|dir| dir.display().to_string()).collect();
                    tracing::warn!(
                        error,
                        "cannot watch {}, looking every {} s",
                        dirs.join(", "),
                        interval.as_secs()
                    );
                }
                self.error = error;
            }
        }
    }

    /// To be called with each event. After [`DirEvent::Removed`] the next [`DirWatch::refresh`] starts the watch again: a new
    /// directory of the same path may even have the same inode.
    pub(crate) fn handle(&mut self, event: DirEvent) {
        if event == DirEvent::Removed {
            self.watcher = None;
        }
    }

    /// Whether every directory exists and is watched.
    pub(crate) fn is_complete(&self) -> bool {
        self.watcher.is_some() && self.watched.iter().all(Option::is_some)
    }
}

fn watch(
    dirs: &[PathBuf],
    send: impl Fn(DirEvent) + Send + 'static,
) -> notify::Result<RecommendedWatcher> {
    let all = dirs.to_vec();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let is_dir = |path: &PathBuf| all.contains(path);
        match event {
            Ok(event) if !is_write(event.kind) => {}
            Ok(event) if event.kind.is_remove() && event.paths.iter().any(is_dir) => {
                send(DirEvent::Removed);
            }
            // an error may mean lost events
            Ok(_) | Err(_) => send(DirEvent::Changed),
        }
    })?;
    for dir in dirs.iter().filter(|dir| Path::is_dir(dir)) {
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Whether an event may have changed content. Reading raises events too, also the caller's own.
fn is_write(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Waits until no event has come for `quiet`, at most `longest` in total: programs write files in several steps. `handle`
/// gets each event and returns false to stop. False if stopped, or if there are no more senders.
pub(crate) fn debounce<E>(
    events: &mpsc::Receiver<E>,
    quiet: Duration,
    longest: Duration,
    mut handle: impl FnMut(E) -> bool,
) -> bool {
    let deadline = Instant::now() + longest;
    while Instant::now() < deadline {
        match events.recv_timeout(quiet) {
            Ok(event) => {
                if !handle(event) {
                    return false;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            Err(mpsc::RecvTimeoutError::Timeout) => return true,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_directory_that_is_replaced_is_watched_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d");
        let (events, received) = mpsc::channel();
        let mut watch = DirWatch::new(vec![dir.clone()]);
        let refresh = |watch: &mut DirWatch| {
            let events = events.clone();
            watch.refresh(LONG, move |event| {
                let _ = events.send(event);
            });
        };
        refresh(&mut watch);
        assert!(!watch.is_complete(), "it does not exist");
        fs::create_dir(&dir).unwrap();
        refresh(&mut watch);
        assert!(watch.is_complete());
        fs::write(dir.join("one"), "").unwrap();
        assert_eq!(received.recv_timeout(LONG), Ok(DirEvent::Changed));
        fs::remove_dir_all(&dir).unwrap();
        while received.recv_timeout(LONG).unwrap() != DirEvent::Removed {}
        watch.handle(DirEvent::Removed);
        assert!(!watch.is_complete());
        fs::create_dir(&dir).unwrap();
        refresh(&mut watch);
        fs::write(dir.join("two"), "").unwrap();
        assert_eq!(received.recv_timeout(LONG), Ok(DirEvent::Changed));
    }

    #[test]
    fn debouncing_ends_when_it_is_quiet_at_the_limit_and_when_stopped() {
        let (events, received) = mpsc::channel();
        let (quiet, longest) = (Duration::from_millis(20), Duration::from_millis(200));
        events.send(1).unwrap();
        assert!(debounce(&received, quiet, LONG, |_| true));
        events.send(2).unwrap();
        assert!(!debounce(&received, quiet, LONG, |event| event != 2));
        let busy = events.clone();
        let sender = std::thread::spawn(move || {
            while busy.send(3).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let started = Instant::now();
        assert!(debounce(&received, LONG, longest, |_| true));
        assert!(started.elapsed() < LONG);
        drop(received);
        sender.join().unwrap();
    }
}
