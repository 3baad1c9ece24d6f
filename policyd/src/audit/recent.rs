//! The flows that were heard of lately, so that their later packets and their answers do not count as further flows.

use std::collections::HashMap;
use std::net::IpAddr;

/// How many flows one generation holds; two are kept.
const GENERATION: usize = 8192;

/// Packets of a flow after a pause of so many seconds count as another flow.
const PAUSE: f64 = 120.0;

/// The two ends of a flow, as its pod's gate sees them in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    /// The owner number of the pod's registration.
    pub(crate) owner: u32,
    /// Of the IP header.
    pub(crate) protocol: u8,
    /// The pod's address and port.
    pub(crate) pod: (IpAddr, u16),
    /// The peer's.
    pub(crate) peer: (IpAddr, u16),
}

/// What is remembered of a flow.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// In which row it was counted; `None` if in none.
    row: Option<usize>,
    /// When it was last heard of, in seconds.
    last: f64,
}

/// The flows, in two generations: once the younger is full, what only the older has is forgotten. So memory is bounded,
/// and a flow that goes on is not forgotten.
#[derive(Debug, Default)]
pub(super) struct Recent {
    young: HashMap<Ends, Heard>,
    old: HashMap<Ends, Heard>,
}

impl Recent {
    /// The row of a flow that is known, if it is one that goes on.
    pub(super) fn goes_on(&mut self, ends: &Ends, now: f64) -> Option<Option<usize>> {
        let heard = self.young.get(ends).or_else(|| self.old.get(ends)).copied()?;
        if now - heard.last > PAUSE {
            return None;
        }
        self.remember(*ends, heard.row, now);
        Some(heard.row)
    }

    /// Remembers that a flow was heard of.
    pub(super) fn remember(&mut self, ends: Ends, row: Option<usize>, now: f64) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&ends) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(ends, Heard { row, last: now });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    #[cfg(test)]
    pub(super) const MOST: usize = 2 * GENERATION;
}
