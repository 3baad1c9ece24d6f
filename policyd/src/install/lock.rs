//! One at a time in a configuration directory: a watcher would put back what an uninstall takes out.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{InstallError, failed};

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Locks a directory; the kernel releases it when the process ends, however it ends. Waits at most `limit` for
/// another to end, who is then named `holder`; for ever without one.
pub(super) fn only_one(
    dir: &Path,
    limit: Option<Duration>,
    holder: &str,
) -> Result<Flock<File>, InstallError> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let opened = File::open(dir).map_err(failed(format!("open {}", dir.display())))?;
        match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) => {
                if limit.is_some_and(|limit| start.elapsed() >= limit) {
                    return Err(InstallError::Busy(format!("lock {}: {holder}", dir.display())));
                }
                if !told {
                    tracing::warn!(dir = %dir.display(), "{holder}: waiting for it to end");
                    told = true;
                }
                thread::sleep(LOOK_AGAIN);
            }
            Err((_, error)) => {
                return Err(failed(format!("lock {}", dir.display()))(error.into()));
            }
        }
    }
}
