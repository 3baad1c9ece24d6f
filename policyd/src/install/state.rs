//! The file in which `policyd install` writes whether new pods get a gate, for `policyd run` to report.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use podgate_contract::api::NewPods;
use serde::{Deserialize, Serialize};

use super::atomic_file::{self, Expected, WriteOutcome};
use super::{InstallError, InstallState, Report, failed};

/// The file's name, in the directory that both share (`/run/podgate`).
pub const STATE_FILE: &str = "install.json";
/// `install --watch` writes at least every ten seconds. If the file is much older, it has ended.
const STALE_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
struct State {
    gated: bool,
    /// The configuration files that new pods get, if they have podgate.
    #[serde(default)]
    files: Vec<String>,
    /// Why some pods will fail with these files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// Whether the entry is there although policyd cannot enforce, so that pods are refused.
    #[serde(default)]
    refused: bool,
    /// Why they get no gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Whether it was written by `install --watch`, which updates it.
    watched: bool,
}

/// Writes the outcome. Does nothing if the directory is missing: then no policyd reads it.
pub(super) fn write(
    path: &Path,
    outcome: Result<&Report, &InstallError>,
    watched: bool,
) -> Result<(), InstallError> {
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    let mut state = State {
        gated: false,
        files: Vec::new(),
        warnings: Vec::new(),
        refused: false,
        reason: None,
        watched,
    };
    match outcome {
        Ok(Report { state: InstallState::InForce { files }, warnings, .. }) => {
            state.gated = true;
            state.files.clone_from(files);
            state.warnings.clone_from(warnings);
        }
        Ok(Report { state: InstallState::Refusing { reason }, .. }) => {
            state.refused = true;
            state.reason = Some(reason.clone());
        }
        Ok(Report { state: InstallState::Waiting { reason }, .. }) => {
            state.reason = Some(reason.clone());
        }
        Err(error) => state.reason = Some(error.to_string()),
    }
    let write = || {
        let text = serde_json::to_vec(&state)?;
        atomic_file::write(path, &text, 0o644, Expected::Any).map(|_: WriteOutcome| ())
    };
    write().map_err(failed(format!("write {}", path.display())))
}

/// Removes the file, as new pods get no gates any more.
pub(super) fn remove(path: &Path) -> Result<(), InstallError> {
    atomic_file::remove(path).map_err(failed(format!("remove {}", path.display())))
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
            // zero if the clock was set back
            let age = written.elapsed().unwrap_or_default();
            match state.reason {
                _ if state.watched && age > STALE_AFTER => unknown(format!(
                    "`policyd install --watch` has last written {} s ago: is it running?",
                    age.as_secs()
                )),
                None if state.gated => {
                    NewPods::Yes { files: state.files, warnings: state.warnings }
                }
                Some(reason) if state.refused => NewPods::Refused { reason },
                reason => NewPods::No { reason: reason.unwrap_or_default() },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn report(state: InstallState) -> Report {
        Report { state, changes: vec![], problems: vec![], warnings: vec![], notes: vec![] }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE_FILE);
        assert!(matches!(new_pods(&path), NewPods::Unknown { .. }));
        let files = vec!["10-a.conflist".to_owned()];
        let fine = report(InstallState::InForce { files: files.clone() });
        let not = report(InstallState::Waiting { reason: "no file".into() });
        write(&path, Ok(&fine), true).unwrap();
        assert_eq!(new_pods(&path), NewPods::Yes { files: files.clone(), warnings: vec![] });
        let warnings = vec!["bandwidth".to_owned()];
        let warned = Report { warnings: warnings.clone(), ..fine.clone() };
        write(&path, Ok(&warned), true).unwrap();
        assert_eq!(new_pods(&path), NewPods::Yes { files, warnings });
        let refusing = report(InstallState::Refusing { reason: "no kernel".into() });
        write(&path, Ok(&refusing), true).unwrap();
        assert_eq!(new_pods(&path), NewPods::Refused { reason: "no kernel".into() });
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
            write(&path, Ok(&report(InstallState::InForce { files: vec![] })), watched).unwrap();
            let before = SystemTime::now() - STALE_AFTER - Duration::from_secs(5);
            File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
            assert_eq!(matches!(new_pods(&path), NewPods::Unknown { .. }), watched);
        }
    }
}
