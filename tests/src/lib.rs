//! What the tests share: the oracle, random worlds, the packet builder.

pub mod compiling;
pub mod kernel;
pub mod netlab;
pub mod oracle;
pub mod packet;
pub mod runtime;
pub mod sandbox;
pub mod world_loader;
pub mod worlds;

// The daemon's own way into the maps, compiled from its source. A dependency on all of policyd would have every
// test of this crate wait for its API, its sources and its command.
#[path = "../../policyd/src/encode.rs"]
pub mod encode;
#[path = "../../policyd/src/sync/mod.rs"]
pub mod sync;
