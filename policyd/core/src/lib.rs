//! What a NetworkPolicy means, as a pure library: no I/O, no clock, no kernel.
//!
//! ```text
//!  Kubernetes objects --convert--> model --apply--> Index --compile--> Compiled --diff--> Steps
//!                                            ^                            |
//!                                   local endpoints              judge / explain
//! ```
//!
//! The [`model`] is what podgate knows of the cluster, with every "missing or empty?" question of the
//! API already answered by [`convert`]. The [`index`] holds it. [`compile`] turns the index and the
//! node's endpoints into peer classes and one table per endpoint; [`diff`] orders the changes between
//! two such states so that no flow allowed by both is ever refused in between.
//! The specification is `semantics.md`; the tests in `tests/semantics_*.rs` are named after its lines.

mod blocks;
mod classes;
pub mod compile;
mod compiler;
pub mod convert;
pub mod diff;
pub mod explain;
pub mod index;
mod labels;
pub mod model;
mod peers;
pub mod selector;
pub mod services;
mod tables;
