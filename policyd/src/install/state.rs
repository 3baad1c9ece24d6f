//! Whether new pods get a gate, for another process: `policyd install` writes it, `policyd run` shows it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::place::{self, Over, Put};
use super::{InstallError, Report, Standing, failed};

/// The file's name, in the directory that both share (`/run/podgate`).
pub const STATE_FILE: &str = "install.json";
/// `install --watch` writes at least every ten seconds. What is much older is of one that has ended.
const STALE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
struct State {
    gated: bool,
    /// The configuration files that new pods get, where they have podgate.
    #[serde(default)]
    files: Vec<String>,
    /// Why not, where they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Whether a running `--watch` keeps it so.
    watched: bool,
}

/// Whether new pods get a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "gated", rename_all = "lowercase")]
pub enum NewPods {
    /// They do.
    Yes {
        /// The configuration files that say so.
        files: Vec<String>,
    },
    /// They do not.
    No {
        /// Why not.
        reason: String,
    },
    /// Not known: no `policyd install` has run here, or it has ended.
    Unknown {
        /// What is known.
        reason: String,
    },
}

/// Writes the outcome of a pass. Where the directory is missing there is no policyd to read it.
pub(super) fn write(
    path: &Path,
    pass: Result<&Report, &InstallError>,
    watched: bool,
) -> Result<(), InstallError> {
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    let (files, reason) = match pass {
        Ok(Report { standing: Standing::InForce { files }, .. }) => (files.clone(), None),
        Ok(Report { standing: Standing::Waiting { reason }, .. }) => (vec![], Some(reason.clone())),
        Err(error) => (vec![], Some(error.to_string())),
    };
    let state = State { gated: reason.is_none(), files, reason, watched };
    let write = || {
        let text = serde_json::to_vec(&state)?;
        place::put(path, &text, 0o644, Over::Anything).map(|_: Put| ())
    };
    write().map_err(failed(format!("write {}", path.display())))
}

/// Takes it away: new pods get no gates any more.
pub(super) fn remove(path: &Path) -> Result<(), InstallError> {
    place::remove(path).map_err(failed(format!("remove {}", path.display())))
}

/// Reads what was written last.
pub fn new_pods(path: &Path) -> NewPods {
    let unknown = |reason: String| NewPods::Unknown { reason };
    let read = || -> io::Result<(State, SystemTime)> {
        let written = fs::metadata(path)?.modified()?;
        Ok((serde_json::from_slice(&fs::read(path)?)?, written))
    };
    match read() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            unknown(format!("no `policyd install` has written {}", path.display()))
        }
        Err(e) => unknown(format!("read {}: {e}", path.display())),
        Ok((state, written)) => {
            // a clock that was set back makes it young
            let age = written.elapsed().unwrap_or_default();
            match state.reason {
                _ if state.watched && age > STALE => unknown(format!(
                    "`policyd install --watch` has last looked {} s ago: is it running?",
                    age.as_secs()
                )),
                None if state.gated => NewPods::Yes { files: state.files },
                reason => NewPods::No { reason: reason.unwrap_or_default() },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn report(standing: Standing) -> Report {
        Report { standing, changes: vec![], problems: vec![], notes: vec![] }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        assert!(matches!(new_pods(&path), NewPods::Unknown { .. }));
        let files = vec!["10-a.conflist".to_owned()];
        let fine = report(Standing::InForce { files: files.clone() });
        let not = report(Standing::Waiting { reason: "no file".into() });
        write(&path, Ok(&fine), true).unwrap();
        assert_eq!(new_pods(&path), NewPods::Yes { files });
        write(&path, Ok(&not), true).unwrap();
        assert_eq!(new_pods(&path), NewPods::No { reason: "no file".into() });
        write(&path, Err(&InstallError::Busy("busy".into())), false).unwrap();
        assert_eq!(new_pods(&path), NewPods::No { reason: "busy".into() });
        fs::write(&path, "{").unwrap();
        assert!(matches!(new_pods(&path), NewPods::Unknown { .. }));
        remove(&path).unwrap();
        remove(&path).unwrap();
        // the directory is not there
        write(&dir.path().join("none").join(STATE_FILE), Ok(&fine), true).unwrap();
    }

    #[test]
    fn a_watch_that_has_ended_is_noticed_and_a_single_pass_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        for watched in [true, false] {
            write(&path, Ok(&report(Standing::InForce { files: vec![] })), watched).unwrap();
            let before = SystemTime::now() - STALE - Duration::from_secs(5);
            File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
            assert_eq!(matches!(new_pods(&path), NewPods::Unknown { .. }), watched);
        }
    }
}
