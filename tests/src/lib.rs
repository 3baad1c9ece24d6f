//! What the tests share: the oracle, random worlds, the packet builder.

pub mod compiling;
pub mod oracle;
pub mod worlds;
