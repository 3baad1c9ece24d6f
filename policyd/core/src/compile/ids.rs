//! The number of a peer set, which peer sets, prefixes and classes refer to.

/// The number of a peer set. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerSetId(pub(crate) u32);
