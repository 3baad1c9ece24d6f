//! `policyd install`: one pass, or one after the other whenever something changes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use podgate_bpf::handshake::{Request, Response};

use super::args::{Dirs, Install};
use super::{Directory, InstallError, Installer, Report, Standing, failed, lock, place, state};

/// Whoever writes a file may do it in several steps.
const QUIET: Duration = Duration::from_millis(30);
/// A directory that is never quiet is looked at all the same.
const LONGEST: Duration = Duration::from_millis(300);
/// Looks without an event: a file system that tells nothing, a lost watch.
const RECHECK: Duration = Duration::from_secs(10);
/// The same while something is missing.
const RETRY: Duration = Duration::from_secs(1);
/// So many edits in [`WINDOW`] mean that another program undoes each one: then each waits for [`TRUCE`].
const QUARREL: usize = 20;
const TRUCE: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(60);
/// How long `--once` waits for another to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a policyd may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

const HOLDER: &str = "another `policyd install` is at work on this node";

/// `policyd install`.
pub fn install(args: Install) -> Result<(), InstallError> {
    let Install {
        dirs: Dirs { cni_conf_dir, cni_bin_dir, install_state },
        plugin,
        watch,
        wait_for,
        rules,
        entry,
        ..
    } = args;
    // before any thread exists, so that all of them leave it to the one that waits
    let stop = watch.then(stop_signals).transpose()?;
    let dirs = Directory::new(cni_conf_dir.clone(), cni_bin_dir.clone());
    let mut installer = Installer::new(dirs, rules, plugin, entry)?;
    fs::create_dir_all(&cni_conf_dir)
        .map_err(failed(format!("create {}", cni_conf_dir.display())))?;
    let (events, woken) = mpsc::channel();
    if let Some(signals) = stop {
        let events = events.clone();
        thread::spawn(move || {
            let _ = signals.wait();
            let _ = events.send(Wake::Stop);
        });
    }
    let _only = if watch {
        // the holder may never end: so that a signal ends the wait, it is done beside
        let dir = cni_conf_dir.clone();
        let events = events.clone();
        thread::spawn(move || events.send(Wake::Locked(lock::only_one(&dir, None, HOLDER))));
        match woken.recv() {
            Ok(Wake::Locked(lock)) => lock?,
            _ => return Ok(()),
        }
    } else {
        lock::only_one(&cni_conf_dir, Some(PATIENCE), HOLDER)?
    };
    place::sweep(&cni_conf_dir);
    place::sweep(&cni_bin_dir);
    if !watch {
        return once(&mut installer, &cni_conf_dir, wait_for.as_deref(), &install_state);
    }
    tracing::info!(
        dir = %cni_conf_dir.display(), plugin = installer.version(),
        "keeping podgate in the node's CNI configuration"
    );
    let mut watch = Watch {
        installer,
        dirs: [cni_conf_dir, cni_bin_dir],
        wait_for,
        install_state,
        watched: Vec::new(),
        watcher: None,
        told: Vec::new(),
        edits: Vec::new(),
        quarrel: false,
        unwatched: None,
    };
    watch.run(&events, &woken);
    Ok(())
}

fn once(
    installer: &mut Installer,
    dir: &Path,
    wait_for: Option<&Path>,
    install_state: &Path,
) -> Result<(), InstallError> {
    let pass = installer.pass(wait_for.is_none_or(is_ready));
    state::write(install_state, pass.as_ref(), false)?;
    let report = pass?;
    for change in &report.changes {
        tracing::info!("{change}");
    }
    for problem in &report.problems {
        tracing::warn!("{problem}");
    }
    for note in &report.notes {
        tracing::info!("{note}");
    }
    match report.standing {
        Standing::InForce { files } => {
            let file = files.join(", ");
            tracing::info!(file, plugin = installer.version(), "new pods get a gate");
            Ok(())
        }
        Standing::Waiting { reason } => {
            Err(InstallError::NotInForce { dir: dir.display().to_string(), reason })
        }
    }
}

enum Wake {
    Touched,
    Locked(Result<nix::fcntl::Flock<fs::File>, InstallError>),
    Stop,
}

struct Watch {
    installer: Installer,
    dirs: [PathBuf; 2],
    wait_for: Option<PathBuf>,
    install_state: PathBuf,
    /// Device and inode of each directory: another one may take its name.
    watched: Vec<Option<(u64, u64)>>,
    watcher: Option<RecommendedWatcher>,
    /// What has been said already.
    told: Vec<String>,
    edits: Vec<Instant>,
    /// Whether there have been too many, which has been said.
    quarrel: bool,
    /// Why directories cannot be watched, which has been said.
    unwatched: Option<String>,
}

impl Watch {
    fn run(&mut self, events: &mpsc::Sender<Wake>, woken: &mpsc::Receiver<Wake>) {
        loop {
            // before the look, so that nothing is missed in between
            self.watch(events);
            let pause = self.look();
            match woken.recv_timeout(pause.unwrap_or(RECHECK)) {
                Ok(Wake::Touched) => {
                    let rest = self.rest();
                    let late = Instant::now() + rest.max(LONGEST);
                    loop {
                        match woken.recv_timeout(rest) {
                            Err(mpsc::RecvTimeoutError::Timeout) => break,
                            Ok(Wake::Stop) | Err(_) => return,
                            Ok(_) if Instant::now() >= late => break,
                            Ok(_) => {}
                        }
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) | Ok(Wake::Locked(_)) => {}
                Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// How long to wait after an event.
    fn rest(&mut self) -> Duration {
        self.edits.retain(|at| at.elapsed() < WINDOW);
        let quarrel = self.edits.len() >= QUARREL;
        if quarrel && !self.quarrel {
            tracing::warn!(
                "another program undoes podgate's edits of {}: putting the entry back only every {} s",
                self.dirs[0].display(),
                TRUCE.as_secs()
            );
        }
        self.quarrel = quarrel;
        if quarrel { TRUCE } else { QUIET }
    }

    /// One pass; says what is new. When to look again, if earlier than usual.
    fn look(&mut self) -> Option<Duration> {
        let edit = self.wait_for.as_deref().is_none_or(is_ready);
        if edit {
            // policyd may stop again: the entry stays, the pods' state then is the plugin's to decide
            self.wait_for = None;
        }
        let pass = self.installer.pass(edit);
        // at every look, also as a sign of life
        let written = state::write(&self.install_state, pass.as_ref(), true);
        match pass {
            Ok(Report { standing, changes, mut problems, notes }) => {
                for change in &changes {
                    tracing::info!("{change}");
                }
                if !changes.is_empty() {
                    self.edits.push(Instant::now());
                }
                problems.extend(written.err().map(|error| error.to_string()));
                let mut fine = notes;
                let pause = match standing {
                    Standing::InForce { files } => {
                        fine.push(format!("new pods get a gate: {}", files.join(", ")));
                        None
                    }
                    Standing::Waiting { reason } => {
                        problems.push(format!("new pods get no gate: {reason}"));
                        Some(RETRY)
                    }
                };
                self.tell(problems, fine);
                pause
            }
            Err(error) => {
                self.tell(vec![error.to_string()], Vec::new());
                Some(RETRY)
            }
        }
    }

    /// Says each thing once, as long as it is so.
    fn tell(&mut self, problems: Vec<String>, fine: Vec<String>) {
        let is_new = |line: &&String| !self.told.contains(*line);
        problems.iter().filter(is_new).for_each(|line| tracing::warn!("{line}"));
        fine.iter().filter(is_new).for_each(|line| tracing::info!("{line}"));
        self.told = problems.into_iter().chain(fine).collect();
    }

    fn watch(&mut self, events: &mpsc::Sender<Wake>) {
        let identity =
            |dir: &PathBuf| fs::metadata(dir).ok().map(|found| (found.dev(), found.ino()));
        let now: Vec<_> = self.dirs.iter().map(identity).collect();
        if self.watcher.is_some() && self.watched == now {
            return;
        }
        let events = events.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let reads = |kind: EventKind| match kind {
                EventKind::Access(access) => access != AccessKind::Close(AccessMode::Write),
                _ => false,
            };
            if !event.is_ok_and(|event| reads(event.kind)) {
                // it may just have stopped
                let _ = events.send(Wake::Touched);
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            for dir in self.dirs.iter().filter(|dir| dir.is_dir()) {
                watcher.watch(dir, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => {
                (self.watcher, self.watched, self.unwatched) = (Some(watcher), now, None);
            }
            Err(error) => {
                let error = Some(error.to_string());
                if self.unwatched != error {
                    let every = RECHECK.as_secs();
                    tracing::warn!(error, "cannot watch the directories, looking every {every} s");
                }
                self.unwatched = error;
            }
        }
    }
}

/// Blocks the signals that ask to end; as the first process of a container one has to take them up oneself.
pub(super) fn stop_signals() -> Result<SigSet, InstallError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(|e| failed("block signals")(e.into()))?;
    Ok(signals)
}

/// Whether a policyd answers there that it is ready.
fn is_ready(socket: &Path) -> bool {
    let ask = || -> std::io::Result<Response> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let line = serde_json::to_string(&Request::Status)? + "\n";
        stream.write_all(line.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    };
    matches!(ask(), Ok(Response::Ok))
}
