//! Shared parts of the tests of the whole: the oracle, random worlds, and the surroundings of real programs, a runtime and a
//! cluster.

pub mod cluster;
pub mod compiling;
pub mod fuzz;
pub mod go;
pub mod kernel;
pub mod mutator;
pub mod netlab;
pub mod oracle;
pub mod runtime;
pub mod world_loader;
pub mod worlds;
