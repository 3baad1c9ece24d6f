//! Delays between retries that double up to a limit.

use std::time::Duration;

/// The next delay of a series that doubles from its minimum to its maximum.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The delay before the next attempt; the one after it is twice as long.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.max);
        delay
    }

    /// The same, random between half of it and the whole, so that nodes that lost one server together do not return to it
    /// together.
    pub(crate) fn next_jittered(&mut self) -> Duration {
        self.next_delay().mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Starts the series again, after a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum_until_reset() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(5));
        let delays: Vec<_> = (0..4).map(|_| backoff.next_delay()).collect();
        assert_eq!(delays, [1, 2, 4, 5].map(seconds));
        backoff.reset();
        let jittered = backoff.next_jittered();
        assert!(jittered >= seconds(1) / 2 && jittered <= seconds(1), "{jittered:?}");
        assert_eq!(backoff.next_delay(), seconds(2));
    }
}
