//! `policyd install`: reconciles once, or whenever something changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use nix::sys::signal::{SigSet, Signal};

use super::args::{Dirs, Install};
use super::readiness::Readiness;
use super::{Directory, InstallError, InstallState, Installer, Report, atomic_file, failed, state};
use crate::dir_watch::{DirEvent, DirWatch, debounce};
use crate::lock::{self, LockError};

/// The files are read this long after the last event: programs write in several steps.
const DEBOUNCE: Duration = Duration::from_millis(30);
/// The files are read this long after the first event at the latest.
const MAX_DEBOUNCE: Duration = Duration::from_millis(300);
/// Interval without an event: some file systems have none, and a watch may be lost.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The same while new pods get no gate.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// This number of edits in [`EDIT_WINDOW`] means that another program undoes each one: then the next ones wait for
/// [`CONFLICT_DELAY`].
const MAX_EDITS: usize = 20;
const CONFLICT_DELAY: Duration = Duration::from_secs(2);
const EDIT_WINDOW: Duration = Duration::from_secs(60);
/// How long `--once` waits for another installer to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

const HOLDER: &str = "another `policyd install` is at work on this node";

/// `policyd install`.
pub fn install(args: Install) -> Result<(), InstallError> {
    let Install {
        dirs: Dirs { cni_conf_dir, cni_bin_dir, install_state },
        plugin,
        watch,
        wait_for,
        on_cannot_enforce,
        rules,
        entry,
        ..
    } = args;
    // before any thread is started, since threads inherit the blocked signals
    let stop = watch.then(stop_signals).transpose()?;
    let dirs = Directory::new(cni_conf_dir.clone(), cni_bin_dir.clone());
    let mut installer = Installer::new(dirs, rules, plugin, entry)?;
    let readiness = Readiness::new(wait_for, on_cannot_enforce);
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
    let _lock = if watch {
        // on another thread: the holder may never end, and a signal must end the wait
        let dir = cni_conf_dir.clone();
        let events = events.clone();
        thread::spawn(move || events.send(Wake::Locked(lock::acquire(&dir, None, HOLDER))));
        match woken.recv() {
            Ok(Wake::Locked(lock)) => lock?,
            _ => return Ok(()),
        }
    } else {
        lock::acquire(&cni_conf_dir, Some(LOCK_TIMEOUT), HOLDER)?
    };
    atomic_file::remove_stale(&cni_conf_dir);
    atomic_file::remove_stale(&cni_bin_dir);
    if !watch {
        return once(&mut installer, &cni_conf_dir, readiness, &install_state);
    }
    tracing::info!(
        dir = %cni_conf_dir.display(), plugin = installer.version(),
        "keeping podgate in the node's CNI configuration"
    );
    let mut watch = Watch {
        installer,
        readiness,
        install_state,
        dir: cni_conf_dir.clone(),
        dir_watch: DirWatch::new(vec![cni_conf_dir, cni_bin_dir]),
        logged: Vec::new(),
        edits: Vec::new(),
        in_conflict: false,
    };
    watch.run(&events, &woken);
    Ok(())
}

fn once(
    installer: &mut Installer,
    dir: &Path,
    mut readiness: Readiness,
    install_state: &Path,
) -> Result<(), InstallError> {
    let outcome = installer.reconcile(&readiness.edit());
    state::write(install_state, outcome.as_ref(), false)?;
    let report = outcome?;
    for change in &report.changes {
        tracing::info!("{change}");
    }
    for problem in report.problems.iter().chain(&report.warnings) {
        tracing::warn!("{problem}");
    }
    for note in &report.notes {
        tracing::info!("{note}");
    }
    match report.state {
        InstallState::InForce { files } => {
            let file = files.join(", ");
            tracing::info!(file, plugin = installer.version(), "new pods get a gate");
            Ok(())
        }
        InstallState::Refusing { reason } => Err(InstallError::NotInForce {
            dir: dir.display().to_string(),
            reason: refused(&reason),
        }),
        InstallState::Waiting { reason } => {
            Err(InstallError::NotInForce { dir: dir.display().to_string(), reason })
        }
    }
}

fn refused(reason: &str) -> String {
    format!("new pods are refused, or held where the plugin can load the programs: {reason}")
}

enum Wake {
    Dir(DirEvent),
    Locked(Result<Flock<fs::File>, LockError>),
    Stop,
}

struct Watch {
    installer: Installer,
    readiness: Readiness,
    install_state: PathBuf,
    /// The configuration directory.
    dir: PathBuf,
    dir_watch: DirWatch,
    /// The lines logged at the last reconciliation.
    logged: Vec<String>,
    /// When files were edited.
    edits: Vec<Instant>,
    /// Whether another program undoes the edits, which was logged.
    in_conflict: bool,
}

impl Watch {
    fn run(&mut self, events: &mpsc::Sender<Wake>, woken: &mpsc::Receiver<Wake>) {
        loop {
            // before the files are read, so that no change in between is missed
            let events = events.clone();
            self.dir_watch.refresh(RECHECK_INTERVAL, move |event| {
                // fails only while the program is stopping
                let _ = events.send(Wake::Dir(event));
            });
            let interval = self.reconcile();
            match woken.recv_timeout(interval) {
                Ok(Wake::Dir(event)) => {
                    self.dir_watch.handle(event);
                    let quiet = self.quiet_time();
                    let longest = quiet.max(MAX_DEBOUNCE);
                    let goes_on = debounce(woken, quiet, longest, |wake| {
                        if let Wake::Dir(event) = wake {
                            self.dir_watch.handle(event);
                        }
                        !matches!(wake, Wake::Stop)
                    });
                    if !goes_on {
                        return;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) | Ok(Wake::Locked(_)) => {}
                Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// How long there must be no event before the files are read.
    fn quiet_time(&mut self) -> Duration {
        self.edits.retain(|at| at.elapsed() < EDIT_WINDOW);
        let in_conflict = self.edits.len() >= MAX_EDITS;
        if in_conflict && !self.in_conflict {
            tracing::warn!(
                "another program undoes podgate's edits of {}: adding the entry again only every {} s",
                self.dir.display(),
                CONFLICT_DELAY.as_secs()
            );
        }
        self.in_conflict = in_conflict;
        if in_conflict { CONFLICT_DELAY } else { DEBOUNCE }
    }

    /// Reconciles and logs what is new. Returns the time until the next reconciliation without an event.
    fn reconcile(&mut self) -> Duration {
        let outcome = self.installer.reconcile(&self.readiness.edit());
        // each time, because its age shows that this process still runs
        let written = state::write(&self.install_state, outcome.as_ref(), true);
        match outcome {
            Ok(Report { state, changes, mut problems, warnings, notes }) => {
                for change in &changes {
                    tracing::info!("{change}");
                }
                if !changes.is_empty() {
                    self.edits.push(Instant::now());
                }
                problems.extend(warnings);
                problems.extend(written.err().map(|error| error.to_string()));
                let mut information = notes;
                let interval = match state {
                    InstallState::InForce { files } => {
                        information.push(format!("new pods get a gate: {}", files.join(", ")));
                        RECHECK_INTERVAL
                    }
                    InstallState::Refusing { reason } => {
                        problems.push(refused(&reason));
                        RETRY_INTERVAL
                    }
                    InstallState::Waiting { reason } => {
                        problems.push(format!("new pods get no gate: {reason}"));
                        RETRY_INTERVAL
                    }
                };
                self.log(problems, information);
                interval
            }
            Err(error) => {
                self.log(vec![error.to_string()], Vec::new());
                RETRY_INTERVAL
            }
        }
    }

    /// Logs the lines that were not logged at the last reconciliation.
    fn log(&mut self, problems: Vec<String>, information: Vec<String>) {
        let is_new = |line: &&String| !self.logged.contains(*line);
        problems.iter().filter(is_new).for_each(|line| tracing::warn!("{line}"));
        information.iter().filter(is_new).for_each(|line| tracing::info!("{line}"));
        self.logged = problems.into_iter().chain(information).collect();
    }
}

/// Blocks SIGTERM and SIGINT so that they can be waited for: for the first process of a container they have no default
/// action.
pub(super) fn stop_signals() -> Result<SigSet, InstallError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(|e| failed("block signals")(e.into()))?;
    Ok(signals)
}
