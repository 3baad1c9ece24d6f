//! Unix sockets that only root may use.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {path}: {source}")]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// Listens on `path`, mode 0600. Replaces a socket that an earlier process left there.
///
/// The socket is bound under another name, restricted, then renamed: no client can connect before it is restricted, and
/// one that connects meanwhile finds the old socket or the new one.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let bind = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let new = path.with_extension(format!("new-{}", std::process::id()));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        fs::rename(&new, path)?;
        Ok(listener)
    };
    bind().map_err(|source| ListenError { path: path.to_owned(), source })
}
