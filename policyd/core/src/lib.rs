//! What a NetworkPolicy means, as a pure library: no I/O, no clock, no kernel.
//!
//! ```text
//!  Kubernetes objects --convert--> model --apply--> Index --update--> Compiled --plan--> Steps
//!                                            ^                            |
//!                                   local endpoints              judge / explain
//! ```
//!
//! The [`model`] is what podgate knows of the cluster, with every "missing or empty?" question of the
//! API already answered by [`convert`]. The [`index`] holds it. The engine of [`compile`] follows the index and the
//! node's endpoints and keeps the result up to date ([`tables`]): peer classes and one table per endpoint.
//! [`reach`] answers who reaches whom, and why, from the index, the services and the tables.
//! [`diff`] orders what has changed so that no flow allowed before and after is ever refused in between.
//! The specification is `docs/semantics.md`; the tests in `tests/semantics_*.rs` are named after its lines.

pub mod advise;
pub mod compile;
pub mod convert;
pub mod diff;
pub mod explain;
pub mod index;
mod labels;
pub mod limits;
pub mod model;
pub mod object;
pub mod prefixes;
pub mod reach;
pub mod scopes;
pub mod selector;
mod selector_index;
pub mod services;
pub mod tables;
