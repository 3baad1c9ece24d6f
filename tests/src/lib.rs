//! What the tests share: the oracle, random worlds, the packet builder.

pub mod compiling;
pub mod kernel;
pub mod oracle;
pub mod packet;
pub mod runtime;
pub mod sandbox;
pub mod worlds;
