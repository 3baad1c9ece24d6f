//! Files that nobody meets half written.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

/// Temporary files: no runtime reads this name, and the next start knows what is left of a killed one.
const PREFIX: &str = ".podgate-";
const SUFFIX: &str = ".tmp";

/// Puts `content` in the place of `path`: mode and owner are those of the file that was there, else `mode` and
/// one's own. A program that is being executed may be replaced like this; those who run it keep the old one.
pub(super) fn put(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
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
    temp.into_temp_path().persist(path).map_err(|e| e.error)?;
    sync(dir)
}

/// Renames within a directory, for good.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), sync)
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
        put(&path, b"one", 0o644).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        put(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        fs::write(dir.path().join(".podgate-killed.tmp"), "half").unwrap();
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
