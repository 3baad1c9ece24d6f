//! Waiting, always bounded.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that should happen at once; generous, for a machine under load.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// What a condition found: `bool`, or a value that is there or not yet.
pub trait Outcome {
    /// What there is once the condition holds.
    type Value;

    /// `None` while it does not hold.
    fn value(self) -> Option<Self::Value>;
}

impl Outcome for bool {
    type Value = ();

    fn value(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn value(self) -> Option<T> {
        self
    }
}

/// Waits until the condition holds, [`WAIT_TIMEOUT`] at most. Panics with `what` otherwise.
#[track_caller]
pub fn eventually<O: Outcome>(what: &str, mut condition: impl FnMut() -> O) -> O::Value {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(value) = condition().value() {
            return value;
        }
        assert!(Instant::now() < deadline, "still not after {WAIT_TIMEOUT:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

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
