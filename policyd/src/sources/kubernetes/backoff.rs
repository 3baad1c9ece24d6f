//! How long to wait before the next request to an API server that failed.

use std::time::Duration;

use crate::backoff::Backoff;

/// The largest delay. Long enough that a thousand nodes do not keep a server down that is coming up, short
/// enough that a change is in force soon after it is back.
const MAX_DELAY: Duration = Duration::from_secs(30);
const MIN_DELAY: Duration = Duration::from_millis(500);
/// A watch that lived this long did not end because of the earlier failures: these are over.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Grows with every failure and is reset only by a stable watch, not by a single success: otherwise a server that
/// accepts the first request of a relist and refuses the second would get requests without any delay.
#[derive(Debug)]
pub(super) struct WatchBackoff(Backoff);

impl Default for WatchBackoff {
    fn default() -> Self {
        Self(Backoff::new(MIN_DELAY, MAX_DELAY))
    }
}

impl WatchBackoff {
    /// The delay before the next request, with jitter.
    pub(super) fn wait(&mut self) -> Duration {
        self.0.next_jittered()
    }

    /// A watch was open for `lived`.
    pub(super) fn watched(&mut self, lived: Duration) {
        if lived >= STABLE_AFTER {
            self.0.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stable_watch_resets_it() {
        let mut backoff = WatchBackoff::default();
        for _ in 0..12 {
            backoff.wait();
            backoff.watched(Duration::from_secs(2));
        }
        assert!(backoff.wait() >= MAX_DELAY / 2);
        backoff.watched(STABLE_AFTER);
        assert!(backoff.wait() <= MIN_DELAY);
    }
}
