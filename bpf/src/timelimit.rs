//! A time limit for a whole process that holds whatever it waits for: a lock, a file system, a pipe without a reader.
//!
//! The kernel's timer needs no thread, which a plugin that runs for milliseconds could not afford.

use std::io;
use std::time::Duration;

/// Ends this process after `limit` (whole seconds, at least one): `answer` goes to stdout and the exit code is 1. A
/// second call replaces the first. Only for processes that may end at any point.
pub fn end_process_after(limit: Duration, answer: Vec<u8>) -> io::Result<()> {
    let seconds = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX).max(1);
    crate::sys::end_process_in(seconds, answer)
}
