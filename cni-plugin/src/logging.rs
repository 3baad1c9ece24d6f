//! The log: stderr or a file, never stdout.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use tracing::{Dispatch, warn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::spec::keys::Log;

/// Runs `body` with its log going where the configuration says. A log file that cannot be opened does not fail the
/// verb: the log goes to stderr instead and says why.
pub fn with<T>(log: &Log, body: impl FnOnce() -> T) -> T {
    let opened = log.file.as_ref().map(|path| (path, open(path)));
    let (writer, trouble) = match opened {
        None => (BoxMakeWriter::new(io::stderr), None),
        Some((_, Ok(file))) => (BoxMakeWriter::new(Mutex::new(file)), None),
        Some((path, Err(e))) => (BoxMakeWriter::new(io::stderr), Some((path, e))),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(log.level)
        .with_ansi(false)
        .with_target(false)
        .with_writer(writer)
        .finish();
    tracing::dispatcher::with_default(&Dispatch::new(subscriber), || {
        if let Some((path, error)) = trouble {
            warn!(file = %path.display(), %error, "open log file: using stderr");
        }
        body()
    })
}

/// Non-blocking: a FIFO without a reader fails to open and one that is full loses lines, instead of holding up the pod.
fn open(path: &std::path::Path) -> io::Result<File> {
    let flags = nix::libc::O_NONBLOCK;
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}
