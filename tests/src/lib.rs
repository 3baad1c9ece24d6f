//! What the tests share: the oracle, random worlds, the packet builder.

pub mod cluster;
pub mod compiling;
pub mod fuzz;
pub mod go;
pub mod kernel;
pub mod mutator;
pub mod netlab;
pub mod oracle;
pub mod packet;
pub mod runtime;
pub mod sandbox;
pub mod world_loader;
pub mod worlds;
