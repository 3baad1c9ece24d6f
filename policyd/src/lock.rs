//! Exclusive locks on directories, each held by one process at a time.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How often it is checked whether the lock was released.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A directory cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds the lock and has not released it in time.
    #[error("lock {dir}: {holder}")]
    Held {
        /// The directory.
        dir: String,
        /// The process that holds it, and what to do.
        holder: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// "verb object".
        what: String,
        /// The cause.
        source: io::Error,
    },
}

/// Locks a directory. The kernel releases the lock when the process ends, even if it is killed. Waits at most `timeout` for
/// another process to release it, without a limit if that is `None`. `holder` describes that process.
pub(crate) fn acquire(
    dir: &Path,
    timeout: Option<Duration>,
    holder: &str,
) -> Result<Flock<File>, LockError> {
    let failed = |verb: &str, source: io::Error| LockError::Io {
        what: format!("{verb} {}", dir.display()),
        source,
    };
    let start = Instant::now();
    let mut logged = false;
    loop {
        let opened = File::open(dir).map_err(|e| failed("open", e))?;
        match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) => {
                if timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
                    let dir = dir.display().to_string();
                    return Err(LockError::Held { dir, holder: holder.to_owned() });
                }
                if !logged {
                    tracing::warn!(dir = %dir.display(), "{holder}: waiting for it to end");
                    logged = true;
                }
                thread::sleep(POLL_INTERVAL);
            }
            Err((_, error)) => return Err(failed("lock", error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = acquire(dir.path(), Some(Duration::ZERO), "the first").unwrap();
        let error = acquire(dir.path(), Some(Duration::ZERO), "the first runs").unwrap_err();
        let text = format!("lock {}: the first runs", dir.path().display());
        assert_eq!(error.to_string(), text);
        drop(lock);
        acquire(dir.path(), None, "nobody").unwrap();
        let missing = acquire(&dir.path().join("none"), None, "").unwrap_err();
        assert!(matches!(missing, LockError::Io { .. }), "{missing}");
    }
}
