//! What a NetworkPolicy means, as a pure library: no I/O, no clock, no kernel.
//!
//! ```text
//!  Kubernetes objects --convert--> model --apply--> Index --update--> Compiled --plan--> Steps
//!                                            ^                            |
//!                                   local endpoints              judge / explain
//! ```
//!
//! The [`model`] is what podgate knows of the cluster, with every "missing or empty?" question of the
//! API already answered by [`convert`]. The [`index`] holds it. The [`engine`] follows the index and the
//! node's endpoints, and keeps what they come to ([`compile`]): peer classes and one table per endpoint.
//! [`diff`] orders what has changed so that no flow allowed before and after is ever refused in between.
//! The specification is `semantics.md`; the tests in `tests/semantics_*.rs` are named after its lines.

pub mod compile;
pub mod convert;
pub mod diff;
pub mod engine;
pub mod explain;
pub mod index;
mod labels;
pub mod model;
pub mod prefixes;
pub mod selector;
mod selector_index;
pub mod services;
