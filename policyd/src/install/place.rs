//! Files that nobody meets half written.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Temporary files: no runtime reads this name, and the next start knows what is left of a killed one.
const PREFIX: &str = ".podgate-";
const SUFFIX: &str = ".tmp";

/// How often a file is looked at again that somebody has written meanwhile.
pub(super) const TRIES: u32 = 10;

/// Lets whoever writes a file come to its end: it may take several steps.
pub(super) fn pause() {
    thread::sleep(Duration::from_millis(30));
}

/// What a file that is put goes in the place of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Over<'a> {
    /// Whatever is there.
    Anything,
    /// Nothing: there was none.
    Nothing,
    /// This text, of which the new one was made.
    Text(&'a str),
}

impl Over<'_> {
    fn is_at(self, path: &Path) -> io::Result<bool> {
        let now = match (self, fs::read(path)) {
            (Self::Anything, _) => return Ok(true),
            (_, Err(e)) if e.kind() == io::ErrorKind::NotFound => None,
            (_, now) => Some(now?),
        };
        Ok(match self {
            Self::Text(was) => now.is_some_and(|now| now == was.as_bytes()),
            Self::Anything | Self::Nothing => now.is_none(),
        })
    }
}

/// What came of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Put {
    /// It is there, for good.
    Done,
    /// Somebody has written the file since it was read. Theirs is there, and wants to be looked at.
    Overtaken,
}

/// Puts `content` in the place of `path`, if that is still what `over` says: otherwise the other's write would be
/// lost, and perhaps never come again. Between the last look and the rename nothing waits for a disk. Mode and owner
/// are those of the file that was there, else `mode` and one's own. A program that is being executed may be replaced
/// like this; those who run it keep the old one.
pub(super) fn put(path: &Path, content: &[u8], mode: u32, over: Over<'_>) -> io::Result<Put> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temp = tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempfile_in(dir)?;
    temp.write_all(content)?;
    let file = temp.as_file();
    match fs::metadata(path) {
        Ok(old) => {
            // without the right to give files away they are root's then, as nearly always
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
    // a program that is open for writing cannot be executed: closed before it gets its name
    let temp = temp.into_temp_path();
    if !over.is_at(path)? {
        return Ok(Put::Overtaken);
    }
    temp.persist(path).map_err(|e| e.error)?;
    sync(dir)?;
    Ok(Put::Done)
}

/// Renames within a directory, for good, if `from` is still what `read` says.
pub(super) fn rename(from: &Path, to: &Path, read: Over<'_>) -> io::Result<Put> {
    if !read.is_at(from)? {
        return Ok(Put::Overtaken);
    }
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), sync)?;
    Ok(Put::Done)
}

/// Removes a file, for good; one that is not there is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| path.parent().map_or(Ok(()), sync)),
    }
}

/// Removes what killed ones have left. Nobody else may be at work here: see [`super::lock`].
pub(super) fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            // it does no harm where it is
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
        assert_eq!(put(&path, b"one", 0o644, Over::Nothing).unwrap(), Put::Done);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(put(&path, b"two", 0o644, Over::Text("one")).unwrap(), Put::Done);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        fs::write(dir.path().join(".podgate-killed.tmp"), "half").unwrap();
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_somebody_has_written_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10.conflist");
        let gone = put(&path, b"made of read", 0o644, Over::Text("read")).unwrap();
        assert_eq!((gone, path.exists()), (Put::Overtaken, false));
        fs::write(&path, "newer").unwrap();
        for over in [Over::Text("read"), Over::Nothing] {
            let put = put(&path, b"made of read", 0o644, over).unwrap();
            assert_eq!(put, Put::Overtaken, "{over:?}");
            assert_eq!(fs::read(&path).unwrap(), b"newer");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
        assert_eq!(put(&path, b"any", 0o644, Over::Anything).unwrap(), Put::Done);
        assert_eq!(fs::read(&path).unwrap(), b"any");
    }
}
