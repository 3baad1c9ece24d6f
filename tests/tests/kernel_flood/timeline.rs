//! What had to become of a packet, by when it was sent.

use std::time::{Duration, Instant};

/// So much before and after a change is not judged by one of the two states: a packet may be on its way so long.
const MARGIN: Duration = Duration::from_millis(500);

/// What the policies in force say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// It arrives.
    Pass,
    /// It does not.
    Drop,
    /// A change is on its way: either.
    Either,
}

/// What one stream's packets had to meet, from when on.
#[derive(Debug)]
pub(crate) struct Timeline {
    changes: Vec<(Instant, Expected)>,
}

impl Timeline {
    /// From now on, and before.
    pub(crate) fn new(expected: Expected) -> Self {
        Self { changes: vec![(Instant::now(), expected)] }
    }

    /// A change begins: what was and what will be said of the packets are allowed both, if they differ.
    pub(crate) fn begin(&mut self, allowed: bool) {
        if self.now() != Expected::of(allowed) {
            self.changes.push((Instant::now(), Expected::Either));
        }
    }

    /// The state is known to be in force.
    pub(crate) fn confirm(&mut self, allowed: bool) {
        if self.now() == Expected::Either {
            self.changes.push((Instant::now(), Expected::of(allowed)));
        }
    }

    fn now(&self) -> Expected {
        self.changes.last().map_or(Expected::Either, |(_, expected)| *expected)
    }

    /// What a packet had to meet whose sending began and ended then.
    pub(crate) fn expected(&self, begun: Instant, done: Instant) -> Expected {
        let (from, to) = (begun.checked_sub(MARGIN).unwrap_or(begun), done + MARGIN);
        let before = self.changes.iter().rposition(|(at, _)| *at <= from).unwrap_or(0);
        let met = self.changes[before..].iter().take_while(|(at, _)| *at <= to);
        let mut met = met.map(|(_, expected)| *expected);
        let first = met.next().unwrap_or_else(|| self.changes[0].1);
        if met.all(|next| next == first) { first } else { Expected::Either }
    }
}

impl Expected {
    fn of(allowed: bool) -> Self {
        if allowed { Self::Pass } else { Self::Drop }
    }
}
