//! How long to wait before the API server is asked again.

use std::time::Duration;

/// The longest wait. Long enough that a thousand nodes do not keep a server down that is coming up, short
/// enough that a change is in force soon after it is back.
const LONGEST: Duration = Duration::from_secs(30);
/// The first wait, at most.
const FIRST: Duration = Duration::from_millis(500);
/// A watch that lived this long has ended for a reason of its own: what went wrong before is over.
const STABLE: Duration = Duration::from_secs(60);

/// Grows with every failure and is reset by stability alone, never by a single success: a server that
/// accepts the first request of a relist and refuses the second would be asked at full speed otherwise.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next wait: random between half of the present limit and the whole of it, so that nodes that lost one
    /// server together do not come back together.
    pub(super) fn wait(&mut self) -> Duration {
        let limit = self.next;
        self.next = (limit * 2).min(LONGEST);
        limit.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// A watch was open for `lived`.
    pub(super) fn watched(&mut self, lived: Duration) {
        if lived >= STABLE {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_up_to_a_limit_and_is_reset_by_stability_alone() {
        let mut backoff = Backoff::default();
        let mut limit = FIRST;
        for _ in 0..12 {
            let wait = backoff.wait();
            assert!(wait >= limit / 2 && wait <= limit, "{wait:?} of {limit:?}");
            limit = (limit * 2).min(LONGEST);
            backoff.watched(Duration::from_secs(2));
        }
        assert_eq!(limit, LONGEST);
        backoff.watched(STABLE);
        assert!(backoff.wait() <= FIRST);
    }
}
