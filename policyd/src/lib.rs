//! The daemon of a node: from policies to the kernel's maps.
//!
//! ```text
//!   sources --Update--> writer [ store -> index -> compile -> plan -> sync ] --steps--> maps <-- packets
//!                         ^   |
//!        cni.sock, links -+   +-- NodeState --> api.sock, metrics
//! ```
//!
//! One thread, the [`writer`], owns everything that decides what the maps hold; every other part sends it
//! [`writer::Message`]s and reads what it publishes in [`snapshot::NodeState`]. So there is one order of events, and
//! "is in force" is a fact that one place knows.

pub mod adopt;
pub mod api;
pub mod args;
pub mod audit;
mod backoff;
mod cannot_enforce;
pub mod check;
pub mod cni;
mod cni_cache;
#[cfg(test)]
mod crd;
pub mod daemon;
mod dir_watch;
#[cfg(test)]
mod docs;
pub mod encode;
pub mod events;
mod file_stamp;
pub mod install;
pub mod listen;
pub mod local_rules;
mod lock;
pub mod logging;
pub mod metrics;
pub mod node_addresses;
mod pod_key;
pub mod reconcile;
pub mod report;
pub mod run_error;
mod shares;
pub mod snapshot;
pub mod socket;
pub mod sources;
mod start;
pub mod sync;
pub mod ungated;
mod usage;
pub mod writer;
