//! Waiting, always bounded.

use std::thread;
use std::time::{Duration, Instant};

/// Asks every few milliseconds until `done`, at most `limit`; whether it came true.
pub fn until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// [`until`] for what gives a value.
pub fn until_some<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let mut found = None;
    until(limit, || {
        found = ask();
        found.is_some()
    });
    found
}
