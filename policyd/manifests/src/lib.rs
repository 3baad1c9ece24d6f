//! Kubernetes manifests, from text to [`Object`](podgate_policy::object::Object)s.
//!
//! ```text
//!   file --text: YAML or JSON, bounded--> document: which kind? --parse: typed, converted--> Manifest
//! ```
//!
//! An object with a mistake is left out and reported; [`closed`] makes the substitute of such a policy. [`synthesize`]
//! adds what no control plane has written: the endpoints and addresses of services.

pub mod closed;
mod contents;
mod document;
pub mod interner;
pub mod manifest;
pub mod parse;
pub mod synthesize;
mod text;

pub mod unenforced;

pub use text::is_shallow;
