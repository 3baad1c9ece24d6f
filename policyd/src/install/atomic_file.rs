//! Writes files atomically and durably: readers see the old content or the new one.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Names of temporary files. No runtime reads them, and the next start removes those of a killed process.
const PREFIX: &str = ".podgate-";
const SUFFIX: &str = ".tmp";

/// How often an edit is tried again after another program has written the file meanwhile.
pub(super) const MAX_ATTEMPTS: u32 = 10;

/// Gives another program that is writing a file, perhaps in several steps, the time to finish.
pub(super) fn wait_for_writer() {
    thread::sleep(Duration::from_millis(30));
}

/// The content that a file is expected to have when it is replaced.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expected<'a> {
    /// Any content, or no file.
    Any,
    /// No file.
    Absent,
    /// This text, from which the new one was derived.
    Text(&'a str),
}

impl Expected<'_> {
    fn matches(self, path: &Path) -> io::Result<bool> {
        let now = match (self, fs::read(path)) {
            (Self::Any, _) => return Ok(true),
            (_, Err(e)) if e.kind() == io::ErrorKind::NotFound => None,
            (_, now) => Some(now?),
        };
        Ok(match self {
            Self::Text(was) => now.is_some_and(|now| now == was.as_bytes()),
            Self::Any | Self::Absent => now.is_none(),
        })
    }
}

/// Result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum WriteOutcome {
    /// The new content is on disk.
    Done,
    /// Another program has written the file since it was read. Its content was kept and has to be read.
    Conflict,
}

/// Replaces `path` by `content` if it still has the `expected` content: otherwise another program's write would be lost.
/// Between that comparison and the rename there is no disk access. Mode and owner stay those of the old file; without one
/// they are `mode` and the process' own. A program that is being executed can be replaced as well: running processes keep
/// the old one.
pub(super) fn write(
    path: &Path,
    content: &[u8],
    mode: u32,
    expected: Expected<'_>,
) -> io::Result<WriteOutcome> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temp = tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempfile_in(dir)?;
    temp.write_all(content)?;
    let file = temp.as_file();
    match fs::metadata(path) {
        Ok(old) => {
            // without CAP_CHOWN the file belongs to the process' user, nearly always root as well
            match fchown(file, Some(old.uid()), Some(old.gid())) {
                Err(e) if e.kind() != io::ErrorKind::PermissionDenied => return Err(e),
                _ => {}
            }
            file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        Err(e) => return Err(e),
    }
    file.sync_all()?;
    // closed before the rename, because a program that is open for writing cannot be executed
    let temp = temp.into_temp_path();
    if !expected.matches(path)? {
        return Ok(WriteOutcome::Conflict);
    }
    temp.persist(path).map_err(|e| e.error)?;
    sync(dir)?;
    Ok(WriteOutcome::Done)
}

/// Renames within a directory, durably, if `from` still has the `expected` content.
pub(super) fn rename(from: &Path, to: &Path, expected: Expected<'_>) -> io::Result<WriteOutcome> {
    if !expected.matches(from)? {
        return Ok(WriteOutcome::Conflict);
    }
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), sync)?;
    Ok(WriteOutcome::Done)
}

/// Removes a file, durably. No error if it does not exist.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| path.parent().map_or(Ok(()), sync)),
    }
}

/// Removes temporary files of killed processes. The caller holds the directory's lock ([`crate::lock`]), so that none of a
/// running one is removed.
pub(super) fn remove_stale(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            // one that stays does no harm
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_and_owner_stay_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10.conflist");
        assert_eq!(write(&path, b"one", 0o644, Expected::Absent).unwrap(), WriteOutcome::Done);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(write(&path, b"two", 0o644, Expected::Text("one")).unwrap(), WriteOutcome::Done);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        fs::write(dir.path().join(".podgate-killed.tmp"), "half").unwrap();
        remove_stale(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_another_program_has_written_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10.conflist");
        let gone = write(&path, b"made of read", 0o644, Expected::Text("read")).unwrap();
        assert_eq!((gone, path.exists()), (WriteOutcome::Conflict, false));
        fs::write(&path, "newer").unwrap();
        for expected in [Expected::Text("read"), Expected::Absent] {
            let outcome = write(&path, b"made of read", 0o644, expected).unwrap();
            assert_eq!(outcome, WriteOutcome::Conflict, "{expected:?}");
            assert_eq!(fs::read(&path).unwrap(), b"newer");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
        assert_eq!(write(&path, b"any", 0o644, Expected::Any).unwrap(), WriteOutcome::Done);
        assert_eq!(fs::read(&path).unwrap(), b"any");
    }
}
