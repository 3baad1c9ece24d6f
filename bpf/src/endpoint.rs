//! What the plugin, for a new pod, and policyd, for a running one, do in the same way with an endpoint: draw its owner
//! number, and remove it.

use std::hash::{BuildHasher, Hasher, RandomState};

use podgate_contract::handshake::EndpointRef;

use crate::{Datapath, Result};

/// A number that no other registration has: random, so that no state is needed; 0 means none. It distinguishes
/// registrations and is no secret, so the standard library's randomly keyed hash is enough (in a static glibc binary
/// the getrandom crate opens /dev/random, which may block early in a boot).
pub fn draw_owner() -> u32 {
    let draw = || RandomState::new().build_hasher().finish() as u32;
    std::iter::repeat_with(draw).find(|number| *number != 0).unwrap_or(1)
}

impl Datapath {
    /// Detaches the programs, then removes the registration: if the process dies in between, the registration is still
    /// there and a second call finishes. An interface that has another registration by now is left alone; no interface
    /// or no registration is no error.
    pub fn remove_endpoint(&self, endpoint: EndpointRef) -> Result<()> {
        let EndpointRef { ifindex, owner } = endpoint;
        if self.maps.registration(ifindex)?.is_some_and(|found| found.owner != owner) {
            // the ifindex was reused for another pod since the caller read the registration
            tracing::warn!(ifindex, "interface has another registration by now: left alone");
            return Ok(());
        }
        self.detach(ifindex)?;
        self.maps.unregister(ifindex)
    }
}
