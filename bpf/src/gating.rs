//! What everybody who stands a gate does alike: the plugin for a new pod, policyd for one that runs already.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::handshake::EndpointRef;
use crate::{Gate, Result};

/// A number that no other registration has: random, so that no state is needed; 0 means none. It tells
/// registrations apart and keeps nothing secret, so the standard library's randomly keyed hash does
/// (in a static glibc binary the getrandom crate opens /dev/random, which may block early in a boot).
pub fn draw_owner() -> u32 {
    let draw = || RandomState::new().build_hasher().finish() as u32;
    std::iter::repeat_with(draw).find(|number| *number != 0).unwrap_or(1)
}

impl Gate {
    /// Detaches, then unregisters: as long as the registration is there, whoever repeats this finds what is left.
    /// An interface that is registered anew is left alone; one that is not there is fine.
    pub fn take_away(&self, endpoint: EndpointRef) -> Result<()> {
        let EndpointRef { ifindex, owner } = endpoint;
        if self.maps.registration(ifindex)?.is_some_and(|found| found.owner != owner) {
            // between reading and now the ifindex has got another pod; that gate is not ours to take
            tracing::warn!(ifindex, "interface is registered anew: left alone");
            return Ok(());
        }
        self.detach(ifindex)?;
        self.maps.unregister(ifindex)
    }
}
